//! The coordinator's name moves, lies or is silent, as a DuckDNS name does that follows a home's address late.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use mesh_lab::mesh::wait_until;
use mesh_lab::nat::Protocol;
use mesh_lab::traffic::Echo;
use mesh_lab::{Filtering, Lab, Mapping, Mesh, MeshOptions, Nat, Network, Site, Topology};
use mesh_proto::status::{ConnectionState, PathKind};

const NAME: &str = "pi.example";
const PORT: u16 = 7443;
const NODES: [&str; 2] = ["a", "b"];
const LATENCY: Duration = Duration::from_millis(20);
const TTL: Duration = Duration::from_secs(3);
/// What is promised, from the end of the record's time on.
const PROMISED: Duration = Duration::from_secs(10);
/// On a busy machine: to become ready, to find a direct path.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the record is wrong after the move: long enough that whoever has lost the coordinator tries seldom.
const LAG: Duration = Duration::from_secs(8);
/// A pair that talks directly has no business with the coordinator.
const LONGEST_GAP: Duration = Duration::from_secs(1);

#[test]
fn a_record_that_moves_is_followed_and_traffic_goes_on() {
    follow().unwrap();
}

#[test]
fn a_record_that_lies_or_is_silent_changes_nothing() {
    stay().unwrap();
}

fn follow() -> anyhow::Result<()> {
    let lab = Lab::new("dns-move")?;
    let (network, mesh) = start(&lab)?;
    let echo = Echo::all(&mesh, Duration::from_millis(50))?;
    wait_until(PATIENCE, "both are direct", || {
        let paths = [("a", "b"), ("b", "a")];
        let kinds = paths.map(|(node, peer)| Ok(mesh.node(node)?.peer(peer)?.path.kind));
        let kinds = kinds.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        Ok(kinds.iter().all(|kind| *kind == PathKind::Direct))
    })?;
    echo.forget();

    let moved = "203.0.113.99".parse()?;
    network.set_outside("home", moved)?;
    wait_until(PATIENCE, "both have noticed", || all(&mesh, |state, _| state != ConnectionState::Connected))?;
    std::thread::sleep(LAG);
    network.dns().set(NAME, &[moved.into()]);
    let over = Instant::now() + TTL;
    wait_until(TTL + PROMISED, "both are connected where the record leads", || {
        all(&mesh, |state, address| {
            state == ConnectionState::Connected && address == format!("{moved}:{PORT}")
        })
    })?;
    println!("connected {:?} after the record's time", Instant::now().saturating_duration_since(over));
    let gap = echo.flows().into_iter().map(|flow| flow.longest_gap).max().unwrap_or_default();
    ensure!(gap < LONGEST_GAP, "{gap:?} without a reply");
    mesh.check_logs(&["the coordinator is not reached"])
}

fn stay() -> anyhow::Result<()> {
    let lab = Lab::new("dns-lie")?;
    let (network, mesh) = start(&lab)?;
    let there = format!("{}:{PORT}", network.outside("home")?);
    let is_there =
        |mesh: &Mesh| all(mesh, |state, address| state == ConnectionState::Connected && address == there);
    ensure!(is_there(&mesh)?, "connected where the name leads");

    // Somebody is there, who is not the coordinator: a captive portal answers so for every name.
    network.dns().set_ttl(Duration::ZERO);
    network.dns().set(NAME, &[network.internet().address().into()]);
    let asked = network.dns().queries();
    wait_until(PATIENCE, "both have asked again and again", || {
        ensure!(is_there(&mesh)?, "a connection that works was left");
        Ok(network.dns().queries() > asked + 8)
    })?;
    ensure!(is_there(&mesh)?, "a connection that works was left");
    mesh.node("a")?.restart()?;
    wait_until(PATIENCE, "a start finds the coordinator where it was", || is_there(&mesh))?;

    network.dns().set_silent(true);
    mesh.node("b")?.restart()?;
    let started = Instant::now();
    wait_until(PATIENCE, "a start needs no name server", || is_there(&mesh))?;
    ensure!(started.elapsed() < PROMISED, "{:?}", started.elapsed());
    mesh.check_logs(&[])
}

/// A coordinator behind a router whose address its name stands for, and two nodes elsewhere, connected.
fn start(lab: &Lab) -> anyhow::Result<(Arc<Network>, Mesh)> {
    let nat = || Nat::new(Mapping::Eim, Filtering::Apdf);
    let forwarding = nat().forward(Protocol::Udp, PORT, "pi").forward(Protocol::Tcp, PORT, "pi");
    let topology = NODES.iter().fold(Topology::new(), |topology, node| {
        topology.site(Site::behind(&format!("at-{node}"), nat()).host(node).latency(LATENCY))
    });
    let network = Arc::new(lab.build(topology.site(Site::behind("home", forwarding).host("pi")))?);
    network.dns().set_ttl(TTL);
    network.dns().set(NAME, &[network.outside("home")?.into()]);
    let mesh = Mesh::new(Arc::clone(&network), &MeshOptions::new("pi", NAME, &NODES))?;
    mesh.start()?;
    mesh.wait_connected(PATIENCE)?;
    Ok((network, mesh))
}

/// Whether something is so for both connections to the coordinator.
fn all(mesh: &Mesh, is_so: impl Fn(ConnectionState, &str) -> bool) -> anyhow::Result<bool> {
    for node in mesh.nodes() {
        let coordinator = node.status()?.this.coordinator;
        if !is_so(coordinator.state, coordinator.address.as_deref().unwrap_or_default()) {
            return Ok(false);
        }
    }
    Ok(true)
}
