//! What the hub has for one session: the latest of everything, so that it is bounded without losing news.
//!
//! A peer whose state changes ten times before the session comes to it is told of once. A mailbox therefore
//! holds at most one state and one call per peer, however slow its session is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_proto::{
    candidate::Candidate,
    control::{Knock, PeerState, Refusal},
    netmap::NodeId,
};
use tokio::sync::Notify;

/// Knocks that wait; what goes beyond is dropped, and asked for again.
const MAX_KNOCKS: usize = 8;

/// The mailbox of a session.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    mail: Mutex<Mail>,
    arrived: Notify,
}

/// What was in a mailbox.
#[derive(Debug, Default)]
pub(super) struct Mail {
    /// The latest state of each peer with news.
    pub(super) states: BTreeMap<NodeId, Arc<PeerState>>,
    /// The latest call of each peer that called.
    pub(super) calls: BTreeMap<NodeId, Vec<Candidate>>,
    /// Where the node is asked to knock.
    pub(super) knocks: Vec<Knock>,
    /// The session has to end.
    pub(super) end: Option<Refusal>,
}

impl Mailbox {
    pub(super) fn put_state(&self, state: Arc<PeerState>) {
        self.put(|mail| {
            mail.states.insert(state.id, state);
        });
    }

    pub(super) fn put_call(&self, from: NodeId, candidates: Vec<Candidate>) {
        self.put(|mail| {
            mail.calls.insert(from, candidates);
        });
    }

    pub(super) fn put_knock(&self, knock: Knock) {
        self.put(|mail| {
            if mail.knocks.len() < MAX_KNOCKS {
                mail.knocks.push(knock);
            }
        });
    }

    pub(super) fn put_end(&self, refusal: Refusal) {
        self.put(|mail| mail.end = Some(refusal));
    }

    /// Waits for mail and takes all of it. Cancel-safe.
    pub(super) async fn take(&self) -> Mail {
        loop {
            let mail = std::mem::take(&mut *self.lock());
            if !mail.is_empty() {
                return mail;
            }
            self.arrived.notified().await;
        }
    }

    fn put(&self, change: impl FnOnce(&mut Mail)) {
        change(&mut self.lock());
        self.arrived.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        // Nothing panics while it is held.
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.states.is_empty() && self.calls.is_empty() && self.knocks.is_empty() && self.end.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_latest_state_of_a_peer_replaces_the_older() {
        let mailbox = Mailbox::default();
        for round in 0..1000_u32 {
            for id in 0..3 {
                let online = round % 2 == 1;
                let state = PeerState {
                    id: NodeId(id),
                    online,
                    candidates: vec![],
                    relays: vec![],
                    home: None,
                    observed: None,
                };
                mailbox.put_state(Arc::new(state));
            }
        }
        let mail = mailbox.take().await;
        assert_eq!(mail.states.len(), 3);
        assert!(mail.states.values().all(|state| state.online));
        let pending = tokio::time::timeout(std::time::Duration::from_millis(5), mailbox.take()).await;
        assert!(pending.is_err());
    }
}
