//! Keys are changed under a stream that never pauses.

use std::collections::VecDeque;

use crate::{
    introduced, is_direct, millis, seconds,
    world::{World, address, packet},
};

/// Longer than two keys live.
const SECONDS: u64 = 260;
/// Packets of each direction in ten milliseconds; as many again are twice on the way.
const TOGETHER: usize = 4;
/// UDP payload begins here.
const PAYLOAD: usize = 28;

/// When keys end (whitepaper, REJECT_AFTER_TIME).
const KEYS_LAST: u64 = 180;

fn numbered(from: u32, number: u64) -> Vec<u8> {
    let mut packet = packet(from, 3 - from, 0, 64);
    packet[PAYLOAD..PAYLOAD + 8].copy_from_slice(&number.to_be_bytes());
    packet
}

/// Takes what a node has received, which has to be the oldest of what was sent, in order.
fn take(world: &mut World, node: usize, flying: &mut VecDeque<u64>) {
    for packet in std::mem::take(&mut world.nodes[node].received) {
        let number = u64::from_be_bytes(packet[PAYLOAD..PAYLOAD + 8].try_into().unwrap());
        assert_eq!(Some(number), flying.pop_front(), "after {:?}", world.elapsed());
    }
}

#[test]
pub(super) fn streams_both_ways_lose_nothing_while_keys_change() {
    let mut world = introduced();
    world.send(1, &packet(1, 2, 1, 100));
    world.run_for(seconds(5));
    assert!(is_direct(&world, 1));
    world.nodes[1].received.clear();
    let mut flying = [VecDeque::new(), VecDeque::new()];
    let mut initiations = 0;
    let start = world.elapsed();
    for step in 0..SECONDS * 100 {
        for from in [1, 2] {
            for number in 0..TOGETHER {
                let number = step * TOGETHER as u64 + number as u64;
                world.send(from, &numbered(from, number));
                flying[from as usize - 1].push_back(number);
            }
        }
        world.run_for(millis(10));
        let [there, back] = &mut flying;
        take(&mut world, 1, there);
        take(&mut world, 0, back);
        let is_initiation = |(_, to, bytes): &&(_, _, Vec<u8>)| {
            (*to == address(1) || *to == address(2)) && bytes.starts_with(&[1, 0, 0, 0])
        };
        initiations += world.captured.iter().filter(is_initiation).count();
        world.captured.clear();
    }
    world.run_for(seconds(1));
    let [there, back] = &mut flying;
    take(&mut world, 1, there);
    take(&mut world, 0, back);
    assert!(there.is_empty() && back.is_empty(), "{} and {} are lost", there.len(), back.len());
    assert!(initiations >= 2, "{initiations} handshakes in {:?}", world.elapsed() - start);
    for node in [1, 2] {
        assert_eq!(world.peer(node).drops.iter().collect::<Vec<_>>(), []);
    }
}

#[test]
pub(super) fn what_is_sent_while_keys_end_arrives() {
    // The two sides' keys are not of the same age, and a packet is on its way for a while.
    for step in 0..=20 {
        for from in [1, 2] {
            let mut world = introduced();
            world.direct_up = step % 2 == 0;
            world.send(1, &packet(1, 2, 0, 100));
            world.run_for(seconds(KEYS_LAST) - millis(100) + millis(10 * step));
            let late = packet(from, 3 - from, 1, 100);
            world.send(from, &late);
            world.run_for(seconds(1));
            let received = &world.nodes[2 - from as usize].received;
            assert_eq!(received.last(), Some(&late), "from {from}, at {:?}", world.elapsed());
        }
    }
}
