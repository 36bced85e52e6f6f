//! Homes, and how soon a dead relay is left.

use std::time::Duration;

use mesh_lab::Lab;
use mesh_lab::traffic::Echo;
use mesh_proto::status::RelayTransport;
use nix::sys::signal::Signal;

use super::rig::{COORDINATOR, FARTHER, INTERVAL, NEAR, build, gap, start, topology, wait_through};

/// A dead relay is left within 2 s; the machine may be busy.
const LEFT_WITHIN: Duration = Duration::from_secs(3);
/// Nothing reaches a relay any more, so it says nothing either.
const BLACKHOLE: &str = "add table inet hole\n\
    add chain inet hole i { type filter hook input priority -20; policy drop; }\n";

#[test]
fn nodes_are_at_home_at_the_nearest_relay_and_leave_those_that_die() {
    let lab = Lab::new("homes").unwrap();
    let network = build(&lab, topology()).unwrap();
    let mesh = start(&network).unwrap();
    let near = mesh.start_relay(NEAR).unwrap();
    let _farther = mesh.start_relay(FARTHER).unwrap();
    for node in ["office", "home"] {
        mesh.wait_home(node, NEAR).unwrap();
    }
    let relay = mesh.node("office").unwrap().status().unwrap().this.relay.unwrap();
    assert_eq!(relay.transport, RelayTransport::Udp);
    println!("home {} at {:?} ms", relay.name, relay.rtt_ms);

    // The first packet goes there.
    let address = mesh.node("home").unwrap().address().unwrap();
    let first = mesh.node("office").unwrap().host().ping(address).unwrap();
    println!("first reply after {first:?}");
    let echo = Echo::all(&mesh, INTERVAL).unwrap();
    wait_through(&mesh, NEAR).unwrap();
    // Until everything is measured packets go on two paths.
    std::thread::sleep(Duration::from_secs(5));

    let took = gap(&echo, &mesh, || near.kill(Signal::SIGKILL), FARTHER).unwrap();
    println!("the near relay was killed: {took:?} without a reply");
    assert!(took < LEFT_WITHIN, "{took:?}");
    for node in ["office", "home"] {
        mesh.wait_home(node, FARTHER).unwrap();
    }

    let blackhole = || network.host(FARTHER)?.netns().nft(BLACKHOLE);
    let took = gap(&echo, &mesh, blackhole, COORDINATOR).unwrap();
    println!("the next one fell silent: {took:?} without a reply");
    assert!(took < LEFT_WITHIN, "{took:?}");
    for node in ["office", "home"] {
        mesh.wait_home(node, COORDINATOR).unwrap();
    }

    // What comes back is home again, and nothing is lost by that.
    echo.forget();
    near.start().unwrap();
    for node in ["office", "home"] {
        mesh.wait_home(node, NEAR).unwrap();
    }
    let back = echo.flows().into_iter().map(|flow| flow.longest_gap).max().unwrap();
    println!("the near relay was started again: {back:?} without a reply");
    assert!(back < LEFT_WITHIN, "{back:?}");
    mesh.check_logs(&[]).unwrap();
}
