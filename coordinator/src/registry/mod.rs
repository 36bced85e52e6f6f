//! What the coordinator knows of the mesh: nodes, join tokens, addresses, and every change of them.
//!
//! The truth is in the [`Store`], as JSON under these keys:
//!
//! ```text
//! meta/mesh            address ranges and the coordinator's names
//! meta/epoch           rises when the state is restored from a backup
//! meta/next-node       the id of the next node
//! nodes/<id>           a node
//! node-keys/<hex>      the id of the node with this node key
//! public-keys/<hex>    the id of the node with this WireGuard key
//! names/<name>         the id of the node with this name
//! addresses/<ipv4>     the id of the node with this address
//! removed-keys/<hex>   this node key was removed: older tokens do not admit it
//! removed-nodes/<id>   this node was removed: its node key
//! relays/<id>          a relay
//! routes/<id>          what a node offers beyond its addresses, and what became of it
//! meta/route-changes   rises with every change of routes
//! tokens/<id>          a join token: hash, expiry, uses left, tags
//! ```
//!
//! Every change is one transaction of the store that compares what it was decided on, so two coordinators on
//! one store cannot contradict each other: the loser decides again. What is read often, the map, comes from
//! a view of the store in memory that one task keeps up to date by watching the store; that task also
//! announces the changes, in order and after they were committed. A method that changes something returns
//! when the view has caught up with the change. The serial of a map is the revision of the store.

use std::{path::Path, sync::Arc};

use ipnet::{IpNet, Ipv4Net};
use mesh_proto::{
    control::frame::FrameError,
    key::{NodeKey, PublicKey},
    name::NodeName,
    netmap::{NetworkMap, Node, NodeId, Relay, Version},
    route::{RouteAnswer, RouteOffer},
    token::JoinToken,
};
use time::OffsetDateTime;
use tokio::sync::{Mutex, broadcast, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    draft::{Decision, Draft},
    error::corrupt,
    membership::Admission,
    routes::{NodeRoutes, Word},
    view::{SharedView, View},
};
pub use self::{
    epoch::begin_epoch,
    error::RegistryError,
    routes::{RouteEntry, RoutePolicy},
    tokens::TokenSpec,
};
use crate::{
    shared::SharedMessage,
    store::{Outcome, Revision, Snapshot, Store, sqlite::SqliteStore},
};

mod addresses;
mod draft;
mod epoch;
mod error;
mod follow;
mod keys;
pub mod mapgen;
mod membership;
mod relays;
mod routes;
#[cfg(test)]
mod tests;
mod tokens;
mod view;

/// How many changes a receiver of [`Registry::watch`] may fall behind before it is told that it lagged.
const WATCH_CAPACITY: usize = 1024;

/// How often a change that met another coordinator's change is decided again before giving up.
const MAX_ATTEMPTS: usize = 32;

/// What the coordinator's own settings say of the mesh.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// The range of IPv4 mesh addresses. It is fixed at the first start.
    pub ipv4: Ipv4Net,
    /// Names and addresses of the coordinator, `host:port`, in the order in which agents try them.
    pub coordinators: Vec<String>,
    /// The name of the relay inside the coordinator.
    pub relay_name: String,
    /// Which routes need no word of the operator.
    pub routes: RoutePolicy,
}

/// A change of the network map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The version that the change made.
    pub version: Version,
    /// What changed.
    pub kind: ChangeKind,
}

/// What a [`Change`] changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// A node is new, or not as it was.
    NodeSet(Node),
    /// A node was removed.
    NodeRemoved(NodeId),
    /// The relays are these.
    RelaysSet(Vec<Relay>),
    /// Something became of a node's routes; what is approved of them is in `NodeSet`, too.
    RoutesSet(NodeId),
}

/// A handle to the registry. Clones share it; dropping the last one closes the store.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    view: SharedView,
    changes: broadcast::Sender<Change>,
    /// Up to where the view follows the store.
    followed: watch::Receiver<Revision>,
    route_policy: RoutePolicy,
    /// Changes of this process wait for each other here instead of colliding in the store.
    writing: Mutex<()>,
    _stop_following: DropGuard,
}

impl Registry {
    /// Opens the registry of a state directory, making both at the first start.
    ///
    /// # Errors
    /// When the store cannot be opened or holds what this program does not understand, or when the options
    /// contradict it.
    pub async fn open(state_dir: &Path, options: MeshOptions) -> Result<Self, RegistryError> {
        Self::with_store(Arc::new(SqliteStore::open(state_dir).await?), options).await
    }

    /// Opens the registry of a store.
    ///
    /// # Errors
    /// As [`Registry::open`].
    pub async fn with_store(store: Arc<dyn Store>, options: MeshOptions) -> Result<Self, RegistryError> {
        let route_policy = options.routes.clone();
        change(&*store, &membership::SetOptions(options)).await?;
        let mut view = View::load(&*store).await?;
        follow::recall(&*store, &mut view).await?;
        let view = SharedView::new(view);
        let (changes, _) = broadcast::channel(WATCH_CAPACITY);
        let cancel = CancellationToken::new();
        let followed =
            follow::start(Arc::clone(&store), view.clone(), changes.clone(), cancel.clone()).await?;
        let inner = Inner {
            store,
            view,
            changes,
            followed,
            route_policy,
            writing: Mutex::new(()),
            _stop_following: cancel.drop_guard(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Closes the store. Changes fail from now on; what was acknowledged is on disk in any case.
    ///
    /// # Errors
    /// When it is closed already.
    pub async fn close(&self) -> Result<(), RegistryError> {
        Ok(self.inner.store.close().await?)
    }

    /// Returns everything that the store holds, at one revision.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn export(&self) -> Result<Snapshot, RegistryError> {
        Ok(self.inner.store.range("").await?)
    }

    /// Registers a node: checks and consumes the token, gives it an id and addresses, and stores it, all in
    /// one transaction. A node key that is registered already gets the node that it has, and uses up nothing.
    ///
    /// # Errors
    /// When the token, the name or the WireGuard key is refused, or the store fails.
    pub async fn join(
        &self,
        node_key: NodeKey,
        token: JoinToken,
        name: NodeName,
        public_key: PublicKey,
    ) -> Result<Node, RegistryError> {
        let now = OffsetDateTime::now_utc();
        let admission = Admission::Token(token);
        self.change(&membership::Join { node_key, public_key, name, admission, now }).await
    }

    /// Registers a node that somebody else vouches for, under this very name. A node key that is registered already gets
    /// the node that it has.
    ///
    /// # Errors
    /// As [`Registry::join`]; and when this node key was removed.
    pub async fn join_vouched(
        &self,
        node_key: NodeKey,
        name: NodeName,
        public_key: PublicKey,
    ) -> Result<Node, RegistryError> {
        let now = OffsetDateTime::now_utc();
        let admission = Admission::Vouched;
        self.change(&membership::Join { node_key, public_key, name, admission, now }).await
    }

    /// Returns the node of a node key.
    #[must_use]
    pub fn node_of(&self, node_key: &NodeKey) -> Option<Node> {
        self.inner.view.read().node_by_key(node_key).cloned()
    }

    /// Finds the registered node that connects. A WireGuard key that is not the stored one replaces it.
    ///
    /// # Errors
    /// When the node key is not registered, the WireGuard key is another node's, or the store fails.
    pub async fn connect(&self, node_key: NodeKey, public_key: PublicKey) -> Result<NodeId, RegistryError> {
        if let Some(node) = self.inner.view.read().node_by_key(&node_key)
            && node.public_key == public_key
        {
            return Ok(node.id);
        }
        self.change(&membership::Connect { node_key, public_key }).await
    }

    /// Makes the map of one node. To miss no change, call [`Registry::watch`] before, and skip the changes
    /// whose version is not above the map's.
    ///
    /// # Errors
    /// When the node is not registered.
    pub async fn map_for(&self, id: NodeId) -> Result<NetworkMap, RegistryError> {
        mapgen::map(&self.inner.view.read(), id).ok_or(RegistryError::NotRegistered)
    }

    /// Makes the message with the map of one node, and returns the map's version. Most of the message is shared with those
    /// of other nodes.
    ///
    /// # Errors
    /// When the node is not registered; inside, when the map is too long to be sent.
    pub(crate) fn map_message_for(
        &self,
        id: NodeId,
    ) -> Result<(Version, Result<SharedMessage, FrameError>), RegistryError> {
        let view = self.inner.view.read();
        let message = mapgen::message(&view, id).ok_or(RegistryError::NotRegistered)?;
        Ok((view.version(), message))
    }

    /// Returns the version that [`Registry::map_for`] would give now.
    #[must_use]
    pub fn version(&self) -> Version {
        self.inner.view.read().version()
    }

    /// Returns the changes after a version, oldest first; `None` when they are not known any more, or the
    /// version is of another epoch or of the future: the node needs a whole map then.
    ///
    /// # Errors
    /// None at present: the changes are kept in memory.
    pub async fn changes_since(&self, version: Version) -> Result<Option<Vec<Change>>, RegistryError> {
        Ok(self.inner.view.read().changes_since(version))
    }

    /// Returns the nodes that were removed after a version of this epoch, however long ago that was.
    #[must_use]
    pub fn removed_since(&self, version: Version) -> Vec<NodeId> {
        self.inner.view.read().removed_since(version)
    }

    /// Returns the changes from now on, in order. A receiver that lags must send whole maps.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// When the specification makes no sense, or the store fails.
    pub async fn create_token(&self, spec: TokenSpec) -> Result<JoinToken, RegistryError> {
        spec.check()?;
        let token = tokens::generate()?;
        self.change(&tokens::Create { token: token.clone(), spec, now: OffsetDateTime::now_utc() }).await?;
        Ok(token)
    }

    /// Returns all nodes, by ascending id.
    ///
    /// # Errors
    /// None at present: the nodes are kept in memory.
    pub async fn nodes(&self) -> Result<Vec<Node>, RegistryError> {
        Ok(self.inner.view.read().nodes().cloned().collect())
    }

    /// Removes a node. Its id is never used again, and its node key is admitted again only by a token that
    /// is made after this.
    ///
    /// # Errors
    /// When there is no node of this name, or the store fails.
    pub async fn remove_node(&self, name: &NodeName) -> Result<NodeId, RegistryError> {
        self.change(&membership::Remove(name.clone())).await
    }

    /// Renames a node.
    ///
    /// # Errors
    /// When there is no node of this name, the new name is taken, or the store fails.
    pub async fn rename_node(&self, name: &NodeName, to: NodeName) -> Result<Node, RegistryError> {
        self.change(&membership::Rename { from: name.clone(), to }).await
    }

    /// Puts a relay that stands alone into the map, at these addresses. Its id follows from its node's.
    ///
    /// # Errors
    /// When the node is not registered or did not join as a relay, or the store fails.
    pub async fn set_relay(&self, node: NodeId, addresses: Vec<String>) -> Result<(), RegistryError> {
        self.change(&relays::Set { node, addresses }).await
    }

    /// Takes over which routes a node offers, all of them.
    ///
    /// # Errors
    /// When the node is not registered, or the store fails.
    pub async fn advertise(&self, node: NodeId, offers: Vec<RouteOffer>) -> Result<(), RegistryError> {
        // What most nodes say at every connect.
        if offers.is_empty() && self.inner.view.read().routes(node).is_none() {
            return Ok(());
        }
        let policy = self.inner.route_policy.clone();
        self.change(&routes::Advertise { node, offers, policy }).await
    }

    /// Returns what became of the routes that a node offers.
    #[must_use]
    pub fn route_answers(&self, node: NodeId) -> Vec<RouteAnswer> {
        self.inner.view.read().routes(node).map(NodeRoutes::answers).unwrap_or_default()
    }

    /// Returns all routes that were offered or spoken of, by node and prefix.
    #[must_use]
    pub fn routes(&self) -> Vec<RouteEntry> {
        let view = self.inner.view.read();
        let of =
            |node: &Node| view.routes(node.id).map(|routes| routes.entries(&node.name)).unwrap_or_default();
        view.nodes().flat_map(of).collect()
    }

    /// Approves a route of a node, whether the node offers it already or not.
    ///
    /// # Errors
    /// When there is no node of this name, or the store fails. What comes of it is in the answer: another node may
    /// have the prefix.
    pub async fn approve_route(&self, node: &NodeName, prefix: IpNet) -> Result<RouteEntry, RegistryError> {
        self.change(&routes::Judge { node: node.clone(), prefix, word: Word::Approve }).await
    }

    /// Revokes a route of a node; policy does not approve it again, but the operator may.
    ///
    /// # Errors
    /// When there is no node of this name, or the store fails.
    pub async fn revoke_route(&self, node: &NodeName, prefix: IpNet) -> Result<RouteEntry, RegistryError> {
        self.change(&routes::Judge { node: node.clone(), prefix, word: Word::Revoke }).await
    }

    /// Decides and commits one change, and waits until the view shows it.
    async fn change<D: Decision>(&self, decision: &D) -> Result<D::Output, RegistryError> {
        let _turn = self.inner.writing.lock().await;
        let (revision, output) = change(&*self.inner.store, decision).await?;
        let mut followed = self.inner.followed.clone();
        followed.wait_for(|at| *at >= revision).await.map_err(|_| RegistryError::Stopped)?;
        Ok(output)
    }
}

/// Decides a change again and again until it could be committed.
async fn change<D: Decision>(
    store: &dyn Store,
    decision: &D,
) -> Result<(Revision, D::Output), RegistryError> {
    for _ in 0..MAX_ATTEMPTS {
        let mut draft = Draft::new(store);
        let output = decision.decide(&mut draft).await?;
        match store.commit(draft.into_transaction()).await? {
            Outcome::Committed(revision) => return Ok((revision, output)),
            Outcome::Conflict => {}
        }
    }
    Err(RegistryError::Contended)
}
