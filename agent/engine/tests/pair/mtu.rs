//! Links that carry less than others: path MTUs are found, and what is larger is answered or cut.

use std::time::Duration;

use mesh_engine::{
    batch::{Offload, SegmentProtocol, TunFrame},
    drops::DropReason,
};

use crate::{
    introduced, is_direct, millis, seconds,
    world::{World, mesh_address, packet},
};

/// The interface's MTU.
const FULL: usize = 1420;
/// IPv4 and UDP header of [`packet`].
const HEADERS: usize = 28;

/// A UDP packet of `len` bytes in all that must not be cut.
fn sized(len: usize) -> Vec<u8> {
    packet(1, 2, 7, len - HEADERS)
}

/// The same, but it may be cut.
fn fragmentable(len: usize) -> Vec<u8> {
    let mut packet = sized(len);
    packet[6] = 0;
    packet
}

/// Small packets both ways.
fn talk(world: &mut World, duration: Duration) {
    for _ in 0..duration.as_millis() / 250 {
        world.send(1, &packet(1, 2, 1, 40));
        world.send(2, &packet(2, 1, 1, 40));
        world.run_for(millis(250));
    }
}

fn mtu(world: &World, node: u32) -> u16 {
    world.peer(node).path.unwrap().mtu
}

/// Sends a packet from node 1: whether it arrives, and the MTU that the sender is told otherwise.
fn try_size(world: &mut World, len: usize) -> (bool, Option<u16>) {
    world.nodes[1].received.clear();
    world.nodes[0].told.clear();
    world.send(1, &sized(len));
    world.run_for(millis(200));
    let told = world.nodes[0].told.first().map(|answer| {
        assert_eq!((answer[9], &answer[20..22]), (1, &[3, 4][..]), "an ICMP error of that kind");
        assert_eq!(answer[12..16], mesh_address(2));
        assert_eq!(answer[16..20], mesh_address(1));
        u16::from_be_bytes([answer[26], answer[27]])
    });
    (world.nodes[1].received.contains(&sized(len)), told)
}

/// A world whose nodes have talked until all that can be known of their path is known.
fn settled(direct_mtu: usize, relay_mtu: usize) -> World {
    let mut world = introduced();
    (world.direct_mtu, world.relay_mtu) = (direct_mtu, relay_mtu);
    world.direct_up = direct_mtu > 0;
    talk(&mut world, seconds(15));
    assert_eq!(is_direct(&world, 1), direct_mtu > 0);
    world
}

#[test]
pub(super) fn every_path_carries_what_its_link_does() {
    // (link between the nodes, 0 for none; links to the relay; inner packets)
    for (direct, relay, expected) in [
        (1500, 1500, 1420),
        (1492, 1500, 1420),
        (1460, 1500, 1400),
        (1400, 1500, 1340),
        (1340, 1500, 1280),
        (0, 1500, 1420),
        (0, 1492, 1416),
        (0, 1400, 1324),
    ] {
        let mut world = settled(direct, relay);
        for node in [1, 2] {
            assert_eq!(mtu(&world, node), expected, "{direct}, {relay}");
        }
        assert_eq!(try_size(&mut world, expected.into()), (true, None), "{direct}, {relay}");
        if usize::from(expected) < FULL {
            let answer = try_size(&mut world, usize::from(expected) + 1);
            assert_eq!(answer, (false, Some(expected)), "{direct}, {relay}");
        }
        let path = world.peer(1).path.unwrap();
        assert_eq!(path.loss, Some(0.0), "lost padded probes are no loss");
        let rtt = path.rtt.unwrap();
        assert!(rtt <= millis(60), "{rtt:?}");
        let changes = world.peer(1).decisions.len();
        assert!(changes <= 3, "{:?}", world.peer(1).decisions);
    }
}

#[test]
pub(super) fn the_largest_size_takes_one_probe_per_path() {
    let world = settled(1500, 1500);
    let is_padded = |bytes: &[u8]| bytes.len() == FULL + 32 || bytes.len() == FULL + 48;
    let from = |node: usize| {
        let sent = world.captured.iter().filter(|(from, ..)| *from == world.nodes[node].address);
        sent.filter(|(.., bytes)| is_padded(bytes)).count()
    };
    assert!(from(0) <= 2 && from(1) <= 2, "{} and {}", from(0), from(1));
}

#[test]
pub(super) fn an_idle_pair_searches_nothing() {
    let mut world = introduced();
    world.run_for(seconds(30));
    world.captured.clear();
    world.run_for(seconds(3600));
    assert!(world.captured.iter().all(|(.., bytes)| bytes.len() < 200));
}

#[test]
pub(super) fn a_packet_that_may_be_cut_arrives_in_fragments() {
    let mut world = settled(1400, 1500);
    world.nodes[1].received.clear();
    world.send(1, &fragmentable(FULL));
    world.run_for(millis(200));
    let lens: Vec<_> = world.nodes[1].received.iter().map(Vec::len).collect();
    assert_eq!(lens, [1340, 100]);
    assert_eq!(world.nodes[0].told, Vec::<Vec<u8>>::new());
    let payload: Vec<_> = world.nodes[1].received.iter().flat_map(|piece| piece[20..].to_vec()).collect();
    assert_eq!(payload, fragmentable(FULL)[20..]);
}

/// A TCP superpacket with segments as large as the interface's MTU allows.
fn superpacket() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend(mesh_address(1));
    packet.extend(mesh_address(2));
    packet.extend([0, 80, 0, 81, 0, 0, 0, 0, 0, 0, 0, 1, 0x50, 0x10, 9, 9, 0, 0, 0, 0]);
    packet.resize(20 + 20 + 5000, 3);
    let len = u16::try_from(packet.len()).unwrap().to_be_bytes();
    packet[2..4].copy_from_slice(&len);
    packet
}

fn send_superpacket(world: &mut World) {
    let offload =
        Offload::Segment { protocol: SegmentProtocol::Tcp, segment_len: 1380, start: 20, offset: 16 };
    world.nodes[1].received.clear();
    world.nodes[0].told.clear();
    world.send_frame(1, TunFrame { packet: &superpacket(), offload });
    world.run_for(millis(200));
}

#[test]
pub(super) fn a_superpacket_is_cut_smaller_until_the_mtu_is_known_and_answered_then() {
    // The first one goes before anything is known of the direct path.
    let mut world = introduced();
    world.direct_mtu = 1400;
    world.send(1, &packet(1, 2, 1, 40));
    world.run_for(millis(200));
    assert_eq!(mtu(&world, 1), 1280);
    send_superpacket(&mut world);
    let lens: Vec<_> = world.nodes[1].received.iter().map(Vec::len).collect();
    assert_eq!(lens, [1280, 1280, 1280, 1280, 80]);
    assert_eq!(world.nodes[0].told, Vec::<Vec<u8>>::new());
    talk(&mut world, seconds(15));
    send_superpacket(&mut world);
    assert_eq!(world.nodes[1].received, Vec::<Vec<u8>>::new());
    assert_eq!(world.nodes[0].told[0][26..28], 1340u16.to_be_bytes());
    assert_eq!(world.peer(1).drops.get(DropReason::TooBig), 1);
}

/// What node 1 was told, and how many packets of this size node 2 has got.
fn told_and_received(world: &World, packet: &[u8]) -> (Vec<u16>, usize) {
    let told = world.nodes[0].told.iter().map(|answer| u16::from_be_bytes([answer[26], answer[27]]));
    (told.collect(), world.nodes[1].received.iter().filter(|received| *received == packet).count())
}

#[test]
pub(super) fn a_packet_that_may_not_be_cut_waits_until_it_is_known_what_passes() {
    // (link between the nodes, links to the relay, what the first packet's sender is told)
    for (direct, relay, told) in
        [(1500, 1500, vec![]), (1400, 1500, vec![1340]), (0, 1500, vec![]), (0, 1400, vec![1324])]
    {
        let mut world = introduced();
        (world.direct_mtu, world.relay_mtu, world.direct_up) = (direct, relay, direct > 0);
        // The very first packet.
        world.send(1, &sized(FULL));
        world.run_for(seconds(5));
        let passed = usize::from(told.is_empty());
        assert_eq!(told_and_received(&world, &sized(FULL)), (told, passed), "{direct}, {relay}");
    }
}

#[test]
pub(super) fn what_a_relay_carries_does_not_wait_for_the_direct_path_s_measure() {
    let mut world = settled(0, 1500);
    // A way is found, narrower than that through the relay.
    (world.direct_up, world.direct_mtu) = (true, 1400);
    let mut direct_for = 0;
    for number in 0..200 {
        let large = packet(1, 2, number, FULL - HEADERS);
        world.send(1, &large);
        world.run_for(millis(100));
        direct_for += usize::from(is_direct(&world, 1));
        if !world.nodes[0].told.is_empty() {
            break;
        }
        assert!(world.nodes[1].received.contains(&large), "number {number}, direct for {direct_for}");
    }
    assert!(direct_for > 3, "it is measured for a while: {direct_for}");
    assert_eq!(told_and_received(&world, &[]).0, [1340]);
}

#[test]
pub(super) fn nobody_is_told_a_size_that_was_not_measured() {
    for (direct, relay, measured) in
        [(1500, 1500, vec![]), (1400, 1500, vec![1340]), (1400, 1400, vec![1340])]
    {
        let mut world = introduced();
        (world.direct_mtu, world.relay_mtu) = (direct, relay);
        let mut sent = 0;
        for _ in 0..80 {
            // Small packets go meanwhile.
            world.send(1, &packet(1, 2, 9, 40));
            world.send(1, &sized(FULL));
            sent += 1;
            world.run_for(millis(100));
        }
        world.run_for(seconds(1));
        let (mut told, passed) = told_and_received(&world, &sized(FULL));
        let answered = told.len();
        told.sort_unstable();
        told.dedup();
        assert_eq!(told, measured, "{direct}, {relay}");
        assert_eq!(told_and_received(&world, &packet(1, 2, 9, 40)).1, sent, "{direct}, {relay}");
        // Each goes, or its sender is told; the limit of answers is what is missing.
        assert!(passed + answered > sent / 2, "{passed} and {answered} of {sent}");
        if measured.is_empty() {
            assert_eq!(passed, sent);
        }
    }
}

#[test]
pub(super) fn a_path_that_becomes_narrower_is_found_out() {
    let mut world = settled(1500, 1500);
    assert_eq!(mtu(&world, 1), 1420);
    world.direct_mtu = 1400;
    talk(&mut world, seconds(620));
    assert_eq!(mtu(&world, 1), 1340);
    assert_eq!(try_size(&mut world, 1340), (true, None));
    // And wider again.
    world.direct_mtu = 1500;
    talk(&mut world, seconds(620));
    assert_eq!(mtu(&world, 1), 1420);
}

#[test]
pub(super) fn large_packets_that_nobody_answers_bring_the_floor_back() {
    let mut world = settled(1500, 1500);
    (world.direct_mtu, world.relay_mtu) = (1400, 1400);
    // One side sends large packets, and nothing comes back: no acknowledgement, no keepalive.
    for _ in 0..300 {
        world.send(1, &sized(FULL));
        world.run_for(millis(100));
    }
    assert!(mtu(&world, 1) < 1420, "{}", mtu(&world, 1));
    talk(&mut world, seconds(15));
    assert_eq!(mtu(&world, 1), 1340);
}

#[test]
pub(super) fn a_change_to_a_narrower_path_just_works() {
    let mut world = settled(1500, 1400);
    assert_eq!(try_size(&mut world, FULL), (true, None));
    world.direct_up = false;
    talk(&mut world, seconds(10));
    assert!(!is_direct(&world, 1));
    assert_eq!(try_size(&mut world, FULL), (false, Some(1324)));
    assert_eq!(try_size(&mut world, 1324), (true, None));
    assert!(world.peer(1).drops.get(DropReason::TooBig) > 0);
}

#[test]
pub(super) fn while_a_path_is_doubted_the_narrower_one_counts() {
    let mut world = settled(1500, 1400);
    world.direct_up = false;
    let mut told = 0;
    for _ in 0..60 {
        world.nodes[0].told.clear();
        world.nodes[1].received.clear();
        world.send(1, &sized(FULL));
        world.run_for(millis(100));
        told += usize::from(world.nodes[0].told.iter().any(|answer| answer[26..28] == 1324u16.to_be_bytes()));
    }
    assert!(told > 20, "{told}");
}

#[test]
pub(super) fn the_segment_size_of_a_syn_is_clamped_both_ways() {
    let mut world = settled(1500, 1500);
    let mut syn = superpacket();
    syn.truncate(40);
    syn[32] = 0x60;
    syn[33] = 0x02;
    syn.extend([2, 4, 5, 0xb4]);
    syn[2..4].copy_from_slice(&44u16.to_be_bytes());
    world.nodes[1].received.clear();
    world.send(1, &syn);
    world.run_for(millis(200));
    assert_eq!(world.nodes[1].received[0][40..44], [2, 4, 5, 0x64]);
}
