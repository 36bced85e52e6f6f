//! What goes in batches comes out as if every packet had gone alone: cut, sealed, sent in trains, damaged on the way,
//! opened.

use std::cell::RefCell;

use mesh_engine::{
    Engine,
    batch::{MAX_TRAIN_BYTES, MAX_TRAIN_SEGMENTS, Offload, RxTrain, SegmentProtocol, TunFrame, TxArena, Via},
    drops::DropReason,
};
use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{Config, TestCaseResult, TestRunner},
};

use crate::{
    frame::{Frame, MAX_FRAMES, frames},
    introduced, is_direct, millis,
    world::{World, address, packet},
};

/// Cases of each property: all in one world, which is a good part of the work to make.
const CASES: u32 = 400;

/// Datagrams that leave with one call.
struct Sent {
    stride: usize,
    bytes: Vec<u8>,
}

/// A world whose direct paths carry the full MTU.
fn settled() -> World {
    let mut world = introduced();
    for _ in 0..60 {
        world.send(1, &packet(1, 2, 1, 40));
        world.send(2, &packet(2, 1, 1, 40));
        world.run_for(millis(250));
    }
    assert!(is_direct(&world, 1) && is_direct(&world, 2));
    assert_eq!(world.peer(1).path.map(|path| path.mtu), Some(1420));
    world
}

/// Hands frames to node 1, all into one arena, and returns what leaves it.
fn seal<'a>(world: &mut World, frames: impl IntoIterator<Item = TunFrame<'a>>) -> Vec<Sent> {
    let mut arena = TxArena::new(MAX_FRAMES * Engine::MAX_TUN_ROOM);
    for frame in frames {
        world.nodes[0].engine.handle_tun(frame, world.now, &mut arena);
    }
    let sent = |transmit: mesh_engine::batch::Transmit<'_>| {
        assert_eq!(transmit.via, Via::Udp { remote: address(2), local: None });
        Sent { stride: transmit.stride, bytes: transmit.bytes.to_vec() }
    };
    arena.transmits().map(sent).collect()
}

/// Hands a train to node 2, and returns the packets that come out of it.
fn open(world: &mut World, stride: usize, bytes: &mut [u8]) -> Vec<Vec<u8>> {
    let mut arena = TxArena::new(Engine::MAX_TUN_ROOM);
    let via = Via::Udp { remote: address(1), local: None };
    let train = RxTrain { via, stride, bytes };
    world.nodes[1].engine.handle_datagrams(train, world.now, &mut arena)
}

/// All that a node has dropped so far.
fn drops(world: &World, node: usize) -> u64 {
    let snapshot = world.nodes[node].engine.snapshot(world.now);
    let peers = snapshot.peers.iter().flat_map(|peer| peer.drops.iter());
    snapshot.drops.iter().chain(peers).map(|(_, count)| count).sum()
}

fn check<S: Strategy>(strategy: &S, test: impl Fn(&mut World, S::Value) -> TestCaseResult) {
    let world = RefCell::new(settled());
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(strategy, |value| test(&mut world.borrow_mut(), value));
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
pub(super) fn batches_carry_what_single_packets_do() {
    check(&frames(), |world, frames| {
        let expected: Vec<_> = frames.iter().flat_map(Frame::packets).collect();
        let (sent, received) = (world.peer(1).tx_bytes, world.peer(2).rx_bytes);
        let dropped = [drops(world, 0), drops(world, 1)];
        let mut opened = Vec::new();
        for Sent { stride, mut bytes } in seal(world, frames.iter().map(Frame::as_tun)) {
            prop_assert!(
                bytes.len() <= MAX_TRAIN_BYTES && bytes.len().div_ceil(stride) <= MAX_TRAIN_SEGMENTS
            );
            opened.extend(open(world, stride, &mut bytes));
        }
        prop_assert_eq!(&opened, &expected, "in trains");
        let bytes: u64 = expected.iter().map(|packet| packet.len() as u64).sum();
        prop_assert_eq!(world.peer(1).tx_bytes - sent, bytes);
        prop_assert_eq!(world.peer(2).rx_bytes - received, bytes);

        let mut alone = Vec::new();
        for packet in &expected {
            for Sent { mut bytes, .. } in seal(world, [TunFrame { packet, offload: Offload::None }]) {
                let stride = bytes.len();
                alone.extend(open(world, stride, &mut bytes));
            }
        }
        prop_assert_eq!(&alone, &expected, "one by one");
        prop_assert_eq!([drops(world, 0), drops(world, 1)], dropped);
        Ok(())
    });
}

#[test]
pub(super) fn what_is_damaged_in_a_train_is_counted_and_the_rest_is_delivered() {
    let damage = prop::collection::vec((any::<Index>(), any::<Index>(), 1..=255_u8), 1..6);
    // The last datagram is cut short, and then perhaps nothing but garbage.
    let tail = prop::option::of((any::<Index>(), any::<bool>()));
    check(&(frames(), damage, tail), |world, (frames, damage, tail)| {
        let mut packets = frames.iter().flat_map(Frame::packets);
        let before = drops(world, 1);
        let (mut expected, mut opened, mut wrong) = (Vec::new(), Vec::new(), 0);
        for Sent { stride, bytes } in seal(world, frames.iter().map(Frame::as_tun)) {
            let mut datagrams: Vec<Vec<u8>> = bytes.chunks(stride).map(<[u8]>::to_vec).collect();
            let whole = datagrams.clone();
            for (which, at, xor) in &damage {
                // Not in every train.
                if let Some(datagram) = datagrams.get_mut(which.index(2 * whole.len())) {
                    let at = at.index(datagram.len());
                    datagram[at] ^= xor;
                }
            }
            if let (Some((cut, is_garbage)), Some(last)) = (&tail, datagrams.last_mut()) {
                last.truncate(1 + cut.index(last.len() - 1));
                if *is_garbage {
                    last.fill(0xa5);
                }
            }
            for (datagram, whole) in datagrams.iter().zip(&whole) {
                let packet = packets.next().expect("one datagram for each packet");
                if datagram == whole {
                    expected.push(packet);
                } else {
                    wrong += 1;
                }
            }
            opened.extend(open(world, stride, &mut datagrams.concat()));
        }
        prop_assert_eq!(opened, expected);
        prop_assert_eq!(drops(world, 1) - before, wrong);
        Ok(())
    });
}

#[test]
pub(super) fn a_train_of_nothing_is_counted() {
    let mut world = settled();
    let before = drops(&world, 1);
    for stride in [0, 1, 1452] {
        assert!(open(&mut world, stride, &mut []).is_empty());
    }
    assert_eq!(drops(&world, 1) - before, 3);
    assert!(open(&mut world, 0, &mut [4, 0, 0]).is_empty());
    assert_eq!(drops(&world, 1) - before, 6, "of bytes without a length each is a datagram");
}

#[test]
pub(super) fn a_superpacket_of_absurdly_many_pieces_is_counted_and_what_follows_is_sent() {
    let mut world = settled();
    let pieces = 60_000;
    let mut absurd = packet(1, 2, 7, pieces);
    absurd[9] = 6;
    absurd.splice(20..28, [[0; 12].as_slice(), &[0x50, 0x10, 0, 0, 0, 0, 0, 0]].concat());
    let total = u16::try_from(absurd.len()).unwrap();
    absurd[2..4].copy_from_slice(&total.to_be_bytes());
    let offload = Offload::Segment { protocol: SegmentProtocol::Tcp, segment_len: 1, start: 20, offset: 16 };
    let mut arena = TxArena::new(Engine::MAX_TUN_ROOM);
    let now = world.now;
    world.nodes[0].engine.handle_tun(TunFrame { packet: &absurd, offload }, now, &mut arena);
    let sent: usize = arena.transmits().map(|transmit| transmit.bytes.len().div_ceil(transmit.stride)).sum();
    let refused = world.peer(1).drops.get(DropReason::ArenaFull) as usize;
    assert!(sent > 0 && refused > 0, "{sent}, {refused}");
    assert_eq!(sent + refused, pieces);

    let next = packet(1, 2, 8, 100);
    let frame = TunFrame { packet: &next, offload: Offload::None };
    let trains = seal(&mut world, [frame]);
    let opened: Vec<_> = trains
        .into_iter()
        .flat_map(|Sent { stride, mut bytes }| open(&mut world, stride, &mut bytes))
        .collect();
    assert_eq!(opened, [next]);
}
