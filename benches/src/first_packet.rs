//! How long the first packet to a known peer takes, when there is no session yet and only a relay.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use anyhow::Context;
use mesh_lab::{Filtering, Lab, Mapping, Mesh, MeshOptions, Nat, Site, Topology, mesh::wait_until};
use nix::sys::signal::Signal;

use crate::{
    agent,
    figure::{Budget, Figure},
};

/// Each node's share of a round trip: far above what the machine adds.
const LATENCY: Duration = Duration::from_millis(20);
/// How often it is measured.
const RUNS: usize = 10;
/// Any port that nobody listens on.
const PORT: u16 = 4242;

/// Measures the time on the way of a first datagram, in relay round trips.
///
/// # Errors
/// When the lab or the binaries fail, or the first datagram is lost.
pub fn measure(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let hard = || Nat::new(Mapping::Apdm, Filtering::Apdf);
    let topology = Topology::new()
        .site(Site::public("coord"))
        .site(Site::behind("site-a", hard()).host("a").latency(LATENCY))
        .site(Site::behind("site-b", hard()).host("b").latency(LATENCY));
    let network = lab.build(topology)?;
    let address = network.outside("coord")?.to_string();
    let mesh = Mesh::new(network, &MeshOptions::new("coord", &address, &["a", "b"]))?;
    mesh.start()?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let target = b.address()?;
    wait_until(agent::PATIENCE, "a and b talk", || Ok(mesh.ping("a", "b").is_ok()))?;

    let mut ratios = Vec::new();
    for _ in 0..RUNS {
        let relay_round_trip = a.host().ping_many(target, 5)?.median().context("a and b talk no more")?;
        a.kill(Signal::SIGKILL)?;
        a.start()?;
        wait_until(agent::PATIENCE, "a is back at its relay", || Ok(a.status()?.this.relay.is_some()))?;
        let receiver = b.host().netns().enter(|| UdpSocket::bind((target, PORT)))??;
        receiver.set_read_timeout(Some(agent::PATIENCE))?;
        let sender = a.host().netns().enter(|| UdpSocket::bind(("0.0.0.0", 0)))??;
        let sent = Instant::now();
        sender.send_to(b"first", (target, PORT))?;
        receiver.recv_from(&mut [0; 16]).context("the first datagram was lost")?;
        ratios.push(sent.elapsed().as_secs_f64() / relay_round_trip.as_secs_f64());
    }
    mesh.stop()?;
    let what = "first packet to a known peer, in relay round trips";
    Ok(vec![Figure::new(what, "rtt", ratios, Some(Budget::AtMost(1.5)))?])
}
