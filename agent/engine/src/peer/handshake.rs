//! A peer's session: when it is made, kept and dropped.

use std::time::{Duration, Instant};

use super::Peer;
use crate::{
    drops::DropReason,
    event::PathAddress,
    local::Local,
    session::{Due, Handshake, Initiation, REJECT_AFTER_TIME, REKEY_TIMEOUT, Session},
};

/// How long a peer may probe this node without a session between them: longer than the handshake that comes with the
/// first probes takes, shorter than the interval between probes of a path with traffic.
const REVIVE_AFTER: Duration = Duration::from_millis(500);
/// Probes that are farther apart only keep a hole open.
const REVIVE_WITHIN: Duration = Duration::from_secs(3);
/// An initiation that is older than one before it, but comes so soon after a handshake, was only overtaken on its way.
const OVERTAKEN_WITHIN: Duration = REKEY_TIMEOUT;
/// Initiations that are too old have this node begin a handshake of its own at most this often: longer than an attempt
/// lasts, so that recordings of them cost little.
const CALL_BACK_INTERVAL: Duration = Duration::from_secs(120);

impl Peer {
    /// Makes a session with a peer that probes this node, and has done so for [`REVIVE_AFTER`] without one.
    ///
    /// Only a path with traffic is probed again and again, so the peer sends on a session that this node has lost: it
    /// was restarted. The peer itself would notice after 15 s only.
    pub(super) fn revive_session(&mut self, local: &mut Local, now: Instant) {
        if self.session.is_some() {
            self.probed_without_session = None;
            return;
        }
        let is_old = |first: &Instant| now.saturating_duration_since(*first) > REVIVE_WITHIN;
        self.probed_without_session.take_if(|first| is_old(first));
        let first = *self.probed_without_session.get_or_insert(now);
        if now.saturating_duration_since(first) >= REVIVE_AFTER {
            self.probed_without_session = None;
            self.ensure_session(local, now);
        }
    }

    /// The host has slept for as long as the engine's clock has not seen: keys whose time is over are dropped, and made
    /// anew at once where there was traffic.
    pub(crate) fn on_woke(&mut self, unseen: Duration, local: &mut Local, now: Instant) {
        let is_over =
            |session: &Session| session.age(now).is_none_or(|age| age + unseen >= REJECT_AFTER_TIME);
        if !self.session.as_ref().is_some_and(|session| is_over(session)) {
            return;
        }
        self.session = None;
        if self.is_active(now) {
            self.ensure_session(local, now);
        }
    }

    /// Makes a session with a peer with whom this node had one before it was started again.
    pub(crate) fn resume(&mut self, local: &mut Local, now: Instant) {
        self.note_traffic(local, now);
        self.ensure_session(local, now);
    }

    /// Makes sure that a session is there or being made.
    pub(super) fn ensure_session(&mut self, local: &mut Local, now: Instant) {
        let session = self.open_session(local, now);
        if !session.is_established(now) && !session.is_attempting() {
            self.initiate(local, now);
        }
    }

    /// Takes an initiation of the peer's, which authenticates.
    pub(crate) fn handle_initiation(
        &mut self,
        from: PathAddress,
        message: &[u8],
        initiation: &Initiation,
        local: &mut Local,
        now: Instant,
    ) {
        if local.parting.is_on(now) {
            return self.drops.count(DropReason::Parting);
        }
        if let Some(newest) = self.newest_initiation.filter(|newest| initiation.timestamp <= *newest) {
            self.drops.count(DropReason::Replayed);
            if initiation.timestamp < newest {
                self.call_back(local, now);
            }
            return;
        }
        if self.handle_handshake(from, message, local, now) {
            self.newest_initiation = Some(initiation.timestamp);
        }
    }

    /// The peer has sent an initiation that is older than one before it. Either somebody has sent a recording, or the peer was
    /// started again with a clock that has gone back: then none of its initiations would be taken until its clock is where
    /// it was, which may be never. A handshake that this node begins needs no clock of the peer's; it goes to where the
    /// peer is known to be, whoever sent this.
    fn call_back(&mut self, local: &mut Local, now: Instant) {
        let within =
            |at: Option<Instant>, time| at.is_some_and(|at| now.saturating_duration_since(at) < time);
        let is_attempting = self.session.as_ref().is_some_and(|session| session.is_attempting());
        if is_attempting
            || within(self.last_handshake, OVERTAKEN_WITHIN)
            || within(self.last_call_back, CALL_BACK_INTERVAL)
        {
            return;
        }
        tracing::debug!(peer = self.config.id.0, "an old initiation: beginning a handshake from this side");
        self.last_call_back = Some(now);
        self.initiate(local, now);
    }

    /// Takes a handshake message of the peer's; whether it was good.
    pub(crate) fn handle_handshake(
        &mut self,
        from: PathAddress,
        datagram: &[u8],
        local: &mut Local,
        now: Instant,
    ) -> bool {
        let source = local.limit_address(from);
        let mut reply = Vec::new();
        let session = self.open_session(local, now);
        let handled = session.handle_handshake(source, datagram, now, &mut reply);
        match handled {
            Ok(Handshake::Challenge) => {
                self.drops.count(DropReason::RateLimited);
                local.send(self.config.id, from, &reply);
            }
            Ok(Handshake::Cookie) => {}
            Ok(Handshake::Responded | Handshake::Established) => {
                tracing::trace!(peer = self.config.id.0, ?from, "handshake");
                self.last_handshake = Some(now);
                local.send(self.config.id, from, &reply);
                if let Some(relay) = self.paths.second_way(from, now) {
                    local.send(self.config.id, relay, &reply);
                }
                self.paths.on_wireguard(from, now);
                // The peer may have begun anew because large packets are all that this node sends, and get lost.
                self.paths.check_mtus(now);
                self.note_traffic(local, now);
                self.judge(local, now);
            }
            Err(reason) => {
                self.drops.count(reason);
                self.drop_useless_session();
            }
        }
        handled.is_ok_and(|handshake| handshake != Handshake::Challenge)
    }

    /// Does what the session's timers ask for.
    pub(crate) fn handle_session_timeout(&mut self, local: &mut Local, now: Instant) {
        let Self { queue, oversize, drops, .. } = self;
        for queue in [queue, oversize] {
            queue.expire(now, &mut local.budget, |reason| drops.count(reason));
        }
        self.meet_next_process(local, now);
        loop {
            let Some(session) = self.session.as_mut() else { return };
            match session.handle_timeout(now) {
                Due::Nothing => return,
                Due::Keepalive => self.send_keepalive(local, now),
                Due::Initiate { distress } => {
                    // Nobody answered: perhaps the relay no longer knows where this node is.
                    local.check_relays(now);
                    if distress {
                        self.paths.suspect_all(now);
                        self.judge(local, now);
                    }
                    self.initiate(local, now);
                }
                Due::GivenUp => self.drop_useless_session(),
                Due::Expired => {
                    self.session = None;
                }
            }
        }
    }

    /// Sends an initiation to wherever it may find the peer.
    pub(super) fn initiate(&mut self, local: &mut Local, now: Instant) {
        let jitter = local.random_fraction();
        let session = self.open_session(local, now);
        session.set_jitter(jitter);
        let Some(initiation) = session.initiate(now).filter(|_| !local.parting.is_on(now)) else { return };
        let retries = session.retries();
        let targets = self.paths.handshake_targets(retries, now);
        tracing::trace!(peer = self.config.id.0, retries, ?targets, "initiation");
        let sent = targets.into_iter().filter(|path| local.send(self.config.id, *path, &initiation)).count();
        self.unsent = sent == 0;
    }

    /// Sends an initiation that could not be sent before, now that there may be a way.
    pub(super) fn retry_unsent(&mut self, local: &mut Local, now: Instant) {
        if std::mem::take(&mut self.unsent)
            && self.session.as_ref().is_some_and(|session| session.is_attempting())
        {
            self.initiate(local, now);
        }
    }

    fn open_session(&mut self, local: &Local, now: Instant) -> &mut Session {
        let (key, slot) = (self.config.public_key, self.slot);
        self.session.get_or_insert_with(|| Box::new(Session::new(&local.keys, &key, slot, now)))
    }

    /// Drops a session that has no keys and makes none.
    fn drop_useless_session(&mut self) {
        if self.session.as_ref().is_some_and(|session| !session.is_of_use()) {
            self.session = None;
        }
    }

    fn send_keepalive(&mut self, local: &mut Local, now: Instant) {
        let mut out = [0; crate::session::OVERHEAD];
        let Some(session) = self.session.as_mut() else { return };
        let Some(len) = session.seal(&[], &mut out, now) else { return };
        self.send_on_targets(&out[..len], local, now);
    }
}
