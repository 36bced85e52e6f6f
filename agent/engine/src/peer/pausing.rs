//! A restart that is told: what is for the peer waits for its next process, instead of being sealed for keys that are gone
//! with the one before.
//!
//! ```text
//! the node that is restarted                    its peer
//!   Pause (the session's name) ---------------->  packets for the node wait ([`crate::queue`])
//!   opens what was on its way, and ends
//!   the next process begins
//!   initiation --------------------------------->
//!   <----------------------------------- response
//!   keepalive ---------------------------------->  they go, in order, under the new keys
//! ```
//!
//! A Pause is good for sessions of the process that sent it: one that is sent again by somebody names a session from before
//! the first one came, and does nothing. It is a courtesy. If it is lost, or the peer does not know it, packets are lost
//! until there are new keys, as at a crash; and if the next process does not come, packets are sent as before after
//! [`MAX_PAUSE`].

use std::time::{Duration, Instant};

use mesh_proto::disco::Message;

use super::Peer;
use crate::{local::Local, session::SessionName};

/// How long packets wait at most: longer than an agent takes to be started and to shake hands, also as a pod on a busy
/// machine; not so long that TCP had better be told of a loss.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// What the peer has said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pause {
    /// When: keys that were made before are gone with the process that made them.
    at: Instant,
    until: Instant,
}

impl Peer {
    /// Tells the peer that this node is restarted, if there is traffic with it.
    pub(crate) fn announce_pause(&mut self, local: &mut Local, now: Instant) {
        let Some(session) = self.session.as_ref().and_then(|session| session.name()) else { return };
        if !self.is_active(now) {
            return;
        }
        if let Some(message) = self.seal(&Message::Pause { session }, local) {
            self.send_on_targets(&message, local, now);
        }
    }

    /// The peer is restarted, and will not know this session, nor any older one.
    pub(super) fn handle_pause(&mut self, session: SessionName, now: Instant) {
        // Where both sides began at once there are two sessions, and each side may use another.
        let made = self.session.as_ref().and_then(|known| known.made_as(session, now));
        let is_news = made.is_some_and(|made| self.pause.is_none_or(|before| made > before.at));
        tracing::debug!(peer = self.config.id.0, is_news, "the peer is restarted");
        if is_news {
            self.pause = Some(Pause { at: now, until: now + MAX_PAUSE });
        }
    }

    /// Whether packets wait until the peer is back.
    pub(super) fn is_paused(&self, now: Instant) -> bool {
        let made = self.session.as_ref().and_then(|session| session.made_at());
        self.pause.is_some_and(|pause| now < pause.until && made.is_some_and(|made| made <= pause.at))
    }

    /// Returns when packets wait no longer.
    pub(super) fn pause_timeout(&self, now: Instant) -> Option<Instant> {
        self.pause.filter(|_| self.is_paused(now)).map(|pause| pause.until)
    }
}
