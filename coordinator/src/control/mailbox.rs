//! What the hub has for one session alone: the latest of everything, so that it is bounded without losing news.
//!
//! A mailbox holds at most one call per peer, however slow its session is.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_proto::{
    candidate::Candidate,
    control::{Knock, Refusal},
    netmap::NodeId,
};
use tokio::sync::{Notify, watch};

/// Knocks that wait; what goes beyond is dropped, and asked for again.
const MAX_KNOCKS: usize = 8;

/// The mailbox of a session.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    mail: Mutex<Mail>,
    arrived: Notify,
    /// How often the session was asked whether its agent is there.
    asked: AtomicU64,
    /// What is known of the session.
    life: watch::Sender<Life>,
}

/// What is known of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Life {
    /// The last question that its agent has answered.
    answered: u64,
    /// It has ended.
    is_over: bool,
}

/// What was in a mailbox.
#[derive(Debug, Default)]
pub(super) struct Mail {
    /// The latest call of each peer that called.
    pub(super) calls: BTreeMap<NodeId, Vec<Candidate>>,
    /// Where the node is asked to knock.
    pub(super) knocks: Vec<Knock>,
    /// The node is to be asked whether it is there.
    pub(super) question: Option<u64>,
    /// The node is to be told that another one has its keys.
    pub(super) copied: bool,
    /// The session has to end.
    pub(super) end: Option<Refusal>,
}

impl Mailbox {
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

    pub(super) fn put_copied(&self) {
        self.put(|mail| mail.copied = true);
    }

    /// Asks the session's agent whether it is there, and waits for its answer, the session's end, or so long.
    pub(super) async fn is_alive(&self, patience: Duration) -> bool {
        let mut life = self.life.subscribe();
        let id = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        self.put(|mail| mail.question = Some(id));
        let known = life.wait_for(|life| life.is_over || life.answered >= id);
        match tokio::time::timeout(patience, known).await {
            Ok(Ok(life)) => !life.is_over,
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Notes that the agent has answered a question.
    pub(super) fn note_answer(&self, id: u64) {
        // Nobody answers what was not asked.
        let id = id.min(self.asked.load(Ordering::Relaxed));
        self.life.send_modify(|life| life.answered = life.answered.max(id));
    }

    /// Notes that the session has ended.
    pub(super) fn note_end(&self) {
        self.life.send_modify(|life| life.is_over = true);
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
        self.calls.is_empty()
            && self.knocks.is_empty()
            && self.question.is_none()
            && !self.copied
            && self.end.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_answers_is_alive_and_who_is_silent_or_gone_is_not() {
        let patience = Duration::from_secs(1);
        let mailbox = Arc::new(Mailbox::default());
        assert!(!mailbox.is_alive(patience).await, "silent");
        mailbox.note_answer(u64::MAX);
        assert!(!mailbox.is_alive(patience).await, "an answer before the question");
        let asking = tokio::spawn({
            let mailbox = mailbox.clone();
            async move { mailbox.is_alive(patience).await }
        });
        let question = loop {
            if let Some(question) = mailbox.take().await.question.filter(|question| *question == 3) {
                break question;
            }
        };
        mailbox.note_answer(question);
        assert!(asking.await.unwrap());
        mailbox.note_end();
        assert!(!mailbox.is_alive(patience).await, "gone");
    }

    #[tokio::test]
    async fn the_latest_call_of_a_peer_replaces_the_older() {
        let mailbox = Mailbox::default();
        for round in 0..1000_u16 {
            for id in 0..3 {
                let address = ([192, 0, 2, 1], round).into();
                let candidate = Candidate { address, kind: mesh_proto::candidate::CandidateKind::Host };
                mailbox.put_call(NodeId(id), vec![candidate]);
            }
        }
        let mail = mailbox.take().await;
        assert_eq!(mail.calls.len(), 3);
        assert!(mail.calls.values().all(|candidates| candidates[0].address.port() == 999));
        let pending = tokio::time::timeout(Duration::from_millis(5), mailbox.take()).await;
        assert!(pending.is_err());
    }
}
