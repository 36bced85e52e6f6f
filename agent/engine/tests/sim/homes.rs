//! Several relays: which one is whose home, and how soon a dead one is left.
//!
//! ```text
//!           far            far
//!  node 0 ------- relay 0 ------- node 1       relay 0 is the coordinator's
//!      \--- relay 1 ----------------/          near node 0, far from node 1
//!      \---------------- relay 2 ---/          near node 1, far from node 0
//! ```

use std::time::Duration;

use mesh_engine::event::PathAddress;
use mesh_proto::netmap::RelayId;

use crate::{
    net::{NatProfile, NatType, PortChoice, UplinkId},
    rng::Rng,
    topology::{SiteUplink, Topology},
    world::World,
};

const LINE_DELAY: Duration = Duration::from_millis(5);
/// How far a relay is that is near none of the nodes, and one that is near the other node.
const FAR: Duration = Duration::from_millis(40);
const FARTHER: Duration = Duration::from_millis(60);
/// Both sides ping the other this often.
const PING_INTERVAL: Duration = Duration::from_millis(20);
/// A dead relay is left by then.
const LEFT_WITHIN: Duration = Duration::from_secs(2);
/// Runs of each kind; the moment at which a relay dies is drawn anew in each.
const RUNS: u64 = 20;

/// What becomes of a relay.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// It is killed.
    Killed,
    /// Node 0 does not reach it any more, and nobody tells.
    Blackholed,
}

fn relay_line(world: &World, relay: usize) -> UplinkId {
    world.net.uplink_of(world.relays[relay].host).expect("every relay has an uplink")
}

fn node_line(world: &World, node: usize) -> UplinkId {
    world.net.uplink_of(world.nodes[node].host).expect("every node has an uplink")
}

/// Two nodes that no punching brings together, and three relays; `loss` of 1000 datagrams are lost on each node's line.
fn build(seed: u64, loss: u32) -> World {
    let random = NatProfile { ports: PortChoice::Random, ..NatProfile::new(hard()) };
    let mut topology = Topology { relays: 3, ..Topology::one_node_behind_each(&[random; 2], LINE_DELAY) };
    for site in &mut topology.sites {
        if let SiteUplink::Line(line) = &mut site.uplink {
            line.loss = loss;
        }
    }
    let (mut world, _) = topology.build(&mut Rng::new(seed));
    for (node, relay, distance) in [(0, 0, FAR), (1, 0, FAR), (0, 2, FARTHER), (1, 1, FARTHER)] {
        let lines = (node_line(&world, node), relay_line(&world, relay));
        world.net.set_distance(lines.0, lines.1, distance);
    }
    (0..2).for_each(|node| world.start(node));
    world.run_for(Duration::from_secs(5));
    world
}

/// The type that is symmetric and filters by port.
fn hard() -> NatType {
    NatType::ALL[NatType::ALL.len() - 1]
}

/// Goes on pinging for a time; returns when each ping was sent, with its number.
pub(crate) fn talk(world: &mut World, time: Duration) -> Vec<(Duration, u64)> {
    let (end, mut pings) = (world.now + time, Vec::new());
    while world.now < end {
        let now = world.now;
        pings.extend(world.ping(0, 1).map(|ping| (now, ping)));
        pings.extend(world.ping(1, 0).map(|ping| (now, ping)));
        world.run_for(PING_INTERVAL);
    }
    assert_eq!(world.violation(), None, "{}", world.trace);
    pings
}

#[test]
fn every_node_is_at_home_nearby_and_a_pair_begins_there() {
    let mut world = build(1, 0);
    let home = |world: &World, node| world.snapshot(node).and_then(|snapshot| snapshot.home);
    let (near, far) = (world.relays[1].id, world.relays[2].id);
    assert_eq!([home(&world, 0), home(&world, 1)], [Some(near), Some(far)]);
    let before: Vec<_> = world.relays.iter().map(|relay| relay.forwarded).collect();
    let start = world.now;
    let ping = world.ping(0, 1).unwrap();
    assert_eq!(world.path(0, 1), Some(PathAddress::Relay(far)), "at the peer's home");
    while !world.ledger.is_answered(ping) && world.now < start + Duration::from_secs(5) {
        world.run_for(Duration::from_millis(1));
    }
    let took = world.now - start;
    println!("first packet answered after {took:?}");
    // A handshake and the packet, each there and back, through one relay.
    assert!(world.ledger.is_answered(ping) && took < 2 * 4 * (FARTHER + 4 * LINE_DELAY), "{took:?}");
    assert!(world.relays[2].forwarded > before[2]);
    talk(&mut world, Duration::from_secs(10));
    let home_is_used = |path| path != Some(PathAddress::Relay(RelayId(0)));
    assert!(home_is_used(world.path(0, 1)) && home_is_used(world.path(1, 0)), "a home, not the far relay");
}

#[test]
fn a_home_that_dies_is_another_one_soon() {
    let mut world = build(2, 0);
    talk(&mut world, Duration::from_secs(5));
    world.relays[1].kill();
    // If nothing goes through it the next Bind shows it, and two more that are not answered.
    talk(&mut world, Duration::from_secs(25));
    let snapshot = world.snapshot(0).unwrap();
    assert_eq!(snapshot.home, Some(RelayId(0)), "the next one by distance");
    let told = world.nodes[1].states[&world.nodes[0].id].home;
    assert_eq!(told, Some(RelayId(0)), "the peer has heard of it");
}

/// Kills what is used, and what comes next, and measures how long packets go on being lost.
fn leave(fates: [Option<Fate>; 2], loss: u32) {
    let mut times = Vec::new();
    for seed in 1..=RUNS {
        let mut world = build(seed, loss);
        let phase = world.rng.duration(Duration::ZERO..Duration::from_secs(20));
        talk(&mut world, Duration::from_secs(10) + phase);
        let used = match world.path(0, 1) {
            Some(PathAddress::Relay(relay)) => world.relay_index(relay),
            other => panic!("{other:?}"),
        };
        let next = 3 - used.clamp(1, 2);
        for (relay, fate) in [used, next].into_iter().zip(fates) {
            match fate {
                Some(Fate::Killed) => world.relays[relay].kill(),
                Some(Fate::Blackholed) => {
                    let (node, line) = (node_line(&world, 0), relay_line(&world, relay));
                    world.net.cut(node, line);
                }
                None => {}
            }
        }
        let start = world.now;
        let pings = talk(&mut world, Duration::from_secs(6));
        world.run_for(Duration::from_secs(1));
        // The time after which ten in a row were answered.
        let answered: Vec<_> =
            pings.iter().map(|(at, ping)| (*at, world.ledger.is_answered(*ping))).collect();
        let back = answered.windows(10).find(|pings| pings.iter().filter(|(_, is)| *is).count() >= 9);
        let back = back.map_or(Duration::MAX, |pings| pings[0].0 - start);
        let lost_late = answered.iter().filter(|(at, is)| *at > start + LEFT_WITHIN && !is).count();
        if loss == 0 {
            assert_eq!(lost_late, 0, "seed {seed}: pings are lost later than {LEFT_WITHIN:?}");
        }
        times.push(back);
    }
    times.sort_unstable();
    println!(
        "{fates:?}, {loss} of 1000 lost: median {:?}, longest {:?}",
        times[times.len() / 2],
        times[times.len() - 1]
    );
    assert!(times[times.len() - 1] <= LEFT_WITHIN, "{times:?}");
}

#[test]
fn a_killed_relay_is_left_within_two_seconds() {
    leave([Some(Fate::Killed), None], 0);
}

#[test]
fn a_blackholed_relay_is_left_within_two_seconds() {
    leave([Some(Fate::Blackholed), None], 0);
}

#[test]
fn two_relays_that_die_at_once_are_left_within_two_seconds() {
    leave([Some(Fate::Killed), Some(Fate::Blackholed)], 0);
    leave([Some(Fate::Blackholed), Some(Fate::Killed)], 0);
}

#[test]
fn on_lossy_lines_a_dead_relay_is_left_as_soon() {
    leave([Some(Fate::Killed), None], 20);
}

#[test]
fn a_lossy_relay_is_not_left_for_nothing() {
    let mut world = build(7, 30);
    talk(&mut world, Duration::from_secs(10));
    let before = world.nodes[0].meter.path_changes;
    talk(&mut world, Duration::from_secs(120));
    assert!(world.nodes[0].meter.path_changes - before <= 2, "3 % of loss is no reason to leave");
}

#[test]
fn the_first_packet_survives_a_home_that_died_unnoticed() {
    for seed in 1..=RUNS {
        let mut world = build(seed, 0);
        // Longer than a session lasts, so that the next packet begins with a handshake.
        talk(&mut world, Duration::from_secs(5));
        world.run_for(Duration::from_secs(400));
        world.relays[2].kill();
        let start = world.now;
        let ping = world.ping(0, 1).unwrap();
        while !world.ledger.is_answered(ping) && world.now < start + Duration::from_secs(10) {
            world.run_for(Duration::from_millis(1));
        }
        let took = world.now - start;
        assert!(took < LEFT_WITHIN, "seed {seed}: {took:?}");
    }
}
