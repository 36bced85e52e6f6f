//! `make bench-restart`: for how long nothing arrives when an agent is restarted under traffic.
//!
//! Two nodes on the internet, each agent under the lab's service manager, which keeps its descriptors as systemd does. A
//! datagram every few milliseconds goes each way through the tunnel. Then one agent is asked to stop, or killed, and the next
//! process is started at once; the gap is the longest time in which nothing arrived, from before the stop until well
//! after the new process has its path again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_lab::mesh::{Ending, Service, wait_until};
use mesh_lab::{Lab, Mesh, MeshOptions, Site, Topology};
use mesh_proto::status::PathKind;

use crate::roam::report::{Budget, Series};

mod stream;

use stream::Stream;

/// Between two datagrams: what a gap is too long by.
const INTERVAL: Duration = Duration::from_millis(5);
/// What each site adds to a round trip.
const LATENCY: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(30);
/// For how long a trial is watched before its restart and after the new process is ready: what comes late counts.
const BEFORE: Duration = Duration::from_millis(100);
const AFTER: Duration = Duration::from_millis(1500);
/// A median that nobody notices in a call or a game.
const BUDGET: Budget = Budget { p50: Some(Duration::from_millis(200)), p99: None };

/// The nodes: the one that is restarted, and the other one.
const NODES: [&str; 2] = ["a", "b"];

/// Restarts an agent so many times each way, and returns the gaps in what it receives and in what it sends.
///
/// # Errors
/// When the lab or the binaries fail, or the nodes do not talk again.
pub fn measure(trials: usize) -> anyhow::Result<Vec<Series>> {
    let lab = Lab::new("restart-gap")?;
    let mesh = mesh(&lab)?;
    let services = [Service::new(mesh.node(NODES[0])?)?, Service::new(mesh.node(NODES[1])?)?];
    for service in &services {
        service.start()?;
    }
    mesh.wait_ready(PATIENCE)?;
    mesh.wait_connected(PATIENCE)?;
    let [restarted, other] = [mesh.node(NODES[0])?, mesh.node(NODES[1])?];
    let inward = Stream::start(other.host(), restarted, INTERVAL)?;
    let outward = Stream::start(restarted.host(), other, INTERVAL)?;
    let mut all = Vec::new();
    for (ending, kind) in [(Ending::Asked, "restart"), (Ending::Killed, "kill -9")] {
        let (mut received, mut sent) = (Vec::new(), Vec::new());
        for trial in 0..trials {
            settle(&mesh)?;
            std::thread::sleep(crate::roam::out_of_step(trial));
            inward.forget();
            outward.forget();
            std::thread::sleep(BEFORE);
            let begun = Instant::now();
            services[0].restart(ending)?;
            let ready = wait_until(PATIENCE, "the agent is back", || Ok(restarted.is_ready()));
            ready.with_context(|| format!("{kind}, trial {trial}"))?;
            std::thread::sleep(AFTER);
            received.push(inward.longest_gap().filter(|gap| *gap < begun.elapsed()));
            sent.push(outward.longest_gap().filter(|gap| *gap < begun.elapsed()));
        }
        all.push(Series::new("ours", kind, "received", received, BUDGET));
        all.push(Series::new("ours", kind, "sent", sent, BUDGET));
    }
    Ok(all)
}

/// A coordinator and two nodes that have joined; no agent runs.
fn mesh(lab: &Lab) -> anyhow::Result<Mesh> {
    let site = |name: &str| Site::public(name).latency(LATENCY);
    let topology = Topology::new().site(site("coord")).site(site(NODES[0])).site(site(NODES[1]));
    let network = lab.build(topology)?;
    let address = network.outside("coord")?.to_string();
    let mesh = Mesh::new(network, &MeshOptions::new("coord", &address, &NODES))?;
    mesh.start_coordinator()?;
    for node in mesh.nodes() {
        node.join(&mesh.token(&[])?)?;
    }
    Ok(mesh)
}

/// Waits until both ends use a direct path.
fn settle(mesh: &Mesh) -> anyhow::Result<()> {
    wait_until(PATIENCE, "the path is direct", || {
        for (from, to) in [(NODES[0], NODES[1]), (NODES[1], NODES[0])] {
            let kind = mesh.node(from)?.peer(to)?.path.kind;
            ensure!(kind == PathKind::Direct, "{from} says {kind:?}");
        }
        Ok(true)
    })
}
