//! How long NATs remember is measured in each network, and mappings are kept with as little as that allows.

use std::time::Duration;

use mesh_engine::{command::Command, snapshot::NatLifetime};

use crate::{
    net::{NatProfile, NatType, PortChoice, Refresh},
    rng::Rng,
    topology::Topology,
    world::{NODE_PORT, World},
};

const LINE_DELAY: Duration = Duration::from_millis(10);
const MINUTE: Duration = Duration::from_secs(60);

/// Nodes behind NATs of their own that forget after so long.
fn mesh(lifetimes: &[u64], nat: NatProfile, seed: u64) -> World {
    let nats: Vec<_> = lifetimes
        .iter()
        .map(|lifetime| NatProfile { timeout: Duration::from_secs(*lifetime), ..nat })
        .collect();
    let (mut world, _) = Topology::one_node_behind_each(&nats, LINE_DELAY).build(&mut Rng::new(seed));
    (0..nats.len()).for_each(|node| world.start(node));
    world.run_for(Duration::from_secs(5));
    world
}

fn keepalive(world: &World, node: usize) -> Option<u64> {
    world.snapshot(node).and_then(|snapshot| snapshot.keepalive).map(|interval| interval.as_secs())
}

/// Whether what the relay sends to a node gets through its NAT.
fn is_reached_by_relay(world: &World, node: usize) -> bool {
    let relay = &world.relays[0];
    let bound = relay.bound_at(world.nodes[node].id);
    bound.is_some_and(|bound| world.net.is_open(bound, relay.address, world.now))
}

#[test]
fn each_node_keeps_its_mapping_with_what_its_own_nat_asks_for() {
    // (lifetime, how often something goes out in the end)
    let table = [(30, 20), (60, 40), (120, 80), (180, 128), (300, 216)];
    let lifetimes = table.map(|(lifetime, _)| lifetime);
    let kinds = [
        (NatType::ALL[0], Refresh::Both, PortChoice::Preserving),
        (NatType::ALL[2], Refresh::Outbound, PortChoice::Preserving),
        (NatType::ALL[8], Refresh::Both, PortChoice::Random),
    ];
    for (number, (kind, refresh, ports)) in (0..).zip(kinds) {
        let mut world = mesh(&lifetimes, NatProfile { refresh, ports, ..NatProfile::new(kind) }, 31 + number);
        assert_eq!(keepalive(&world, 0), Some(20), "nothing is known yet");
        // At any time every node is reached at once by its relay: no mapping is ever lost to a silence.
        for _ in 0..40 {
            world.run_for(MINUTE);
            for (node, lifetime) in lifetimes.iter().enumerate() {
                assert!(keepalive(&world, node).is_some_and(|seconds| seconds < *lifetime));
                assert!(is_reached_by_relay(&world, node), "{kind:?}: node {node} at {:?}", world.now);
            }
        }
        assert_eq!(world.violation(), None, "{}", world.trace);
        for (node, (lifetime, interval)) in table.iter().enumerate() {
            assert_eq!(keepalive(&world, node), Some(*interval), "{kind:?} with {lifetime} s");
        }
        let before: Vec<_> = world.nodes.iter().map(|node| node.meter.bytes).collect();
        world.run_for(60 * MINUTE);
        let sent = world.nodes.iter().zip(before).map(|(node, before)| node.meter.bytes - before);
        let rates: Vec<_> = sent.map(|bytes| bytes * 10 / 3600).collect();
        println!("{kind:?}: a tenth of bytes per second of each node: {rates:?}");
        assert!(rates[4] * 3 < rates[0], "{rates:?}");
    }
}

#[test]
fn another_network_is_measured_afresh_unless_it_is_remembered() {
    let mut world = mesh(&[300, 120], NatProfile::new(NatType::ALL[2]), 41);
    world.run_for(30 * MINUTE);
    assert_eq!((keepalive(&world, 0), keepalive(&world, 1)), (Some(216), Some(80)));
    let remembered = world.snapshot(0).map(|snapshot| snapshot.nat_lifetime).unwrap();
    world.command(0, Command::NetworkChanged);
    world.command(0, Command::SetNatLifetime(NatLifetime::default()));
    world.run_for(Duration::from_secs(5));
    assert_eq!(keepalive(&world, 0), Some(20));
    world.command(0, Command::NetworkChanged);
    world.command(0, Command::SetNatLifetime(remembered));
    world.run_for(Duration::from_secs(5));
    assert_eq!(keepalive(&world, 0), Some(216));
    // A NAT that is not the one that it seemed to be.
    world.command(1, Command::SetNatLifetime(remembered));
    world.run_for(Duration::from_secs(5));
    assert_eq!(keepalive(&world, 1), Some(216));
    world.run_for(20 * MINUTE);
    assert_eq!(keepalive(&world, 1), Some(80));
    assert_eq!(world.violation(), None, "{}", world.trace);
}

#[test]
fn the_hole_of_a_pair_is_kept_for_a_while_and_then_let_go() {
    for (lifetime, pause) in [(30, 300), (120, 500), (300, 500)] {
        let mut world = mesh(&[lifetime, 30], NatProfile::new(NatType::ALL[2]), 51);
        let talk = |world: &mut World| {
            for _ in 0..20 {
                world.ping(0, 1);
                world.run_for(Duration::from_millis(500));
            }
        };
        talk(&mut world);
        assert!(world.is_direct(0, 1));
        // The last probes of a path with traffic.
        world.run_for(Duration::from_secs(25));
        let before = world.nodes[0].meter.to_peers;
        world.run_for(Duration::from_secs(pause));
        let kept = world.nodes[0].meter.to_peers - before;
        assert!(kept * 10 <= pause, "{lifetime} s: {kept} datagrams in {pause} s");
        // These NATs keep ports.
        let outside = |node: usize| {
            let ip = world.net.outside_of(world.nodes[node].host).expect("an address");
            std::net::SocketAddr::new(ip, NODE_PORT)
        };
        for (a, b) in [(0, 1), (1, 0)] {
            assert!(world.net.is_open(outside(a), outside(b), world.now), "{lifetime} s, node {a}");
        }
        world.run_for(30 * MINUTE);
        let before = world.nodes[0].meter.to_peers + world.nodes[1].meter.to_peers;
        world.run_for(30 * MINUTE);
        assert_eq!(world.nodes[0].meter.to_peers + world.nodes[1].meter.to_peers, before);
        assert_eq!(world.violation(), None, "{}", world.trace);
    }
}
