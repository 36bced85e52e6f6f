//! Holes that are kept open for a pair that talked a while ago: its next packet goes straight, not through a relay first.
//!
//! While there is traffic the primary path is probed every second. After that, for [`HOLD_TIME`], it is probed as often as
//! this network's NATs ask for ([`crate::netcheck::lifetime`]), and no more. The peer does the same for its own NAT, and
//! each answers the other: whoever's NAT is the more forgetful one sends, and the other one only answers.
//!
//! All pairs together have a small allowance ([`HOLD_RATE`]). A hole for which it does not suffice is let go, and so is one
//! from which nothing comes back: then the relay takes the next packet, as for any pair that was idle for longer.

use std::time::{Duration, Instant};

use super::Peer;
use crate::{
    event::PathAddress,
    local::Local,
    netcheck::lifetime::ASSUMED,
    path::{Health, Path},
    rate::Rate,
};

/// Holes are kept for this long after the last traffic: most pauses of people and of programs are shorter.
const HOLD_TIME: Duration = Duration::from_secs(600);
/// Bytes of a Ping and of its Pong, with their UDP and IP headers.
pub(crate) const EXCHANGE_BYTES: f64 = 300.0;
/// What all holes of a node may cost, in bytes per second: half of what a node may send at rest. With 20 s between two
/// probes that is seven peers, with 80 s it is twenty-seven.
pub(crate) const HOLD_RATE: Rate = Rate { per_second: 100.0, burst: 6_000.0 };
/// So many probes without an answer, and the hole is gone.
const MAX_UNANSWERED: u32 = 2;
/// The first of them is repeated after this long: not so soon that the peer takes it for traffic (see `revive_session`).
const RETRY: Duration = Duration::from_secs(4);

/// What is done about the hole to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Hold {
    /// There was traffic until now.
    #[default]
    Fresh,
    /// It is used again at this time.
    Due(Instant),
    /// It is not kept.
    LetGo,
}

impl Peer {
    /// Returns when [`Peer::handle_hold_timeout`] has something to do.
    pub(super) fn hold_timeout(&self) -> Option<Instant> {
        match self.hold {
            Hold::Due(at) => Some(at),
            Hold::Fresh | Hold::LetGo => None,
        }
    }

    /// Keeps the hole, if there is one and it is time.
    pub(super) fn handle_hold_timeout(&mut self, local: &mut Local, now: Instant) {
        if self.is_active(now) {
            self.hold = Hold::Fresh;
            return;
        }
        let Some(path) = self.held_path(now) else {
            self.hold = Hold::LetGo;
            return;
        };
        let (address, unanswered) = (path.address, path.unanswered);
        let used_until = path.last_probe.unwrap_or(now) + interval(local, address);
        self.hold = match self.hold {
            Hold::LetGo => return,
            Hold::Due(at) if at > now => return,
            Hold::Fresh => Hold::Due(used_until),
            Hold::Due(_) if unanswered == 0 && used_until > now => Hold::Due(used_until),
            Hold::Due(_) if unanswered >= MAX_UNANSWERED || !local.take_hold(now) => Hold::LetGo,
            Hold::Due(_) => {
                self.probe(address, local, now);
                Hold::Due(now + RETRY)
            }
        };
    }

    /// The peer has sent a Ping this way, and was answered: the mapping has been used.
    pub(super) fn note_held(&mut self, from: PathAddress, local: &Local, now: Instant) {
        if let Hold::Due(_) = self.hold
            && self.paths.primary().is_some_and(|path| path.address == from)
        {
            self.hold = Hold::Due(now + interval(local, from));
        }
    }

    /// Returns the path that is worth to be kept.
    fn held_path(&self, now: Instant) -> Option<&Path> {
        let lately = self.last_traffic.is_some_and(|at| now.saturating_duration_since(at) < HOLD_TIME);
        // In a local network there is nothing that forgets.
        let is_hole = |path: &&Path| path.is_direct() && !path.is_lan() && path.health == Health::Alive;
        self.paths.primary().filter(is_hole).filter(|_| lately)
    }
}

fn interval(local: &Local, path: PathAddress) -> Duration {
    let remote = path.remote().map(|remote| remote.ip());
    remote.map_or(ASSUMED, |remote| local.netcheck.lifetime.interval(remote))
}
