//! What is counted is what happened, packet by packet, and nothing that a host does to its interface is fatal.

use std::{collections::BTreeMap, time::Duration};

use mesh_lab::{Node, mesh::wait_until, pods::Offloading};

use crate::rig::{self, PATIENCE, Rig};

/// Datagrams of a stream, and the payload of each.
const DATAGRAMS: usize = 30_000;
const PAYLOAD: usize = 1000;
/// IPv4 and UDP headers.
const HEADERS: usize = 28;
/// Datagrams between pauses: fewer than the TUN's queue holds.
const BURST: usize = 64;
const PAUSE: Duration = Duration::from_millis(2);
/// `/proc/net/dev`: which number after an interface's name counts what was dropped on the way out.
const DEV_TX_DROPPED: usize = 11;

#[test]
fn a_fast_stream_arrives_in_order_and_is_counted_to_the_byte() {
    for offloads in ["all", "none"] {
        let rig = Rig::start(offloads, Offloading::On);
        let [[(from, _), (to, address)], ..] = rig.pairs();
        let [a, b] = rig.nodes();
        let receiver = rig::socket(to, address);
        let sender = rig::sender(from, receiver.local_addr().unwrap());
        let counts = || {
            let (there, here) = (a.peer("b").unwrap(), b.peer("a").unwrap());
            (there.tx_bytes, here.rx_bytes, drops(a), drops(b), queue_drops(a))
        };
        let before = counts();
        let stream = std::thread::scope(|scope| {
            let receiving = scope.spawn(|| receive(&receiver));
            for index in 0..DATAGRAMS {
                let mut payload = [0; PAYLOAD];
                payload[..8].copy_from_slice(&(index as u64).to_be_bytes());
                sender.send(&payload).unwrap();
                if index % BURST == BURST - 1 {
                    std::thread::sleep(PAUSE);
                }
            }
            // The last one, which ends it, may not be lost.
            let end = [0xff; PAYLOAD];
            sender.send(&end).unwrap();
            receiving.join().unwrap()
        });
        let after = counts();
        let lost = after.4 - before.4;
        assert_eq!(
            stream.len() as u64 + lost,
            DATAGRAMS as u64,
            "{offloads}: {lost} fell at the TUN's queue"
        );
        assert!(stream.is_sorted_by(|a, b| a < b), "{offloads}: reordered or doubled");
        let bytes = ((stream.len() + 1) * (PAYLOAD + HEADERS)) as u64;
        assert_eq!(after.0 - before.0, bytes, "{offloads}: bytes sent");
        assert_eq!(after.1 - before.1, bytes, "{offloads}: bytes received");
        assert_eq!((&before.2, &before.3), (&after.2, &after.3), "{offloads}: drops");
        rig.mesh.stop().unwrap();
    }
}

/// Receives until the last datagram, and returns the others' numbers.
fn receive(receiver: &std::net::UdpSocket) -> Vec<u64> {
    let mut buffer = [0; 2048];
    let mut numbers = Vec::new();
    loop {
        let len = receiver.recv(&mut buffer).unwrap();
        assert_eq!(len, PAYLOAD);
        match u64::from_be_bytes(buffer[..8].try_into().unwrap()) {
            u64::MAX => return numbers,
            number => numbers.push(number),
        }
    }
}

#[test]
fn an_interface_that_is_down_costs_packets_and_counters_and_nothing_else() {
    let rig = Rig::start("all", Offloading::On);
    let [[(from, _), (to, address)], ..] = rig.pairs();
    let b = rig.nodes()[1];
    let receiver = rig::socket(to, address);
    let sender = rig::sender(from, receiver.local_addr().unwrap());
    let refused = || drops(b).get("tun-write").copied().unwrap_or_default();
    assert_eq!(refused(), 0);
    // The agent brings it up again when it notices.
    wait_until(PATIENCE, "writes to a TUN that is down are counted", || {
        to.netns().ip("link set mesh0 down\n")?;
        for _ in 0..100 {
            sender.send(b"lost")?;
        }
        Ok(refused() > 0)
    })
    .unwrap();
    let pid = b.agent().pid();
    assert!(b.agent().is_running() && pid.is_some());
    wait_until(PATIENCE, "the interface is up and carries packets again", || {
        to.netns().ip("link set mesh0 up\n")?;
        from.ping(address)?;
        Ok(true)
    })
    .unwrap();
    assert_eq!(b.agent().pid(), pid, "the agent is the same process");
    rig.mesh.stop().unwrap();
}

/// All that a node has dropped so far, by reason. IPv6's own packets to nobody in particular are no part of a stream.
fn drops(node: &Node) -> BTreeMap<String, u64> {
    let status = node.status().unwrap();
    let mut drops = status.this.drops;
    for peer in status.peers {
        for (reason, count) in peer.drops {
            *drops.entry(reason).or_default() += count;
        }
    }
    drops.remove("no-route");
    drops
}

/// Packets that fell at the queue of a node's TUN.
fn queue_drops(node: &Node) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/dev");
    let table = node.host().netns().enter(read).unwrap().unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix("mesh0:")).unwrap();
    line.split_whitespace().nth(DEV_TX_DROPPED).unwrap().parse().unwrap()
}
