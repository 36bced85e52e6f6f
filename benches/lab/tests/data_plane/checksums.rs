//! Every set of offloads carries the same bytes, and nothing of it has a wrong checksum.

use mesh_lab::{
    Node,
    capture::{Kind, Seen},
    pods::Offloading,
    traffic::transfer,
};

use crate::rig::{Rig, burst, checksum_errors, finish, fragmented, superpackets};

/// A transfer of many superpackets.
const TRANSFER: u64 = 10_000_000;

#[test]
fn all_offloads() {
    check("all", Offloading::On);
}

#[test]
fn all_offloads_for_pods_that_have_none() {
    check("all", Offloading::Off);
}

#[test]
fn no_offloads() {
    check("none", Offloading::On);
}

#[test]
fn no_offloads_for_pods_that_have_none_either() {
    check("none", Offloading::Off);
}

#[test]
fn only_those_of_the_tun() {
    check("tun", Offloading::On);
}

#[test]
fn only_those_of_the_sockets() {
    check("udp-send,udp-receive", Offloading::On);
}

#[test]
fn all_but_trains_that_are_sent() {
    check("tun,udp-receive", Offloading::On);
}

#[test]
fn all_but_trains_that_are_received() {
    check("tun,udp-send", Offloading::On);
}

fn check(offloads: &str, offloading: Offloading) {
    let rig = Rig::start(offloads, offloading);
    let captures = rig.capture_all(|_| false);
    for [a, b] in rig.pairs() {
        for (from, to) in [(a, b), (b, a)] {
            let what = format!("{offloads}, {offloading:?}: {} to {}", from.0.name(), to.1);
            let sent = transfer(from.0, to, TRANSFER).unwrap();
            assert!((sent.bytes, &sent.sent) == (TRANSFER, &sent.received), "{what}: {sent:?}");
            burst(from.0, to, &what);
            superpackets(from.0, to, &what);
            fragmented(from.0, to, &what);
        }
    }
    let uses_tun = offloads == "all" || offloads.contains("tun");
    for (place, seen) in finish(captures) {
        let Seen { wrong, missed, merged, .. } = &seen;
        println!("{offloads}, {offloading:?}, {place}: {:?}, {merged} merged, {missed} missed", seen.packets);
        assert_eq!(*wrong, 0, "{offloads}, {offloading:?}, {place}: {:#?}", seen.described);
        for kind in [Kind::TcpV4, Kind::TcpV6, Kind::UdpV4, Kind::UdpV6, Kind::FragmentV4, Kind::FragmentV6] {
            assert!(seen.count(kind) > 0, "{offloads}, {offloading:?}, {place}: no {kind:?}: {seen:?}");
        }
        let at_tun = place.ends_with("mesh0");
        if at_tun && !uses_tun || !at_tun && offloading == Offloading::Off {
            assert_eq!(*merged, 0, "{offloads}, {offloading:?}, {place}");
        }
        if at_tun && offloads == "all" {
            assert!(*merged > 0, "{offloads}, {offloading:?}, {place}: superpackets are merged");
        }
    }
    for node in rig.nodes() {
        assert_clean(node, offloads);
    }
    rig.mesh.stop().unwrap();
}

/// Neither the kernel nor the agent has met anything wrong.
fn assert_clean(node: &Node, offloads: &str) {
    let errors = checksum_errors(node.host());
    assert_eq!(errors, 0, "{offloads}, {}", node.name());
    let status = node.status().unwrap();
    for refused in ["tun-write", "tun-read", "udp-send", "udp-too-big", "malformed-packet", "arena-full"] {
        let peers = status.peers.iter().filter_map(|peer| peer.drops.get(refused));
        let count: u64 = status.this.drops.get(refused).into_iter().chain(peers).sum();
        assert_eq!(count, 0, "{offloads}, {}: {refused}", node.name());
    }
}
