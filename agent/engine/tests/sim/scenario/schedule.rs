//! What may befall a mesh.

use std::{net::IpAddr, time::Duration};

use super::{Scenario, Server};
use crate::{
    ledger::Role,
    net::UplinkId,
    world::{Ends, PING_LEN, Sending},
};

/// Idle times: seconds, minutes, hours, days. The long ones are rare in steps, but most of the virtual time.
const IDLE: [(u64, u64); 4] = [(1, 60), (60, 1800), (1800, 6 * 3600), (12 * 3600, 4 * 86_400)];
/// Idle times from here on must be quiet.
const QUIET_FROM: Duration = Duration::from_secs(1200);
/// After this time without traffic nothing is left of it: sessions live for 180 s and are made for at most 90 s, and holes
/// are kept for ten minutes.
const QUIET_DOWN: Duration = Duration::from_secs(700);
/// A relay is bound every 20 s, an observer asked at most as often.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(18);
/// A relay that does not answer is bound more often.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Upkeep that is not periodic.
const UPKEEP_SLACK: u64 = 20;
/// A burst of packets is shorter than any queue in an engine.
const MAX_BURST: u64 = 16;
/// A flood is longer than the queue in which packets wait for a session.
const FLOOD: u64 = 400;
/// Length of a flood's packets.
const FLOOD_LEN: usize = 1200;
/// Most packets that may wait for a session.
const MAX_WAITING: u64 = 128;
/// Time for which others send into a range that changes hands.
const MOVING: Duration = Duration::from_secs(3);
/// A link that flaps is there, and not there, for this long.
const FLAP: Duration = Duration::from_millis(300);
/// A clock is wrong by at most this, in milliseconds: a month.
const MAX_JUMP: u64 = 30 * 86_400_000;
/// Of 1000 packets, those between the ranges behind nodes.
const BETWEEN_RANGES: u32 = 300;

/// Something that befalls the mesh.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Applications talk, and go on during the next steps.
    Talk { pairs: Vec<(usize, usize)>, time: Duration },
    /// Applications talk a little, for hours.
    Work { pairs: Vec<(usize, usize)>, time: Duration },
    /// An application sends more at once than can wait.
    Flood { from: usize, to: usize },
    /// A range behind some node is another node's now.
    MoveRange { range: usize, to: usize },
    /// Some node spoofs another's source, or sends to nobody.
    Misbehave { node: usize },
    /// Nobody talks.
    Idle(Duration),
    /// A node moves.
    Roam { node: usize, site: usize },
    /// A node is without any network for a while.
    Unplug { node: usize, time: Duration },
    /// A NAT forgets its mappings.
    RebootNat { site: usize },
    /// A NAT gets another address.
    RenumberNat { site: usize },
    /// Two lines are cut off from each other.
    Cut(UplinkId, UplinkId),
    /// All partitions are gone.
    Heal,
    /// A relay is killed; the first one with the coordinator.
    KillServer(usize),
    /// It is started again.
    StartServer(usize),
    /// A node's host sleeps for a while.
    Sleep { node: usize, time: Duration },
    /// Where a node is, UDP is blocked, or let through again.
    Block { node: usize, blocked: bool },
    /// A node's link goes and comes a few times.
    Flap { node: usize, times: u32 },
    /// A node's real-time clock is put forward or back, in milliseconds.
    ClockJump { node: usize, by: i64 },
    /// A node is killed, and started again after a while.
    Restart { node: usize, after: Duration },
}

/// A step without its details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StepKind {
    Start,
    Talk,
    Work,
    Flood,
    MoveRange,
    Misbehave,
    Idle,
    Roam,
    Unplug,
    RebootNat,
    RenumberNat,
    Cut,
    Heal,
    KillServer,
    StartServer,
    Sleep,
    Block,
    Unblock,
    Flap,
    ClockJump,
    Restart,
}

impl Step {
    pub(crate) fn kind(&self) -> StepKind {
        match self {
            Self::Talk { .. } => StepKind::Talk,
            Self::Work { .. } => StepKind::Work,
            Self::Flood { .. } => StepKind::Flood,
            Self::MoveRange { .. } => StepKind::MoveRange,
            Self::Misbehave { .. } => StepKind::Misbehave,
            Self::Idle(_) => StepKind::Idle,
            Self::Roam { .. } => StepKind::Roam,
            Self::Unplug { .. } => StepKind::Unplug,
            Self::RebootNat { .. } => StepKind::RebootNat,
            Self::RenumberNat { .. } => StepKind::RenumberNat,
            Self::Cut(..) => StepKind::Cut,
            Self::Heal => StepKind::Heal,
            Self::KillServer(_) => StepKind::KillServer,
            Self::StartServer(_) => StepKind::StartServer,
            Self::Sleep { .. } => StepKind::Sleep,
            Self::Block { blocked: true, .. } => StepKind::Block,
            Self::Block { blocked: false, .. } => StepKind::Unblock,
            Self::Flap { .. } => StepKind::Flap,
            Self::ClockJump { .. } => StepKind::ClockJump,
            Self::Restart { .. } => StepKind::Restart,
        }
    }
}

impl Scenario {
    pub(super) fn draw_step(&mut self) -> Step {
        let node = self.rng.index(self.places.len());
        let site = self.rng.index(self.sites.len());
        let short = self.rng.duration(Duration::from_millis(50)..Duration::from_secs(40));
        match self.rng.below(29) {
            0..=4 => self.draw_idle(),
            5..=7 => self.draw_talk(),
            8..=10 => Step::Roam { node, site },
            11..=12 => Step::RebootNat { site },
            13 => Step::RenumberNat { site },
            14 => self.draw_cut(),
            15 => Step::Heal,
            16..=17 => self.draw_server(),
            18 => Step::Restart { node, after: short },
            19 => Step::Misbehave { node },
            20..=21 => self.draw_work(),
            22 => {
                let (from, to) = self.draw_pair();
                Step::Flood { from, to }
            }
            24 => Step::Sleep { node, time: self.draw_sleep() },
            25..=26 => Step::Block { node, blocked: !self.world.nodes[node].blocked },
            27 => Step::Flap { node, times: 1 + self.rng.index(6) as u32 },
            28 => Step::ClockJump { node, by: self.rng.below(2 * MAX_JUMP) as i64 - MAX_JUMP as i64 },
            23 => Step::MoveRange { range: self.rng.index(self.world.range_count()), to: node },
            _ => Step::Unplug { node, time: short },
        }
    }

    /// From a dark wake's pause to a night.
    fn draw_sleep(&mut self) -> Duration {
        let (low, high) = self.rng.pick(&[(1, 60), (60, 1800), (1800, 10 * 3600)]);
        self.rng.duration(Duration::from_secs(low)..Duration::from_secs(high))
    }

    fn draw_work(&mut self) -> Step {
        let pairs = (0..self.rng.range(1..4)).map(|_| self.draw_pair()).collect();
        Step::Work { pairs, time: self.rng.duration(Duration::from_secs(600)..Duration::from_secs(6 * 3600)) }
    }

    fn draw_idle(&mut self) -> Step {
        let (low, high) = self.rng.pick(&IDLE);
        Step::Idle(self.rng.duration(Duration::from_secs(low)..Duration::from_secs(high)))
    }

    fn draw_talk(&mut self) -> Step {
        let pairs = (0..self.rng.range(1..5)).map(|_| self.draw_pair()).collect();
        Step::Talk { pairs, time: self.rng.duration(Duration::from_secs(1)..Duration::from_secs(120)) }
    }

    fn draw_cut(&mut self) -> Step {
        let lines: Vec<_> =
            self.world.nodes.iter().filter_map(|node| self.world.net.uplink_of(node.host)).collect();
        let servers = self.world.relays.iter().filter_map(|relay| self.world.net.uplink_of(relay.host));
        let all: Vec<_> = lines.iter().copied().chain(servers).collect();
        match (self.rng.pick(&lines), self.rng.pick(&all)) {
            (one, other) if one == other => Step::Heal,
            (one, other) => Step::Cut(one, other),
        }
    }

    fn draw_server(&mut self) -> Step {
        let server = self.rng.index(self.servers.len());
        match self.servers[server] {
            Server::Up => Step::KillServer(server),
            Server::Down => Step::StartServer(server),
        }
    }

    /// Draws two different nodes.
    pub(super) fn draw_pair(&mut self) -> (usize, usize) {
        let (from, step) = (self.rng.index(self.places.len()), self.rng.index(self.places.len() - 1));
        (from, (from + 1 + step) % self.places.len())
    }

    pub(super) fn take(&mut self, step: &Step) {
        match step {
            Step::Talk { pairs, time } => self.talk(pairs, *time),
            Step::Work { pairs, time } => self.work(pairs, *time),
            Step::Flood { from, to } => self.flood(*from, *to),
            Step::MoveRange { range, to } => self.move_range(*range, *to),
            Step::Misbehave { node } => self.misbehave(*node),
            Step::Idle(time) => self.idle(*time),
            Step::Roam { node, site } => {
                let host = self.world.nodes[*node].host;
                self.sites[*site].attach(&mut self.world.net, host);
                self.places[*node] = *site;
                self.world.host_moved(*node);
            }
            Step::Unplug { node, time } => {
                let host = self.world.nodes[*node].host;
                self.world.net.detach(host);
                self.world.host_moved(*node);
                self.world.run_for(*time);
                self.sites[self.places[*node]].attach(&mut self.world.net, host);
                self.world.host_moved(*node);
            }
            Step::RebootNat { site } => {
                if let Some(nat) = self.sites[*site].nat {
                    self.world.net.reboot_nat(nat);
                }
            }
            Step::RenumberNat { site } => self.renumber(*site),
            Step::Cut(one, other) => {
                self.world.net.cut(*one, *other);
                self.world.check_control();
            }
            Step::Heal => self.world.net.heal(),
            Step::KillServer(server) => {
                self.servers[*server] = Server::Down;
                self.world.relays[*server].kill();
                if *server == 0 {
                    self.world.coordinator.kill();
                }
                self.world.check_control();
            }
            Step::StartServer(server) => {
                self.servers[*server] = Server::Up;
                self.world.relays[*server].up = true;
                if *server == 0 {
                    self.world.coordinator.up = true;
                }
            }
            Step::Sleep { node, time } => {
                self.world.fall_asleep(*node);
                self.world.run_for(*time);
                self.world.wake_up(*node);
            }
            Step::Block { node, blocked } => self.world.set_blocked(*node, *blocked),
            Step::Flap { node, times } => {
                let host = self.world.nodes[*node].host;
                for _ in 0..*times {
                    self.world.net.detach(host);
                    self.world.host_moved(*node);
                    self.world.run_for(FLAP);
                    self.sites[self.places[*node]].attach(&mut self.world.net, host);
                    self.world.host_moved(*node);
                    self.world.run_for(FLAP);
                }
            }
            Step::ClockJump { node, by } => self.world.nodes[*node].clock_offset = *by,
            Step::Restart { node, after } => {
                self.world.kill(*node);
                self.world.run_for(*after);
                self.world.start(*node);
            }
        }
    }

    /// Schedules bursts of packets, and pings in between.
    fn talk(&mut self, pairs: &[(usize, usize)], time: Duration) {
        for (from, to) in pairs {
            let mut at = Duration::ZERO;
            while at < time {
                for _ in 0..self.rng.range(1..MAX_BURST) {
                    let len = usize::try_from(self.rng.range(100..1280)).expect("small");
                    let ends = if self.rng.chance(BETWEEN_RANGES) { Ends::Ranges } else { Ends::Nodes };
                    let sending = Sending { from: *from, to: *to, len, role: Role::OneWay, ends };
                    self.world.send_at(self.world.now + at, sending);
                }
                self.world.send_at(self.world.now + at, ping(*from, *to));
                at += self.rng.duration(Duration::from_millis(20)..Duration::from_secs(4));
            }
        }
        // Half of the time, what comes next befalls a mesh that is talking.
        if self.rng.chance(500) {
            self.world.run_for(time);
        }
    }

    /// Has pairs talk just often enough that their paths stay probed, and now and then a little less.
    fn work(&mut self, pairs: &[(usize, usize)], time: Duration) {
        for (from, to) in pairs {
            let mut at = Duration::ZERO;
            while at < time {
                self.world.send_at(self.world.now + at, ping(*from, *to));
                at += self.rng.duration(Duration::from_secs(1)..Duration::from_secs(25));
            }
        }
        self.world.run_for(time);
    }

    /// Gives a range to another node, while others send into it.
    fn move_range(&mut self, range: usize, to: usize) {
        self.world.move_range(range, to);
        for from in 0..self.places.len() {
            let mut at = Duration::ZERO;
            while at < MOVING {
                let ends = Ends::Into(range);
                let sending = Sending { from, to, len: PING_LEN, role: Role::OneWay, ends };
                self.world.send_at(self.world.now + at, sending);
                at += self.rng.duration(Duration::from_millis(50)..Duration::from_millis(200));
            }
        }
        self.world.run_for(MOVING);
    }

    /// Sends more than can wait, at once: what is neither sent nor dropped waits.
    fn flood(&mut self, from: usize, to: usize) {
        let accounted = |scenario: &Self| {
            let peer = scenario.world.peer(from, to)?;
            Some(peer.tx_bytes / FLOOD_LEN as u64 + peer.drops.iter().map(|(_, count)| count).sum::<u64>())
        };
        let before = accounted(self);
        for _ in 0..FLOOD {
            self.world.send(Sending { from, to, len: FLOOD_LEN, role: Role::OneWay, ends: Ends::Nodes });
        }
        if let (Some(before), Some(after)) = (before, accounted(self)) {
            let waiting = FLOOD.saturating_sub(after - before);
            if waiting > MAX_WAITING {
                self.world.fail(format!("{waiting} packets of node {from} wait for node {to}"));
            }
        }
    }

    fn misbehave(&mut self, node: usize) {
        let (_, other) = self.draw_pair();
        let own = self.world.nodes[node].address;
        let theirs = self.world.nodes[other].address;
        if other != node {
            // A source that is not the node's own: the receiver knows.
            self.world.send_forbidden(node, [10, 90, 0, 250].into(), theirs);
            self.world.send_forbidden(node, [192, 0, 2, 77].into(), theirs);
        }
        self.world.send_forbidden(node, own, [10, 90, 0, 251].into());
        self.world.send_forbidden(node, own, [8, 8, 8, 8].into());
    }

    /// Runs without traffic; a long time must become and stay quiet.
    fn idle(&mut self, time: Duration) {
        if time < QUIET_FROM {
            return self.world.run_for(time);
        }
        self.world.run_for(QUIET_DOWN);
        let before: Vec<_> = self.world.nodes.iter().map(|node| node.meter.clone()).collect();
        self.world.run_for(time - QUIET_DOWN);
        let targets = u64::try_from(self.servers.len()).expect("small") * 2;
        let all_answer = !self.servers.contains(&Server::Down) && !self.world.net.has_cuts();
        let all_answer = all_answer && !self.world.nodes.iter().any(|node| node.blocked);
        let interval = if all_answer { UPKEEP_INTERVAL } else { RETRY_INTERVAL };
        let budget = (time.as_secs() / interval.as_secs() + UPKEEP_SLACK) * targets;
        for (node, before) in before.iter().enumerate() {
            let after = &self.world.nodes[node].meter;
            let (to_peers, upkeep) = (after.to_peers - before.to_peers, after.upkeep - before.upkeep);
            if to_peers > 0 {
                self.world
                    .fail(format!("node {node} sent {to_peers} datagrams to peers that nobody talked to"));
            }
            if upkeep > budget {
                self.world.fail(format!("node {node} sent {upkeep} datagrams of upkeep in {time:?}"));
            }
        }
    }

    fn renumber(&mut self, site: usize) {
        let Some(nat) = self.sites[site].nat else { return };
        let outer = self.world.net.outer_address(nat);
        let IpAddr::V4(old) = outer else { return };
        let [a, b, c, _] = old.octets();
        let free: Vec<_> = (1..=9)
            .map(|d| IpAddr::from([a, b, c, d]))
            .filter(|address| self.world.net.is_free(self.world.net.outer_realm(nat), *address))
            .collect();
        let address = self.rng.pick(&free);
        self.world.net.move_nat(nat, address);
    }
}

fn ping(from: usize, to: usize) -> Sending {
    Sending { from, to, len: PING_LEN, role: Role::Ping, ends: Ends::Nodes }
}
