//! A restart that is told: what is for the peer waits for its next process, instead of being sealed for keys that are gone
//! with the one before.
//!
//! ```text
//! the node that is restarted                    its peer
//!   Pause (the session's name) ---------------->  packets for the node wait ([`crate::queue`])
//!   opens what was on its way, and ends
//!   (its sockets are kept)  <-------- initiation  by then the process has ended that sent the Pause
//!   the next process begins
//!   response ----------------------------------->  they go, in order, under the new keys
//! ```
//!
//! The peer begins, so that a single way lies between the next process and the first packet for it. That one begins a
//! handshake, too, as it would after a crash, and takes what comes first.
//!
//! A Pause is good for sessions of the process that sent it. One that is sent again by somebody names a session from before
//! the first one came, and does nothing; one that was held back on its way does nothing either once the next process has
//! sent something, since that was sealed with newer keys than those that it names. It is a courtesy. If it is lost, or the
//! peer does not know it, packets are lost until there are new keys, as at a crash; and if the next process does not come,
//! packets are sent as before after [`MAX_PAUSE`].

use std::time::{Duration, Instant};

use mesh_proto::disco::Message;

use super::Peer;
use crate::{local::Local, session::SessionName};

/// How long packets wait at most: longer than an agent takes to be started and to shake hands, also as a pod on a busy
/// machine; not so long that TCP had better be told of a loss.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// What the end of a process may take longer than it said. The next one needs more than that to begin.
const ENDING: Duration = Duration::from_millis(20);

/// What the peer has said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pause {
    /// When: keys that were made before are gone with the process that made them.
    at: Instant,
    until: Instant,
    /// When the next process is to be met; `None` once it was tried.
    meets_at: Option<Instant>,
}

/// Whether this process is about to end: keys that it agreed on now would go with it.
#[derive(Debug, Default)]
pub(crate) struct Parting(Option<Instant>);

impl Parting {
    pub(crate) fn begin(&mut self, now: Instant) {
        self.0 = Some(now + MAX_PAUSE);
    }

    /// It is not, if it is still there after a while.
    pub(crate) fn is_on(&self, now: Instant) -> bool {
        self.0.is_some_and(|until| now < until)
    }
}

impl Peer {
    /// Tells the peer that this node is restarted, if there is traffic with it.
    pub(crate) fn announce_pause(&mut self, stays: Duration, local: &mut Local, now: Instant) {
        let Some(session) = self.session.as_ref().and_then(|session| session.name()) else { return };
        if !self.is_active(now) {
            return;
        }
        let stays = u16::try_from(stays.as_millis()).unwrap_or(u16::MAX);
        if let Some(message) = self.seal(&Message::Pause { session, stays }, local) {
            self.send_on_targets(&message, local, now);
        }
    }

    /// The peer is restarted, and will not know this session, nor any older one.
    pub(super) fn handle_pause(&mut self, session: SessionName, stays: Duration, now: Instant) {
        // Where both sides began at once there are two sessions, and each side may use another.
        let made = self.session.as_ref().and_then(|known| known.made_as(session, now));
        let is_news = made.is_some_and(|made| self.pause.is_none_or(|before| made > before.at));
        tracing::debug!(peer = self.config.id.0, is_news, "the peer is restarted");
        if is_news {
            // The Pause was half a round trip on its way, and so will be the initiation.
            let rtt = self.paths.primary().and_then(|path| path.rtt).unwrap_or_default();
            let meets_at = now + (stays + ENDING).saturating_sub(rtt);
            self.pause = Some(Pause { at: now, until: now + MAX_PAUSE, meets_at: Some(meets_at) });
        }
    }

    /// Sends an initiation that the next process will find.
    pub(super) fn meet_next_process(&mut self, local: &mut Local, now: Instant) {
        let due = |pause: &mut Pause| pause.meets_at.take_if(|at| *at <= now).is_some();
        if self.pause.as_mut().is_some_and(due) && self.is_paused(now) {
            self.initiate(local, now);
        }
    }

    /// Whether packets wait until the peer is back.
    pub(super) fn is_paused(&self, now: Instant) -> bool {
        let made = self.session.as_ref().and_then(|session| session.made_at());
        self.pause.is_some_and(|pause| now < pause.until && made.is_some_and(|made| made <= pause.at))
    }

    /// Returns when the next process is to be met, or packets wait no longer.
    pub(super) fn pause_timeout(&self, now: Instant) -> Option<Instant> {
        self.pause.filter(|_| self.is_paused(now)).map(|pause| pause.meets_at.unwrap_or(pause.until))
    }
}
