//! Path MTU: how large an inner packet may be on a path (the idea: RFC 8899).
//!
//! ```text
//!         in use                       largest size known
//!   due ---------> searching ------------------------------> known
//!    ^   full size first, then by halves        |
//!    +------------------------------------------+  RECHECK_INTERVAL while in use, news of the peer's, doubt
//! ```
//!
//! A probe is a padded disco Ping, exactly as long as a data message with a full inner packet of the size that is
//! tried. An answer shows that such packets pass; [`TRIES`] without an answer are taken to show that they don't. No
//! message of anybody else's has a say, so nobody can lie a path small. Probes are apart from those that find and check
//! paths: they are neither measured nor counted as lost.
//!
//! A path starts at [`FLOOR`]. That is a guess, which no sender is told, for its system would keep to it for ten minutes:
//! until the first search has ended, larger packets that may not be cut wait (`peer::oversize`). What was shown to pass is
//! kept while it is checked again, but for signs that packets get lost: then the floor holds at once, until a new search has
//! shown more.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use mesh_proto::disco::{self, TXID_LEN, TxId};

use super::{Health, Path, PathSet, Targets};
use crate::{event::PathAddress, session::OVERHEAD};

/// What every path is taken to carry: IPv6's minimum. Outside it needs up to 1376 bytes.
pub(crate) const FLOOR: u16 = 1280;

/// MTUs of links that there are: Ethernet, PPPoE, 6in4 and 464XLAT, DS-Lite, DS-Lite over PPPoE, GRE and IPsec and
/// mobile networks, WireGuard, and what others set by hand.
const LINKS: [u16; 10] = [1500, 1492, 1480, 1460, 1452, 1440, 1420, 1400, 1380, 1360];
/// Probes of one size that must be lost for it to be given up. At a loss of 5 %, a search goes wrong once in 8,000.
const TRIES: u8 = 3;
/// How long an answer is waited for, in round-trip times.
const WAIT_RTTS: u32 = 2;
/// And within these bounds: a busy peer answers late, a dead one never.
const WAIT: std::ops::RangeInclusive<Duration> = Duration::from_millis(300)..=Duration::from_secs(3);
/// A path in use is searched again this often, since what is on its way may change unseen (RFC 8899, section 5.1.1).
const RECHECK_INTERVAL: Duration = Duration::from_secs(600);
/// Hints lead to a new search at most this often.
const HINT_INTERVAL: Duration = Duration::from_secs(5);
/// Probes whose answers may still come.
const MAX_SENT: usize = 8;

/// What a Ping is longer by than its padding.
const PING_LEN: usize = disco::HEADER_LEN + 2 + TXID_LEN + disco::TAG_LEN;

/// What the paths carry on which a packet is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Carries {
    /// Largest inner packet.
    pub(crate) mtu: u16,
    /// Whether it was measured: else larger ones may pass, and nobody is told that they don't.
    pub(crate) is_measured: bool,
    /// Whether more is not to be expected soon.
    pub(crate) is_final: bool,
}

/// A probe to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MtuProbe {
    pub(crate) path: PathAddress,
    /// The inner packet's size that it stands for.
    pub(crate) size: u16,
}

/// What stands around an inner packet on a path, and how large one may be at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// The interface's MTU.
    pub(crate) most: u16,
    /// Bytes on the wire beyond the inner packet: IP, UDP, relay and WireGuard headers.
    pub(crate) overhead: u16,
}

/// The search for one path's MTU.
#[derive(Debug)]
pub(crate) struct PathMtu {
    mtu: u16,
    /// Whether a search has ended since the floor was but a guess.
    is_measured: bool,
    phase: Phase,
    /// Which sizes were tried, latest last.
    sent: VecDeque<(TxId, u16)>,
}

#[derive(Debug)]
enum Phase {
    /// To be searched as soon as the path is in use, or then.
    Due { from: Option<Instant> },
    /// Sizes of which nothing is known yet, ascending.
    Searching { open: Vec<u16>, tries: u8, next: Instant },
    /// Searched.
    Known { at: Instant },
}

impl Carries {
    /// What both carry.
    fn and(self, other: Self) -> Self {
        Self {
            mtu: self.mtu.min(other.mtu),
            is_measured: self.is_measured && other.is_measured,
            is_final: self.is_final && other.is_final,
        }
    }
}

impl Default for PathMtu {
    fn default() -> Self {
        Self { mtu: FLOOR, is_measured: false, phase: Phase::Due { from: None }, sent: VecDeque::new() }
    }
}

impl Bounds {
    /// Returns the sizes to search, ascending: the largest packets that links carry, and the interface's MTU.
    fn sizes(self) -> Vec<u16> {
        let fits = LINKS.iter().rev().map(|link| link.saturating_sub(self.overhead));
        let sizes = fits.filter(|size| (FLOOR + 1..self.most).contains(size));
        sizes.chain((self.most > FLOOR).then_some(self.most)).collect()
    }
}

impl PathMtu {
    /// Returns the largest inner packet.
    pub(crate) fn mtu(&self) -> u16 {
        self.mtu
    }

    fn is_final(&self) -> bool {
        matches!(self.phase, Phase::Known { .. })
    }

    /// Something may have changed on the way: what is known is kept, and checked.
    pub(crate) fn check(&mut self, now: Instant) {
        if let Phase::Known { at } = self.phase
            && now.saturating_duration_since(at) >= HINT_INTERVAL
        {
            self.phase = Phase::Due { from: None };
        }
    }

    /// Packets seem to get lost: nothing is known any more.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Nothing can be sent now.
    fn postpone(&mut self, until: Instant) {
        match &mut self.phase {
            Phase::Searching { next, .. } => *next = until,
            Phase::Due { .. } | Phase::Known { .. } => self.phase = Phase::Due { from: Some(until) },
        }
    }

    /// Returns when a probe is due, if the path is in use.
    fn poll_timeout(&self, now: Instant) -> Instant {
        match &self.phase {
            Phase::Due { from } => from.unwrap_or(now),
            Phase::Searching { next, .. } => *next,
            Phase::Known { at } => *at + RECHECK_INTERVAL,
        }
    }

    /// Returns the size to probe now; the path is in use.
    fn poll_probe(&mut self, bounds: Bounds, wait: Duration, now: Instant) -> Option<u16> {
        match &mut self.phase {
            Phase::Known { at } if now.saturating_duration_since(*at) < RECHECK_INTERVAL => return None,
            Phase::Due { from: Some(from) } if *from > now => return None,
            Phase::Due { .. } | Phase::Known { .. } => {
                self.phase = Phase::Searching { open: bounds.sizes(), tries: 0, next: now };
            }
            Phase::Searching { next, .. } if *next > now => return None,
            Phase::Searching { open, tries, .. } if *tries >= TRIES => {
                if let Some(size) = guess(open, self.mtu, bounds.most) {
                    self.on_lost(size);
                }
            }
            Phase::Searching { .. } => {}
        }
        let Phase::Searching { open, tries, next } = &mut self.phase else { return None };
        let size = guess(open, self.mtu, bounds.most);
        match size {
            Some(_) => {
                *tries += 1;
                *next = now + wait;
            }
            None => self.on_searched(now),
        }
        size
    }

    fn on_sent(&mut self, txid: TxId, size: u16) {
        if self.sent.len() >= MAX_SENT {
            self.sent.pop_front();
        }
        self.sent.push_back((txid, size));
    }

    /// Takes an answer; `false` when no probe has this id.
    fn on_pong(&mut self, txid: &TxId, now: Instant) -> bool {
        let Some(index) = self.sent.iter().position(|(id, _)| id == txid) else { return false };
        let Some((_, size)) = self.sent.remove(index) else { return false };
        self.mtu = self.mtu.max(size);
        if let Phase::Searching { open, tries, next } = &mut self.phase {
            open.retain(|other| *other > size);
            *tries = 0;
            *next = now;
            if open.is_empty() {
                self.on_searched(now);
            }
        }
        true
    }

    fn on_searched(&mut self, now: Instant) {
        self.phase = Phase::Known { at: now };
        self.is_measured = true;
    }

    /// A size does not pass.
    fn on_lost(&mut self, size: u16) {
        let Phase::Searching { open, tries, .. } = &mut self.phase else { return };
        open.retain(|other| *other < size);
        *tries = 0;
        if size <= self.mtu {
            self.mtu = FLOOR;
            self.is_measured = false;
        }
        self.sent.retain(|(_, sent)| *sent < size);
    }
}

/// Chooses the size to try among ascending ones: the largest of all, which most paths carry; then what was known
/// before; then the one in the middle.
fn guess(open: &[u16], known: u16, most: u16) -> Option<u16> {
    let largest = open.last().filter(|size| **size == most);
    let before = open.iter().find(|size| **size == known);
    largest.or(before).or_else(|| open.get(open.len() / 2)).copied()
}

/// Returns the padding of a Ping that is as long as a data message with an inner packet of this size.
pub(crate) fn padding(size: u16) -> u16 {
    let len = usize::from(size) + OVERHEAD - PING_LEN;
    u16::try_from(len).expect("a padding is shorter than its packet's size")
}

impl PathSet {
    /// Says what all paths carry on which packets are sent now, as far as they are what limits it.
    pub(crate) fn carries(&self, targets: Targets) -> Carries {
        let unknown = Carries { mtu: FLOOR, is_measured: false, is_final: false };
        let of = |address| match self.get(address) {
            // Where a peer without disco was heard: no probe is answered there. WireGuard knows the interface's MTU alone.
            Some(path) if path.is_direct() && !self.speaks_disco => {
                Carries { mtu: u16::MAX, is_measured: true, is_final: true }
            }
            Some(Path { mtu, .. }) => {
                Carries { mtu: mtu.mtu(), is_measured: mtu.is_measured, is_final: mtu.is_final() }
            }
            None => unknown,
        };
        match targets {
            Targets::None => unknown,
            Targets::One(path) => of(path),
            Targets::Two(first, second) => of(first).and(of(second)),
        }
    }

    /// Returns a path that was shown to carry packets of this size, and is there; the nearest of them.
    pub(crate) fn wide(&self, len: usize, now: Instant) -> Option<PathAddress> {
        let carries = |path: &&Path| path.mtu.is_measured && usize::from(path.mtu.mtu()) >= len;
        let wide = self.paths.iter().filter(|path| path.is_trusted(now)).filter(carries);
        wide.min_by_key(|path| (path.rank_rtt().is_none(), path.rank_rtt())).map(|path| path.address)
    }

    /// Returns the probes for path MTUs that are due. The caller sends them and tells by [`PathSet::on_mtu_probe_sent`].
    pub(crate) fn poll_mtu_probes(
        &mut self,
        bounds: impl Fn(PathAddress) -> Option<Bounds>,
        now: Instant,
    ) -> Vec<MtuProbe> {
        let mut due = Vec::new();
        for address in self.mtu_in_use(now).into_iter().flatten() {
            let Some(path) = self.get_mut(address) else { continue };
            let Some(bounds) = bounds(address) else {
                if path.mtu.poll_timeout(now) <= now {
                    path.mtu.postpone(now + *WAIT.end());
                }
                continue;
            };
            let wait = path.rtt.map_or(*WAIT.end(), |rtt| rtt * WAIT_RTTS + path.variation * 4);
            let wait = wait.clamp(*WAIT.start(), *WAIT.end());
            if let Some(size) = path.mtu.poll_probe(bounds, wait, now) {
                due.push(MtuProbe { path: address, size });
            }
        }
        due
    }

    /// Notes a probe that is sent.
    pub(crate) fn on_mtu_probe_sent(&mut self, probe: MtuProbe, txid: TxId) {
        if let Some(path) = self.get_mut(probe.path) {
            path.mtu.on_sent(txid, probe.size);
        }
    }

    /// Takes an answer that came on a path; `false` when it answers no probe of a path MTU.
    pub(super) fn on_mtu_pong(&mut self, from: PathAddress, txid: &TxId, now: Instant) -> bool {
        self.get_mut(from).is_some_and(|path| path.mtu.on_pong(txid, now))
    }

    /// Something is wrong with the peer, or was: what is known is checked.
    pub(crate) fn check_mtus(&mut self, now: Instant) {
        for path in &mut self.paths {
            path.mtu.check(now);
        }
    }

    /// The peer tells of news: the other end of what leads through a relay may have changed.
    pub(super) fn check_relay_mtus(&mut self, now: Instant) {
        for path in self.paths.iter_mut().filter(|path| !path.is_direct()) {
            path.mtu.check(now);
        }
    }

    /// Returns when a probe for a path MTU is due.
    pub(super) fn mtu_timeout(&self, now: Instant) -> Option<Instant> {
        let in_use = self.mtu_in_use(now).into_iter().flatten();
        in_use.filter_map(|address| Some(self.get(address)?.mtu.poll_timeout(now))).min()
    }

    /// Returns the paths whose MTU is wanted: the one that is used, and the relay that takes part when it is doubted.
    fn mtu_in_use(&self, now: Instant) -> [Option<PathAddress>; 2] {
        if !self.is_active(now) {
            return [None; 2];
        }
        let answers = |path: &&Path| path.health == Health::Alive && path.last_answer.is_some();
        let primary = self.primary().filter(answers).map(|path| path.address);
        let relay = self.best_relay().filter(answers).map(|path| path.address);
        [primary, relay.filter(|relay| Some(*relay) != primary)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECT_V4: Bounds = Bounds { most: 1420, overhead: 60 };
    const RELAYED_V6: Bounds = Bounds { most: 1420, overhead: 96 };
    const WAITED: Duration = Duration::from_millis(300);

    /// A search over a link, on a clock.
    struct Runner {
        mtu: PathMtu,
        now: Instant,
        bounds: Bounds,
        number: u8,
        /// Sizes of the probes that were sent.
        sent: Vec<u16>,
    }

    impl Runner {
        fn new(bounds: Bounds) -> Self {
            Self { mtu: PathMtu::default(), now: Instant::now(), bounds, number: 0, sent: Vec::new() }
        }

        /// Lets time pass on a link with this MTU; probes numbered by `loses` are lost.
        fn run(&mut self, link: u16, duration: Duration, loses: impl Fn(u8) -> bool) {
            let end = self.now + duration;
            while self.mtu.poll_timeout(self.now) <= end {
                self.now = self.mtu.poll_timeout(self.now).max(self.now);
                let Some(size) = self.mtu.poll_probe(self.bounds, WAITED, self.now) else { continue };
                self.number += 1;
                self.sent.push(size);
                self.mtu.on_sent([self.number; 12], size);
                if size + self.bounds.overhead <= link && !loses(self.number) {
                    assert!(self.mtu.on_pong(&[self.number; 12], self.now));
                }
            }
            self.now = end;
        }

        fn search(&mut self, link: u16) -> u16 {
            self.run(link, Duration::from_secs(20), |_| false);
            assert!(self.mtu.is_final());
            self.mtu.mtu()
        }
    }

    #[test]
    fn a_ping_is_as_long_as_the_packet_it_stands_for() {
        let padding = usize::from(padding(1420));
        let ping = disco::Message::Ping { txid: [0; 12], padding: 0 };
        let ping_len = disco::HEADER_LEN + ping.encode().len() + disco::TAG_LEN;
        assert_eq!(ping_len + padding, 1420 + OVERHEAD);
    }

    #[test]
    fn most_paths_take_one_probe() {
        let mut runner = Runner::new(DIRECT_V4);
        assert_eq!(runner.search(1500), 1420);
        assert_eq!(runner.sent, [1420]);
    }

    #[test]
    fn every_link_is_found() {
        for bounds in [DIRECT_V4, RELAYED_V6] {
            for link in LINKS {
                let mut runner = Runner::new(bounds);
                let fits = (link - bounds.overhead).clamp(FLOOR, bounds.most);
                assert_eq!(runner.search(link), fits, "link {link}, {bounds:?}");
                assert!(runner.sent.len() <= 5 * usize::from(TRIES), "{:?}", runner.sent);
            }
            // Between two sizes the smaller one is taken; below all of them, the floor.
            assert_eq!(Runner::new(bounds).search(1450), 1440 - bounds.overhead);
            assert_eq!(Runner::new(bounds).search(1300), FLOOR);
        }
    }

    #[test]
    fn an_interface_at_the_floor_is_not_searched_for() {
        let mut runner = Runner::new(Bounds { most: FLOOR, overhead: 60 });
        assert_eq!(runner.search(1500), FLOOR);
        assert!(runner.sent.is_empty());
    }

    #[test]
    fn a_lost_probe_is_sent_again() {
        let mut runner = Runner::new(DIRECT_V4);
        runner.run(1500, Duration::from_secs(5), |number| number < TRIES);
        assert_eq!((runner.mtu.mtu(), runner.sent), (1420, vec![1420; 3]));
    }

    #[test]
    fn what_is_known_is_checked_again_and_kept_meanwhile() {
        let mut runner = Runner::new(DIRECT_V4);
        runner.search(1500);
        runner.run(1500, RECHECK_INTERVAL, |_| false);
        assert_eq!(runner.sent, [1420, 1420]);
        // What is on the way gets smaller: until that is known, the old size stands.
        runner.mtu.check(runner.now);
        runner.run(1400, WAITED, |_| false);
        assert_eq!(runner.mtu.mtu(), 1420);
        runner.run(1400, WAITED * u32::from(TRIES), |_| false);
        assert!(runner.mtu.mtu() < 1420);
        assert_eq!(runner.search(1400), 1340);
        // And wider again.
        runner.mtu.check(runner.now);
        assert_eq!(runner.search(1500), 1420);
    }

    #[test]
    fn what_was_found_is_tried_first_after_the_largest() {
        let mut runner = Runner::new(DIRECT_V4);
        runner.search(1452);
        runner.sent.clear();
        runner.mtu.check(runner.now);
        assert_eq!(runner.search(1452), 1392);
        assert_eq!(runner.sent, [1420, 1420, 1420, 1392, 1400, 1400, 1400]);
    }

    #[test]
    fn doubt_falls_back_to_the_floor_at_once() {
        let mut runner = Runner::new(DIRECT_V4);
        runner.search(1500);
        runner.mtu.forget();
        assert_eq!(runner.mtu.mtu(), FLOOR);
        assert!(!runner.mtu.on_pong(&[1; 12], runner.now), "an answer from before counts no more");
        assert_eq!(runner.search(1500), 1420);
    }

    #[test]
    fn hints_without_end_cost_little() {
        let mut runner = Runner::new(DIRECT_V4);
        for _ in 0..200 {
            runner.mtu.check(runner.now);
            runner.run(1500, Duration::from_millis(100), |_| false);
        }
        assert!(runner.sent.len() <= 5, "{:?}", runner.sent);
    }
}
