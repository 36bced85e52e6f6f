//! When paths are probed, and what the answers and other messages say of them.

use std::time::{Duration, Instant};

use mesh_proto::disco::TxId;

use super::{
    Health, Path, PathSet,
    select::Class,
    state::{PROBE_INTERVAL, SUSPECT_GRACE, SUSPECT_LIMIT},
};
use crate::event::PathAddress;

/// Probes of a hunt.
pub(super) const HUNT_PROBES: u32 = 7;
/// When a hunt's probes are sent, from its start. The first repetitions come quickly, since a first probe is often
/// lost to the other side's filter, and the second one passes.
const HUNT_STEPS: [Duration; HUNT_PROBES as usize] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
    Duration::from_millis(5000),
];
/// After its hunt a path is probed this often while there is traffic (Tailscale's upgrade interval).
const HUNT_INTERVAL: Duration = Duration::from_secs(60);
/// A Ping provokes one in return at most this often per path.
const ECHO_INTERVAL: Duration = Duration::from_millis(50);
/// A path on which messages keep coming is looked at again after this long.
const HEARD_INTERVAL: Duration = Duration::from_secs(1);

/// Returns the time from one of a hunt's probes to the next one, which is the `step`th.
fn hunt_gap(step: usize) -> Duration {
    match (HUNT_STEPS.get(step), step.checked_sub(1).and_then(|before| HUNT_STEPS.get(before))) {
        (Some(next), Some(before)) => *next - *before,
        _ => HUNT_INTERVAL,
    }
}

impl PathSet {
    /// A Ping of the peer's came on this path: it is probed back at once, unless it answers already or the peer is
    /// idle. (A Ping may be a recording, sent by anyone from anywhere; the Pong is all that it gets then.)
    pub(crate) fn on_ping(&mut self, from: PathAddress, now: Instant) {
        self.speaks_disco = true;
        // The Pong opens a NAT's way to the peer even where nothing else follows.
        if let Some(path) = self.get_mut(from) {
            path.on_called(now);
        }
        if !self.is_active(now) {
            return;
        }
        self.adopt(from, now);
        if let Some(path) = self.get_mut(from)
            && path.health != Health::Alive
            && path.last_probe.is_none_or(|at| now.saturating_duration_since(at) >= ECHO_INTERVAL)
        {
            path.next_probe = Some(now);
        }
    }

    /// A port that was probed has answered: the path is tried at once.
    pub(crate) fn on_hit(&mut self, from: PathAddress, now: Instant) {
        self.adopt(from, now);
        if let Some(path) = self.get_mut(from).filter(|path| path.health != Health::Alive) {
            path.next_probe = Some(now);
        }
    }

    /// An authentic WireGuard message came on this path. Returns whether that is news, which calls for judging.
    ///
    /// It does not move the primary path, which might be someone's who forwards a message; it calls for a probe.
    pub(crate) fn on_wireguard(&mut self, from: PathAddress, now: Instant) -> bool {
        let lately = |at: Instant| now.saturating_duration_since(at) < HEARD_INTERVAL;
        if self.last_heard.is_some_and(|(path, at)| path == from && lately(at)) {
            return false;
        }
        self.last_heard = Some((from, now));
        self.adopt(from, now);
        let is_primary = self.primary == Some(from);
        let is_new =
            |path: &Path| path.is_direct() && path.last_heard.is_none() && path.health != Health::Alive;
        let settled = self.since.is_some_and(|at| now.saturating_duration_since(at) >= HEARD_INTERVAL);
        let is_relayed = |path: &Path| !path.is_direct() && settled;
        if !is_primary && self.get(from).is_some_and(|path| is_new(path) || is_relayed(path)) {
            // The peer may have moved there, or doubts the primary path, which it may hear less of: until that answers
            // again, packets go elsewhere, too.
            self.suspect_primary(now);
        }
        let Some(path) = self.get_mut(from) else { return false };
        path.on_called(now);
        path.last_heard = Some(now);
        match path.health {
            // That a relay brings something proves that the peer is there.
            Health::Untried | Health::Dead if !path.is_direct() => path.health = Health::Alive,
            Health::Untried | Health::Alive | Health::Suspect { .. } | Health::Dead => {}
        }
        if !is_primary && path.is_direct() && path.health != Health::Alive {
            path.next_probe = Some(now);
        }
        true
    }

    /// Starts a hunt: paths in the local network are probed at once, others after `delay`.
    pub(crate) fn hunt(&mut self, now: Instant, delay: Duration) {
        for path in &mut self.paths {
            path.step = 0;
            let at = match path.class() {
                Class::Lan => now,
                Class::Internet if path.health != Health::Untried || !path.is_direct() => now,
                Class::Internet => now + delay,
            };
            path.next_probe = Some(path.next_probe.map_or(at, |next| next.min(at)));
        }
    }

    /// Probes what was never probed, without starting over with the others.
    pub(crate) fn hunt_new(&mut self, now: Instant) {
        for path in &mut self.paths {
            if path.health == Health::Untried && path.step == 0 && path.next_probe.is_none() {
                path.next_probe = Some(now);
            }
        }
    }

    /// Returns the paths to probe now; the caller makes the probes and tells by [`PathSet::on_probe_sent`].
    pub(crate) fn poll_probes(&mut self, now: Instant) -> Vec<PathAddress> {
        self.forget_abandoned(now);
        let active = self.is_active(now);
        let primary = self.primary;
        let primary_is_trusted = self.primary().is_some_and(|path| path.is_trusted(now));
        let mut due = Vec::new();
        if active && self.primary().is_some_and(Path::is_silent_relay) {
            // Before it is given up it shall be known who can take over.
            for path in self.paths.iter_mut().filter(|path| !path.is_direct()) {
                let rested =
                    path.last_probe.is_none_or(|at| now.saturating_duration_since(at) >= PROBE_INTERVAL);
                if rested && Some(path.address) != primary {
                    path.next_probe = Some(now);
                }
            }
        }
        for path in &mut self.paths {
            path.expire_probes(now);
            if path.next_probe.is_none_or(|at| at > now) {
                continue;
            }
            if !active {
                // The traffic has ended since this probe was planned.
                path.next_probe = None;
                continue;
            }
            let is_primary = primary == Some(path.address);
            path.step += 1;
            path.next_probe = if is_primary && path.is_doubted() {
                Some(now + hunt_gap(path.step).min(path.primary_interval()))
            } else if is_primary {
                Some(now + path.primary_interval())
            } else if !primary_is_trusted && path.health == Health::Alive {
                Some(now + PROBE_INTERVAL)
            } else if path.health == Health::Alive {
                Some(now + HUNT_INTERVAL)
            } else {
                Some(now + hunt_gap(path.step))
            };
            due.push(path.address);
        }
        due
    }

    /// Whether this is the primary path, leads straight to the peer, and owes an answer for longer than it should take.
    pub(crate) fn is_late(&self, path: PathAddress, now: Instant) -> bool {
        let owes = |path: &Path| {
            let waited = path.last_probe.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
            path.is_direct() && path.unanswered > 0 && waited > path.rtt.unwrap_or_default() * 2
        };
        self.primary == Some(path) && self.get(path).is_some_and(owes)
    }

    /// Notes a probe that is sent.
    pub(crate) fn on_probe_sent(&mut self, to: PathAddress, txid: TxId, now: Instant) {
        if let Some(path) = self.get_mut(to) {
            path.on_probe_sent(txid, now);
        }
    }

    /// Takes the answer to a probe, which came from `from`. Returns the path that was probed and its round-trip time.
    pub(crate) fn on_pong(
        &mut self,
        from: PathAddress,
        txid: &TxId,
        now: Instant,
    ) -> Option<(PathAddress, Duration)> {
        self.speaks_disco = true;
        if self.on_mtu_pong(from, txid, now) {
            return None;
        }
        let path = self.paths.iter_mut().find(|path| path.awaits(txid))?;
        if path.address != from {
            // Answered from elsewhere: that the probed address works both ways is not shown.
            self.adopt(from, now);
            return None;
        }
        let rtt = path.on_pong(txid, now)?;
        if let (true, Some(probed)) = (self.primary == Some(from), path.last_probe) {
            // There is no need to ask again soon.
            path.next_probe = Some(probed + PROBE_INTERVAL);
        }
        Some((from, rtt))
    }

    /// Returns when something is to be done: a probe, or doubt.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let probes = self.paths.iter().filter_map(|path| path.next_probe);
        let verdicts = self.paths.iter().filter_map(|path| match path.health {
            Health::Suspect { since } if self.is_active(now) => {
                let grace = since + SUSPECT_GRACE;
                Some(if grace > now { grace } else { since + SUSPECT_LIMIT })
            }
            Health::Alive if self.is_active(now) && Some(path.address) == self.primary => {
                path.last_answer.map(|at| at + path.trust())
            }
            Health::Untried | Health::Alive | Health::Suspect { .. } | Health::Dead => None,
        });
        probes.chain(verdicts.filter(|at| *at > now)).chain(self.mtu_timeout(now)).min()
    }
}
