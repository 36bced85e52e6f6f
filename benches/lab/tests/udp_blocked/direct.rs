//! Straight to the coordinator's TCP port.

use std::time::{Duration, Instant};

use mesh_lab::Lab;
use mesh_lab::nat::Egress;
use mesh_lab::traffic::transfer;
use nix::sys::signal::Signal;

use super::rig::{By, build, start, time_to_first_reply, time_to_reply, topology, wait_carried};

/// Drops all UDP but name resolution at a site's router; existing connections of TCP are left alone.
const BLOCK: &str = "add table inet blocked\n\
    add chain inet blocked f { type filter hook forward priority -20; policy accept; }\n\
    add rule inet blocked f oifname wan udp dport != 53 drop\n";
/// The same, and nothing comes in either.
const BLOCK_BOTH_WAYS: &str = "add table inet blocked\n\
    add chain inet blocked f { type filter hook forward priority -20; policy accept; }\n\
    add rule inet blocked f oifname wan udp dport != 53 drop\n\
    add rule inet blocked f iifname wan udp sport != 53 drop\n";
const UNBLOCK: &str = "delete table inet blocked\n";

/// Bytes of a file that is sent through two byte pipes.
const TRANSFER: u64 = 20 << 20;

#[test]
fn a_node_without_udp_joins_and_reaches_one_with_it() {
    let lab = Lab::new("tcp-one").unwrap();
    let network = build(&lab, topology(Egress::NoUdp, Egress::Open)).unwrap();
    let mesh = start(&network, &[]).unwrap();
    wait_carried(&mesh, "office", By::WebSocket).unwrap();
    wait_carried(&mesh, "home", By::Udp).unwrap();
    let office = mesh.node("office").unwrap();
    for _ in 0..3 {
        office.kill(Signal::SIGKILL).unwrap();
        let took = time_to_first_reply(&mesh, "office", "home").unwrap();
        println!("UDP blocked on one side, cold start to first reply: {took:?}");
    }
}

#[test]
fn two_nodes_without_udp_reach_each_other() {
    let lab = Lab::new("tcp-both").unwrap();
    let network = build(&lab, topology(Egress::NoUdp, Egress::NoUdp)).unwrap();
    let mesh = start(&network, &[]).unwrap();
    for node in ["office", "home"] {
        wait_carried(&mesh, node, By::WebSocket).unwrap();
    }
    let office = mesh.node("office").unwrap();
    for _ in 0..3 {
        office.kill(Signal::SIGKILL).unwrap();
        let took = time_to_first_reply(&mesh, "office", "home").unwrap();
        println!("UDP blocked on both sides, cold start to first reply: {took:?}");
    }
    let address = mesh.node("home").unwrap().address().unwrap();
    let seen = office.host().ping_every(address, 50, Duration::from_millis(20)).unwrap();
    println!("{} of 50 replies, median {:?}", seen.received(), seen.median());
    assert_eq!(seen.received(), 50);
    let home = mesh.node("home").unwrap();
    let sent = transfer(office.host(), (home.host(), address), TRANSFER).unwrap();
    assert!(sent.bytes == TRANSFER && sent.sent == sent.received, "{sent:?}");
    println!("{} MB in TCP through two byte pipes: {:.0} Mbit/s", TRANSFER >> 20, sent.mbit_per_second());
}

#[test]
fn udp_that_is_blocked_and_let_through_again_is_left_and_found() {
    // Each takes as long as UDP is left alone before it is tried again.
    std::thread::scope(|scope| {
        scope.spawn(|| left_and_found("one-way", BLOCK));
        scope.spawn(|| left_and_found("both-ways", BLOCK_BOTH_WAYS));
    });
}

fn left_and_found(name: &str, block: &str) {
    let lab = Lab::new(&format!("tcp-later-{name}")).unwrap();
    let network = build(&lab, topology(Egress::Open, Egress::Open)).unwrap();
    let mesh = start(&network, &[]).unwrap();
    let (office, to) = (mesh.node("office").unwrap(), mesh.node("home").unwrap().address().unwrap());
    wait_carried(&mesh, "office", By::Udp).unwrap();
    let router = network.router("company").unwrap();
    // Replies flow, as they do in a session.
    office.host().ping_every(to, 20, Duration::from_millis(50)).unwrap();
    router.nft(block).unwrap();
    let took = time_to_reply(office.host(), to, Instant::now()).unwrap();
    println!("{name}: UDP blocked in mid-session, next reply after {took:?}");
    wait_carried(&mesh, "office", By::WebSocket).unwrap();
    router.nft(UNBLOCK).unwrap();
    let unblocked = Instant::now();
    // Through the whole way back nothing is lost.
    let seen = office.host().ping_every(to, 700, Duration::from_millis(100)).unwrap();
    let status = wait_carried(&mesh, "office", By::Udp).unwrap();
    println!(
        "{name}: {} of {} replies on the way back, {:?} after it was let through",
        seen.received(),
        seen.sent,
        unblocked.elapsed()
    );
    assert!(!status.this.nat.udp_blocked);
    assert_eq!(seen.received(), 700, "nothing is lost on the way back to UDP");
}
