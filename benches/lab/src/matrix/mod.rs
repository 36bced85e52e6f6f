//! The 81 ordered pairs of NAT types, one after the other: whether each becomes direct, and how long that takes.
//!
//! Two sites of each type stand around a public coordinator; every line adds 20 ms to a round trip. In each run every pair
//! is asked once, in an order that the seed gives: the first side pings the second, which it has never spoken to, until
//! both say that their path is direct, or long enough if it is to stay relayed. The time is that from the first ping to
//! the moment that the later of the two agents names. All sites may have IPv6 besides, behind a stateful filter: then every
//! pair has to become direct over that.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use mesh_proto::status::{PathKind, PathReason, PathStatus};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

mod table;

pub use table::{summary, table};

use crate::mesh::{Mesh, MeshOptions};
use crate::nat::{Nat, NatType};
use crate::run::Lab;
use crate::topology::{Ipv6, Reach, Site, Topology};

const COORDINATOR: &str = "coordinator";
/// What each site adds to a round trip: 40 ms between two nodes, and to the coordinator.
const LATENCY: Duration = Duration::from_millis(20);
/// Between pings of a pair, in seconds.
const PING_INTERVAL: &str = "0.1";
/// How often both sides are asked. The time does not depend on it.
const POLL: Duration = Duration::from_millis(100);
/// A pair that plain probing gets through is direct within this time, on a busy machine.
const PLAIN_PATIENCE: Duration = Duration::from_secs(5);
/// One that takes many sockets and ports: the wait before, three times its budget at 250 probes a second, and a retry.
const PUNCH_PATIENCE: Duration = Duration::from_secs(1 + 30);
/// For so long a pair is watched that must stay relayed: a whole attempt, if it made one.
const RELAY_WATCH: Duration = Duration::from_secs(4);

/// As long as an attempt takes that finds nothing.
const ATTEMPT: Duration = Duration::from_secs(10);

/// What is asked.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often every pair is asked.
    pub runs: u32,
    /// Gives the order of the pairs, and what the lines do.
    pub seed: u64,
    /// Only pairs that plain probing does not get through.
    pub scope: Scope,
    /// Further arguments of the agents.
    pub agent_args: Vec<String>,
}

/// Which pairs are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All 81.
    All,
    /// The eight that plain probing does not get through.
    Hard,
    /// All 81, and every site has IPv6 behind a stateful filter besides: over that, no NAT is in the way.
    Ipv6,
}

/// One pair in one run.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Counts runs from 0.
    pub run: u32,
    /// The NAT of the side that pings.
    pub from: NatType,
    /// The other one's.
    pub to: NatType,
    /// What it should come to: `direct`, `punched`, `relay`, or `ipv6`: direct over that.
    pub wanted: &'static str,
    /// Where the first side's path led in the end, if it was direct.
    pub address: Option<SocketAddr>,
    /// After how many milliseconds both sides were direct; none if they were not.
    pub direct_ms: Option<f64>,
    /// The round trip of the first ping in milliseconds, which goes through the relay; none if it was lost.
    pub first_ping_ms: Option<f64>,
    /// What the first side said in the end.
    pub reason: String,
}

impl Outcome {
    /// Whether it is as it should be.
    #[must_use]
    pub fn is_right(&self) -> bool {
        let is_family_right = self.wanted != "ipv6" || self.address.is_some_and(|address| address.is_ipv6());
        let is_direct = self.direct_ms.is_some();
        self.first_ping_ms.is_some() && (self.wanted != "relay") == is_direct && is_family_right
    }
}

/// Asks all pairs; `tell` hears of each as it comes.
///
/// # Errors
///
/// If the network or the mesh cannot be made, or an agent stops answering. A pair that is not as it should be is none.
pub fn measure(options: &Options, mut tell: impl FnMut(&Outcome)) -> anyhow::Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    for run in 0..options.runs {
        let lab = Lab::new("matrix")?;
        let mesh = build(&lab, rng.next_u64(), options)?;
        mesh.start()?;
        let addresses = mesh
            .nodes()
            .map(|node| Ok((node.name().to_owned(), node.address()?)))
            .collect::<anyhow::Result<BTreeMap<_, _>>>()?;
        for (from, to) in pairs(options.scope, &mut rng) {
            let pair = Pair { mesh: &mesh, run, from, to };
            let address = addresses[&node("b", to)];
            let outcome = pair.measure(address).with_context(|| format!("{from} to {to}"))?;
            tell(&outcome);
            outcomes.push(outcome);
        }
        mesh.stop()?;
    }
    Ok(outcomes)
}

/// Writes every outcome as JSON.
///
/// # Errors
///
/// If the file cannot be written.
pub fn write_json(outcomes: &[Outcome], path: &Path) -> anyhow::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, serde_json::to_vec_pretty(outcomes)?).with_context(|| format!("{}", path.display()))
}

/// Where the JSON goes if nobody says: beside the program.
#[must_use]
pub fn default_json() -> PathBuf {
    let program = std::env::current_exe().ok();
    let target = program.as_deref().and_then(|program| program.parent()?.parent());
    target.unwrap_or(Path::new(".")).join("matrix.json")
}

/// One ordered pair.
struct Pair<'a> {
    mesh: &'a Mesh,
    run: u32,
    from: NatType,
    to: NatType,
}

impl Pair<'_> {
    fn measure(&self, address: Ipv4Addr) -> anyhow::Result<Outcome> {
        let Self { mesh, run, from, to } = *self;
        let (a, b) = (node("a", from), node("b", to));
        let reach = mesh.network().reach(&a, &b)?;
        let over_ipv6 = mesh.network().has_ipv6(&mesh.node(&a)?.host().site());
        let (wanted, patience) = match reach {
            Reach::Lan | Reach::Direct if over_ipv6 => ("ipv6", PLAIN_PATIENCE),
            Reach::Lan | Reach::Direct => ("direct", PLAIN_PATIENCE),
            Reach::Punched => ("punched", PUNCH_PATIENCE),
            Reach::Relay => ("relay", RELAY_WATCH),
        };
        let (started, deadline) = (SystemTime::now(), Instant::now() + patience);
        let first_ping = mesh.node(&a)?.host().ping(address);
        let pings = mesh.node(&a)?.host().command("ping").args(["-n", "-i", PING_INTERVAL]);
        let pings = pings.arg(address.to_string()).spawn("matrix-ping")?;
        let (direct, last) = loop {
            let paths = [(&a, &b), (&b, &a)].map(|(node, peer)| Ok(mesh.node(node)?.peer(peer)?.path));
            let [one, other]: [anyhow::Result<PathStatus>; 2] = paths;
            let (one, other) = (one?, other?);
            let direct = [&one, &other].map(direct_since);
            let is_family_right = !over_ipv6 || [&one, &other].into_iter().all(is_over_ipv6);
            if let [Some(one_since), Some(other_since)] = direct
                && (is_family_right || Instant::now() >= deadline)
            {
                break (Some(one_since.max(other_since)), one);
            }
            // An attempt that goes on would keep these two from the next one.
            let is_busy = [&one, &other].iter().any(|path| path.code == PathReason::Punching);
            if Instant::now() >= deadline && (!is_busy || Instant::now() >= deadline + ATTEMPT) {
                break (None, one);
            }
            std::thread::sleep(POLL);
        };
        drop(pings);
        // Both are rounded to milliseconds, on one clock.
        let took = direct.map(|at| at.duration_since(started).unwrap_or_default());
        let millis = |time: Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
        let (direct_ms, first_ping_ms) = (took.map(millis), first_ping.ok().map(millis));
        let PathStatus { address, reason, .. } = last;
        Ok(Outcome { run, from, to, wanted, address, direct_ms, first_ping_ms, reason })
    }
}

/// Since when a path is direct, if it is.
fn direct_since(path: &PathStatus) -> Option<SystemTime> {
    let since = path.since.as_deref().filter(|_| path.kind == PathKind::Direct)?;
    OffsetDateTime::parse(since, &Rfc3339).ok().map(SystemTime::from)
}

fn is_over_ipv6(path: &PathStatus) -> bool {
    path.address.is_some_and(|address| address.is_ipv6())
}

/// The name of a node: `a-eimxeif`.
fn node(side: &str, kind: NatType) -> String {
    format!("{side}-{kind}").to_lowercase()
}

fn build(lab: &Lab, seed: u64, options: &Options) -> anyhow::Result<Mesh> {
    let ipv6 = match options.scope {
        Scope::All | Scope::Hard => Ipv6::None,
        Scope::Ipv6 => Ipv6::Filtered,
    };
    let mut topology = Topology::new().seed(seed).site(Site::public(COORDINATOR).latency(LATENCY));
    let mut names = Vec::new();
    for side in ["a", "b"] {
        for kind in NatType::all() {
            let name = node(side, kind);
            let site = Site::behind(&format!("at-{name}"), Nat::of(kind)).host(&name).latency(LATENCY);
            topology = topology.site(site.ipv6(ipv6));
            names.push(name);
        }
    }
    let network = lab.build(topology)?;
    let address = network.host(COORDINATOR)?.address().to_string();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let agent_args = options.agent_args.clone();
    let options = MeshOptions { agent_args, ..MeshOptions::new(COORDINATOR, &address, &names) };
    Mesh::new(network, &options)
}

/// The pairs in an order of the seed's (Fisher and Yates).
fn pairs(scope: Scope, rng: &mut ChaCha8Rng) -> Vec<(NatType, NatType)> {
    let all = NatType::all().flat_map(|from| NatType::all().map(move |to| (from, to)));
    let mut pairs: Vec<_> = all.filter(|(from, to)| scope != Scope::Hard || !from.punches(*to)).collect();
    for last in (1..pairs.len()).rev() {
        let other = rng.next_u64() % (last as u64 + 1);
        pairs.swap(last, usize::try_from(other).expect("an index of a short list"));
    }
    pairs
}
