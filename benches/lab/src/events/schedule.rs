//! What happens next: drawn from a seed and the state of the village, and nothing else.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::event::Event;
use super::model::{Life, Model};
use crate::village::roaming::NETWORKS;
use crate::village::{COORDINATOR_HOST, NODES};

/// Public addresses that are given: 198.51.100.100 to 249.
const ADDRESSES: std::ops::Range<u8> = 100..250;
/// How many sites may be without UDP at a time, beside the one that always is.
const MOST_BLOCKED: usize = 2;
/// The longest that a node is nowhere, dead, or without a link.
const LONGEST_ABSENCE_MS: u64 = 1500;
/// The longest sleep of a process.
const LONGEST_SLEEP_MS: u64 = 5000;

/// What is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// Everything.
    Everything,
    /// What may happen to agents while their coordinator is away.
    CoordinatorAway,
}

/// A source of events.
#[derive(Debug)]
pub struct Schedule {
    random: ChaCha8Rng,
    course: Course,
    next_address: u8,
    /// Addresses in use, by site.
    addresses: BTreeMap<&'static str, u8>,
}

/// What is drawn first.
#[derive(Debug, Clone, Copy)]
enum Draw {
    Roam,
    Reboot,
    Renumber,
    MoveHome,
    Sleep,
    Flap,
    Block,
    Unblock,
    Kill,
    PowerCycle,
    Coordinator,
    Relay,
}

impl Schedule {
    /// The events of a seed.
    #[must_use]
    pub fn new(seed: u64, course: Course) -> Self {
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            course,
            next_address: ADDRESSES.start,
            addresses: BTreeMap::new(),
        }
    }

    /// The next event in this state.
    pub fn draw(&mut self, model: &Model) -> Event {
        let is_open = |site: &&'static str| model.lets_udp_out(site) && *site != COORDINATOR_HOST;
        let homes: Vec<_> = model.inhabited().into_iter().filter(|site| model.translates(site)).collect();
        let others: Vec<_> = homes.iter().copied().filter(|site| *site != COORDINATOR_HOST).collect();
        let open: Vec<_> = model.inhabited().into_iter().filter(is_open).collect();
        let blocked: Vec<_> = model.blocked().iter().copied().collect();
        let roamers: Vec<_> = Model::roamers().collect();
        match self.draw_kind(model, open.is_empty()) {
            Draw::Roam => {
                let node = self.pick(&roamers);
                let elsewhere: Vec<_> =
                    NETWORKS.into_iter().filter(|site| *site != model.place(node)).collect();
                Event::Roam { node, to: self.pick(&elsewhere), away: self.absence() }
            }
            Draw::Reboot => Event::Reboot { site: self.pick(&homes) },
            Draw::Renumber if !others.is_empty() => {
                let site = self.pick(&others);
                Event::Renumber { site, to: self.address(site) }
            }
            Draw::Renumber | Draw::MoveHome => Event::MoveHome { to: self.address(COORDINATOR_HOST) },
            Draw::Sleep => {
                let length = Duration::from_millis(self.below(LONGEST_SLEEP_MS));
                Event::Sleep { node: self.pick(&NODES), length }
            }
            Draw::Flap => Event::Flap { node: self.pick(&NODES), length: self.absence() },
            Draw::Block => Event::Block { site: self.pick(&open) },
            Draw::Unblock => Event::Unblock { site: self.pick(&blocked) },
            Draw::Kill => Event::Kill { node: self.pick(&NODES), length: self.absence() },
            Draw::PowerCycle => Event::PowerCycle { node: self.pick(&roamers), length: self.absence() },
            Draw::Coordinator if model.coordinator() == Life::Up => Event::KillCoordinator,
            Draw::Coordinator => Event::StartCoordinator,
            Draw::Relay if model.relay() == Life::Up => Event::KillRelay,
            Draw::Relay => Event::StartRelay,
        }
    }

    /// By weights. One of coordinator and relay always runs: without any relay nothing is promised to those who move.
    fn draw_kind(&mut self, model: &Model, nothing_is_open: bool) -> Draw {
        let if_any = |is_possible: bool, weight: u64| if is_possible { weight } else { 0 };
        let may_block = model.blocked().len() < MOST_BLOCKED && !nothing_is_open;
        // A server that is away comes back sooner than another one goes, and none goes while the other one is new.
        let server = |own: Life, other: Life| match (own, other) {
            (Life::Up, Life::Up) if model.servers_are_known() => 8,
            (Life::Up, Life::Up | Life::Down) => 0,
            (Life::Down, _) => 12,
        };
        let (coordinator, relay) = match self.course {
            Course::Everything => {
                (server(model.coordinator(), model.relay()), server(model.relay(), model.coordinator()))
            }
            Course::CoordinatorAway => (0, 0),
        };
        let home = if_any(model.coordinator() == Life::Up, 6);
        let away = |weight| if_any(self.course == Course::CoordinatorAway, weight);
        let weights = [
            (Draw::Roam, 24),
            (Draw::Reboot, 9),
            (Draw::Renumber, 9),
            (Draw::MoveHome, home),
            (Draw::Sleep, 9),
            (Draw::Flap, 9),
            (Draw::Block, if_any(may_block, 6)),
            (Draw::Unblock, if_any(!model.blocked().is_empty(), 8)),
            (Draw::Kill, 4 + away(8)),
            (Draw::PowerCycle, 4 + away(8)),
            (Draw::Coordinator, coordinator),
            (Draw::Relay, relay),
        ];
        let mut drawn = self.below(weights.iter().map(|(_, weight)| weight).sum());
        for (draw, weight) in weights {
            if drawn < weight {
                return draw;
            }
            drawn -= weight;
        }
        Draw::Roam
    }

    /// A public address that no site has.
    fn address(&mut self, site: &'static str) -> Ipv4Addr {
        loop {
            let number = self.next_address;
            self.next_address = if number + 1 < ADDRESSES.end { number + 1 } else { ADDRESSES.start };
            if !self.addresses.values().any(|taken| *taken == number) {
                self.addresses.insert(site, number);
                return Ipv4Addr::new(198, 51, 100, number);
            }
        }
    }

    fn absence(&mut self) -> Duration {
        Duration::from_millis(self.below(LONGEST_ABSENCE_MS))
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A number from 0 to `end`, without it.
    fn below(&mut self, end: u64) -> u64 {
        self.random.next_u64() % end.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::village::roaming::roaming_topology;

    #[test]
    fn a_seed_gives_the_same_events_and_one_server_always_runs() {
        let draw = |seed| {
            let (mut schedule, mut model) =
                (Schedule::new(seed, Course::Everything), Model::new(&roaming_topology()));
            let mut next = || {
                let event = schedule.draw(&model);
                model.apply(&event);
                assert!(model.coordinator() == Life::Up || model.relay() == Life::Up);
                assert!(model.blocked().len() <= MOST_BLOCKED);
                event
            };
            (0..2000).map(|_| next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn without_the_coordinator_nothing_happens_to_servers() {
        let mut model = Model::new(&roaming_topology());
        model.apply(&Event::KillCoordinator);
        let mut schedule = Schedule::new(3, Course::CoordinatorAway);
        for _ in 0..2000 {
            let event = schedule.draw(&model);
            model.apply(&event);
            assert_eq!((model.coordinator(), model.relay()), (Life::Down, Life::Up), "{event}");
            assert!(!matches!(event, Event::MoveHome { .. }), "nobody could be told");
        }
    }
}
