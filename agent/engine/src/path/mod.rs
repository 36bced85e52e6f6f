//! The paths to one peer: which are known, which are probed when, and which is used.
//!
//! ```text
//!            traffic, after none for ACTIVE_WINDOW: hunt
//!   idle  -------------------------------------------------->  active
//!    ^  no probes, no wakeups                                    |  primary probed every second, the others by the hunt
//!    +-----------------------------------------------------------+
//!                    no traffic for ACTIVE_WINDOW
//! ```
//!
//! A *hunt* probes every path that has not answered at `HUNT_STEPS` after its start, then once a minute while
//! there is traffic. It starts with traffic, and again with new candidates, a CallMeMaybe, or a change of network.
//!
//! While the peer is idle nothing is probed here; for some minutes its hole is kept by a few probes (`peer::holding`).
//! After that the NAT's mapping of a direct path may be gone. The primary path is kept, but it is not
//! *trusted*: packets go on it and through the relay until it answers, see `targets`. The same holds
//! for a path with traffic that has not answered for [`state::TRUST`], or a relayed one for less: there mostly is
//! another relay. If it stays silent and the relay answers, it is given up; the hunt goes on probing it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

mod candidates;
pub(crate) mod guess;
mod hunt;
pub(crate) mod mtu;
mod select;
mod state;
mod targets;
pub(crate) mod translation;
mod verdict;

pub(crate) use candidates::is_probable;
pub(crate) use state::{Health, Origin, Path};
pub(crate) use targets::Targets;

use self::{select::View, state::TRUST};
use crate::{event::PathAddress, snapshot::Decision};

/// Without traffic for this long, a peer is idle: below the 30 s after which common NATs forget a mapping, so that
/// one that was in use is still there for the first packets after a pause.
pub(crate) const ACTIVE_WINDOW: Duration = Duration::from_secs(20);

/// The paths to one peer.
#[derive(Debug, Default)]
pub(crate) struct PathSet {
    paths: Vec<Path>,
    primary: Option<PathAddress>,
    since: Option<Instant>,
    last_traffic: Option<Instant>,
    decisions: VecDeque<Decision>,
    /// Whether the peer has sent a disco message: if it never has, its silence means nothing.
    speaks_disco: bool,
    /// Where the last authentic WireGuard message came from, if not long ago.
    last_heard: Option<(PathAddress, Instant)>,
}

impl PathSet {
    /// Returns the primary path.
    pub(crate) fn primary(&self) -> Option<&Path> {
        self.primary.and_then(|address| self.get(address))
    }

    /// Returns since when the primary path is the primary path.
    pub(crate) fn primary_since(&self) -> Option<Instant> {
        self.since
    }

    /// Returns all paths.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Path> {
        self.paths.iter()
    }

    /// Returns the latest decisions, oldest first.
    pub(crate) fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter()
    }

    /// Whether there was traffic lately.
    pub(crate) fn is_active(&self, now: Instant) -> bool {
        self.last_traffic.is_some_and(|at| now.saturating_duration_since(at) < ACTIVE_WINDOW)
    }

    /// Whether the primary path is direct and answers.
    pub(crate) fn is_direct(&self, now: Instant) -> bool {
        self.primary().is_some_and(|path| path.is_direct() && path.is_trusted(now))
    }

    /// Whether the peer is reached now: a path answers, or something of the session has just come.
    pub(crate) fn is_reached(&self, now: Instant) -> bool {
        let lately = |at: Instant| now.saturating_duration_since(at) < TRUST;
        self.paths.iter().any(|path| path.is_trusted(now))
            || self.last_heard.is_some_and(|(_, at)| lately(at))
    }

    /// Notes traffic. Returns whether the peer was idle until now.
    pub(crate) fn on_traffic(&mut self, now: Instant) -> bool {
        let was_idle = !self.is_active(now);
        self.last_traffic = Some(now);
        if was_idle {
            for path in &mut self.paths {
                // Nothing was asked of it while the peer was idle.
                if let Health::Suspect { since } = &mut path.health {
                    *since = now;
                }
            }
        }
        was_idle
    }

    /// Returns a path.
    pub(crate) fn get(&self, address: PathAddress) -> Option<&Path> {
        self.paths.iter().find(|path| path.address == address)
    }

    pub(super) fn get_mut(&mut self, address: PathAddress) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.address == address)
    }

    pub(super) fn view(path: &Path, now: Instant) -> Option<View> {
        let standing = path.standing()?;
        Some(View {
            address: path.address,
            standing,
            class: path.class(),
            rtt: path.rank_rtt(),
            variation: path.variation,
            fresh: path.is_trusted(now),
        })
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        candidate::{Candidate, CandidateKind, MAX_CANDIDATES},
        netmap::RelayId,
    };

    use super::*;

    const RELAY: PathAddress = PathAddress::Relay(RelayId(1));

    fn host(number: u8) -> Candidate {
        Candidate {
            address: std::net::SocketAddr::from(([203, 0, 113, number], 51820)),
            kind: CandidateKind::Host,
        }
    }

    fn direct(number: u8) -> PathAddress {
        PathAddress::Direct(host(number).address)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A path set with a relay and candidates 1 to `count`, which runs on a clock of its own.
    struct Runner {
        set: PathSet,
        start: Instant,
        now: Instant,
        probes: Vec<(Duration, PathAddress)>,
        txid: u8,
    }

    impl Runner {
        fn new(count: u8) -> Self {
            let now = Instant::now();
            let mut set = PathSet::default();
            set.set_relays(&[(RelayId(1), Origin::ListedRelay)]);
            set.set_candidates(&(1..=count).map(host).collect::<Vec<_>>());
            set.judge(now);
            Self { set, start: now, now, probes: Vec::new(), txid: 0 }
        }

        /// Lets time pass; probes of paths that `answers` says yes to are answered after `rtt`.
        fn run(&mut self, duration: Duration, rtt: Duration, answers: impl Fn(PathAddress) -> bool) {
            let end = self.now + duration;
            let mut pongs: Vec<(Instant, PathAddress, [u8; 12])> = Vec::new();
            loop {
                let pong = pongs.iter().map(|(at, ..)| *at).min();
                let timeout = self.set.poll_timeout(self.now).map(|at| at.max(self.now));
                let Some(next) = pong.into_iter().chain(timeout).min().filter(|at| *at <= end) else { break };
                self.now = next;
                for (_, from, txid) in pongs.extract_if(.., |(at, ..)| *at <= next) {
                    self.set.on_pong(from, &txid, next);
                }
                for _ in 0..2 {
                    for path in self.set.poll_probes(next) {
                        self.txid = self.txid.wrapping_add(1);
                        self.set.on_probe_sent(path, [self.txid; 12], next);
                        self.probes.push((next - self.start, path));
                        if answers(path) {
                            pongs.push((next + rtt, path, [self.txid; 12]));
                        }
                    }
                    let bounds = mtu::Bounds { most: mtu::FLOOR, overhead: 60 };
                    assert_eq!(self.set.poll_mtu_probes(|_| Some(bounds), next), []);
                    self.set.judge(next);
                }
            }
            self.now = end;
        }

        fn traffic(&mut self) {
            if self.set.on_traffic(self.now) {
                self.set.hunt(self.now, ms(40));
            }
        }

        fn primary(&self) -> Option<PathAddress> {
            self.set.primary().map(|path| path.address)
        }
    }

    #[test]
    fn a_hunt_follows_its_steps_and_ends_with_the_traffic() {
        let mut runner = Runner::new(1);
        runner.traffic();
        runner.run(Duration::from_secs(300), ms(60), |path| path == RELAY);
        let at = |wanted| -> Vec<u128> {
            let probes = runner.probes.iter().filter(|(_, path)| *path == wanted);
            probes.map(|(at, _)| at.as_millis()).collect()
        };
        assert_eq!(at(direct(1)), [40, 140, 290, 540, 1040, 2040, 5040]);
        assert!((19..=21).contains(&at(RELAY).len()), "{:?}", at(RELAY));
        assert_eq!(runner.set.poll_timeout(runner.now), None);
        assert_eq!(runner.set.reason(), "relayed: no direct path has answered (1 candidate probed)");
    }

    #[test]
    fn an_answer_promotes_and_the_second_way_is_dropped() {
        let mut runner = Runner::new(2);
        assert_eq!(runner.set.targets(runner.now), Targets::One(RELAY));
        runner.traffic();
        runner.run(ms(100), ms(30), |path| path != direct(2));
        assert_eq!(runner.primary(), Some(direct(1)));
        assert_eq!(runner.set.targets(runner.now), Targets::One(direct(1)));
        assert_eq!(runner.set.decisions().last().map(|decision| decision.path), Some(Some(direct(1))));
    }

    #[test]
    fn a_handshake_is_answered_through_the_relay_too_unless_the_way_it_came_is_known_to_work() {
        let mut runner = Runner::new(2);
        runner.traffic();
        runner.run(ms(100), ms(30), |path| path != direct(2));
        let second_way = |runner: &Runner, from| runner.set.second_way(from, runner.now);
        assert_eq!(second_way(&runner, direct(1)), None, "answers come back that way");
        assert_eq!(second_way(&runner, direct(2)), Some(RELAY), "nothing ever came back");
        assert_eq!(second_way(&runner, direct(9)), Some(RELAY), "nobody knows that address");
        assert_eq!(second_way(&runner, RELAY), None);
    }

    #[test]
    fn a_silent_path_is_doubled_then_given_up_then_found_again() {
        let mut runner = Runner::new(1);
        runner.traffic();
        runner.run(Duration::from_secs(5), ms(30), |_| true);
        runner.traffic();
        runner.run(ms(2400), ms(30), |path| path == RELAY);
        assert_eq!(runner.set.targets(runner.now), Targets::Two(direct(1), RELAY));
        runner.run(ms(1000), ms(30), |path| path == RELAY);
        assert_eq!(runner.set.targets(runner.now), Targets::One(RELAY));
        let reason = runner.set.decisions().last().map(|decision| decision.reason.clone()).unwrap();
        assert!(reason.contains("stopped answering"), "{reason}");
        runner.traffic();
        runner.set.hunt(runner.now, Duration::ZERO);
        runner.run(ms(50), ms(30), |_| true);
        assert_eq!(runner.primary(), Some(direct(1)));
    }

    #[test]
    fn a_primary_path_is_late_when_its_next_probe_is_due_and_the_last_was_not_answered() {
        let mut runner = Runner::new(1);
        runner.traffic();
        runner.run(ms(1100), ms(30), |_| true);
        assert!(!runner.set.is_late(direct(1), runner.now), "answered");
        runner.run(ms(1000), ms(30), |path| path == RELAY);
        assert!(runner.set.is_late(direct(1), runner.now));
        assert!(!runner.set.is_late(RELAY, runner.now));
        runner.set.on_probe_sent(direct(1), [255; 12], runner.now);
        assert!(!runner.set.is_late(direct(1), runner.now + ms(40)), "there is time yet");
    }

    #[test]
    fn old_paths_are_given_up_together_where_only_the_relay_answers() {
        let mut runner = Runner::new(8);
        runner.traffic();
        runner.run(Duration::from_secs(5), ms(30), |_| true);
        runner.run(Duration::from_secs(3600), ms(30), |_| true);
        assert!(runner.primary().is_some_and(PathAddress::is_direct));
        runner.traffic();
        runner.run(Duration::from_secs(4), ms(30), |path| path == RELAY);
        assert_eq!(runner.primary(), Some(RELAY), "not one after the other");
        runner.traffic();
        runner.set.hunt(runner.now, Duration::ZERO);
        runner.run(ms(50), ms(30), |path| path == RELAY || path == direct(5));
        assert_eq!(runner.primary(), Some(direct(5)), "none is forgotten");
    }

    #[test]
    fn after_a_pause_both_ways_are_used_until_one_answers() {
        let mut runner = Runner::new(1);
        runner.traffic();
        runner.run(Duration::from_secs(100), ms(30), |_| true);
        assert_eq!(runner.primary(), Some(direct(1)));
        runner.traffic();
        assert_eq!(runner.set.targets(runner.now), Targets::Two(direct(1), RELAY));
        runner.run(ms(31), ms(30), |_| true);
        assert_eq!(runner.set.targets(runner.now), Targets::One(direct(1)));
        assert_eq!(runner.primary(), Some(direct(1)));
    }

    #[test]
    fn where_a_peer_was_heard_last_is_kept_among_many_places() {
        let mut runner = Runner::new(0);
        runner.traffic();
        for number in 1..=8 {
            runner.set.on_wireguard(direct(number), runner.now);
            runner.run(ms(10), ms(30), |_| false);
        }
        runner.set.on_ping(direct(9), runner.now);
        assert!(runner.set.get(direct(9)).is_some(), "the latest is kept");
        assert!(runner.set.get(direct(8)).is_some());
        let oldest: Vec<_> = (1..=2).filter(|number| runner.set.get(direct(*number)).is_some()).collect();
        assert_eq!(oldest, [2], "the one that was silent for longest is gone");
    }

    #[test]
    fn a_primary_path_that_a_call_does_not_name_is_doubted() {
        for (named, targets) in [(1, Targets::One(direct(1))), (2, Targets::Two(direct(1), RELAY))] {
            let mut runner = Runner::new(1);
            runner.traffic();
            runner.run(Duration::from_secs(1), ms(30), |_| true);
            runner.set.on_call(&[host(named)], runner.now);
            assert_eq!(runner.set.targets(runner.now), targets);
            runner.run(ms(40), ms(30), |_| true);
            assert_eq!(runner.set.targets(runner.now), Targets::One(direct(1)), "it has answered");
        }
    }

    #[test]
    fn where_the_peer_was_is_forgotten_once_a_hunt_was_in_vain() {
        let mut runner = Runner::new(2);
        runner.traffic();
        runner.run(Duration::from_secs(2), ms(30), |path| path == direct(1) || path == RELAY);
        assert_eq!(runner.primary(), Some(direct(1)));
        // The peer moves from 1 to 3; 2 is where it still is, behind a wall.
        let moved = [host(2), host(3)];
        assert!(runner.set.add_candidates(&moved));
        runner.set.on_call(&moved, runner.now);
        for _ in 0..8 {
            runner.traffic();
            runner.set.hunt(runner.now, Duration::ZERO);
            runner.run(Duration::from_secs(10), ms(30), |path| path == direct(3) || path == RELAY);
        }
        assert_eq!(runner.primary(), Some(direct(3)));
        assert!(runner.set.get(direct(1)).is_none());
        assert!(runner.set.get(direct(2)).is_some(), "the peer says that it is there");
        let last = runner.probes.iter().rev().find(|(_, path)| *path == direct(1)).map(|(at, _)| *at);
        assert!(last.is_some_and(|at| at < Duration::from_secs(15)), "{last:?}");
    }

    #[test]
    fn a_hostile_peer_cannot_make_paths_without_end() {
        let mut runner = Runner::new(0);
        runner.traffic();
        let many: Vec<_> = (0..=255).map(host).collect();
        runner.set.add_candidates(&many);
        for number in 0..=255 {
            runner.set.on_ping(direct(number), runner.now);
            runner.set.on_wireguard(direct(number), runner.now);
        }
        assert!(runner.set.iter().count() <= 1 + MAX_CANDIDATES + 8);
    }

    #[test]
    fn special_addresses_are_not_probed() {
        let bad = [
            "127.0.0.1:22",
            "224.0.0.1:5",
            "0.0.0.0:5",
            "255.255.255.255:5",
            "192.0.2.1:0",
            "240.0.0.1:5",
            "[::1]:5",
            "[ff02::1]:5",
            "[::]:5",
            "[::ffff:10.0.0.1]:5",
            "[fe80::1]:5",
        ];
        for address in bad {
            assert!(!is_probable(address.parse().unwrap()), "{address}");
        }
        for address in ["192.168.1.1:5", "100.64.0.1:5", "[fd00::1]:5", "[fe80::1%2]:5", "[2001:db8::1]:5"] {
            assert!(is_probable(address.parse().unwrap()), "{address}");
        }
    }
}
