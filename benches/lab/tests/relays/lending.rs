//! A node that relays for others: a hard pair goes on when no server is left.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use mesh_lab::mesh::wait_until;
use mesh_lab::traffic::Echo;
use mesh_lab::{Filtering, Lab, Mapping, Mesh, MeshOptions, Nat, Site, Topology};
use nix::sys::signal::Signal;

use super::rig::{COORDINATOR, INTERVAL, NAME, PATIENCE, build, gap, hard, wait_through};

/// The node that lends itself, behind a NAT that others are let through.
const LENDER: &str = "country";
/// Without a reply at most; the machine may be busy.
const BACK_WITHIN: Duration = Duration::from_secs(4);

#[test]
fn a_hard_pair_goes_on_through_a_third_node_when_the_coordinator_is_killed() {
    let ms = Duration::from_millis;
    let lab = Lab::new("lending").unwrap();
    let open = Nat::new(Mapping::Eim, Filtering::Adf);
    let topology = Topology::new()
        .site(Site::public(COORDINATOR).latency(ms(10)))
        .site(Site::behind("company", hard()).host("office").latency(ms(10)))
        .site(Site::behind("house", hard()).host("home").latency(ms(10)))
        .site(Site::behind("village", open).host(LENDER).latency(ms(20)));
    let network = build(&lab, topology).unwrap();
    let mut options = MeshOptions::new(COORDINATOR, NAME, &["office", "home", LENDER]);
    // All lend themselves; only the third node is reached directly.
    options.agent_args = vec!["--relay".to_owned()];
    let mesh = Mesh::new(Arc::clone(&network), &options).unwrap();
    mesh.start().unwrap();

    let echo = Echo::start(&mesh, INTERVAL, |from, to| from != LENDER && to != LENDER).unwrap();
    wait_through(&mesh, COORDINATOR).unwrap();
    wait_until(PATIENCE, "both have a channel at the third node", || {
        for node in ["office", "home"] {
            let other = if node == "office" { "home" } else { "office" };
            let why = mesh.node(node)?.meshctl(["why", other])?.stdout;
            let line = why.lines().find(|line| line.contains(&format!("relay {LENDER}"))).map(str::to_owned);
            ensure!(line.as_ref().is_some_and(|line| !line.contains("never")), "{node} says {why}");
        }
        Ok(true)
    })
    .unwrap();

    let kill = || mesh.coordinator().kill(Signal::SIGKILL);
    let took = gap(&echo, &mesh, kill, LENDER).unwrap();
    println!("coordinator and relay killed: {took:?} without a reply");
    assert!(took < BACK_WITHIN, "{took:?}");
    let status = mesh.node("office").unwrap().peer("home").unwrap();
    println!("{:?}", status.path);
    drop(echo);
    let address = mesh.node("home").unwrap().address().unwrap();
    let seen = mesh.node("office").unwrap().host().ping_every(address, 200, ms(20)).unwrap();
    println!("through the third node: {} of 200 replies, median {:?}", seen.received(), seen.median());
    assert!(seen.received() >= 198, "{} of 200", seen.received());
}
