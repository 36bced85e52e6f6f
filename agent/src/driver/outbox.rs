//! Events on their way out of the driver: bounded, never blocking, the latest of each kind.
//!
//! An event replaces one that waits and says the same of the same thing (a path of one peer, a relay's state, this
//! node's candidates): the listener needs the latest only. So the outbox holds at most a few entries per peer and
//! relay; [`CAPACITY`] stands behind that, and what comes when it is full is dropped and logged.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use mesh_engine::event::Event;
use mesh_proto::netmap::{NodeId, RelayId};
use tokio::sync::Notify;

use super::DriverEvent;

/// Most events that wait: several kinds for each of a thousand peers.
const CAPACITY: usize = 4096;

/// Makes the two ends.
pub(super) fn outbox() -> (Outbox, Events) {
    let shared = Arc::new(Shared::default());
    (Outbox { shared: Arc::clone(&shared) }, Events { shared })
}

/// The drivers' end.
#[derive(Clone)]
pub(super) struct Outbox {
    shared: Arc<Shared>,
}

/// The listener's end.
pub struct Events {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<BTreeMap<Topic, DriverEvent>>,
    news: Notify,
}

/// What an event is about: of two with the same topic only the later matters. Its order is the order of delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Topic {
    Tun,
    Unanswered,
    Candidates,
    Home,
    NatLifetime,
    Relay(RelayId),
    CallMeMaybe(NodeId),
    Path(NodeId),
    Prefix(NodeId, IpNet),
    Pong(u64),
}

impl Outbox {
    /// Puts an event in, in place of one with the same topic.
    pub(super) fn push(&self, event: DriverEvent) {
        let topic = Topic::of(&event);
        let mut waiting = self.shared.lock();
        if waiting.len() >= CAPACITY && !waiting.contains_key(&topic) {
            tracing::warn!(?topic, "nobody listens to the driver: an event is dropped");
            return;
        }
        waiting.insert(topic, event);
        drop(waiting);
        self.shared.news.notify_one();
    }
}

impl Events {
    /// Takes the next event. Cancel-safe.
    pub async fn next(&mut self) -> DriverEvent {
        loop {
            if let Some((_, event)) = self.shared.lock().pop_first() {
                return event;
            }
            self.shared.news.notified().await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Topic, DriverEvent>> {
        // The map is whole after every statement, so a panic elsewhere has not broken it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Topic {
    fn of(event: &DriverEvent) -> Self {
        match event {
            DriverEvent::TunLost => Self::Tun,
            DriverEvent::Unanswered => Self::Unanswered,
            DriverEvent::Engine(event) => match event {
                Event::CandidatesChanged(_) => Self::Candidates,
                Event::CallMeMaybe { to, .. } => Self::CallMeMaybe(*to),
                Event::PathChanged { peer, .. } => Self::Path(*peer),
                Event::HomeChanged(_) => Self::Home,
                Event::NatLifetime(_) => Self::NatLifetime,
                Event::RelayUp(relay) | Event::RelayLost(relay) => Self::Relay(*relay),
                Event::PrefixRefused { peer, prefix, .. } => Self::Prefix(*peer, *prefix),
                Event::Pong { token, .. } => Self::Pong(*token),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(event: Event) -> DriverEvent {
        DriverEvent::Engine(event)
    }

    #[tokio::test]
    async fn the_latest_of_each_topic_is_delivered_once() {
        let (outbox, mut events) = outbox();
        outbox.push(engine(Event::RelayUp(RelayId(1))));
        outbox.push(engine(Event::PathChanged { peer: NodeId(7), path: None }));
        outbox.push(engine(Event::RelayLost(RelayId(1))));
        outbox.push(engine(Event::RelayUp(RelayId(2))));
        assert_eq!(events.next().await, engine(Event::RelayLost(RelayId(1))));
        assert_eq!(events.next().await, engine(Event::RelayUp(RelayId(2))));
        assert_eq!(events.next().await, engine(Event::PathChanged { peer: NodeId(7), path: None }));
        assert!(events.shared.lock().is_empty());
    }

    #[tokio::test]
    async fn a_flood_that_nobody_reads_is_bounded() {
        let (outbox, mut events) = outbox();
        for peer in 0..2 * CAPACITY as u32 {
            outbox.push(engine(Event::PathChanged { peer: NodeId(peer), path: None }));
        }
        assert_eq!(events.shared.lock().len(), CAPACITY);
        outbox.push(DriverEvent::TunLost);
        assert_eq!(events.next().await, engine(Event::PathChanged { peer: NodeId(0), path: None }));
    }
}
