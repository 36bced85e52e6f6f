//! The control connection: how this node learns of its peers and they of it.
//!
//! [`join()`] registers the node, once. [`spawn`] keeps a connection to the coordinator for as long as the
//! agent runs, and one to every relay that stands alone:
//!
//! ```text
//! names, cached addresses --> race: QUIC, byte pipe --> TLS: pinned key --> session --> ControlEvent
//!           ^                                                                |
//!           +- backoff: 0.1 to 0.3 s at first, then 1 to 30 s, or Retry-After <--+
//! ```
//!
//! A session in a byte pipe tries UDP again every minute and at every change of the network. Once that answers, the relay
//! channel is bound over UDP first, and then a session over QUIC takes over: nothing is lost on the way back.
//!
//! A wait that the coordinator did not ask for ends soon after a sign of it: its relay answers that it no longer knows
//! this node's channel, so it has been restarted.
//!
//! Nothing that is set on the [`ControlHandle`] is ever sent into a dead connection: it waits in the outbox,
//! the latest state alone, and is said again after every reconnect.

mod address;
mod attempt;
pub(crate) mod backoff;
mod book;
mod client;
mod clock;
mod dial;
#[cfg(test)]
mod fake;
mod join;
mod link;
mod namebook;
mod neighbours;
mod outbox;
mod race;
mod relays;
mod session;
mod shared;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod upgrade;
mod ways;
mod winners;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_engine::config::RelayConfig;
use mesh_proto::{
    candidate::Candidate,
    control::{InstanceId, Knock, Knocking, PeerState},
    netmap::{NetworkMap, NodeId, RelayId},
    route::{RouteAnswer, RouteOffer},
    status::CoordinatorStatus,
};
use tokio::sync::{broadcast, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use client::Client;
use outbox::Outbox;
use shared::Shared;

pub use address::{HostPort, InvalidHostPort, ResolveError};
pub(crate) use address::{is_public, resolve_all};
pub use attempt::{AttemptError, DialError};
pub(crate) use dial::bind_for;
pub use join::{JOIN_PATIENCE, JoinError, JoinRequest, JoinRight, join};
pub use link::LinkError;
pub use stream::{
    InvalidProxy, InvalidUrl, PipeError, Proxy, ProxyError, ProxyRules, StreamOptions, WebSocketUrl,
};

use crate::{
    identity::{Identity, Membership, StateDir},
    io::stream::RelayPipe,
    nat64::Nat64,
    os::NetworkId,
};

/// Events that wait for the receiver; the coordinator is read no further while they do.
const EVENTS_CAPACITY: usize = 64;

/// What a control connection is made with.
#[derive(Debug)]
pub struct ControlConfig {
    /// This node's keys.
    pub identity: Identity,
    /// The mesh that it belongs to.
    pub membership: Membership,
    /// Where the caches are.
    pub state_dir: StateDir,
    /// How byte pipes are made, where UDP is blocked.
    pub stream: StreamOptions,
    /// Servers elsewhere that answer STUN.
    pub stun: Vec<HostPort>,
    /// The way to IPv4 from a network without it.
    pub nat64: Nat64,
    /// Whether this node relays between its peers.
    pub lends: bool,
    /// The network that the host is in, if it is known yet.
    pub network: Option<NetworkId>,
    /// Which run of the agent this is.
    pub instance: InstanceId,
}

/// Whether another agent has this node's keys: its machine is a copy of this one, or this one of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Duplicate {
    /// None that is known.
    #[default]
    None,
    /// The other one came later, and was refused.
    Other,
    /// The other one was there first: this one was refused.
    This,
}

/// What the coordinator, a relay or the disk cache has to say.
#[derive(Debug)]
pub enum ControlEvent {
    /// The whole map, checked against what was known; the cached one comes first of all events.
    Map(Arc<NetworkMap>),
    /// News of these peers; from the disk cache they are said to be offline.
    PeerStates(Vec<PeerState>),
    /// A peer asks to be probed now.
    CallMeMaybe {
        /// The peer.
        from: NodeId,
        /// Its candidates.
        candidates: Vec<Candidate>,
    },
    /// A byte pipe to this relay is there, in place of its older one; a channel over it follows.
    RelayPipe(RelayId, RelayPipe),
    /// A channel is open at this relay; it replaces the relay's older one.
    RelayOpened(RelayConfig),
    /// These answer STUN, all of them.
    Observers(Vec<SocketAddr>),
    /// This node stands beside the coordinator, and may be reached from outside at this address.
    Guess(Option<IpAddr>),
    /// The coordinator has taken this agent for the node, or has not, because of another one.
    Admitted(Duplicate),
    /// The coordinator said that this node is not registered (any more): no more events.
    Fatal(String),
}

/// What the rest of the agent tells the coordinator. Nothing here waits.
#[derive(Debug, Clone)]
pub struct ControlHandle {
    shared: Arc<Shared>,
}

/// Starts the control connection and everything that belongs to it.
#[must_use]
pub fn spawn(
    config: ControlConfig,
    cancel: &CancellationToken,
    tracker: &TaskTracker,
) -> (ControlHandle, mpsc::Receiver<ControlEvent>) {
    let (events, receiver) = mpsc::channel(EVENTS_CAPACITY);
    let shared = Arc::new(Shared::default());
    shared.set_network(config.network.clone());
    let client = Client::new(config, shared.clone(), events, cancel, tracker);
    tracker.spawn(client.run());
    (ControlHandle { shared }, receiver)
}

impl ControlHandle {
    /// Tells the coordinator, now and after every reconnect, where this node may be reached.
    pub fn set_candidates(&self, candidates: Vec<Candidate>) {
        self.shared.update(|outbox| outbox.set_candidates(candidates));
    }

    /// Tells the coordinator, now and after every reconnect, which relay is nearest to this node.
    pub fn set_home(&self, home: Option<RelayId>) {
        self.shared.update(|outbox| outbox.set_home(home));
    }

    /// Asks a peer, through the coordinator, to probe this node.
    pub fn call_me_maybe(&self, to: NodeId, candidates: Vec<Candidate>) {
        self.shared.update(|outbox| outbox.call_me_maybe(to, candidates, Instant::now()));
    }

    /// Tells the coordinator, now and after every reconnect, which routes this node offers, all of them.
    pub fn set_routes(&self, offers: Vec<RouteOffer>) {
        self.shared.update(|outbox| outbox.set_routes(offers));
    }

    /// Returns what became of the routes that this node offers, as far as the coordinator has said.
    #[must_use]
    pub fn routes(&self) -> Vec<RouteAnswer> {
        self.shared.routes()
    }

    /// Opens a new channel at a relay that forgot the old one.
    pub fn reopen_relay(&self, relay: RelayId) {
        self.shared.update(|outbox| outbox.reopen_relay(relay));
    }

    /// Says in which network the host is, before [`Self::network_changed`].
    pub fn set_network(&self, network: Option<NetworkId>) {
        self.shared.set_network(network);
    }

    /// What this host sends gets no answers: UDP may be blocked. A connection over it is tested, and another way is taken
    /// if it does not answer.
    pub fn unanswered(&self) {
        self.shared.update(Outbox::unanswered);
    }

    /// The host's network changed: the connection is tested, and made again if it does not answer.
    pub fn network_changed(&self) {
        self.shared.update(Outbox::network_changed);
    }

    /// The host has slept for this long: connections are tested, and made again if they do not answer, or at once if
    /// nobody has waited for this node for so long.
    pub fn woke(&self, away: Duration) {
        self.shared.update(|outbox| outbox.woke(away));
    }

    /// Remembers that a peer answered at this address, for a start without a coordinator.
    pub fn path_worked(&self, peer: NodeId, address: SocketAddr) {
        self.shared.update(|outbox| outbox.path_worked(peer, address));
    }

    /// Asks the coordinator for knocks at an address of this host's; who knocks is told by [`Self::knockings`].
    pub fn knock(&self, knock: Knock) {
        self.shared.update(|outbox| outbox.knock(knock));
    }

    /// Returns a receiver of who knocks, from now on.
    #[must_use]
    pub fn knockings(&self) -> broadcast::Receiver<Knocking> {
        self.shared.knockings()
    }

    /// Returns the coordinator's clock less this host's, in milliseconds.
    #[must_use]
    pub fn clock_offset_ms(&self) -> Option<f64> {
        self.shared.clock_offset_ms()
    }

    /// Returns the proxy that the connection leads through, if there is one.
    #[must_use]
    pub fn proxy(&self) -> Option<Proxy> {
        self.shared.proxy()
    }

    /// Describes the connection.
    #[must_use]
    pub fn status(&self) -> CoordinatorStatus {
        self.shared.status()
    }

    /// Returns the names of the relays in the map.
    #[must_use]
    pub fn relay_names(&self) -> BTreeMap<RelayId, String> {
        self.shared.relay_names()
    }
}
