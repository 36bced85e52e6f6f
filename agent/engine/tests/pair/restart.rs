//! A node is restarted, and tells its peer before: packets wait, and none is lost.

use std::{cell::Cell, time::Duration};

use mesh_engine::{command::Command, drops::DropReason};
use mesh_proto::{
    demux::{DatagramKind, classify},
    netmap::NodeId,
};

use crate::{
    introduced, is_direct, millis, seconds,
    world::{DIRECT, World, address, packet},
};

/// What a process takes from the end of the one before it until it knows its peers.
const AWAY: Duration = Duration::from_millis(70);
/// How long the process that ends opens what is on its way.
const STAYS: Duration = DIRECT.saturating_mul(2);
/// The response to what the peer has begun, and the first packet: no way is made for nothing.
const BACK: Duration = DIRECT.saturating_mul(2);
/// Longer than packets wait for anybody.
const TOO_LONG: Duration = Duration::from_secs(2);

/// Two nodes that talk.
fn talking() -> World {
    let mut world = introduced();
    world.send(1, &packet(1, 2, 1, 100));
    world.run_for(seconds(5));
    assert!(is_direct(&world, 1));
    world.nodes[1].received.clear();
    world.captured.clear();
    world
}

/// Node 2 says that it is restarted, opens what is on its way, and its next process begins.
fn restart(world: &mut World, mut meanwhile: impl FnMut(&mut World, Duration)) {
    world.command(2, Command::Pause { stays: STAYS });
    meanwhile(world, STAYS);
    let received = std::mem::take(&mut world.nodes[1].received);
    world.nodes[1] = world.node(2);
    world.nodes[1].received = received;
    world.set_away(2, true);
    meanwhile(world, AWAY);
    world.set_away(2, false);
    world.open_relay(2);
    world.set_candidates(2);
    world.tell_of_peer(2);
    world.command(2, Command::Resume(vec![NodeId(1)]));
}

fn sent_by_1(number: u8) -> Vec<u8> {
    packet(1, 2, number, 64)
}

/// Two nodes that began to talk at the same moment: there are two sessions, and each side may use another one.
fn talking_at_once() -> World {
    let mut world = introduced();
    world.send(1, &packet(1, 2, 1, 100));
    world.send(2, &packet(2, 1, 1, 100));
    world.run_for(seconds(5));
    world.nodes[1].received.clear();
    world.captured.clear();
    world
}

#[test]
pub(super) fn nothing_is_lost_on_the_way_to_a_node_that_is_restarted() {
    for world in [talking(), talking_at_once()] {
        lose_nothing(world);
    }
}

fn lose_nothing(mut world: World) {
    let sent = Cell::new(0);
    let mut stream = |world: &mut World, time: Duration| {
        for _ in 0..time.as_millis() / 5 {
            world.send(1, &sent_by_1(sent.replace(sent.get() + 1)));
            world.run_for(millis(5));
        }
    };
    stream(&mut world, millis(100));
    for _ in 0..3 {
        restart(&mut world, &mut stream);
        let back = world.elapsed();
        stream(&mut world, BACK + millis(5));
        let waited = world.nodes[1].received.len();
        let taken = world.elapsed() - back;
        assert!(waited > usize::from(sent.get()) - 8, "{waited} of {sent:?} after {taken:?}");
    }
    world.run_for(seconds(1));
    let expected: Vec<_> = (0..sent.get()).map(sent_by_1).collect();
    assert_eq!(world.nodes[1].received, expected);
    // The new process asks by every way there is; what comes first is taken.
    let dropped = |node: u32| world.peer(node).drops.iter().map(|(reason, _)| reason).collect::<Vec<_>>();
    assert_eq!((dropped(1), dropped(2)), (vec![DropReason::Replayed], vec![]));
}

#[test]
pub(super) fn a_node_that_does_not_come_back_is_not_waited_for() {
    let mut world = talking();
    world.command(2, Command::Pause { stays: STAYS });
    world.run_for(DIRECT);
    world.send(1, &sent_by_1(1));
    world.run_for(TOO_LONG - DIRECT);
    assert_eq!(world.nodes[1].received, [] as [Vec<u8>; 0], "it waits");
    world.run_for(seconds(1));
    assert_eq!(world.nodes[1].received, [sent_by_1(1)], "this one has not ended after all");
    world.send(1, &sent_by_1(2));
    world.run_for(DIRECT);
    assert_eq!(world.nodes[1].received.len(), 2);
}

#[test]
pub(super) fn no_keys_are_agreed_on_with_a_process_that_is_about_to_end() {
    let mut world = talking();
    world.command(2, Command::Pause { stays: STAYS });
    // The peer is restarted at the same moment, and knows nothing of a Pause.
    world.nodes[0] = world.node(1);
    world.open_relay(1);
    world.set_candidates(1);
    world.tell_of_peer(1);
    world.send(1, &sent_by_1(1));
    world.run_for(STAYS);
    assert!(world.peer(2).drops.iter().any(|(reason, _)| reason == DropReason::Parting));
    world.nodes[1] = world.node(2);
    world.open_relay(2);
    world.set_candidates(2);
    world.tell_of_peer(2);
    world.command(2, Command::Resume(vec![NodeId(1)]));
    world.run_for(4 * DIRECT);
    assert_eq!(world.nodes[1].received, [sent_by_1(1)]);
}

#[test]
pub(super) fn a_pause_that_is_sent_again_by_somebody_does_nothing() {
    let mut world = talking();
    world.command(2, Command::Pause { stays: STAYS });
    let is_pause =
        |(from, _, bytes): &&(_, _, Vec<u8>)| *from == address(2) && classify(bytes) == DatagramKind::Disco;
    let pause = world.captured.iter().rfind(is_pause).map(|(.., bytes)| bytes.clone()).unwrap();
    let again = |world: &mut World| world.inject(1, address(9), pause.clone());
    world.run_for(TOO_LONG - millis(100));
    again(&mut world);
    world.run_for(millis(200));
    world.send(1, &sent_by_1(1));
    world.run_for(DIRECT);
    assert_eq!(world.nodes[1].received, [sent_by_1(1)], "it does not make it longer");
    again(&mut world);
    world.send(1, &sent_by_1(2));
    world.run_for(DIRECT);
    assert_eq!(world.nodes[1].received.len(), 2, "nor begin anew");

    let mut world = talking();
    restart(&mut world, World::run_for);
    world.run_for(seconds(1));
    again(&mut world);
    world.send(1, &sent_by_1(3));
    world.run_for(DIRECT);
    assert_eq!(world.nodes[1].received, [sent_by_1(3)], "nor does it say anything of another session");
}

#[test]
pub(super) fn a_pause_that_was_held_back_until_the_next_process_is_there_does_nothing() {
    for mut world in [talking(), talking_at_once()] {
        // Somebody on the path keeps it.
        world.direct_up = false;
        let mut pause = None;
        restart(&mut world, |world, time| {
            let is_pause = |(from, _, bytes): &&(_, _, Vec<u8>)| {
                *from == address(2) && classify(bytes) == DatagramKind::Disco
            };
            let sent = || world.captured.iter().rfind(is_pause).map(|(.., bytes)| bytes.clone());
            pause = pause.take().or_else(sent);
            world.direct_up |= time == AWAY;
            world.run_for(time);
        });
        // A handshake, and what the next process sends with it.
        world.run_for(DIRECT * 4);
        world.inject(1, address(9), pause.unwrap());
        world.send(1, &sent_by_1(1));
        world.run_for(DIRECT);
        assert_eq!(world.nodes[1].received, [sent_by_1(1)]);
    }
}
