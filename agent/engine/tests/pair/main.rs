//! Two engines talk through a fake relay and directly.

#![expect(clippy::unwrap_used, reason = "a test may fail that way")]

mod batches;
#[path = "../engines/mod.rs"]
mod engines;
mod frame;
mod hostile;
mod mtu;
mod rekey;
mod restart;
mod roaming;
mod sharded;
mod world;

use std::time::Duration;

use mesh_engine::{
    command::Command,
    drops::DropReason,
    event::{Event, PathAddress},
};
use mesh_proto::netmap::{NodeId, RelayId};
use world::{DIRECT, TO_RELAY, World, address, packet, relay_address};

const RELAYED: Duration = TO_RELAY.saturating_mul(2);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A world whose relay is up and whose nodes know each other.
fn introduced() -> World {
    let mut world = World::new();
    world.introduce();
    world.run_for(seconds(1));
    world
}

fn is_direct(world: &World, node: u32) -> bool {
    let to = PathAddress::Direct(address(3 - node));
    world.peer(node).path.is_some_and(|path| path.address == to)
}

#[test]
fn the_first_packet_takes_one_and_a_half_relay_round_trips() {
    let mut world = introduced();
    world.direct_up = false;
    world.send(1, &packet(1, 2, 7, 100));
    world.run_for(RELAYED * 3 - millis(1));
    assert_eq!(world.nodes[1].received, Vec::<Vec<u8>>::new());
    world.run_for(millis(1));
    assert_eq!(world.nodes[1].received, [packet(1, 2, 7, 100)]);
}

#[test]
fn packets_that_wait_for_a_session_all_arrive_in_order() {
    let mut world = introduced();
    let sent: Vec<_> = (0..100).map(|number| packet(1, 2, number, 500)).collect();
    for (count, packet) in sent.iter().enumerate() {
        world.send(1, packet);
        if count % 10 == 0 {
            world.run_for(millis(1));
        }
    }
    world.run_for(seconds(1));
    assert_eq!(world.nodes[1].received, sent);
}

#[test]
fn a_pair_that_can_be_direct_is_direct_at_once_and_stays() {
    let mut world = introduced();
    world.send(1, &packet(1, 2, 1, 100));
    world.run_for(RELAYED + 2 * DIRECT + millis(1));
    assert!(is_direct(&world, 1), "{:?}", world.peer(1).decisions);
    assert!(is_direct(&world, 2), "{:?}", world.peer(2).decisions);
    assert!(world.peer(1).reason.starts_with("direct: answered in 40 ms"), "{}", world.peer(1).reason);
    for _ in 0..30 {
        world.send(1, &packet(1, 2, 2, 100));
        world.send(2, &packet(2, 1, 3, 100));
        world.run_for(millis(500));
    }
    assert_eq!(world.nodes[1].received.len(), 31);
    assert_eq!(world.nodes[0].received.len(), 30);
    let changes = world.nodes[0].events.iter().filter(|event| matches!(event, Event::PathChanged { .. }));
    assert!(changes.count() <= 3, "{:?}", world.nodes[0].events);
}

#[test]
fn without_a_direct_path_data_goes_through_the_relay_and_the_reason_is_known() {
    let mut world = introduced();
    world.direct_up = false;
    for _ in 0..20 {
        world.send(1, &packet(1, 2, 1, 100));
        world.run_for(seconds(1));
    }
    assert_eq!(world.nodes[1].received.len(), 20);
    let peer = world.peer(1);
    assert_eq!(peer.path.map(|path| path.address), Some(PathAddress::Relay(RelayId(0))));
    assert_eq!(peer.reason, "relayed: no direct path has answered (1 candidate probed)");
}

#[test]
fn a_direct_path_that_dies_is_left_within_three_seconds_and_taken_again() {
    let mut world = introduced();
    let mut number = 0u8;
    let mut talk = |world: &mut World, duration: Duration| {
        for _ in 0..duration.as_millis() / 100 {
            number = number.wrapping_add(1);
            world.send(1, &packet(1, 2, number, 100));
            world.run_for(millis(100));
        }
    };
    talk(&mut world, seconds(5));
    assert!(is_direct(&world, 1));
    world.direct_up = false;
    world.nodes[1].received.clear();
    talk(&mut world, seconds(3));
    let before = world.nodes[1].received.len();
    assert!(before > 0, "packets arrive again");
    talk(&mut world, seconds(2));
    assert_eq!(world.nodes[1].received.len(), before + 20);
    assert!(!is_direct(&world, 1));
    assert!(world.peer(1).reason.contains("stopped answering"), "{}", world.peer(1).reason);
    world.direct_up = true;
    talk(&mut world, seconds(70));
    assert!(is_direct(&world, 1), "{:?}", world.peer(1).decisions);
}

#[test]
fn a_session_is_renewed_while_data_flows() {
    let mut world = introduced();
    let mut number = 0;
    for _ in 0..400 {
        number += 1;
        world.send(1, &packet(1, 2, number as u8, 100));
        world.send(2, &packet(2, 1, number as u8, 100));
        world.run_for(seconds(1));
    }
    assert_eq!(world.nodes[0].received.len(), number);
    assert_eq!(world.nodes[1].received.len(), number);
    let age = world.now - world.peer(1).last_handshake.unwrap();
    assert!(age < seconds(125), "{age:?}");
    assert_eq!(world.peer(1).drops.iter().collect::<Vec<_>>(), []);
    assert_eq!(world.peer(2).drops.iter().collect::<Vec<_>>(), []);
}

#[test]
fn both_sides_may_begin_at_once() {
    let mut world = introduced();
    for round in 0..20u8 {
        world.send(1, &packet(1, 2, round, 100));
        world.send(2, &packet(2, 1, round, 100));
        world.run_for(seconds(200));
    }
    assert_eq!(world.nodes[0].received.len(), 20);
    assert_eq!(world.nodes[1].received.len(), 20);
}

#[test]
fn an_idle_peer_costs_nothing() {
    let mut world = introduced();
    world.send(1, &packet(1, 2, 1, 100));
    world.run_for(seconds(600));
    let (disco, wireguard, relayed) = (world.direct_disco, world.direct_wireguard, world.relayed);
    let wakeups = world.nodes[0].wakeups;
    world.run_for(seconds(3600));
    assert_eq!((world.direct_disco, world.direct_wireguard, world.relayed), (disco, wireguard, relayed));
    // The relay's Binds, and what they ask of timers.
    assert!(world.nodes[0].wakeups - wakeups <= 3600 / 20 + 1, "{}", world.nodes[0].wakeups - wakeups);
    world.send(2, &packet(2, 1, 2, 100));
    world.run_for(seconds(1));
    assert_eq!(world.nodes[0].received, [packet(2, 1, 2, 100)]);
}

#[test]
fn after_a_pause_packets_go_both_ways_until_the_direct_path_answers() {
    let mut world = introduced();
    world.send(1, &packet(1, 2, 1, 100));
    // Between two probes that keep the hole: an answer would be trusted for a moment.
    world.run_for(seconds(70));
    assert!(is_direct(&world, 1));
    world.direct_up = false;
    world.send(1, &packet(1, 2, 2, 100));
    world.run_for(RELAYED + millis(1));
    assert_eq!(world.nodes[1].received.len(), 2);
    world.direct_up = true;
    world.run_for(seconds(100));
    world.send(1, &packet(1, 2, 3, 100));
    world.run_for(seconds(1));
    assert_eq!(world.nodes[1].received.len(), 3, "what comes twice is delivered once");
}

#[test]
fn a_lost_relay_is_survived_by_a_direct_path() {
    let mut world = introduced();
    world.send(1, &packet(1, 2, 1, 100));
    world.run_for(seconds(1));
    world.relay_up = false;
    for number in 0..200 {
        world.send(1, &packet(1, 2, number, 100));
        world.run_for(seconds(1));
    }
    assert_eq!(world.nodes[1].received.len(), 201);
}

#[test]
fn without_a_relay_known_addresses_do() {
    let mut world = World::new();
    for id in [1, 2] {
        world.set_candidates(id);
    }
    world.tell_of_peer(1);
    world.send(1, &packet(1, 2, 1, 100));
    world.run_for(seconds(1));
    assert_eq!(world.nodes[1].received.len(), 1);
    world.send(2, &packet(2, 1, 1, 100));
    world.run_for(seconds(1));
    assert_eq!(world.nodes[0].received.len(), 1);
    assert!(is_direct(&world, 1) && is_direct(&world, 2));
}

#[test]
fn a_restarted_node_is_reached_again() {
    let mut world = introduced();
    world.send(1, &packet(1, 2, 1, 100));
    world.run_for(seconds(5));
    world.nodes[1] = world.node(2);
    world.open_relay(2);
    world.set_candidates(2);
    world.tell_of_peer(2);
    world.run_for(seconds(1));
    world.send(2, &packet(2, 1, 9, 100));
    world.run_for(seconds(1));
    assert_eq!(world.nodes[0].received, [packet(2, 1, 9, 100)]);
    world.send(1, &packet(1, 2, 8, 100));
    world.run_for(seconds(1));
    assert_eq!(world.nodes[1].received, [packet(1, 2, 8, 100)]);
}

#[test]
fn a_restarted_node_that_says_nothing_is_found_by_its_silence() {
    let mut world = introduced();
    world.send(1, &packet(1, 2, 1, 100));
    world.run_for(seconds(5));
    world.nodes[1] = world.node(2);
    world.open_relay(2);
    world.set_candidates(2);
    world.tell_of_peer(2);
    for number in 0..20 {
        world.send(1, &packet(1, 2, number, 100));
        world.run_for(seconds(1));
    }
    assert!(world.nodes[1].received.len() >= 3, "{}", world.nodes[1].received.len());
}

#[test]
fn observers_and_relays_show_the_reflexive_address() {
    let mut world = World::new();
    world.command(1, Command::SetObservers(vec![relay_address()]));
    world.run_for(seconds(1));
    assert!(world.candidates(1).contains(&address(1)));
    assert!(matches!(world.nodes[0].events.last(), Some(Event::CandidatesChanged(_))));
}

#[test]
fn a_ping_is_answered_on_the_primary_path() {
    let mut world = introduced();
    world.command(1, Command::Ping { peer: NodeId(2), token: 5 });
    world.run_for(seconds(1));
    world.command(1, Command::Ping { peer: NodeId(2), token: 6 });
    world.run_for(seconds(1));
    let pongs: Vec<_> = world.nodes[0]
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Pong { token, path, rtt, .. } => Some((*token, *path, *rtt)),
            _ => None,
        })
        .collect();
    assert_eq!(
        pongs,
        [(5, PathAddress::Relay(RelayId(0)), RELAYED * 2), (6, PathAddress::Direct(address(2)), DIRECT * 2)]
    );
}

#[test]
fn packets_from_and_to_strangers_are_dropped() {
    let mut world = introduced();
    world.send(1, &packet(1, 2, 1, 100));
    world.send(1, &packet(9, 2, 1, 100));
    world.run_for(seconds(1));
    assert_eq!(world.nodes[1].received, [packet(1, 2, 1, 100)]);
    assert_eq!(world.peer(2).drops.get(DropReason::WrongSource), 1);
    world.command(2, Command::SetAllowedIps(vec![]));
    world.send(1, &packet(1, 2, 2, 100));
    world.run_for(seconds(1));
    assert_eq!(world.peer(2).drops.get(DropReason::WrongDestination), 1);
    world.send(1, &packet(1, 9, 2, 100));
    assert_eq!(world.nodes[0].engine.snapshot(world.now).drops.get(DropReason::NoRoute), 1);
}

#[test]
fn the_clock_of_a_world_is_its_own() {
    let mut world = introduced();
    world.run_for(seconds(24 * 3600));
    world.send(1, &packet(1, 2, 1, 100));
    world.run_for(seconds(1));
    assert_eq!(world.nodes[1].received.len(), 1);
    assert!(world.elapsed() > seconds(24 * 3600));
}

#[test]
fn a_peer_with_a_new_key_is_a_new_peer_at_the_same_place() {
    let mut world = introduced();
    world.send(1, &packet(1, 2, 1, 100));
    world.run_for(seconds(1));
    world.change_key(2);
    world.send(1, &packet(1, 2, 2, 100));
    world.run_for(seconds(1));
    assert_eq!(world.nodes[1].received, [packet(1, 2, 2, 100)]);
    assert!(is_direct(&world, 1), "{:?}", world.peer(1).decisions);
}

#[test]
fn nothing_is_kept_of_a_peer_that_is_gone() {
    let mut world = introduced();
    world.send(1, &packet(1, 2, 1, 100));
    world.run_for(seconds(1));
    world.command(1, Command::SetPeers(vec![]));
    world.send(1, &packet(1, 2, 2, 100));
    world.send(2, &packet(2, 1, 2, 100));
    world.run_for(seconds(300));
    assert_eq!(world.nodes[1].received.len(), 1);
    assert_eq!(world.nodes[0].received.len(), 0);
    let snapshot = world.nodes[0].engine.snapshot(world.now);
    assert!(snapshot.peers.is_empty());
    assert_eq!(snapshot.drops.get(DropReason::NoRoute), 1);
    assert!(snapshot.drops.get(DropReason::UnknownSession) > 0);
}
