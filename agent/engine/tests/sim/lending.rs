//! Nodes that relay for others.

use std::time::Duration;

use mesh_engine::event::PathAddress;
use mesh_proto::netmap::RelayId;

use crate::{
    homes::talk,
    net::{NatProfile, NatType, PortChoice},
    rng::Rng,
    topology::{BuiltSite, Topology},
    world::World,
};

const LINE_DELAY: Duration = Duration::from_millis(10);
/// A pair is back by then, if something is left that it can go through.
const BACK_WITHIN: Duration = Duration::from_secs(3);
const RUNS: u64 = 10;

/// Nodes 0 and 1, which no punching brings together, then so many that lend themselves, and one site more.
fn build(seed: u64, lenders: usize) -> (World, Vec<BuiltSite>) {
    let hard =
        NatProfile { ports: PortChoice::Random, ..NatProfile::new(NatType::ALL[NatType::ALL.len() - 1]) };
    let open = NatProfile::new(NatType::ALL[0]);
    let nats: Vec<_> = [hard, hard].into_iter().chain(std::iter::repeat_n(open, lenders + 1)).collect();
    let mut topology = Topology::one_node_behind_each(&nats, LINE_DELAY);
    topology.nodes.truncate(2 + lenders);
    let (mut world, sites) = topology.build(&mut Rng::new(seed));
    for node in 2..2 + lenders {
        world.nodes[node].lends = true;
    }
    (0..world.nodes.len()).for_each(|node| world.start(node));
    world.run_for(Duration::from_secs(5));
    (world, sites)
}

fn lender(node: usize) -> Option<PathAddress> {
    Some(PathAddress::Relay(RelayId(u32::try_from(node + 1).expect("a handful of nodes"))))
}

fn kill_servers(world: &mut World) {
    world.relays[0].kill();
    world.coordinator.kill();
    world.check_control();
}

/// Goes on talking; everything that is sent later than [`BACK_WITHIN`] is answered.
fn goes_on(world: &mut World, what: &str) -> Duration {
    let start = world.now;
    let pings = talk(world, BACK_WITHIN + Duration::from_secs(5));
    world.run_for(Duration::from_secs(1));
    let lost = pings.iter().filter(|(_, ping)| !world.ledger.is_answered(*ping));
    let last = lost.map(|(at, _)| *at - start).max().unwrap_or_default();
    assert!(last <= BACK_WITHIN, "{what}: a ping is lost after {last:?}: {}", world.trace);
    last
}

#[test]
fn a_hard_pair_goes_on_through_a_third_node_without_any_server() {
    let mut times = Vec::new();
    for seed in 1..=RUNS {
        let (mut world, _) = build(seed, 1);
        let phase = world.rng.duration(Duration::ZERO..Duration::from_secs(10));
        talk(&mut world, Duration::from_secs(15) + phase);
        assert_eq!(world.path(0, 1), Some(PathAddress::Relay(RelayId(0))), "no need of another's line yet");
        kill_servers(&mut world);
        times.push(goes_on(&mut world, "servers killed"));
        assert_eq!([world.path(0, 1), world.path(1, 0)], [lender(2); 2]);
        // And for long.
        talk(&mut world, Duration::from_secs(600));
        goes_on(&mut world, "ten minutes later");
    }
    times.sort_unstable();
    println!("back after {:?}, at most {:?}", times[times.len() / 2], times[times.len() - 1]);
}

#[test]
fn a_lender_that_dies_is_replaced_by_another() {
    for seed in 1..=RUNS {
        let (mut world, _) = build(seed, 2);
        talk(&mut world, Duration::from_secs(15));
        kill_servers(&mut world);
        goes_on(&mut world, "servers killed");
        let used = if world.path(0, 1) == lender(2) { 2 } else { 3 };
        world.kill(used);
        goes_on(&mut world, "lender killed");
        assert_eq!([world.path(0, 1), world.path(1, 0)], [lender(5 - used); 2]);
    }
}

#[test]
fn a_lender_that_roams_is_followed() {
    for seed in 1..=RUNS {
        let (mut world, sites) = build(seed, 1);
        talk(&mut world, Duration::from_secs(15));
        // The coordinator stays: nobody else could tell where the lender is now.
        world.relays[0].kill();
        goes_on(&mut world, "relay killed");
        let host = world.nodes[2].host;
        sites[3].attach(&mut world.net, host);
        world.host_moved(2);
        goes_on(&mut world, "lender moved");
        assert_eq!([world.path(0, 1), world.path(1, 0)], [lender(2); 2]);
    }
}

#[test]
fn a_pair_that_was_idle_finds_a_lender_too() {
    for seed in 1..=RUNS {
        let (mut world, _) = build(seed, 1);
        kill_servers(&mut world);
        // It shows at the next Bind.
        world.run_for(Duration::from_secs(60));
        let start = world.now;
        let ping = world.ping(0, 1).unwrap();
        while !world.ledger.is_answered(ping) && world.now < start + Duration::from_secs(20) {
            world.run_for(Duration::from_millis(10));
        }
        let took = world.now - start;
        assert!(took < BACK_WITHIN, "seed {seed}: {took:?}");
    }
}

#[test]
fn nobody_is_asked_who_does_not_lend_and_nothing_while_there_is_no_need() {
    let (mut world, _) = build(1, 1);
    let borrowed = |world: &World| {
        world.snapshot(0).unwrap().relays.iter().filter(|relay| relay.id != RelayId(0)).count()
    };
    world.run_for(Duration::from_secs(60));
    assert_eq!(borrowed(&world), 0, "nobody talks");
    talk(&mut world, Duration::from_secs(15));
    assert_eq!(borrowed(&world), 1);
    world.run_for(Duration::from_secs(300));
    assert_eq!(borrowed(&world), 0, "given back");
}
