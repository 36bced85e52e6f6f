//! What nobody uses costs nothing, and what a peer says is not believed beyond reason.

use std::{net::SocketAddr, time::Duration};

use mesh_engine::command::Command;
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    netmap::RelayId,
};

use crate::{
    net::{NatProfile, NatType},
    rng::Rng,
    topology::Topology,
    world::World,
};

const LINE_DELAY: Duration = Duration::from_millis(10);
const DAY: Duration = Duration::from_secs(86_400);

fn mesh(nodes: usize, seed: u64) -> World {
    let nats = vec![NatProfile::new(NatType::ALL[2]); nodes];
    let (mut world, _) = Topology::one_node_behind_each(&nats, LINE_DELAY).build(&mut Rng::new(seed));
    (0..nodes).for_each(|node| world.start(node));
    world.run_for(Duration::from_secs(5));
    world
}

#[test]
fn peers_that_nobody_talks_to_cost_no_packet_and_no_timer() {
    let mut timeouts = Vec::new();
    for nodes in [2, 12] {
        let mut world = mesh(nodes, 21);
        world.run_for(DAY);
        assert_eq!(world.violation(), None, "{}", world.trace);
        for (number, node) in world.nodes.iter().enumerate() {
            assert_eq!(node.meter.to_peers, 0, "node {number} sent to peers");
        }
        timeouts.push(world.nodes[0].meter.all_timeouts);
    }
    println!("timeouts in an idle day with 1 peer and with 11: {timeouts:?}");
    assert!(timeouts[1] <= timeouts[0] + timeouts[0] / 100, "{timeouts:?}");
}

#[test]
fn a_mesh_of_twenty_at_rest_sends_hardly_anything() {
    let mut world = mesh(20, 25);
    for from in 0..20 {
        for to in (0..20).filter(|to| *to != from) {
            world.ping(from, to);
        }
    }
    // Handshakes, paths and their MTUs are done with, and every pair is idle.
    world.run_for(Duration::from_secs(120));
    let before: Vec<_> = world.nodes.iter().map(|node| node.meter.bytes).collect();
    let time = Duration::from_secs(3600);
    world.run_for(time);
    assert_eq!(world.violation(), None, "{}", world.trace);
    let rates =
        world.nodes.iter().zip(before).map(|(node, before)| (node.meter.bytes - before) / time.as_secs());
    let most = rates.max().unwrap();
    println!("most bytes per second of a node: {most}");
    assert!(most <= 200, "{most} bytes per second");
}

#[test]
fn a_third_node_is_left_in_peace_by_two_that_talk() {
    let mut world = mesh(3, 22);
    assert_eq!(world.nodes[2].meter.to_peers, 0, "{}", world.trace);
    for _ in 0..600 {
        world.ping(0, 1);
        world.run_for(Duration::from_secs(1));
    }
    assert_eq!(world.violation(), None);
    assert_eq!(world.nodes[2].meter.to_peers, 0, "{}", world.trace);
    assert!(world.peer(2, 0).unwrap().last_handshake.is_none());
}

#[test]
fn a_pair_that_stops_talking_falls_silent() {
    let mut world = mesh(2, 23);
    for _ in 0..60 {
        world.ping(0, 1);
        world.run_for(Duration::from_secs(1));
    }
    // For a while the hole is kept.
    world.run_for(Duration::from_secs(660));
    let before = world.nodes[0].meter.to_peers + world.nodes[1].meter.to_peers;
    world.run_for(DAY);
    let after = world.nodes[0].meter.to_peers + world.nodes[1].meter.to_peers;
    assert_eq!(before, after, "{}", world.trace);
}

#[test]
fn nothing_is_sent_to_absurd_candidates() {
    let absurd = [
        "10.90.0.2:51820",
        "127.0.0.1:51820",
        "0.0.0.0:51820",
        "224.0.0.1:51820",
        "255.255.255.255:51820",
        "192.0.2.1:0",
        "[::1]:51820",
        "[::]:51820",
        "[ff02::1]:51820",
    ];
    let candidates: Vec<_> = absurd
        .iter()
        .map(|text| Candidate { address: text.parse::<SocketAddr>().unwrap(), kind: CandidateKind::Host })
        .collect();
    let mut world = mesh(2, 24);
    let id = world.nodes[1].id;
    let relays = vec![RelayId(0)];
    world.command(
        0,
        Command::PeerState {
            id,
            online: true,
            candidates: candidates.clone(),
            relays,
            home: None,
            observed: None,
        },
    );
    world.command(0, Command::CallMeMaybe { from: id, candidates });
    for _ in 0..100 {
        world.ping(0, 1);
        world.run_for(Duration::from_millis(300));
    }
    assert_eq!(world.violation(), None);
}
