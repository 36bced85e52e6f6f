//! Relays that stand alone: one task and one connection for each.
//!
//! The set of tasks follows the map ([`Relays::set`], idempotent). A task opens a channel, says so, and keeps
//! the connection so that it can open another one at once. It is cancel-safe: it owns nothing that lasts.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::IpNet;
use mesh_engine::config::{RelayCarrier, RelayConfig};
use mesh_proto::{
    control::{ClientMessage, RelayChannel, ServerMessage},
    key::KeyPin,
    netmap::{Relay, RelayId},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::{
    ControlEvent,
    address::HostPort,
    backoff::{self, Backoff},
    book::AddressBook,
    client::Gone,
    dial::{self, DIAL_TIMEOUT, Target},
    link::{Link, LinkError},
    shared::Shared,
    tls,
};
use crate::{identity::Identity, nat64::Nat64, netmap::KnownAddresses};

/// Orders that wait for a task; one of each kind says everything.
const ORDERS_CAPACITY: usize = 4;

/// The tasks.
pub(super) struct Relays {
    context: Context,
    tracker: TaskTracker,
    running: BTreeMap<RelayId, Running>,
}

#[derive(Clone)]
struct Context {
    identity: Arc<Identity>,
    shared: Arc<Shared>,
    events: mpsc::Sender<ControlEvent>,
    cancel: CancellationToken,
    nat64: Nat64,
}

struct Running {
    relay: Relay,
    orders: mpsc::Sender<Order>,
    cancel: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Reopen,
    NetworkChanged,
}

/// One task.
struct Client {
    context: Context,
    relay: Relay,
    target: Target,
    book: AddressBook,
    orders: mpsc::Receiver<Order>,
    backoff: Backoff,
}

impl Relays {
    pub(super) fn new(
        identity: Arc<Identity>,
        shared: Arc<Shared>,
        events: mpsc::Sender<ControlEvent>,
        nat64: Nat64,
        stop: (&CancellationToken, &TaskTracker),
    ) -> Self {
        let (cancel, tracker) = stop;
        let context = Context { identity, shared, events, cancel: cancel.clone(), nat64 };
        Self { context, tracker: tracker.clone(), running: BTreeMap::new() }
    }

    /// Makes the tasks those of the relays in the map that stand alone.
    pub(super) fn set(&mut self, relays: &[Relay], mesh: &[IpNet]) {
        let alone: BTreeMap<_, _> =
            relays.iter().filter_map(|relay| Some((relay.id, (relay, relay.key?)))).collect();
        self.running.retain(|id, running| {
            let stays = alone.get(id).is_some_and(|(relay, _)| **relay == running.relay);
            if !stays {
                running.cancel.cancel();
            }
            stays
        });
        for (id, (relay, key)) in alone {
            if !self.running.contains_key(&id)
                && let Ok(config) =
                    tls::client_config(&self.context.identity, KeyPin::of_spki(&key.to_spki()))
            {
                let names = HostPort::parse_all(&relay.addresses);
                let (known, mesh, nat64) = (Vec::new(), mesh.to_vec(), self.context.nat64.clone());
                let target = Target { config, names, known, mesh, nat64 };
                self.start(relay.clone(), target);
            }
        }
    }

    /// Opens a new channel; `false` if the relay does not stand alone.
    pub(super) fn reopen(&self, relay: RelayId) -> bool {
        let running = self.running.get(&relay);
        if let Some(running) = running {
            running.order(Order::Reopen);
        }
        running.is_some()
    }

    /// Tests every connection.
    pub(super) fn network_changed(&self) {
        for running in self.running.values() {
            running.order(Order::NetworkChanged);
        }
    }

    fn start(&mut self, relay: Relay, target: Target) {
        let (orders, receiver) = mpsc::channel(ORDERS_CAPACITY);
        let context = Context { cancel: self.context.cancel.child_token(), ..self.context.clone() };
        let cancel = context.cancel.clone();
        self.running.insert(relay.id, Running { relay: relay.clone(), orders, cancel });
        let client = Client {
            context,
            relay,
            target,
            book: AddressBook::new(Vec::new(), KnownAddresses::default()),
            orders: receiver,
            backoff: Backoff::default(),
        };
        self.tracker.spawn(client.run());
    }
}

impl Running {
    fn order(&self, order: Order) {
        // A task that has this many orders waiting tests and opens anyway.
        let _ = self.orders.try_send(order);
    }
}

impl Client {
    async fn run(mut self) {
        let cancel = self.context.cancel.clone();
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            Err(Gone) = self.stay_connected() => {}
        }
        self.forget();
    }

    async fn stay_connected(&mut self) -> Result<(), Gone> {
        loop {
            let wait = match dial::dial(&self.target, Instant::now() + DIAL_TIMEOUT).await {
                Ok(dialed) => {
                    let remote = dialed.connection.remote_address();
                    self.target.known = vec![self.context.nat64.meant(remote)];
                    self.book.handle_resolved(dialed.resolved.clone());
                    match Link::open(dialed).await {
                        Ok(link) => self.serve(link).await?,
                        Err(error) => self.handle_failure(&error),
                    }
                }
                Err(error) => {
                    self.forget();
                    self.handle_failure(&error)
                }
            };
            tokio::select! {
                biased;
                order = self.orders.recv() => {
                    if order.ok_or(Gone)? == Order::NetworkChanged {
                        self.backoff.reset();
                    }
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Uses a connection to its end, and returns how long to wait after it.
    async fn serve(&mut self, mut link: Link) -> Result<Duration, Gone> {
        let mut said = link.queue(&ClientMessage::RelayOpen);
        loop {
            if let Err(error) = said {
                return Ok(self.handle_failure(&error));
            }
            said = tokio::select! {
                biased;
                order = self.orders.recv() => match order.ok_or(Gone)? {
                    Order::Reopen => link.queue(&ClientMessage::RelayOpen).and_then(|()| link.test()),
                    Order::NetworkChanged => {
                        link.rebind().map_err(|_unreachable| LinkError::Silent).and_then(|()| link.test())
                    }
                },
                message = link.recv() => match message {
                    Ok(ServerMessage::RelayOpened(channel)) => {
                        self.backoff.reset();
                        self.handle_opened(&link, &channel).await?;
                        Ok(())
                    }
                    Ok(ServerMessage::Refused(refusal)) => {
                        debug!(relay = self.relay.id.0, %refusal, "the relay refuses");
                        let random = backoff::random();
                        return Ok(match refusal.retry_after_ms {
                            Some(asked) => self.backoff.next_wait_asked(Duration::from_millis(asked), random),
                            // It may not have heard of this node yet.
                            None => self.backoff.next_wait(random),
                        });
                    }
                    Ok(
                        ServerMessage::Welcome(_)
                        | ServerMessage::Joined { .. }
                        | ServerMessage::Map { .. }
                        | ServerMessage::Delta { .. }
                        | ServerMessage::PeerStates { .. }
                        | ServerMessage::CallMeMaybe { .. }
                        | ServerMessage::Pong { .. }
                        | ServerMessage::Unknown,
                    ) => Ok(()),
                    Err(error) => Err(error),
                },
            };
        }
    }

    async fn handle_opened(&self, link: &Link, channel: &RelayChannel) -> Result<(), Gone> {
        let (id, remote) = (self.relay.id, link.remote());
        let addresses = self.book.relay_addresses(&self.relay, remote, &self.target.mesh);
        let config = RelayConfig {
            id,
            carrier: RelayCarrier::Udp(addresses),
            channel: channel.channel,
            key: channel.key,
        };
        self.context.shared.update(|outbox| outbox.set_relay(id, remote));
        self.context.events.send(ControlEvent::RelayOpened(config)).await.map_err(|_closed| Gone)
    }

    fn handle_failure(&mut self, error: &dyn std::error::Error) -> Duration {
        debug!(relay = self.relay.id.0, %error, "the relay is not reached");
        self.backoff.next_wait(backoff::random())
    }

    fn forget(&self) {
        let id = self.relay.id;
        self.context.shared.update(|outbox| outbox.remove_relay(id));
    }
}
