//! Nodes that move, with and without being told, and relays that come late.

use std::{net::SocketAddr, time::Duration};

use mesh_engine::{
    command::Command,
    event::{Event, PathAddress},
};
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    netmap::RelayId,
};

use crate::{
    introduced, is_direct, millis, seconds,
    world::{DIRECT, TO_RELAY, World, packet},
};

fn elsewhere() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 200], 4711))
}

/// Sends a packet each way every 20 ms; returns the longest time without one in each direction.
fn talk(world: &mut World, duration: Duration) -> [Duration; 2] {
    let step = millis(20);
    let mut gaps = [Duration::ZERO; 2];
    let mut last = [world.now; 2];
    let end = world.now + duration;
    while world.now < end {
        for node in [1, 2] {
            world.send(node, &packet(node, 3 - node, 1, 50));
        }
        for node in &mut world.nodes {
            node.received.clear();
        }
        world.run_for(step);
        for (index, node) in world.nodes.iter().enumerate() {
            if !node.received.is_empty() {
                last[index] = world.now;
            }
            gaps[index] = gaps[index].max(world.now - last[index]);
        }
    }
    gaps
}

fn now_direct(world: &World) -> bool {
    let path = |node| world.peer(node).path.map(|path| path.address);
    path(2) == Some(PathAddress::Direct(elsewhere())) && is_direct(world, 1)
}

#[test]
pub(super) fn a_node_that_moves_and_knows_it_loses_next_to_nothing() {
    let mut world = introduced();
    talk(&mut world, seconds(5));
    world.nodes[0].address = elsewhere();
    let candidate = Candidate { address: elsewhere(), kind: CandidateKind::Host };
    world.command(1, Command::SetCandidates(vec![candidate]));
    world.command(1, Command::NetworkChanged);
    let gaps = talk(&mut world, millis(1500));
    let most = 2 * (DIRECT + TO_RELAY) + millis(100);
    assert!(gaps.iter().all(|gap| *gap <= most), "{gaps:?}");
    assert!(now_direct(&world), "{:?}", world.peer(2).decisions);
}

#[test]
pub(super) fn a_mapping_that_moves_unnoticed_costs_less_than_three_seconds() {
    let mut world = introduced();
    talk(&mut world, seconds(5));
    world.nodes[0].address = elsewhere();
    let gaps = talk(&mut world, seconds(6));
    assert!(gaps.iter().all(|gap| *gap <= millis(500)), "{gaps:?}");
    assert!(now_direct(&world), "{:?}", world.peer(2).decisions);
}

#[test]
pub(super) fn a_relayed_node_whose_mapping_moves_is_back_within_four_seconds() {
    let mut world = introduced();
    world.direct_up = false;
    talk(&mut world, seconds(5));
    world.nodes[0].address = elsewhere();
    let gaps = talk(&mut world, seconds(10));
    assert!(gaps.iter().all(|gap| *gap <= seconds(4)), "{gaps:?}");
}

#[test]
pub(super) fn many_moves_leave_nothing_stuck() {
    let mut world = introduced();
    for round in 0..300u16 {
        let port = 1000 + round;
        let node = usize::from(round % 2);
        world.nodes[node].address.set_port(port);
        if round % 3 == 0 {
            let id = u32::from(round % 2) + 1;
            world.command(id, Command::NetworkChanged);
        }
        let gaps = talk(&mut world, millis(u64::from(round % 7) * 300));
        assert!(gaps.iter().all(|gap| *gap < seconds(4)), "round {round}: {gaps:?}");
    }
    world.run_for(seconds(5));
    for node in [1, 2] {
        world.nodes[node as usize - 1].received.clear();
    }
    talk(&mut world, seconds(3));
    let path = |node| world.peer(node).path.map(|path| path.address);
    assert_eq!(path(1), Some(PathAddress::Direct(world.nodes[1].address)));
    assert_eq!(path(2), Some(PathAddress::Direct(world.nodes[0].address)));
    assert!(world.peer(1).paths.len() < 50);
}

#[test]
pub(super) fn news_that_comes_right_after_a_call_is_told_a_little_later() {
    let mut world = introduced();
    talk(&mut world, seconds(2));
    let candidate = |port| Candidate { address: (elsewhere().ip(), port).into(), kind: CandidateKind::Host };
    for port in 1..=3 {
        world.command(1, Command::SetCandidates(vec![candidate(port)]));
        world.run_for(millis(50));
    }
    world.run_for(millis(500));
    let paths: Vec<_> = world.peer(2).paths.iter().map(|path| path.address).collect();
    assert!(paths.contains(&PathAddress::Direct(candidate(3).address)), "{paths:?}");
}

#[test]
pub(super) fn a_node_with_nothing_to_tell_does_not_spin() {
    let mut world = introduced();
    talk(&mut world, seconds(2));
    (world.relay_up, world.direct_up) = (false, false);
    world.run_for(seconds(1));
    world.command(1, Command::SetCandidates(Vec::new()));
    world.command(1, Command::NetworkChanged);
    assert!(world.candidates(1).is_empty());
    let before = world.nodes[0].wakeups;
    talk(&mut world, seconds(80));
    let wakeups = world.nodes[0].wakeups - before;
    assert!(wakeups < 400, "{wakeups} in eighty seconds");
}

#[test]
pub(super) fn packets_wait_for_a_relay_that_comes_up() {
    let mut world = World::new();
    world.direct_up = false;
    for id in [1, 2] {
        world.set_candidates(id);
        world.tell_of_peer(id);
    }
    world.send(1, &packet(1, 2, 1, 100));
    world.run_for(seconds(1));
    for id in [1, 2] {
        world.open_relay(id);
    }
    world.run_for(millis(200));
    assert_eq!(world.nodes[1].received, [packet(1, 2, 1, 100)]);
    assert!(world.nodes[0].events.contains(&Event::RelayUp(RelayId(0))));
}

#[test]
pub(super) fn a_wake_after_eight_hours_is_like_any_pause() {
    let mut world = introduced();
    talk(&mut world, seconds(5));
    world.run_for(seconds(8 * 3600));
    world.nodes[0].address = elsewhere();
    world.command(1, Command::NetworkChanged);
    let gaps = talk(&mut world, seconds(2));
    assert!(gaps.iter().all(|gap| *gap <= millis(300)), "{gaps:?}");
}

#[test]
pub(super) fn what_was_said_on_a_network_that_is_gone_is_said_again_on_the_next_one() {
    let mut world = introduced();
    talk(&mut world, seconds(5));
    // The old network goes first: what is said then arrives nowhere.
    world.nodes[0].address = SocketAddr::from(([0, 0, 0, 0], 0));
    world.command(1, Command::NetworkChanged);
    world.run_for(millis(50));
    world.nodes[0].address = elsewhere();
    let candidate = Candidate { address: elsewhere(), kind: CandidateKind::Host };
    world.command(1, Command::SetCandidates(vec![candidate]));
    world.command(1, Command::NetworkChanged);
    let gaps = talk(&mut world, millis(1500));
    assert!(gaps.iter().all(|gap| *gap < millis(200)), "{gaps:?}");
    assert!(now_direct(&world), "{:?}", world.peer(2).decisions);
}

#[test]
pub(super) fn keys_that_are_over_after_a_sleep_are_made_anew_at_once() {
    for (unseen, is_over) in [(seconds(60), false), (seconds(8 * 3600), true)] {
        let mut world = introduced();
        talk(&mut world, seconds(5));
        world.captured.clear();
        let before = world.peer(1).last_handshake;
        world.command(1, Command::Woke { unseen });
        let gaps = talk(&mut world, millis(500));
        assert!(gaps.iter().all(|gap| *gap < millis(300)), "asleep for {unseen:?}: {gaps:?}");
        assert_eq!(world.peer(1).last_handshake != before, is_over, "asleep for {unseen:?}");
        assert!(is_direct(&world, 1) && is_direct(&world, 2));
    }
}
