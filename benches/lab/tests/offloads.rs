//! Every set of offloads carries the same bytes, and nothing of it has a wrong checksum.
#![expect(clippy::unwrap_used, reason = "a test may fail that way")]

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use mesh_lab::mesh::wait_until;
use mesh_lab::traffic::transfer;
use mesh_lab::{Filtering, Host, Lab, Mapping, Mesh, MeshOptions, Nat, Node, Site, Topology};
use mesh_proto::status::PathKind;

/// For what has no budget here, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);
/// A transfer of many superpackets.
const TRANSFER: u64 = 10_000_000;
/// Datagrams of one burst; all lengths together fit a socket's default buffer.
const BURST: usize = 120;

#[test]
fn every_set_of_offloads_carries_the_same_bytes() {
    for offloads in ["all", "none", "tun", "udp-send", "udp-receive", "udp-send,udp-receive"] {
        let lab = Lab::new("offloads").unwrap();
        let lan = Site::behind("lan", Nat::new(Mapping::Eim, Filtering::Apdf)).host("a").host("b");
        let network = lab.build(Topology::new().site(Site::public("coord")).site(lan)).unwrap();
        let address = network.outside("coord").unwrap().to_string();
        let mut options = MeshOptions::new("coord", &address, &["a", "b"]);
        options.agent_args = vec![format!("--offloads={offloads}")];
        let mesh = Mesh::new(network, &options).unwrap();
        mesh.start().unwrap();
        let (a, b) = (mesh.node("a").unwrap(), mesh.node("b").unwrap());
        wait_until(PATIENCE, "a and b talk directly", || {
            mesh.ping("a", "b")?;
            Ok(a.peer("b")?.path.kind == PathKind::Direct)
        })
        .unwrap();
        for (from, to) in [(a, b), (b, a)] {
            for address in to.status().unwrap().this.addresses {
                let what = format!("{offloads}: {} to {address}", from.name());
                let sent = transfer(from.host(), (to.host(), address), TRANSFER).unwrap();
                assert_eq!((sent.bytes, &sent.sent), (TRANSFER, &sent.received), "{what}");
                burst(from.host(), to.host(), address, &what);
            }
        }
        for node in [a, b] {
            assert_clean(node, offloads);
        }
        mesh.stop().unwrap();
    }
}

/// Sends datagrams of many lengths at once, and expects each as it was sent.
fn burst(from: &Host, to: &Host, address: IpAddr, what: &str) {
    let receiver = to.netns().enter(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let unspecified = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let sender = from.netns().enter(|| UdpSocket::bind(unspecified)).unwrap().unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    // Runs of equal lengths, so that there is something to merge, and lengths of all kinds.
    let datagram = |index: usize| vec![index as u8; 1 + (index / 10) * 100 + (index % 10) / 8];
    for index in 0..BURST {
        sender.send(&datagram(index)).unwrap();
    }
    let mut buffer = [0; 2048];
    for index in 0..BURST {
        let len = receiver.recv(&mut buffer).unwrap_or_else(|error| panic!("{what}, {index}: {error}"));
        assert_eq!(buffer[..len], datagram(index), "{what}: datagram {index}");
    }
}

/// Neither the kernel nor the agent has met anything wrong.
fn assert_clean(node: &Node, offloads: &str) {
    let read =
        |path: &'static str| node.host().netns().enter(|| std::fs::read_to_string(path)).unwrap().unwrap();
    let snmp = read("/proc/thread-self/net/snmp");
    let lines: Vec<Vec<&str>> = snmp.lines().map(|line| line.split_whitespace().collect()).collect();
    let mut seen = 0;
    for pair in lines.chunks_exact(2) {
        for (name, value) in pair[0].iter().zip(&pair[1]) {
            if *name == "InCsumErrors" {
                assert_eq!(*value, "0", "{offloads}, {}: {} {name}", node.name(), pair[0][0]);
                seen += 1;
            }
        }
    }
    assert!(seen >= 2, "{snmp}");
    let snmp6 = read("/proc/thread-self/net/snmp6");
    let wrong = snmp6.lines().filter(|line| line.contains("InCsumErrors"));
    assert!(wrong.clone().count() > 0, "{snmp6}");
    for line in wrong {
        assert!(line.ends_with("\t0") || line.ends_with(" 0"), "{offloads}, {}: {line}", node.name());
    }
    let status = node.status().unwrap();
    for refused in ["tun-write", "tun-read", "udp-send", "udp-too-big", "malformed_packet"] {
        let count = status.this.drops.get(refused).copied().unwrap_or_default();
        assert_eq!(count, 0, "{offloads}, {}: {refused}", node.name());
    }
}
