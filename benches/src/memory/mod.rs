//! `make bench-memory`: what an agent takes with 10, 200 and 1,000 peers, none of which says anything, and what it takes
//! with 10 of them where it does Kubernetes, too ([`kubernetes`]).
//!
//! The agent is a real process that has joined at a real coordinator. Its peers are engines of this program, each with
//! a key and a UDP socket of its own on a neighbouring host: the agent finds them in the map on its disk, makes a
//! WireGuard session with each, and has each on a direct path that was probed. Then all fall silent, and its
//! memory is read. A peer that was never talked to is measured before that, as it costs less.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_lab::{
    Filtering, Host, Lab, Mapping, Mesh, MeshOptions, Nat, Node, Site, Topology, mesh::wait_until,
};
use mesh_proto::status::PathKind;

mod cluster;
pub mod kubernetes;
mod spokes;

use self::spokes::{PeerOnDisk, Spokes};
use crate::{
    agent,
    figure::{Budget, Figure},
    procfs,
};

/// How many peers the agent has.
const PEERS: [usize; 3] = [10, 200, 1000];
/// How often each is measured: another process each time.
const RUNS: usize = 3;
/// What an agent may take with the fewest of them, in MB.
const BUDGET: Budget = Budget::AtMost(15.0);
/// The agent's UDP port.
const PORT: u16 = 51820;
/// How long sessions and paths with all peers may take to be made.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the agent is left alone before it is looked at: handshakes and probes are over.
const SETTLE: Duration = Duration::from_secs(15);
/// How often it is asked meanwhile, which costs it memory, too.
const LOOK: Duration = Duration::from_secs(1);

/// What one agent took, in MB.
#[derive(Debug, Clone, Copy)]
struct Taken {
    /// With peers that it has never talked to.
    unknown: f64,
    /// With sessions and direct paths to all.
    idle: f64,
    /// The most that it ever had.
    peak: f64,
}

/// Measures.
///
/// # Errors
/// When the lab or the binaries fail, or a peer gets no session or no direct path.
pub fn measure(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let site = Site::behind("lan", Nat::new(Mapping::Eim, Filtering::Apdf)).host("a").host("far");
    let network = lab.build(Topology::new().site(Site::public("coord")).site(site))?;
    let address = network.outside("coord")?.to_string();
    let mesh = Mesh::new(network, &MeshOptions::new("coord", &address, &["a"]))?;
    mesh.start()?;
    let mut taken: [Vec<Taken>; PEERS.len()] = Default::default();
    for run in 0..RUNS {
        for (taken, peers) in taken.iter_mut().zip(PEERS) {
            eprintln!("run {}, {peers} peers", run + 1);
            let subject = Subject::start(mesh.node("a")?, mesh.network().host("far")?, peers);
            taken.push(subject.and_then(Subject::measure).with_context(|| format!("{peers} peers"))?);
        }
    }
    mesh.stop()?;
    figures(&taken)
}

fn figures(taken: &[Vec<Taken>; PEERS.len()]) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (taken, peers) in taken.iter().zip(PEERS) {
        let budget = (peers == PEERS[0]).then_some(BUDGET);
        let idle = taken.iter().map(|taken| taken.idle).collect();
        figures.push(Figure::new(format!("agent with {peers} idle peers, resident"), "MB", idle, budget)?);
    }
    // Of the same run, so that what the machine does meanwhile meets both.
    let [few, .., many] = taken;
    let more = (PEERS[PEERS.len() - 1] - PEERS[0]) as f64;
    let per_peer = |of: fn(&Taken) -> f64| -> Vec<f64> {
        few.iter().zip(many).map(|(few, many)| (of(many) - of(few)) * 1e6 / 1024.0 / more).collect()
    };
    let budget = Some(Budget::AtMost(20.0));
    figures.push(Figure::new(
        "per idle peer, with session and path",
        "KiB",
        per_peer(|taken| taken.idle),
        budget,
    )?);
    figures.push(Figure::new("per peer never talked to", "KiB", per_peer(|taken| taken.unknown), budget)?);
    Ok(figures)
}

/// An agent that is measured.
struct Subject<'a> {
    node: &'a Node,
    spokes: Spokes,
    peers: usize,
}

impl<'a> Subject<'a> {
    /// Starts the agent with so many peers in its map.
    fn start(node: &'a Node, far: &Host, peers: usize) -> anyhow::Result<Self> {
        let this = node.status()?.this;
        let listens = SocketAddr::from((node.host().address(), PORT));
        node.agent().stop()?;
        let mut spokes = Spokes::open(far, peers, (this.public_key, listens))?;
        node.edit_map(|map| {
            spokes.introduce(&map.this);
            map.peers = spokes.nodes(&map.mesh);
        })?;
        let known: Vec<PeerOnDisk> = spokes.on_disk(far.address())?;
        node.write_state("peers.json", &known)?;
        node.start()?;
        agent::wait_ready(node)?;
        Ok(Self { node, spokes, peers })
    }

    /// Has all peers talk, and measures it once they are silent.
    fn measure(mut self) -> anyhow::Result<Taken> {
        let Self { node, spokes, peers } = &mut self;
        let peers = *peers;
        let pid = node.agent().pid().context("the agent runs")?;
        wait_until(agent::PATIENCE, "the agent knows its peers", || Ok(node.status()?.peers.len() == peers))?;
        let unknown = procfs::resident_mb(pid)?;
        let deadline = Instant::now() + PATIENCE;
        spokes.talk()?;
        let mut looked = Instant::now();
        loop {
            spokes.turn()?;
            if looked.elapsed() < LOOK {
                continue;
            }
            looked = Instant::now();
            let direct = count_direct(node)?;
            if direct == peers && spokes.all_connected() {
                break;
            }
            ensure!(looked < deadline, "only {direct} of {peers} peers are on a direct path");
            spokes.talk()?;
        }
        let settled = Instant::now() + SETTLE;
        while Instant::now() < settled {
            spokes.turn()?;
        }
        ensure!(count_direct(node)? == peers, "idle peers lose their paths");
        Ok(Taken { unknown, idle: procfs::resident_mb(pid)?, peak: procfs::peak_mb(pid)? })
    }
}

/// Counts the peers that have a session and are on a direct path.
fn count_direct(node: &Node) -> anyhow::Result<usize> {
    let peers = node.status()?.peers;
    let is_direct = |peer: &&mesh_proto::status::PeerStatus| {
        peer.path.kind == PathKind::Direct && peer.last_handshake.is_some()
    };
    Ok(peers.iter().filter(is_direct).count())
}
