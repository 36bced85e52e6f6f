//! Pairs that plain probing does not get through: by birthday, by prediction, or not at all, and within their limits.

use std::{net::IpAddr, time::Duration};

use mesh_engine::config::PunchLimits;

use crate::{
    net::{Filtering, Mapping, NatProfile, NatType, PortChoice},
    rng::Rng,
    topology::Topology,
    world::World,
};

/// Delay of each node's line: 40 ms of round trip between two nodes.
const LINE_DELAY: Duration = Duration::from_millis(10);
/// Time until nodes that start have their relay.
const SETTLE: Duration = Duration::from_secs(5);
/// How finely the moment is taken at which a pair becomes direct.
const TICK: Duration = Duration::from_millis(5);
const PING_INTERVAL: Duration = Duration::from_millis(100);
/// A pair is attempted when plain probing has failed for this long.
const WAIT: Duration = Duration::from_secs(1);

const EASY: NatType = NatType { mapping: Mapping::Eim, filtering: Filtering::Apdf };
const BY_ADDRESS: NatType = NatType { mapping: Mapping::Adm, filtering: Filtering::Apdf };
const BY_PORT: NatType = NatType { mapping: Mapping::Apdm, filtering: Filtering::Apdf };

/// How many addresses this node is seen from: with one, no NAT's mapping is known; with two, every one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Observers {
    One,
    Two,
}

fn random(kind: NatType) -> NatProfile {
    NatProfile { ports: PortChoice::Random, ..NatProfile::new(kind) }
}

fn sequential(kind: NatType, step: i16) -> NatProfile {
    NatProfile { ports: PortChoice::Sequential(step), ..NatProfile::new(kind) }
}

/// Two nodes behind these NATs, started and settled.
fn pair(nats: [NatProfile; 2], observers: Observers, limits: PunchLimits, seed: u64) -> World {
    let mut rng = Rng::new(seed);
    let relays = if observers == Observers::One { 1 } else { 2 };
    let topology = Topology { relays, ..Topology::one_node_behind_each(&nats, LINE_DELAY) };
    let (mut world, _) = topology.build(&mut rng);
    for node in 0..2 {
        world.nodes[node].punch = limits;
        world.run_for(rng.duration(Duration::ZERO..Duration::from_secs(2)));
        world.start(node);
    }
    world.run_for(SETTLE);
    world
}

fn check(world: &World, what: &str) {
    if let Some(violation) = world.violation() {
        panic!("{what}: {violation}\n{}", world.trace);
    }
}

/// Pings until both sides are direct; returns how long that took beyond the wait.
fn time_to_direct(world: &mut World, deadline: Duration) -> Option<Duration> {
    let start = world.now;
    let mut next_ping = start;
    while world.now < start + WAIT + deadline {
        if world.now >= next_ping {
            world.ping(0, 1);
            next_ping += PING_INTERVAL;
        }
        world.run_for(TICK);
        if world.is_direct(0, 1) && world.is_direct(1, 0) {
            return Some((world.now - start).saturating_sub(WAIT));
        }
    }
    None
}

#[test]
fn the_four_birthday_pairs_are_direct_within_their_times() {
    let runs = std::env::var("SIM_PUNCH_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(25);
    for (rate, seconds) in [(1000, 3), (500, 6), (250, 10)] {
        let limits = PunchLimits { rate, ..PunchLimits::default() };
        let (mut times, mut failed) = (Vec::new(), 0);
        for seed in 0..runs {
            for nats in [[EASY, BY_ADDRESS], [BY_ADDRESS, EASY], [EASY, BY_PORT], [BY_PORT, EASY]] {
                for observers in [Observers::One, Observers::Two] {
                    let mut world = pair(nats.map(random), observers, limits, seed);
                    let took = time_to_direct(&mut world, Duration::from_secs(seconds));
                    check(&world, &format!("{nats:?}, seed {seed}"));
                    failed += usize::from(took.is_none());
                    times.extend(took);
                }
            }
        }
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!(
            "{rate}/s: {} direct, {failed} not; median {:?}, p90 {:?}, p99 {:?}, all {:?}",
            times.len(),
            at(50),
            at(90),
            at(99),
            at(100)
        );
        assert!(failed * 100 <= times.len() + failed, "{failed} of {} at {rate}/s", times.len() + failed);
    }
}

#[test]
fn ports_that_count_on_are_predicted_on_one_side_or_both() {
    let mut times = Vec::new();
    for step in [1, 2, 256, -1] {
        for (kind, other) in [
            (BY_PORT, random(EASY)),
            (BY_ADDRESS, random(EASY)),
            (BY_PORT, sequential(BY_PORT, 1)),
            (BY_PORT, sequential(BY_ADDRESS, -2)),
        ] {
            for observers in [Observers::One, Observers::Two] {
                for (seed, turned) in [(1, false), (2, true), (3, false)] {
                    let mut nats = [sequential(kind, step), other];
                    if turned {
                        nats.reverse();
                    }
                    let mut world = pair(nats, observers, PunchLimits::default(), seed);
                    let took = time_to_direct(&mut world, Duration::from_secs(2));
                    check(&world, &format!("{nats:?}"));
                    assert!(took.is_some(), "{nats:?}, {observers:?}, seed {seed}\n{}", world.trace);
                    times.extend(took);
                }
            }
        }
    }
    times.sort_unstable();
    println!("{} pairs: median {:?}, all {:?}", times.len(), times[times.len() / 2], times[times.len() - 1]);
}

#[test]
fn two_sides_that_vary_at_random_are_left_to_the_relay() {
    for nats in [[BY_PORT, BY_PORT], [BY_ADDRESS, BY_PORT], [BY_ADDRESS, BY_ADDRESS]] {
        let mut world = pair(nats.map(random), Observers::Two, PunchLimits::default(), 5);
        assert_eq!(time_to_direct(&mut world, Duration::from_secs(10)), None);
        let before: Vec<_> = world.nodes.iter().map(|node| (node.meter.disco, world.now)).collect();
        assert_eq!(time_to_direct(&mut world, Duration::from_secs(600)), None);
        check(&world, &format!("{nats:?}"));
        for (node, (disco, at)) in world.nodes.iter().zip(before) {
            // Beside the relay's own probes, each second one asked and one answered.
            let seconds = (world.now - at).as_secs();
            let sent = node.meter.disco - disco;
            assert!(sent <= seconds, "{sent} direct probes in {seconds} s");
            assert!(node.sockets.is_empty(), "sockets stay open");
        }
    }
}

#[test]
fn an_attempt_that_fails_keeps_to_its_budget_and_backs_off() {
    // With one observer nobody knows that both sides vary, and each tries.
    let limits = PunchLimits { budget: 1000, ..PunchLimits::default() };
    let mut world = pair([random(BY_PORT), random(BY_PORT)], Observers::One, limits, 6);
    let attempts = 5;
    // At 1, 61, 181, 421 and 901 s, and what those take.
    assert_eq!(time_to_direct(&mut world, Duration::from_secs(1000)), None);
    check(&world, "two that vary");
    for node in &world.nodes {
        assert!(node.meter.disco > 1000, "it was tried: {}", node.meter.disco);
        let most = attempts * (1000 / 2 + 600) + 1000;
        assert!(node.meter.disco <= most, "{} probes, at most {most}", node.meter.disco);
        assert!(node.sockets.is_empty(), "sockets stay open");
    }
}

#[test]
fn attempts_with_several_peers_share_one_rate_and_none_waits_for_another() {
    let nats = [EASY, BY_PORT, BY_ADDRESS, BY_PORT].map(random);
    let topology = Topology { relays: 2, ..Topology::one_node_behind_each(&nats, LINE_DELAY) };
    let (mut world, _) = topology.build(&mut Rng::new(7));
    (0..4).for_each(|node| world.start(node));
    world.run_for(SETTLE);
    let (start, mut all_direct) = (world.now, None);
    let mut before = world.nodes[0].meter.disco;
    while world.now < start + Duration::from_secs(40) {
        for node in 1..4 {
            world.ping(0, node);
        }
        world.run_for(PING_INTERVAL);
        assert!(world.nodes.iter().all(|node| node.sockets.len() <= 256 + 8));
        let sent = world.nodes[0].meter.disco - std::mem::replace(&mut before, world.nodes[0].meter.disco);
        // Beside some plain probes and answers: one tick's worth more than the rate.
        assert!(sent <= 50 + 20 + 30, "{sent} probes in {PING_INTERVAL:?}");
        if (1..4).all(|node| world.is_direct(0, node) && world.is_direct(node, 0)) {
            all_direct.get_or_insert(world.now - start);
        }
    }
    check(&world, "one with three");
    println!("three birthday pairs of one node: all direct after {all_direct:?}");
    let took = all_direct.expect("all three are direct");
    assert!(took < WAIT + Duration::from_secs(12), "{took:?}");
    for node in 1..4 {
        assert!(world.is_direct(0, node) && world.is_direct(node, 0), "node {node}");
        assert!(
            world.nodes[node].sockets.len() <= 2,
            "the losers are closed: {}",
            world.nodes[node].sockets.len()
        );
    }
}

#[test]
fn ports_are_probed_only_where_the_coordinator_sees_the_peer() {
    let mut world = pair([random(EASY), random(BY_PORT)], Observers::Two, PunchLimits::default(), 8);
    time_to_direct(&mut world, Duration::from_secs(6)).unwrap();
    let outside: Vec<IpAddr> =
        (0..2).filter_map(|node| world.net.outside_of(world.nodes[node].host)).collect();
    for (node, to) in
        world.nodes.iter().flat_map(|node| node.meter.probed.iter().map(move |to| (node.id.0, to)))
    {
        let private = matches!(to, IpAddr::V4(v4) if v4.is_private());
        assert!(private || outside.contains(to), "node {node} probed {to}");
    }
}
