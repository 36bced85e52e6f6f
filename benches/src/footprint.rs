//! What daemons that have nothing to do cost.

use std::time::Duration;

use anyhow::Context;
use mesh_lab::{Lab, Mesh, MeshOptions, Site, Topology};

use crate::{
    agent,
    figure::{Budget, Figure},
    procfs,
};

/// The peers of the agent that is looked at.
const PEERS: usize = 10;
/// How long the traffic of the beginning is left to settle.
const SETTLE: Duration = Duration::from_secs(40);
/// How long the agent is watched.
const WATCH: Duration = Duration::from_secs(60);

/// Measures.
///
/// # Errors
/// When the lab or the binaries fail.
pub fn measure(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let names: Vec<String> = (0..=PEERS).map(|i| format!("n{i}")).collect();
    let topology = names.iter().fold(Topology::new().site(Site::public("coord")), |topology, name| {
        topology.site(Site::public(name))
    });
    let network = lab.build(topology)?;
    let address = network.outside("coord")?.to_string();
    let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
    let mesh = Mesh::new(network, &MeshOptions::new("coord", &address, &nodes))?;
    mesh.start_coordinator()?;
    let empty = procfs::resident_mb(mesh.coordinator().pid().context("the coordinator runs")?)?;
    mesh.start()?;
    mesh.wait_connected(agent::PATIENCE)?;

    let pid = mesh.node("n0")?.agent().pid().context("the agent runs")?;
    std::thread::sleep(SETTLE);
    let before = procfs::cpu_time(pid)?;
    std::thread::sleep(WATCH);
    let cpu = (procfs::cpu_time(pid)? - before).total() * 60.0 / WATCH.as_secs_f64();
    let residents = mesh
        .nodes()
        .map(|node| procfs::resident_mb(node.agent().pid().context("the agent runs")?))
        .collect::<anyhow::Result<Vec<_>>>()?;
    mesh.stop()?;
    Ok(vec![
        Figure::new("coordinator without nodes, resident", "MB", vec![empty], Some(Budget::AtMost(30.0)))?,
        Figure::new("agent with 10 peers, resident", "MB", residents, Some(Budget::AtMost(15.0)))?,
        Figure::new("agent with 10 idle peers, CPU per minute", "s", vec![cpu], Some(Budget::AtMost(0.1)))?,
    ])
}
