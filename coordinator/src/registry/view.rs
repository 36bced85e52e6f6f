//! The registry in memory: what maps are made of, and the latest changes.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use mesh_proto::{
    key::NodeKey,
    netmap::{Mesh, Node, NodeId, Relay, Version},
};

use super::{Change, ChangeKind, NodeRoutes, RegistryError, corrupt, draft::parse, keys, mapgen};
use crate::{
    shared::SharedList,
    store::{Event, Revision, Store},
};

/// How many changes are kept to bring returning nodes up to date; who was away for longer gets a whole map.
const MAX_CHANGES: usize = 4096;

/// A view that one task writes and everybody reads.
#[derive(Clone)]
pub(super) struct SharedView(Arc<RwLock<View>>);

/// The nodes, relays and mesh at one revision.
#[derive(Debug, Clone)]
pub(super) struct View {
    epoch: u64,
    revision: Revision,
    mesh: Mesh,
    nodes: BTreeMap<NodeId, Node>,
    /// The nodes as maps have them, once somebody has asked.
    peers: OnceLock<SharedList>,
    by_key: BTreeMap<NodeKey, NodeId>,
    /// The nodes that were removed, and when.
    removed: BTreeMap<NodeId, Revision>,
    relays: Vec<Relay>,
    routes: BTreeMap<NodeId, NodeRoutes>,
    changes: VecDeque<Change>,
    /// `changes` has everything after this revision.
    changes_after: Revision,
}

impl SharedView {
    pub(super) fn new(view: View) -> Self {
        Self(Arc::new(RwLock::new(view)))
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, View> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, View> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View {
    /// Makes a view without nodes.
    pub(super) fn new(epoch: u64, mesh: Mesh, revision: Revision) -> Self {
        Self {
            epoch,
            revision,
            mesh,
            nodes: BTreeMap::new(),
            peers: OnceLock::new(),
            by_key: BTreeMap::new(),
            removed: BTreeMap::new(),
            relays: Vec::new(),
            routes: BTreeMap::new(),
            changes: VecDeque::new(),
            changes_after: revision,
        }
    }

    /// Reads the whole store.
    pub(super) async fn load(store: &dyn Store) -> Result<Self, RegistryError> {
        let snapshot = store.range("").await?;
        let value = |key: &str| {
            let entry = snapshot.entries.iter().find(|entry| entry.key == key);
            entry.map(|entry| &entry.value[..]).ok_or_else(|| corrupt(key, "it is missing"))
        };
        let epoch = parse(keys::EPOCH, value(keys::EPOCH)?)?;
        let mesh = parse(keys::MESH, value(keys::MESH)?)?;
        let mut view = Self::new(epoch, mesh, snapshot.revision);
        for entry in &snapshot.entries {
            if entry.key.starts_with(keys::NODES) {
                view.set_node(parse(&entry.key, &entry.value)?);
            } else if entry.key.starts_with(keys::RELAYS) {
                view.set_relay(parse(&entry.key, &entry.value)?);
            } else if entry.key.starts_with(keys::ROUTES) {
                let routes = parse(&entry.key, &entry.value)?;
                view.routes.insert(node_of_routes(&entry.key)?, routes);
            } else if let Some(id) = keys::parse_removed_node(&entry.key) {
                view.removed.insert(id, entry.mod_revision);
            } else if entry.key.starts_with(keys::REMOVED_KEYS) {
                // Older programs wrote nothing else.
                view.removed.entry(parse(&entry.key, &entry.value)?).or_insert(entry.mod_revision);
            }
        }
        Ok(view)
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn version(&self) -> Version {
        self.version_at(self.revision)
    }

    pub(super) fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    pub(super) fn relays(&self) -> &[Relay] {
        &self.relays
    }

    pub(super) fn routes(&self, id: NodeId) -> Option<&NodeRoutes> {
        self.routes.get(&id)
    }

    pub(super) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub(super) fn node_by_key(&self, key: &NodeKey) -> Option<&Node> {
        self.node(*self.by_key.get(key)?)
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Returns what may be anybody's peers, as maps have it.
    pub(super) fn peers(&self) -> &SharedList {
        self.peers.get_or_init(|| mapgen::peers(self.nodes()))
    }

    pub(super) fn changes_since(&self, version: Version) -> Option<Vec<Change>> {
        let known =
            version.epoch == self.epoch && (self.changes_after.0..=self.revision.0).contains(&version.serial);
        known.then(|| {
            let newer = self.changes.partition_point(|change| change.version.serial <= version.serial);
            self.changes.range(newer..).cloned().collect()
        })
    }

    pub(super) fn removed_since(&self, version: Version) -> Vec<NodeId> {
        let is_later = |removed: &Revision| version.epoch == self.epoch && removed.0 > version.serial;
        self.removed.iter().filter(|(_, removed)| is_later(removed)).map(|(id, _)| *id).collect()
    }

    /// Follows the store to a revision and returns what changed in the map.
    pub(super) fn apply(
        &mut self,
        revision: Revision,
        events: &[Event],
    ) -> Result<Vec<Change>, RegistryError> {
        let mut changes = Vec::new();
        for event in events {
            if let Some(kind) = self.apply_event(event)? {
                changes.push(Change { version: self.version_at(event.revision), kind });
            }
        }
        self.revision = revision;
        self.remember(&changes);
        Ok(changes)
    }

    /// Remembers changes, all from revision `from` on, that the view shows already.
    pub(super) fn recall(&mut self, from: Revision, events: &[Event]) -> Result<(), RegistryError> {
        let mut past = Self { changes_after: Revision(from.0.saturating_sub(1)), ..self.clone() };
        let known: Vec<Event> =
            events.iter().filter(|event| event.revision <= self.revision).cloned().collect();
        past.apply(self.revision, &known)?;
        self.changes = past.changes;
        self.changes_after = past.changes_after;
        Ok(())
    }

    /// Jumps to a view that was read anew, and returns what that changed in the map.
    pub(super) fn replace(&mut self, next: Self) -> Vec<Change> {
        let version = next.version();
        let removed = self.nodes.keys().filter(|id| !next.nodes.contains_key(id));
        let set = next.nodes.values().filter(|node| self.nodes.get(&node.id) != Some(node));
        let relays = (self.relays != next.relays).then(|| ChangeKind::RelaysSet(next.relays.clone()));
        let routes = next.routes.iter().filter(|(id, routes)| self.routes.get(id) != Some(*routes));
        let kinds = removed
            .map(|id| ChangeKind::NodeRemoved(*id))
            .chain(set.map(|node| ChangeKind::NodeSet(node.clone())))
            .chain(relays)
            .chain(routes.map(|(id, _)| ChangeKind::RoutesSet(*id)));
        let changes = kinds.map(|kind| Change { version, kind }).collect();
        *self = next;
        changes
    }

    fn apply_event(&mut self, event: &Event) -> Result<Option<ChangeKind>, RegistryError> {
        let Event { key, value, revision } = event;
        Ok(match value {
            Some(value) if key.starts_with(keys::NODES) => {
                let node: Node = parse(key, value)?;
                self.set_node(node.clone());
                Some(ChangeKind::NodeSet(node))
            }
            None if key.starts_with(keys::NODES) => {
                let id = keys::parse_node(key).ok_or_else(|| corrupt(key, "it is not the key of a node"))?;
                self.remove_node(id);
                self.removed.insert(id, *revision);
                Some(ChangeKind::NodeRemoved(id))
            }
            Some(value) if key.starts_with(keys::RELAYS) => {
                self.set_relay(parse(key, value)?);
                Some(ChangeKind::RelaysSet(self.relays.clone()))
            }
            None if key.starts_with(keys::RELAYS) => {
                let id =
                    keys::parse_relay(key).ok_or_else(|| corrupt(key, "it is not the key of a relay"))?;
                self.relays.retain(|relay| relay.id != id);
                Some(ChangeKind::RelaysSet(self.relays.clone()))
            }
            Some(value) if key.starts_with(keys::ROUTES) => {
                let id = node_of_routes(key)?;
                self.routes.insert(id, parse(key, value)?);
                Some(ChangeKind::RoutesSet(id))
            }
            None if key.starts_with(keys::ROUTES) => {
                // They go with their node.
                self.routes.remove(&node_of_routes(key)?);
                None
            }
            Some(value) if key == keys::MESH => {
                // No delta carries this: who was there before needs a whole map.
                self.mesh = parse(key, value)?;
                self.changes.clear();
                self.changes_after = *revision;
                None
            }
            Some(_) | None => None,
        })
    }

    fn set_node(&mut self, node: Node) {
        self.peers.take();
        self.by_key.insert(node.node_key, node.id);
        self.nodes.insert(node.id, node);
    }

    fn remove_node(&mut self, id: NodeId) {
        self.peers.take();
        if let Some(node) = self.nodes.remove(&id) {
            self.by_key.remove(&node.node_key);
        }
    }

    fn set_relay(&mut self, relay: Relay) {
        self.relays.retain(|known| known.id != relay.id);
        self.relays.push(relay);
        self.relays.sort_by_key(|relay| relay.id);
    }

    fn remember(&mut self, changes: &[Change]) {
        self.changes.extend(changes.iter().cloned());
        while self.changes.len() > MAX_CHANGES {
            if let Some(forgotten) = self.changes.pop_front() {
                self.changes_after = Revision(forgotten.version.serial);
            }
        }
    }

    fn version_at(&self, revision: Revision) -> Version {
        Version { epoch: self.epoch, serial: revision.0 }
    }
}

fn node_of_routes(key: &str) -> Result<NodeId, RegistryError> {
    keys::parse_routes(key).ok_or_else(|| corrupt(key, "it is not the key of a node's routes"))
}
