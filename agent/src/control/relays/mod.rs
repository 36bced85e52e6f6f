//! Relays that stand alone: one task and one connection for each.
//!
//! The set of tasks follows the map ([`Relays::set`], idempotent).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::IpNet;
use mesh_proto::{
    key::KeyPin,
    netmap::{Relay, RelayId},
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ControlEvent, address::HostPort, namebook::NameBook, shared::Shared, stream::StreamOptions, ways::Place,
    winners::WinnerBook,
};
use crate::{identity::Identity, nat64::Nat64};

mod client;

use client::Client;

/// Orders that wait for a task; one of each kind says everything.
const ORDERS_CAPACITY: usize = 4;

/// The tasks.
pub(super) struct Relays {
    context: Context,
    running: BTreeMap<RelayId, Running>,
}

/// What all tasks need.
#[derive(Clone)]
pub(super) struct Context {
    /// This node's keys.
    pub(super) identity: Arc<Identity>,
    /// How byte pipes are made. A URL of the coordinator's leads to no relay.
    pub(super) proxy: StreamOptions,
    /// The way to IPv4 from a network without it.
    pub(super) nat64: Nat64,
    /// What is known of networks.
    pub(super) winners: WinnerBook,
    /// What is known of names.
    pub(super) names: NameBook,
    /// What is said to the coordinator.
    pub(super) shared: Arc<Shared>,
    /// What is said to the agent.
    pub(super) events: mpsc::Sender<ControlEvent>,
    /// Ends the tasks.
    pub(super) cancel: CancellationToken,
    /// Runs the tasks.
    pub(super) tracker: TaskTracker,
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
    Unanswered,
    /// The host has slept for this long.
    Woke(Duration),
}

impl Order {
    /// Whether all that has failed may succeed now.
    fn is_new_chance(self) -> bool {
        match self {
            Self::NetworkChanged | Self::Woke(_) => true,
            Self::Reopen | Self::Unanswered => false,
        }
    }
}

impl Relays {
    pub(super) fn new(context: Context) -> Self {
        Self { context, running: BTreeMap::new() }
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
            if !self.running.contains_key(&id) {
                let pin = KeyPin::of_spki(&key.to_spki());
                let names = HostPort::parse_all(&relay.addresses);
                self.start(relay.clone(), pin, Place { names, known: Vec::new(), mesh: mesh.to_vec() });
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
        self.running.values().for_each(|running| running.order(Order::NetworkChanged));
    }

    /// Tests every connection, or makes it again: the host has slept for this long.
    pub(super) fn woke(&self, away: Duration) {
        self.running.values().for_each(|running| running.order(Order::Woke(away)));
    }

    /// Tests every connection over UDP: nothing is answered.
    pub(super) fn unanswered(&self) {
        self.running.values().for_each(|running| running.order(Order::Unanswered));
    }

    fn start(&mut self, relay: Relay, pin: KeyPin, place: Place) {
        let (orders, receiver) = mpsc::channel(ORDERS_CAPACITY);
        let context = Context { cancel: self.context.cancel.child_token(), ..self.context.clone() };
        let cancel = context.cancel.clone();
        self.running.insert(relay.id, Running { relay: relay.clone(), orders, cancel });
        self.context.tracker.spawn(Client::new(context, relay, pin, place, receiver).run());
    }
}

impl Running {
    fn order(&self, order: Order) {
        // A task that has this many orders waiting tests and opens anyway.
        let _ = self.orders.try_send(order);
    }
}
