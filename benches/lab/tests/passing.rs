//! A node that has moved is found again through a peer, where there is neither a coordinator nor a relay.
//!
//! `a` and `b` sit behind NATs that let in only whom they have sent to, so neither is heard by the other before it knows
//! where the other is; both talk to `c`, which can be reached. With the coordinator its relay is gone, and no node lends
//! itself: that `b` sends to where `a` is now can only have come by what `c` passed on.

use std::time::{Duration, Instant};

use anyhow::ensure;
use mesh_lab::mesh::wait_until;
use mesh_lab::traffic::Echo;
use mesh_lab::{Filtering, Lab, Mapping, Mesh, MeshOptions, Nat, Site, Topology};
use mesh_proto::status::PathKind;
use nix::sys::signal::Signal;

const COORDINATOR: &str = "coordinator";
const NODES: [&str; 3] = ["a", "b", "c"];
/// What each site adds to a round trip.
const LATENCY: Duration = Duration::from_millis(20);
/// Between the requests of a pair.
const INTERVAL: Duration = Duration::from_millis(20);
/// Far beyond what it takes: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(15);

fn home(name: &str) -> Site {
    Site::behind(name, Nat::new(Mapping::Eim, Filtering::Apdf)).latency(LATENCY)
}

/// Waits until a node sends to a peer at this site's outside address, and has answers from there.
fn wait_at(mesh: &Mesh, from: &str, to: &str, site: &str) -> anyhow::Result<()> {
    let outside = mesh.network().outside(site)?;
    wait_until(PATIENCE, &format!("{from} reaches {to} at {site}"), || {
        let path = mesh.node(from)?.peer(to)?.path;
        let is_there = path.address.is_some_and(|address| address.ip() == outside);
        ensure!(path.kind == PathKind::Direct && is_there, "{path:?}");
        Ok(true)
    })
}

#[test]
fn a_node_that_moves_is_found_through_a_peer_that_both_talk_to() {
    let lab = Lab::new("passing").unwrap();
    let topology = Topology::new()
        .site(Site::public(COORDINATOR).latency(LATENCY))
        .site(Site::public("c").latency(LATENCY))
        .site(home("before").host("a"))
        .site(home("after"))
        .site(home("other").host("b"));
    let network = lab.build(topology).unwrap();
    let address = network.outside(COORDINATOR).unwrap().to_string();
    let mesh = Mesh::new(network, &MeshOptions::new(COORDINATOR, &address, &NODES)).unwrap();
    mesh.start().unwrap();
    mesh.wait_connected(PATIENCE).unwrap();
    let echo = Echo::all(&mesh, INTERVAL).unwrap();
    wait_at(&mesh, "a", "b", "other").unwrap();
    wait_at(&mesh, "b", "a", "before").unwrap();
    wait_at(&mesh, "a", "c", "c").unwrap();
    wait_at(&mesh, "b", "c", "c").unwrap();

    mesh.coordinator().kill(Signal::SIGKILL).unwrap();
    mesh.network().move_host("a", "after").unwrap();
    let since = Instant::now();
    let between = |from: &str, to: &str| [from, to].iter().all(|end| ["a", "b"].contains(end));
    let took = echo.wait_for(since, PATIENCE, between).unwrap();
    println!("both hear each other again after {took:?}");
    wait_at(&mesh, "b", "a", "after").unwrap();
    wait_at(&mesh, "a", "b", "other").unwrap();
    mesh.check_logs(&["the coordinator is not reached"]).unwrap();
}
