//! Nodes whose peers are shared by several engines: what a node does once is still done once.
//!
//! That the promises hold for them is for `properties.rs` to say: there, two nodes of three have two or three engines.

use std::time::Duration;

use crate::{
    net::{Filtering, Mapping, NatProfile, NatType, PortChoice},
    rng::Rng,
    topology::Topology,
    world::World,
};

const LINE_DELAY: Duration = Duration::from_millis(10);
const PING_INTERVAL: Duration = Duration::from_millis(100);
const EASY: NatType = NatType { mapping: Mapping::Eim, filtering: Filtering::Apdf };
const HARD: NatType = NatType { mapping: Mapping::Apdm, filtering: Filtering::Apdf };
/// Engines of the node that is looked at.
const SHARDS: u32 = 3;
/// Probes per second of all attempts together, with the one burst that they may begin with.
const MAX_PROBE_RATE: u64 = 500 + 30;
/// What disco messages there are besides in a second: six pairs that are probed by plain means, and two relays.
const MAX_OTHERS: u64 = 40;

/// A node with several engines behind an easy NAT, and others with one behind these.
fn mesh(others: &[NatProfile], seed: u64) -> World {
    let nats: Vec<_> = std::iter::once(NatProfile::new(EASY)).chain(others.iter().copied()).collect();
    let topology = Topology { relays: 2, ..Topology::one_node_behind_each(&nats, LINE_DELAY) };
    let (mut world, _) = topology.build(&mut Rng::new(seed));
    world.nodes[0].shards = SHARDS;
    (0..nats.len()).for_each(|node| world.start(node));
    world.run_for(Duration::from_secs(5));
    world
}

/// Pings from the first node to all others until both sides of every pair are direct; `watch` is called every 100 ms.
fn talk_until_direct(world: &mut World, deadline: Duration, mut watch: impl FnMut(&World)) {
    let (start, nodes) = (world.now, world.nodes.len());
    let is_direct = |world: &World, node| world.is_direct(0, node) && world.is_direct(node, 0);
    while !(1..nodes).all(|node| is_direct(world, node)) {
        assert!(world.now < start + deadline, "not direct in time\n{}", world.trace);
        for node in 1..nodes {
            world.ping(0, node);
        }
        world.run_for(PING_INTERVAL);
        watch(world);
    }
    assert_eq!(world.violation(), None, "{}", world.trace);
}

#[test]
fn the_peers_of_every_engine_become_direct_and_nothing_is_asked_twice() {
    let easy = vec![NatProfile::new(EASY); 6];
    let mut world = mesh(&easy, 31);
    talk_until_direct(&mut world, Duration::from_secs(5), |_| ());
    let upkeep = |world: &World| world.nodes.iter().map(|node| node.meter.upkeep).collect::<Vec<_>>();
    let before = upkeep(&world);
    for _ in 0..600 {
        for node in 1..=easy.len() {
            world.ping(0, node);
        }
        world.run_for(Duration::from_secs(1));
    }
    assert_eq!(world.violation(), None, "{}", world.trace);
    let rates: Vec<_> = upkeep(&world).iter().zip(before).map(|(after, before)| after - before).collect();
    // Each has traffic all the time; the one that has several engines asks as often as the others.
    assert!(rates.iter().all(|rate| rate.abs_diff(rates[1]) * 5 <= rates[1]), "{rates:?}");
}

#[test]
fn pairs_that_are_punched_share_one_rate_and_every_one_has_its_turn() {
    let hard = vec![NatProfile { ports: PortChoice::Random, ..NatProfile::new(HARD) }; 6];
    for seed in 0..3 {
        let mut world = mesh(&hard, seed);
        let (mut sent, mut most) = (Vec::new(), 0);
        talk_until_direct(&mut world, Duration::from_secs(240), |world| {
            sent.push(world.nodes[0].meter.disco);
            if let [.., earlier, _, _, _, _, _, _, _, _, _, last] = sent[..] {
                let rate = last - earlier;
                assert!(rate <= MAX_PROBE_RATE + MAX_OTHERS, "{rate} in a second");
                most = most.max(rate);
            }
        });
        let took = PING_INTERVAL * u32::try_from(sent.len()).unwrap();
        println!("seed {seed}: all direct after {took:?}, at most {most} disco messages in a second");
    }
}
