//! A restart that is told: what is for the peer waits for its next process, instead of being sealed for keys that are gone
//! with the one before.
//!
//! ```text
//! the node that is restarted                    its peer
//!   Pause (its index of the session) ---------->  packets for the node wait ([`crate::queue`])
//!   opens what was on its way, and ends
//!   the next process begins
//!   initiation --------------------------------->
//!   <----------------------------------- response
//!   keepalive ---------------------------------->  they go, in order, under the new keys
//! ```
//!
//! A Pause is good for the session that it names, and once: one that is sent again by somebody else does nothing. It is a
//! courtesy. If it is lost, or the peer does not know it, packets are lost until there are new keys, as at a crash; and if
//! the next process does not come, packets are sent as before after [`MAX_PAUSE`].

use std::time::{Duration, Instant};

use mesh_proto::disco::Message;

use super::Peer;
use crate::local::Local;

/// How long packets wait at most: longer than an agent takes to be started and to shake hands, also as a pod on a busy
/// machine; not so long that TCP had better be told of a loss.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// What waits until the peer is back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pause {
    /// This node's index of the session that the peer will not know.
    session: u32,
    until: Instant,
}

impl Peer {
    /// Tells the peer that this node is restarted, if there is traffic with it.
    pub(crate) fn announce_pause(&mut self, local: &mut Local, now: Instant) {
        let Some(session) = self.session.as_ref().and_then(|session| session.index()) else { return };
        if !self.is_active(now) {
            return;
        }
        if let Some(message) = self.seal(&Message::Pause { session }, local) {
            self.send_on_targets(&message, local, now);
        }
    }

    /// The peer is restarted, and this is its index of its present session.
    pub(super) fn handle_pause(&mut self, session: u32, now: Instant) {
        let Some((own, peers)) = self.session.as_ref().and_then(|session| session.indices()) else { return };
        let is_known = self.pause.is_some_and(|pause| pause.session == own);
        if peers == session && !is_known {
            tracing::debug!(peer = self.config.id.0, "the peer is restarted");
            self.pause = Some(Pause { session: own, until: now + MAX_PAUSE });
        }
    }

    /// Whether packets wait until the peer is back.
    pub(super) fn is_paused(&self, now: Instant) -> bool {
        let is_of =
            |pause: Pause| self.session.as_ref().and_then(|session| session.index()) == Some(pause.session);
        self.pause.is_some_and(|pause| now < pause.until && is_of(pause))
    }

    /// Returns when packets wait no longer.
    pub(super) fn pause_timeout(&self, now: Instant) -> Option<Instant> {
        self.pause.filter(|_| self.is_paused(now)).map(|pause| pause.until)
    }
}
