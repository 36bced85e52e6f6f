//! The reference model: where everyone is, who can talk to whom, how, and how soon after an event.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::event::{Event, Kind};
use crate::nat::punching::reach;
use crate::nat::{Allocator, Egress, Nat};
use crate::topology::{Gateway, Reach, Topology};
use crate::village::{COORDINATOR_HOST, NODES};

/// A change that the operating system tells: half a second.
const KNOWN: Duration = Duration::from_millis(500);
/// A change that nobody tells, as a router that reboots, or UDP that is blocked.
const SILENT: Duration = Duration::from_secs(3);
/// A relay that dies while a second one is known.
const RELAY: Duration = Duration::from_secs(2);
/// After a wake.
const WAKE: Duration = Duration::from_secs(1);
/// After the start of an agent that finds its map on its disk.
const COLD: Duration = Duration::from_secs(2);
/// After the coordinator's name leads elsewhere: ten seconds, and the record's TTL in the lab.
const NAME: Duration = Duration::from_secs(12);

/// So many events after a server was started, everyone has found it again.
const KNOWN_AGAIN: u32 = 12;

/// Within this time paths are what the model says, whatever has happened.
pub(super) const SETTLED: Duration = Duration::from_secs(15);
/// And where UDP came back: it is tried once a minute.
const UDP_SETTLED: Duration = Duration::from_secs(80);

/// How a pair is to be connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// As the network between allows.
    Must(Reach),
    /// Straight or by a relay: straight takes an effort that has its own limits.
    Either,
    /// Not at all.
    None,
}

/// Whether a server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It does.
    Up,
    /// It does not.
    Down,
}

/// The state of the village, as far as its pairs depend on it.
#[derive(Debug, Clone)]
pub struct Model {
    /// Where every node is.
    places: BTreeMap<&'static str, &'static str>,
    /// The routers.
    nats: BTreeMap<String, Nat>,
    /// Sites whose UDP an event has blocked.
    blocked: BTreeSet<&'static str>,
    coordinator: Life,
    relay: Life,
    /// Events since a server was started.
    since_start: u32,
}

impl Model {
    /// The village with everyone at home and everything up.
    #[must_use]
    pub fn new(topology: &Topology) -> Self {
        let place = |node: &'static str| {
            let of_node = match node {
                "home-a" | "home-b" => "home",
                "macbook" => "lte",
                alone => alone,
            };
            (node, of_node)
        };
        let nat = |site: &crate::topology::Site| match &site.gateway {
            Gateway::Router(nat) => Some((site.name.clone(), nat.clone())),
            Gateway::Public => None,
        };
        Self {
            places: NODES.into_iter().map(place).collect(),
            nats: topology.sites.iter().filter_map(nat).collect(),
            blocked: BTreeSet::new(),
            coordinator: Life::Up,
            relay: Life::Up,
            since_start: KNOWN_AGAIN,
        }
    }

    /// Where a node is.
    #[must_use]
    pub fn place(&self, node: &str) -> &'static str {
        self.places.get(node).copied().unwrap_or_default()
    }

    /// The sites at which nodes are.
    #[must_use]
    pub fn inhabited(&self) -> BTreeSet<&'static str> {
        self.places.values().copied().collect()
    }

    /// Whether a site's router translates addresses.
    #[must_use]
    pub fn translates(&self, site: &str) -> bool {
        self.nats.get(site).is_some_and(|nat| nat.allocator != Allocator::Routed)
    }

    /// Sites whose UDP an event has blocked.
    #[must_use]
    pub fn blocked(&self) -> &BTreeSet<&'static str> {
        &self.blocked
    }

    /// Whether the coordinator runs, with the relay in it.
    #[must_use]
    pub fn coordinator(&self) -> Life {
        self.coordinator
    }

    /// Whether the relay that stands alone runs.
    #[must_use]
    pub fn relay(&self) -> Life {
        self.relay
    }

    /// Whether everyone has had the time to find a server that came back: attempts are up to half a minute apart. Until then
    /// the other one may be the only relay that some node knows to be there.
    #[must_use]
    pub fn servers_are_known(&self) -> bool {
        self.since_start >= KNOWN_AGAIN
    }

    /// Takes note of an event.
    pub fn apply(&mut self, event: &Event) {
        self.since_start = match event {
            Event::StartCoordinator | Event::StartRelay => 0,
            _others => self.since_start.saturating_add(1),
        };
        match *event {
            Event::Roam { node, to, .. } => drop(self.places.insert(node, to)),
            Event::Block { site } => {
                self.blocked.insert(site);
            }
            Event::Unblock { site } => {
                self.blocked.remove(site);
            }
            Event::KillCoordinator => self.coordinator = Life::Down,
            Event::StartCoordinator => self.coordinator = Life::Up,
            Event::KillRelay => self.relay = Life::Down,
            Event::StartRelay => self.relay = Life::Up,
            Event::Reboot { .. }
            | Event::Renumber { .. }
            | Event::MoveHome { .. }
            | Event::Sleep { .. }
            | Event::Flap { .. }
            | Event::Kill { .. }
            | Event::PowerCycle { .. } => {}
        }
    }

    /// How a pair is to be connected now.
    #[must_use]
    pub fn link(&self, from: &str, to: &str) -> Link {
        let (from, to) = (self.place(from), self.place(to));
        let can_relay = self.coordinator == Life::Up || self.relay == Life::Up;
        let wanted = match from == to {
            true => Reach::Lan,
            false if !self.lets_udp_out(from) || !self.lets_udp_out(to) => Reach::Relay,
            false => reach(self.nats.get(from), self.nats.get(to)),
        };
        match wanted {
            Reach::Lan | Reach::Direct => Link::Must(wanted),
            Reach::Punched if can_relay => Link::Either,
            Reach::Relay if can_relay => Link::Must(Reach::Relay),
            Reach::Punched | Reach::Relay => Link::None,
        }
    }

    /// Whether a site lets UDP out.
    #[must_use]
    pub fn lets_udp_out(&self, site: &str) -> bool {
        !self.blocked.contains(site) && self.nats.get(site).is_none_or(|nat| nat.egress == Egress::Open)
    }

    /// The kind of an event, in the state after it.
    #[must_use]
    pub fn kind(&self, event: &Event) -> Kind {
        match *event {
            Event::Roam { to, .. } if self.lets_udp_out(to) => Kind::Roam,
            Event::Roam { .. } => Kind::RoamBlocked,
            Event::Reboot { .. } => Kind::Reboot,
            Event::Renumber { .. } => Kind::Renumber,
            Event::MoveHome { .. } => Kind::MoveHome,
            Event::Sleep { .. } => Kind::Sleep,
            Event::Flap { .. } => Kind::Flap,
            Event::Block { .. } => Kind::Block,
            Event::Unblock { .. } => Kind::Unblock,
            Event::Kill { .. } => Kind::Kill,
            Event::PowerCycle { .. } => Kind::PowerCycle,
            Event::KillCoordinator => Kind::KillCoordinator,
            Event::StartCoordinator => Kind::StartCoordinator,
            Event::KillRelay => Kind::KillRelay,
            Event::StartRelay => Kind::StartRelay,
        }
    }

    /// The budget for the first replies of all pairs after an event, in the state after it.
    #[must_use]
    pub fn budget(&self, event: &Event) -> Duration {
        let udp_blocked = |site: &str| !self.lets_udp_out(site);
        match *event {
            Event::Roam { to, .. } if udp_blocked(to) => SILENT,
            Event::Flap { node, .. } if udp_blocked(self.place(node)) => SILENT,
            Event::Roam { .. } | Event::Flap { .. } => KNOWN,
            Event::Sleep { .. } => WAKE,
            Event::Reboot { .. } | Event::Renumber { .. } | Event::Block { .. } | Event::Unblock { .. } => {
                SILENT
            }
            // Without another relay everything that is relayed waits for the name.
            Event::MoveHome { .. } if self.relay == Life::Down => NAME,
            Event::MoveHome { .. } => SILENT,
            Event::Kill { .. } | Event::PowerCycle { .. } => COLD,
            Event::KillCoordinator | Event::StartCoordinator | Event::KillRelay | Event::StartRelay => RELAY,
        }
    }

    /// How soon after an event the path of a pair is what [`Model::link`] says.
    #[must_use]
    pub fn settles(&self, event: &Event, from: &str, to: &str) -> Duration {
        match *event {
            Event::Unblock { site } if [from, to].iter().any(|node| self.place(node) == site) => UDP_SETTLED,
            _ => SETTLED,
        }
    }

    /// How soon after an event every node is connected to the coordinator, if that runs: attempts are up to half a minute
    /// apart.
    #[must_use]
    pub fn reconciles(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// Nodes that may roam: all but the coordinator's host, whose address is known to everyone.
    pub fn roamers() -> impl Iterator<Item = &'static str> {
        NODES.into_iter().filter(|node| *node != COORDINATOR_HOST)
    }
}
