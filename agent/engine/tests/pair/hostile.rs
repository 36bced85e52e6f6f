//! What an attacker on the path, or off it, can send.

use std::{net::SocketAddr, time::Duration};

use mesh_engine::{drops::DropReason, event::PathAddress};
use proptest::prelude::*;

use crate::{
    introduced, is_direct, millis, seconds,
    world::{World, address, packet, relay_address},
};

fn stranger() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 9], 9))
}

/// What node 1 was sent by node 2, straight, of a WireGuard type.
fn sent_to_1(world: &World, kind: u8) -> Vec<Vec<u8>> {
    let is_it = |(from, to, bytes): &&(SocketAddr, SocketAddr, Vec<u8>)| {
        *from == address(2) && *to == address(1) && bytes.starts_with(&[kind, 0, 0, 0])
    };
    world.captured.iter().filter(is_it).map(|(.., bytes)| bytes.clone()).collect()
}

/// How many bytes nodes have sent to an address.
fn bytes_to(world: &World, to: SocketAddr) -> usize {
    world.captured.iter().filter(|(_, remote, _)| *remote == to).map(|(.., bytes)| bytes.len()).sum()
}

/// A pair with sessions and a direct path, without a relay, so that all that is sent can be seen.
fn direct_pair() -> World {
    let mut world = World::new();
    for id in [1, 2] {
        world.set_candidates(id);
    }
    for id in [1, 2] {
        world.tell_of_peer(id);
    }
    world.send(2, &packet(2, 1, 1, 100));
    world.run_for(seconds(1));
    world.send(1, &packet(1, 2, 1, 100));
    world.run_for(seconds(1));
    assert!(is_direct(&world, 1) && is_direct(&world, 2));
    world
}

#[test]
pub(super) fn garbage_is_counted_and_not_answered() {
    let mut world = introduced();
    let starts: &[&[u8]] = &[
        &[],
        &[1, 0, 0, 0],
        &[2, 0, 0, 0],
        &[3, 0, 0, 0],
        &[4, 0, 0, 0],
        b"mdisco",
        &[0x82],
        &[0x81],
        &[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42],
        &[0x45],
    ];
    for start in starts {
        for len in [start.len(), 20, 32, 64, 92, 110, 148, 1500] {
            let mut bytes = start.to_vec();
            bytes.resize(len.max(start.len()), 0x5a);
            world.inject(1, stranger(), bytes);
        }
    }
    world.run_for(seconds(1));
    assert_eq!(bytes_to(&world, stranger()), 0);
    let drops = world.nodes[0].engine.snapshot(world.now).drops;
    let total: u64 = drops.iter().map(|(_, count)| count).sum();
    assert_eq!(total, starts.len() as u64 * 8, "{drops:?}");
}

#[test]
pub(super) fn replayed_initiations_are_not_answered_also_after_the_session_is_gone() {
    let mut world = direct_pair();
    let initiations = sent_to_1(&world, 1);
    assert!(!initiations.is_empty());
    for pause in [seconds(0), seconds(1000)] {
        world.run_for(pause);
        for initiation in &initiations {
            world.inject(1, stranger(), initiation.clone());
        }
        world.run_for(seconds(1));
    }
    assert_eq!(bytes_to(&world, stranger()), 0);
    assert_eq!(world.peer(1).drops.get(DropReason::Replayed), 2 * initiations.len() as u64);
}

#[test]
pub(super) fn old_initiations_cost_a_handshake_now_and_then_and_never_with_who_sent_them() {
    let mut world = direct_pair();
    let old = sent_to_1(&world, 1);
    // A newer one, so that those are old.
    world.run_for(seconds(1000));
    world.send(2, &packet(2, 1, 1, 100));
    world.run_for(seconds(1000));
    world.captured.clear();
    let begun = |world: &World| {
        let is_it = |(from, _, bytes): &&(SocketAddr, SocketAddr, Vec<u8>)| {
            *from == address(1) && bytes.starts_with(&[1, 0, 0, 0])
        };
        world.captured.iter().filter(is_it).count()
    };
    for _ in 0..600 {
        world.inject(1, stranger(), old[0].clone());
        world.run_for(seconds(1));
    }
    // Who sends many is asked for a cookie, and gets nothing else.
    let mut to_stranger = world.captured.iter().filter(|(_, remote, _)| *remote == stranger());
    assert!(to_stranger.all(|(.., bytes)| bytes.starts_with(&[3, 0, 0, 0])));
    assert!((1..=10).contains(&begun(&world)), "{} in ten minutes", begun(&world));
}

#[test]
pub(super) fn replayed_data_is_dropped_and_moves_nothing() {
    let mut world = direct_pair();
    let before = world.nodes[0].received.len();
    for data in sent_to_1(&world, 4) {
        world.inject(1, stranger(), data.clone());
        for counter in [u64::MAX, u64::MAX - 1, 1 << 63] {
            let mut forged = data.clone();
            forged[8..16].copy_from_slice(&counter.to_le_bytes());
            world.inject(1, stranger(), forged);
        }
    }
    world.run_for(seconds(1));
    assert_eq!(world.nodes[0].received.len(), before);
    assert_eq!(bytes_to(&world, stranger()), 0);
    assert!(is_direct(&world, 1));
    assert!(world.peer(1).paths.iter().all(|path| path.address != PathAddress::Direct(stranger())));
}

#[test]
pub(super) fn a_garbage_response_does_not_stop_a_handshake() {
    let mut world = World::new();
    world.set_candidates(1);
    world.set_candidates(2);
    world.tell_of_peer(2);
    world.send(2, &packet(2, 1, 1, 100));
    let initiation = sent_to_1(&world, 1).remove(0);
    let mut response = vec![2, 0, 0, 0, 9, 9, 9, 9];
    response.extend(&initiation[4..8]);
    response.resize(92, 0x33);
    for from in [stranger(), address(1)] {
        world.inject(2, from, response.clone());
        world.inject(2, from, [&[3, 0, 0, 0], &initiation[4..8], &[7; 56]].concat());
    }
    world.run_for(millis(300));
    assert_eq!(world.nodes[0].received.len(), 1);
    assert_eq!(world.nodes[1].engine.snapshot(world.now).peers[0].drops.get(DropReason::BadCrypto), 4);
}

#[test]
pub(super) fn a_flood_of_initiations_is_answered_by_cookies_and_leaves_sessions_alone() {
    let mut world = direct_pair();
    let initiation = sent_to_1(&world, 1).remove(0);
    for number in 0..1000u16 {
        let from = SocketAddr::from(([198, 51, 100, 9], 1000 + number));
        world.inject(1, from, initiation.clone());
        if number % 100 == 0 {
            world.send(2, &packet(2, 1, 7, 100));
            world.send(1, &packet(1, 2, 7, 100));
        }
    }
    world.run_for(seconds(1));
    assert_eq!(world.nodes[0].received.len(), 11);
    assert_eq!(world.nodes[1].received.len(), 11);
    let answered: usize = world
        .captured
        .iter()
        .filter(|(from, to, _)| *from == address(1) && to.ip() == stranger().ip())
        .map(|(.., bytes)| {
            assert_eq!((bytes[0], bytes.len()), (3, 64));
            bytes.len()
        })
        .sum();
    assert!(answered > 0 && answered < 1000 * initiation.len());
}

#[test]
pub(super) fn recorded_disco_messages_are_no_amplifier() {
    let mut world = direct_pair();
    let recorded: Vec<_> = world
        .captured
        .iter()
        .filter(|(from, to, bytes)| *from == address(2) && *to == address(1) && bytes.starts_with(b"mdisco"))
        .map(|(.., bytes)| bytes.clone())
        .collect();
    world.run_for(seconds(60));
    let mut injected = 0;
    for bytes in &recorded {
        injected += bytes.len();
        world.inject(1, stranger(), bytes.clone());
    }
    world.run_for(seconds(60));
    assert!(injected > 0);
    assert!(bytes_to(&world, stranger()) <= injected);
    assert!(is_direct(&world, 1));
}

#[test]
pub(super) fn forged_relay_frames_and_stun_answers_are_ignored() {
    let mut world = introduced();
    let frame = mesh_proto::relay::Frame::UnknownChannel { channel: mesh_proto::relay::ChannelId(1) };
    world.inject(1, stranger(), frame.encode());
    let wrong = mesh_proto::relay::Frame::UnknownChannel { channel: mesh_proto::relay::ChannelId(77) };
    world.inject(1, relay_address(), wrong.encode());
    let mapped = "198.51.100.77:7".parse().unwrap();
    let stun = mesh_proto::stun::Message::BindingSuccess { transaction: [0; 12], mapped };
    world.inject(1, relay_address(), stun.encode());
    let snapshot = world.nodes[0].engine.snapshot(world.now);
    assert!(snapshot.relays[0].up);
    assert!(!world.candidates(1).contains(&mapped));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes, before and after sessions are there, nothing panics, and the pair goes on.
    #[test]
    fn any_datagrams_do_no_harm(
        datagrams in proptest::collection::vec((0..6usize, proptest::collection::vec(any::<u8>(), 0..200)), 1..40),
    ) {
        let heads: [&[u8]; 6] =
            [&[], &[1, 0, 0, 0], &[4, 0, 0, 0, 0, 0, 0, 0], b"mdisco", &[0x82, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1], &[2, 0, 0, 0]];
        let mut world = introduced();
        world.send(1, &packet(1, 2, 1, 100));
        for (count, (head, tail)) in datagrams.iter().enumerate() {
            let from = if count % 2 == 0 { relay_address() } else { address(1) };
            world.inject(2, from, [heads[*head], tail].concat());
            world.run_for(Duration::from_millis(10));
        }
        world.run_for(seconds(1));
        prop_assert_eq!(world.nodes[1].received.len(), 1);
        prop_assert_eq!(bytes_to(&world, stranger()), 0);
    }

    /// Damaged copies of real datagrams do no harm either.
    #[test]
    fn damaged_datagrams_do_no_harm(damage in proptest::collection::vec((any::<u16>(), any::<u16>(), 1..=255u8), 1..40)) {
        let mut world = introduced();
        world.send(1, &packet(1, 2, 1, 100));
        world.run_for(seconds(1));
        for (which, at, xor) in damage {
            let index = usize::from(which) % world.captured.len();
            let (from, to, mut bytes) = world.captured[index].clone();
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= xor;
            for node in [1, 2] {
                if to == address(node) {
                    world.inject(node, from, bytes.clone());
                }
            }
        }
        world.send(1, &packet(1, 2, 2, 100));
        world.send(2, &packet(2, 1, 2, 100));
        world.run_for(seconds(1));
        prop_assert_eq!(world.nodes[1].received.len(), 2);
        prop_assert_eq!(world.nodes[0].received.len(), 1);
    }
}
