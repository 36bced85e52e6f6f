//! The coordinator is away: who moved is found again, through a relay or through a peer that both know.

use std::{net::IpAddr, time::Duration};

use crate::{
    homes::talk,
    net::{Filtering, INTERNET, Mapping, NatProfile, NatType, PortChoice},
    rng::Rng,
    topology::{BuiltSite, Topology},
    world::World,
};

const LINE_DELAY: Duration = Duration::from_millis(10);
/// What nobody can come through who was not asked.
const EASY: NatType = NatType { mapping: Mapping::Eim, filtering: Filtering::Apdf };
const RUNS: u64 = 10;
/// Nodes that have moved meet again by then.
const MEET_WITHIN: Duration = Duration::from_secs(5);
/// Who was restarted as well knows nobody's way back: others have to be looked for first.
const RESTARTED_WITHIN: Duration = Duration::from_secs(10);
/// In a week there are also those who have to find a peer first that they have not talked to for days.
const WEEK_MEET_WITHIN: Duration = Duration::from_secs(30);
/// They are given up after this.
const GIVEN_UP: Duration = Duration::from_secs(90);
const WEEK: Duration = Duration::from_secs(7 * 86_400);
const WEEKS: u64 = 3;

/// Nodes 0 and 1 behind NATs that let in only what was asked for, then so many that stand in the open, and two more sites
/// like those of the first two. Every third seed gives a node another number of engines.
fn build(seed: u64, open: usize) -> (World, Vec<BuiltSite>) {
    let closed = NatProfile { ports: PortChoice::Random, ..NatProfile::new(EASY) };
    let nats = vec![closed; 4 + open];
    let mut topology = Topology::one_node_behind_each(&nats, LINE_DELAY);
    topology.sites[2..2 + open].iter_mut().for_each(|site| site.nat = None);
    topology.nodes.truncate(2 + open);
    let (mut world, sites) = topology.build(&mut Rng::new(seed));
    for (node, shards) in world.nodes.iter_mut().zip((1..=3).cycle().skip(seed as usize % 3)) {
        node.shards = shards;
    }
    (0..world.nodes.len()).for_each(|node| world.start(node));
    world.run_for(Duration::from_secs(5));
    (world, sites)
}

fn kill_servers(world: &mut World) {
    world.relays.iter_mut().for_each(crate::relay::Relay::kill);
    world.coordinator.kill();
    world.check_control();
}

fn roam(world: &mut World, node: usize, site: &BuiltSite) {
    let host = world.nodes[node].host;
    site.attach(&mut world.net, host);
    world.host_moved(node);
}

/// Has nodes 0 and 1 talk until both have had an answer; returns how long that took.
fn meet(world: &mut World, what: &str) -> Duration {
    pair_meets(world, (0, 1), what)
}

/// Has two nodes talk until both have had an answer; returns how long that took.
fn pair_meets(world: &mut World, (one, other): (usize, usize), what: &str) -> Duration {
    let start = world.now;
    let mut pings = [Vec::new(), Vec::new()];
    loop {
        pings[0].extend(world.ping(one, other));
        pings[1].extend(world.ping(other, one));
        world.run_for(Duration::from_millis(50));
        let answered = |pings: &Vec<u64>| pings.iter().any(|ping| world.ledger.is_answered(*ping));
        if pings.iter().all(answered) {
            break;
        }
        assert_eq!(world.violation(), None, "{what}: {}", world.trace);
        let waited = world.now - start;
        assert!(waited < GIVEN_UP, "{what}: {one} and {other} do not meet: {}", world.trace);
    }
    world.now - start
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: median {median:?}, longest {longest:?}");
    assert!(longest <= MEET_WITHIN, "{what}: {times:?}");
}

#[test]
fn a_node_that_roams_is_found_again_through_a_peer_that_both_know() {
    for (what, moved) in [("one roams", &[0][..]), ("both roam", &[0, 1][..])] {
        let mut times = Vec::new();
        for seed in 0..RUNS {
            let (mut world, sites) = build(seed, 1);
            talk(&mut world, Duration::from_secs(10));
            kill_servers(&mut world);
            talk(&mut world, Duration::from_secs(60));
            for node in moved {
                roam(&mut world, *node, &sites[3 + node]);
            }
            times.push(meet(&mut world, what));
            talk(&mut world, Duration::from_secs(30));
            assert!(world.is_direct(0, 1) && world.is_direct(1, 0));
        }
        report(what, times);
    }
}

/// What befalls the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Servers {
    /// A relay that stands alone goes on.
    OneRelay,
    /// There is none.
    None,
}

/// A week in the life of a mesh without its coordinator. Every few hours something befalls a node; after each, two nodes that are drawn, which
/// may never have talked before, meet in time.
fn week(seed: u64, servers: Servers) -> u32 {
    let closed = NatProfile { ports: PortChoice::Random, ..NatProfile::new(EASY) };
    let mut topology = Topology::one_node_behind_each(&[closed; 9], LINE_DELAY);
    topology.relays = 2;
    // One node in the open: a machine at a hoster's, or one whose router was told to let it be reached.
    topology.sites[0].nat = None;
    topology.nodes.truncate(6);
    let (mut world, sites) = topology.build(&mut Rng::new(seed));
    for (node, shards) in world.nodes.iter_mut().zip((1..=3).cycle().skip(seed as usize % 3)) {
        node.shards = shards;
    }
    (0..world.nodes.len()).for_each(|node| world.start(node));
    world.run_for(Duration::from_secs(10));
    world.relays[0].kill();
    if servers == Servers::None {
        world.relays[1].kill();
    }
    world.coordinator.kill();
    world.check_control();
    let (end, mut rng, mut events) = (world.now + WEEK, Rng::new(seed), 0);
    while world.now < end {
        let idle = rng.duration(Duration::from_secs(60)..Duration::from_secs(4 * 3600));
        world.run_for(idle);
        // The one in the open stays where it is: nobody could tell the others of two who move at once and are asked by none.
        let node = 1 + rng.index(world.nodes.len() - 1);
        let what = rng.below(6);
        match what {
            0 | 1 => roam(&mut world, node, &sites[1 + rng.index(sites.len() - 1)]),
            2 => {
                world.kill(node);
                world.run_for(rng.duration(Duration::from_millis(300)..Duration::from_secs(120)));
                world.start(node);
            }
            3 => {
                let nat = sites[1 + rng.index(sites.len() - 1)].nat.expect("closed");
                world.net.reboot_nat(nat);
            }
            4 => {
                let nat = sites[1 + rng.index(sites.len() - 1)].nat.expect("closed");
                let free = (1..=9).map(|low| IpAddr::from([198, 51, 200 + low, 1]));
                let free: Vec<_> = free.filter(|address| world.net.is_free(INTERNET, *address)).collect();
                world.net.move_nat(nat, rng.pick(&free));
            }
            _ => {
                world.fall_asleep(node);
                world.run_for(rng.duration(Duration::from_secs(30)..Duration::from_secs(8 * 3600)));
                world.wake_up(node);
            }
        }
        world.run_for(Duration::from_secs(1));
        let other = (node + 1 + rng.index(world.nodes.len() - 1)) % world.nodes.len();
        let took = pair_meets(&mut world, (node, other), &format!("seed {seed}, event {events}, {what}"));
        assert!(took <= WEEK_MEET_WITHIN, "{node} and {other} after {what}: {took:?}: {}", world.trace);
        events += 1;
    }
    assert!(world.nodes.iter().all(|node| !node.control.connected));
    events
}

#[test]
fn a_week_without_the_coordinator_through_a_relay_that_stands_alone() {
    let events: u32 = (0..WEEKS).map(|seed| week(seed, Servers::OneRelay)).sum();
    println!("{events} events in {WEEKS} weeks");
}

#[test]
fn a_week_without_any_server_through_a_peer_that_all_know() {
    let events: u32 = (0..WEEKS).map(|seed| week(seed, Servers::None)).sum();
    println!("{events} events in {WEEKS} weeks");
}

#[test]
fn twenty_nodes_that_all_move_at_once_meet_again_without_a_storm() {
    const NODES: usize = 20;
    let closed = NatProfile { ports: PortChoice::Random, ..NatProfile::new(EASY) };
    let mut topology = Topology::one_node_behind_each(&[closed; 2 * NODES], LINE_DELAY);
    topology.sites[0].nat = None;
    topology.nodes.truncate(NODES);
    let (mut world, sites) = topology.build(&mut Rng::new(1));
    (0..NODES).for_each(|node| world.start(node));
    world.run_for(Duration::from_secs(5));
    // Each has traffic with four others, and with the one in the open.
    let pairs: Vec<_> = (1..NODES)
        .flat_map(|node| {
            (1..=2).map(move |step| (node, 1 + (node - 1 + step) % (NODES - 1))).chain([(node, 0)])
        })
        .collect();
    let talk = |world: &mut World, time: Duration| {
        let end = world.now + time;
        while world.now < end {
            for (from, to) in &pairs {
                world.ping(*from, *to);
            }
            world.run_for(Duration::from_millis(200));
        }
    };
    talk(&mut world, Duration::from_secs(10));
    kill_servers(&mut world);
    talk(&mut world, Duration::from_secs(10));
    (1..NODES).for_each(|node| roam(&mut world, node, &sites[NODES + node]));
    let bytes = |world: &World| world.nodes.iter().map(|node| node.meter.bytes).collect::<Vec<_>>();
    let mut worst = 0;
    for _ in 0..20 {
        let before = bytes(&world);
        talk(&mut world, Duration::from_secs(1));
        worst =
            bytes(&world).iter().zip(before).map(|(after, before)| after - before).max().unwrap().max(worst);
    }
    assert_eq!(world.violation(), None, "{}", world.trace);
    let apart: Vec<_> = pairs.iter().filter(|(one, other)| !world.is_direct(*one, *other)).collect();
    println!("20 nodes that move at once: at most {worst} bytes in a second of a node");
    assert!(apart.is_empty(), "{apart:?}");
    // Most of it are searches for the MTUs of 19 new paths, ten padded probes each. What is carried are 19 pairs, both ways.
    assert!(worst < 300_000, "{worst} bytes in a second");
}

#[test]
fn a_node_whose_clock_was_put_back_is_believed_again() {
    let times = [0, -30 * 86_400_000].map(|clock_offset| {
        let (mut world, sites) = build(3, 1);
        talk(&mut world, Duration::from_secs(10));
        kill_servers(&mut world);
        talk(&mut world, Duration::from_secs(10));
        roam(&mut world, 0, &sites[3]);
        meet(&mut world, "roams with a good clock");
        // As on a machine without a battery.
        world.nodes[0].clock_offset = clock_offset;
        world.kill(0);
        let host = world.nodes[0].host;
        sites[4].attach(&mut world.net, host);
        world.start(0);
        meet(&mut world, "restarts elsewhere")
    });
    println!("restarted elsewhere with a good clock, and with one a month back: {times:?}");
    assert!(times.iter().all(|took| *took <= RESTARTED_WITHIN), "{times:?}");
}
