//! How fast a node is there: cold start to ready, and join to the first reply.

use std::time::{Duration, Instant};

use mesh_lab::{Lab, Mesh, MeshOptions, Site, Topology};
use nix::sys::signal::Signal;

use crate::{
    agent,
    figure::{Budget, Figure},
};

/// How far away the coordinator is: its share of a round trip.
const COORDINATOR_LATENCY: Duration = Duration::from_millis(20);
/// How often each is measured.
const RUNS: usize = 10;

/// Measures.
///
/// # Errors
/// When the lab or the binaries fail.
pub fn measure(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let names: Vec<String> = (0..=RUNS).map(|i| format!("n{i}")).collect();
    let coordinator = Site::public("coord").latency(COORDINATOR_LATENCY);
    let topology = names
        .iter()
        .fold(Topology::new().site(coordinator), |topology, name| topology.site(Site::public(name)));
    let network = lab.build(topology)?;
    let address = network.outside("coord")?.to_string();
    let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
    let mesh = Mesh::new(network, &MeshOptions::new("coord", &address, &nodes))?;
    mesh.start_coordinator()?;
    mesh.join("n0")?;
    let first = mesh.node("n0")?;
    agent::wait_ready(first)?;

    let (mut starts, mut replies) = (Vec::new(), Vec::new());
    for name in &names[1..] {
        let (line, node) = (mesh.token(&[])?, mesh.node(name)?);
        let started = Instant::now();
        node.join(&line)?;
        node.start()?;
        agent::wait_ready(node)?;
        node.host().ping(first.address()?)?;
        replies.push(millis(started));
    }
    for _ in 0..RUNS {
        first.kill(Signal::SIGKILL)?;
        let started = Instant::now();
        first.start()?;
        agent::wait_ready(first)?;
        starts.push(millis(started));
    }
    mesh.stop()?;
    Ok(vec![
        Figure::new(
            "cold start to ready, coordinator 20 ms away",
            "ms",
            starts,
            Some(Budget::AtMost(300.0)),
        )?,
        Figure::new("join to first reply of a stranger", "ms", replies, Some(Budget::AtMost(1000.0)))?,
    ])
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
