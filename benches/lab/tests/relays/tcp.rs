//! A node without UDP, and a relay that stands alone: over TCP, also with the coordinator away.

use std::time::Duration;

use anyhow::ensure;
use mesh_lab::mesh::wait_until;
use mesh_lab::nat::Egress;
use mesh_lab::{Lab, Mesh, Nat, Site, Topology};
use mesh_proto::status::RelayTransport;
use nix::sys::signal::Signal;

use super::rig::{COORDINATOR, NEAR, PATIENCE, build, hard, start, wait_through};

/// `office` lets no UDP out.
fn topology() -> Topology {
    let ms = Duration::from_millis;
    Topology::new()
        .site(Site::public(COORDINATOR).latency(ms(60)))
        .site(Site::public(NEAR).latency(ms(10)))
        .site(Site::behind("company", Nat::masquerade().egress(Egress::NoUdp)).host("office").latency(ms(10)))
        .site(Site::behind("house", hard()).host("home").latency(ms(10)))
}

/// Waits until a node says that its home is the near relay, and what carries its frames.
fn wait_carried(mesh: &Mesh, node: &str, by: RelayTransport, patience: Duration) -> anyhow::Result<()> {
    wait_until(patience, &format!("{node} reaches {NEAR} by {by:?}"), || {
        let home = mesh.node(node)?.status()?.this.relay;
        let is = home.as_ref().is_some_and(|home| home.name == NEAR && home.transport == by);
        ensure!(is, "it says {home:?}");
        Ok(true)
    })
}

#[test]
fn a_relay_alone_carries_a_node_without_udp_when_the_coordinator_is_gone() {
    let lab = Lab::new("relay-tcp").unwrap();
    let network = build(&lab, topology()).unwrap();
    let mesh = start(&network).unwrap();
    let _near = mesh.start_relay(NEAR).unwrap();
    wait_carried(&mesh, "office", RelayTransport::Websocket, PATIENCE).unwrap();
    wait_carried(&mesh, "home", RelayTransport::Udp, PATIENCE).unwrap();
    mesh.wait_connected(PATIENCE).unwrap();
    let address = mesh.node("home").unwrap().address().unwrap();
    let office = mesh.node("office").unwrap();

    mesh.coordinator().kill(Signal::SIGKILL).unwrap();
    office.host().ping_every(address, 100, Duration::from_millis(50)).unwrap();
    wait_through(&mesh, NEAR).unwrap();
    let seen = office.host().ping_every(address, 100, Duration::from_millis(20)).unwrap();
    println!("without the coordinator: {} of 100 replies, median {:?}", seen.received(), seen.median());
    assert_eq!(seen.received(), 100);

    // From its disk the agent knows the relay, and that UDP is blocked here.
    office.kill(Signal::SIGKILL).unwrap();
    let started = std::time::Instant::now();
    office.start().unwrap();
    wait_until(PATIENCE, "a reply", || Ok(office.host().ping(address).is_ok())).unwrap();
    println!("cold start without coordinator and UDP, first reply after {:?}", started.elapsed());

    // UDP is let through: it is tried once a minute, and nothing is lost on the way back to it.
    network.set_egress("company", Egress::Open).unwrap();
    let seen = office.host().ping_every(address, 700, Duration::from_millis(100)).unwrap();
    wait_carried(&mesh, "office", RelayTransport::Udp, PATIENCE).unwrap();
    println!("{} of {} replies on the way back to UDP", seen.received(), seen.sent);
    assert_eq!(seen.received(), 700);
}
