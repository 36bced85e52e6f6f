//! The 81 ordered pairs of NAT types: each is direct if the reference model says so, and relayed from its first packet.

use std::time::Duration;

use crate::{
    model::{is_punchable, plain_pair_is_direct},
    net::{NatProfile, NatType, PortChoice},
    rng::Rng,
    topology::{SiteV6, Topology},
    world::World,
};

/// Delay of each node's line: 40 ms of round trip between two nodes.
const LINE_DELAY: Duration = Duration::from_millis(10);
/// Time until nodes that start have their relay.
const SETTLE: Duration = Duration::from_secs(5);
/// How finely the moment is taken at which a pair becomes direct.
const TICK: Duration = Duration::from_millis(1);
const PING_INTERVAL: Duration = Duration::from_millis(100);
/// Time in which a plain pair has to be direct; the budget proper is on the 99th percentile.
const DIRECT_DEADLINE: Duration = Duration::from_secs(5);
/// Budget of the 99th percentile.
const DIRECT_P99: Duration = Duration::from_millis(400);
/// One and a half round trips between the nodes over the relay: 90 ms on the lines, the rest in LANs and routers.
const FIRST_PACKET: Duration = Duration::from_millis(92);
/// Datagrams per second to a peer that can't be reached directly: pings, answers, probes and handshakes.
const MAX_RATE: u64 = 12;

/// A pair of nodes behind these NATs, started and settled.
fn pair(a: NatProfile, b: NatProfile, seed: u64) -> World {
    pair_of(&Topology::one_node_behind_each(&[a, b], LINE_DELAY), seed)
}

/// The same with two observers at different addresses, so that every node knows what its NAT does.
fn seen_by_two(nats: &[NatProfile]) -> Topology {
    Topology { relays: 2, ..Topology::one_node_behind_each(nats, LINE_DELAY) }
}

fn pair_of(topology: &Topology, seed: u64) -> World {
    let mut rng = Rng::new(seed);
    let (mut world, _) = topology.build(&mut rng);
    for node in 0..2 {
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

/// Pings from the first node to the second until both are direct, and returns how long that took.
fn time_to_direct(world: &mut World) -> Option<Duration> {
    let start = world.now;
    let mut next_ping = start;
    while world.now < start + DIRECT_DEADLINE {
        if world.now >= next_ping {
            world.ping(0, 1);
            next_ping += PING_INTERVAL;
        }
        world.run_for(TICK);
        if world.is_direct(0, 1) && world.is_direct(1, 0) {
            return Some(world.now - start);
        }
    }
    None
}

#[test]
fn over_ipv6_every_pair_is_direct_through_filters_on_both_sides() {
    let mut times = Vec::new();
    for (a, b) in all_pairs().filter(|(a, b)| !is_punchable([*a, *b])) {
        let mut topology =
            Topology::one_node_behind_each(&[NatProfile::new(a), NatProfile::new(b)], LINE_DELAY);
        topology.sites.iter_mut().for_each(|site| site.v6 = SiteV6::Filtered);
        let mut world = pair_of(&topology, 1);
        times.extend(time_to_direct(&mut world));
        check(&world, &format!("{a:?} with {b:?}"));
        assert!(world.is_direct(0, 1) && world.is_direct(1, 0), "{a:?} with {b:?}\n{}", world.trace);
    }
    times.sort_unstable();
    assert!(times.last().is_some_and(|longest| *longest <= DIRECT_P99), "{times:?}");
}

fn all_pairs() -> impl Iterator<Item = (NatType, NatType)> {
    NatType::ALL.into_iter().flat_map(|a| NatType::ALL.map(|b| (a, b)))
}

#[test]
fn every_pair_of_nat_types_that_plain_probing_gets_through_is_direct() {
    let mut times = Vec::new();
    let mut wrong = Vec::new();
    let plain = || all_pairs().filter(|(a, b)| plain_pair_is_direct(*a, *b));
    for (ports, seed) in [(PortChoice::Preserving, 1), (PortChoice::Random, 2), (PortChoice::Random, 3)] {
        for (a, b) in plain() {
            let [nat_a, nat_b] = [a, b].map(|kind| NatProfile { ports, ..NatProfile::new(kind) });
            let mut world = pair(nat_a, nat_b, seed);
            let took = time_to_direct(&mut world);
            check(&world, &format!("{a:?} with {b:?}"));
            if took.is_none() {
                wrong.push(format!("{a:?} with {b:?}, {ports:?}: not direct"));
            }
            times.extend(took);
        }
    }
    assert!(wrong.is_empty(), "{} pairs are relayed:\n{}", wrong.len(), wrong.join("\n"));
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{} pairs direct: median {:?}, p90 {:?}, p99 {:?}, all {:?}",
        times.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    );
    assert!(at(99) <= DIRECT_P99, "p99 is {:?}", at(99));
}

#[test]
fn every_pair_is_connected_from_its_first_packet_by_the_relay() {
    let mut slowest = Duration::ZERO;
    for (a, b) in all_pairs() {
        let mut world = pair(NatProfile::new(a), NatProfile::new(b), 4);
        let start = world.now;
        let pings: Vec<_> = (0..16).filter_map(|_| world.ping(0, 1)).collect();
        while world.ledger.is_outstanding(pings[0]) && world.now < start + SETTLE {
            world.run_for(TICK);
        }
        slowest = slowest.max(world.now - start);
        world.run_for(SETTLE);
        check(&world, &format!("{a:?} with {b:?}"));
        let lost = pings.iter().filter(|ping| !world.ledger.is_answered(**ping)).count();
        assert_eq!(lost, 0, "{a:?} with {b:?}: {lost} of the first packets are lost\n{}", world.trace);
    }
    println!("slowest first packet: {slowest:?}");
    assert!(slowest <= FIRST_PACKET, "{slowest:?}");
}

#[test]
fn a_pair_that_cannot_be_direct_stays_relayed_without_a_storm() {
    let hard = |(a, b): &(NatType, NatType)| !plain_pair_is_direct(*a, *b) && !is_punchable([*a, *b]);
    for (a, b) in all_pairs().filter(hard) {
        let random = |kind| NatProfile { ports: PortChoice::Random, ..NatProfile::new(kind) };
        let mut world = pair_of(&seen_by_two(&[random(a), random(b)]), 5);
        let mut pings = Vec::new();
        let seconds = 600;
        for _ in 0..seconds {
            pings.extend(world.ping(0, 1));
            world.run_for(Duration::from_secs(1));
        }
        world.run_for(SETTLE);
        check(&world, &format!("{a:?} with {b:?}"));
        let lost = pings.iter().filter(|ping| !world.ledger.is_answered(**ping)).count();
        assert_eq!(lost, 0, "{a:?} with {b:?} lost pings");
        assert!(!world.is_direct(0, 1) && !world.is_direct(1, 0));
        for node in &world.nodes {
            let sent = node.meter.to_peers;
            assert!(sent <= MAX_RATE * seconds, "{a:?} with {b:?}: {sent} datagrams in {seconds} s");
            assert!(
                node.meter.path_changes <= 3,
                "{a:?} with {b:?}: paths changed {} times",
                node.meter.path_changes
            );
        }
    }
}
