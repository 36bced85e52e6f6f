//! What the handle and the tasks share: the outbox, and what is known of the connection.
//!
//! The lock is held for moments, and never across an await.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use mesh_proto::{
    control::Knocking,
    netmap::RelayId,
    route::RouteAnswer,
    status::{ConnectionState, ControlTransport, CoordinatorStatus},
};
use tokio::sync::{Notify, broadcast};

use super::{
    link::{CarrierView, LinkView},
    outbox::Outbox,
    stream::Proxy,
};
use crate::os::NetworkId;

/// After this many failures in a row the coordinator is said to be offline.
const OFFLINE_AFTER: u32 = 3;

/// Answers of the coordinator's that wait for whoever asked for knocks; an older one says what a newer one does.
const KNOCKINGS: usize = 8;

/// The agent stops, or nobody listens to events any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gone;

/// What the handle and the tasks share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Tells the coordinator's task, and no other, that the outbox changed.
    changed: Notify,
    /// Who knocks, as the coordinator says it.
    knockings: broadcast::Sender<Knocking>,
}

/// What is known of the connection to the coordinator.
#[derive(Debug, Default)]
pub(super) enum LinkState {
    /// It was never up and has never failed.
    #[default]
    Starting,
    /// It is up.
    Connected(LinkView),
    /// It is not up.
    Down {
        /// Where it was.
        address: Option<SocketAddr>,
        /// Why.
        error: String,
        /// How often in a row.
        failures: u32,
    },
}

#[derive(Debug, Default)]
struct State {
    outbox: Outbox,
    link: LinkState,
    /// Why the latest map of the coordinator is not the one that is used.
    rejection: Option<String>,
    relay_names: BTreeMap<RelayId, String>,
    network: Option<NetworkId>,
    routes: Vec<RouteAnswer>,
}

impl Default for Shared {
    fn default() -> Self {
        let (knockings, _) = broadcast::channel(KNOCKINGS);
        Self { state: Mutex::default(), changed: Notify::default(), knockings }
    }
}

impl Shared {
    /// Changes the outbox, and wakes the task that empties it.
    pub(super) fn update(&self, change: impl FnOnce(&mut Outbox)) {
        change(&mut self.lock().outbox);
        self.changed.notify_one();
    }

    /// Takes from the outbox.
    pub(super) fn with_outbox<T>(&self, take: impl FnOnce(&mut Outbox) -> T) -> T {
        take(&mut self.lock().outbox)
    }

    /// Waits until the outbox changed. Cancel-safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Says what became of the connection.
    pub(super) fn set_link(&self, link: LinkState) {
        self.lock().link = link;
    }

    /// Says why the coordinator's latest map was not taken over, or that it was.
    pub(super) fn set_rejection(&self, rejection: Option<String>) {
        self.lock().rejection = rejection;
    }

    /// Says in which network the host is.
    pub(super) fn set_network(&self, network: Option<NetworkId>) {
        self.lock().network = network;
    }

    /// Returns in which network the host is.
    pub(super) fn network(&self) -> Option<NetworkId> {
        self.lock().network.clone()
    }

    /// Says what became of the routes that this node offers.
    pub(super) fn set_routes(&self, routes: Vec<RouteAnswer>) {
        self.lock().routes = routes;
    }

    /// Returns what became of the routes that this node offers.
    pub(super) fn routes(&self) -> Vec<RouteAnswer> {
        self.lock().routes.clone()
    }

    /// Says what the relays are called.
    pub(super) fn set_relay_names(&self, names: BTreeMap<RelayId, String>) {
        self.lock().relay_names = names;
    }

    /// Returns what the relays are called.
    pub(super) fn relay_names(&self) -> BTreeMap<RelayId, String> {
        self.lock().relay_names.clone()
    }

    /// Describes the connection.
    pub(super) fn status(&self) -> CoordinatorStatus {
        let down = CoordinatorStatus {
            state: ConnectionState::Connecting,
            address: None,
            transport: None,
            rtt_ms: None,
            error: None,
            outer_certificate: None,
        };
        let state = self.lock();
        match &state.link {
            LinkState::Starting => down,
            LinkState::Connected(link) => {
                let (address, transport, rtt, outer_certificate) = match &link.carrier {
                    CarrierView::Quic(connection) => {
                        let rtt = Some(connection.rtt());
                        (connection.remote_address(), ControlTransport::Quic, rtt, None)
                    }
                    CarrierView::Pipe { remote, rtt, certificate, proxy: _ } => {
                        (*remote, ControlTransport::Websocket, rtt.get(), certificate.clone())
                    }
                };
                CoordinatorStatus {
                    state: ConnectionState::Connected,
                    address: Some(address.to_string()),
                    transport: Some(transport),
                    rtt_ms: rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
                    error: state.rejection.clone(),
                    outer_certificate,
                }
            }
            LinkState::Down { address, error, failures } => CoordinatorStatus {
                address: address.map(|address| address.to_string()),
                state: match *failures < OFFLINE_AFTER {
                    true => ConnectionState::Connecting,
                    false => ConnectionState::Offline,
                },
                error: Some(error.clone()),
                ..down
            },
        }
    }

    /// Returns the coordinator's clock less this host's, in milliseconds.
    pub(super) fn clock_offset_ms(&self) -> Option<f64> {
        match &self.lock().link {
            LinkState::Connected(link) => link.clock.offset_ms(),
            LinkState::Starting | LinkState::Down { .. } => None,
        }
    }

    /// Returns the proxy that the connection leads through.
    pub(super) fn proxy(&self) -> Option<Proxy> {
        match &self.lock().link {
            LinkState::Connected(LinkView { carrier: CarrierView::Pipe { proxy, .. }, .. }) => proxy.clone(),
            LinkState::Connected(_) | LinkState::Starting | LinkState::Down { .. } => None,
        }
    }

    /// Passes on who knocks.
    pub(super) fn set_knocking(&self, knocking: Knocking) {
        // Nobody may be waiting for it any more.
        let _ = self.knockings.send(knocking);
    }

    /// Returns a receiver of who knocks from now on.
    pub(super) fn knockings(&self) -> broadcast::Receiver<Knocking> {
        self.knockings.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
