//! Scenarios: a random topology and a random schedule of what may befall it, with every promise checked after each step.

mod schedule;
mod verify;

use std::{collections::BTreeMap, fmt, time::Duration};

pub(crate) use self::schedule::{Step, StepKind};
use crate::{
    rng::Rng,
    topology::{BuiltSite, Topology},
    world::World,
};

/// All nodes start within this time.
const START_SPREAD: Duration = Duration::from_secs(2);
/// After this time everything that starts has found its relay.
const START_SETTLE: Duration = Duration::from_secs(5);

/// Nodes have one engine, or up to so many.
const MAX_SHARDS: u32 = 3;

/// A run of one seed.
pub(crate) struct Scenario {
    seed: u64,
    topology: Topology,
    pub(crate) world: World,
    sites: Vec<BuiltSite>,
    /// The site at which each node is.
    places: Vec<usize>,
    servers: Vec<Server>,
    rng: Rng,
    schedule: Vec<Taken>,
    stats: Stats,
}

/// A step that was taken.
struct Taken {
    at: Duration,
    until: Duration,
    step: Step,
}

/// Whether a server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Up,
    Down,
}

/// What a run was, and how long things took.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stats {
    pub(crate) node_time: Duration,
    /// The part of it in which a node had traffic or probed its peers for it.
    pub(crate) busy_time: Duration,
    pub(crate) events: u64,
    pub(crate) packets: u64,
    pub(crate) delivered: u64,
    pub(crate) datagrams: u64,
    pub(crate) steps: u64,
    /// Most timeouts that a node handled in a second.
    pub(crate) most_timeouts: u32,
    /// Pairs that had to be connected, the longest time until one was, and the sum, by the kind of the step before.
    pub(crate) connects: BTreeMap<StepKind, Times>,
    /// The same, until both sides had a direct path.
    pub(crate) directs: BTreeMap<StepKind, Times>,
    /// Pairs of which the model said that they are never direct, and that they may be.
    pub(crate) never_direct: u64,
    pub(crate) maybe_direct: u64,
}

/// Count, sum and maximum of times.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Times {
    count: u32,
    sum: Duration,
    longest: Duration,
}

/// A run that broke a promise.
pub(crate) struct Failure {
    /// What was broken, in one line.
    pub(crate) headline: String,
    report: String,
}

impl Scenario {
    /// Draws a scenario.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let topology = Topology::draw(&mut rng);
        let (mut world, sites) = topology.build(&mut rng);
        for (shards, node) in (1..=MAX_SHARDS).cycle().skip(seed as usize % 3).zip(&mut world.nodes) {
            node.shards = shards;
        }
        let places = topology.nodes.iter().map(|placed| placed.site).collect();
        let servers = vec![Server::Up; topology.relays];
        Self {
            seed,
            topology,
            world,
            sites,
            places,
            servers,
            rng,
            schedule: Vec::new(),
            stats: Stats::default(),
        }
    }

    /// Starts everything and takes this many steps.
    pub(crate) fn run(mut self, steps: u32) -> Result<(Stats, u64), Failure> {
        self.start();
        self.verify(StepKind::Start);
        for _ in 0..steps {
            if self.world.violation().is_some() {
                break;
            }
            let step = self.draw_step();
            self.world.note(format!("step {step:?}"));
            let at = self.world.now;
            self.take(&step);
            let kind = step.kind();
            self.schedule.push(Taken { at, until: self.world.now, step });
            self.verify(kind);
            self.stats.steps += 1;
        }
        if let Some(violation) = self.world.violation() {
            let headline = violation.lines().next().unwrap_or_default();
            return Err(Failure { headline: headline.into(), report: self.describe(violation) });
        }
        Ok((self.finish(), self.world.trace.hash()))
    }

    fn start(&mut self) {
        let mut starts: Vec<_> = (0..self.world.nodes.len())
            .map(|node| (self.rng.duration(Duration::ZERO..START_SPREAD), node))
            .collect();
        starts.sort_unstable();
        for (at, node) in starts {
            self.world.run_until(at);
            self.world.start(node);
        }
        self.world.run_for(START_SETTLE);
    }

    fn finish(&mut self) -> Stats {
        let nodes = u32::try_from(self.world.nodes.len()).expect("few nodes");
        let (packets, delivered) = self.world.ledger.totals();
        let most_timeouts =
            self.world.nodes.iter().map(|node| node.meter.most_timeouts).max().unwrap_or_default();
        Stats {
            node_time: self.world.now * nodes,
            busy_time: self.world.nodes.iter().map(|node| node.meter.busy).sum(),
            events: self.world.events(),
            packets,
            delivered,
            datagrams: self.world.trace.datagrams(),
            most_timeouts,
            ..std::mem::take(&mut self.stats)
        }
    }

    fn describe(&self, violation: &str) -> String {
        let mut text = format!("seed {}: {violation}\n\n", self.seed);
        text += &format!("--- the last things that happened\n{}\n", self.world.trace);
        text += &format!("--- topology ({:?})\n", self.topology.relays);
        for (number, carrier) in self.topology.carriers.iter().enumerate() {
            text += &format!("carrier {number}: {carrier:?}\n");
        }
        for (number, site) in self.topology.sites.iter().enumerate() {
            text += &format!("site {number}: {site:?}\n");
        }
        for (number, node) in self.topology.nodes.iter().enumerate() {
            text += &format!(
                "node {number}: {node:?}, now at {:?}\n",
                self.world.net.place(self.world.nodes[number].host)
            );
        }
        text += "--- schedule\n";
        for Taken { at, step, .. } in &self.schedule {
            text += &format!("{:>14.3} {step:?}\n", at.as_secs_f64());
        }
        text + &format!("\n{violation}\nrun again with SIM_SEED={}\n", self.seed)
    }
}

impl Times {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.sum += time;
        self.longest = self.longest.max(time);
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.longest = self.longest.max(other.longest);
    }
}

impl Stats {
    /// Adds what another run was.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.node_time += other.node_time;
        self.busy_time += other.busy_time;
        self.events += other.events;
        self.never_direct += other.never_direct;
        self.maybe_direct += other.maybe_direct;
        self.packets += other.packets;
        self.delivered += other.delivered;
        self.datagrams += other.datagrams;
        self.steps += other.steps;
        self.most_timeouts = self.most_timeouts.max(other.most_timeouts);
        for (mine, theirs) in [(&mut self.connects, &other.connects), (&mut self.directs, &other.directs)] {
            for (kind, times) in theirs {
                mine.entry(*kind).or_default().merge(times);
            }
        }
    }

    /// Returns the virtual node-hours.
    pub(crate) fn node_hours(&self) -> f64 {
        self.node_time.as_secs_f64() / 3600.0
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:.0} virtual node-hours, {:.0} of them with traffic; {} steps, {} events, {} datagrams, {} packets of \
             which {} came out, at most {} timeouts/s of a node; model: {} pairs never direct, {} perhaps",
            self.node_hours(),
            self.busy_time.as_secs_f64() / 3600.0,
            self.steps,
            self.events,
            self.datagrams,
            self.packets,
            self.delivered,
            self.most_timeouts,
            self.never_direct,
            self.maybe_direct
        )?;
        for (what, by_kind) in [("connected", &self.connects), ("direct", &self.directs)] {
            for (kind, times) in by_kind {
                let mean = times.sum / times.count.max(1);
                let (count, longest) = (times.count, times.longest);
                writeln!(f, "{what} after {kind:?}: {count} pairs, mean {mean:.2?}, longest {longest:.2?}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.report)
    }
}
