//! The village from real binaries: who reaches whom, how, and what outages do to it.
//!
//! Neighbours count as right only if they use their LAN.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use mesh_lab::mesh::wait_until;
use mesh_lab::topology::Reach;
use mesh_lab::traffic::{Echo, transfer};
use mesh_lab::{Lab, Node, Village, village};
use mesh_proto::status::{ConnectionState, PathKind};
use nix::sys::signal::Signal;

/// For what has no budget here, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);
/// Within this time of the first packet, pairs are direct whose NATs let it happen.
const DIRECT_BUDGET: Duration = Duration::from_secs(2);
/// For pairs that a node tries one after the other, each for some seconds.
const PUNCH_PATIENCE: Duration = Duration::from_secs(40);
/// The longest silence that is no outage: some requests, on a busy machine.
const HICCUP: Duration = Duration::from_millis(1500);
/// Between the requests of a pair.
const INTERVAL: Duration = Duration::from_millis(200);
/// What agents say when their coordinator is away, as they should.
const COORDINATOR_AWAY: [&str; 1] = ["the coordinator is not reached"];

#[test]
fn every_pair_is_direct_in_time_or_relayed_with_a_reason() {
    let lab = Lab::new("pairs").unwrap();
    let village = Village::start(&lab).unwrap();
    let echo = Echo::all(&village, INTERVAL).unwrap();
    let first = Instant::now();
    echo.wait_first(PATIENCE).unwrap();
    std::thread::sleep(DIRECT_BUDGET.saturating_sub(first.elapsed()));

    let network = village.network();
    let is_easy = |from: &str, to: &str| network.reach(from, to).unwrap() != Reach::Punched;
    let wrong = village.wrong_paths(is_easy).unwrap();
    assert!(wrong.is_empty(), "{DIRECT_BUDGET:?} after the first packets:\n{}", wrong.join("\n"));
    wait_until(PUNCH_PATIENCE, "hard pairs are direct, too", || {
        let wrong = village.wrong_paths(|_, _| true)?;
        anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(true)
    })
    .unwrap();
    for (from, to) in [("home-a", "home-b"), ("home-b", "home-a")] {
        let endpoint = village.node(from).unwrap().peer(to).unwrap().path.address.unwrap();
        assert_eq!(
            endpoint.ip(),
            village.network().host(to).unwrap().address(),
            "{from} to {to} not by the LAN"
        );
    }
    village.check_logs(&[]).unwrap();
}

#[test]
fn every_pair_answers_over_ipv4_and_ipv6() {
    let lab = Lab::new("addresses").unwrap();
    let village = Village::start(&lab).unwrap();
    let addresses = |node: &Node| node.status().unwrap().this.addresses;
    let all: Vec<(&str, IpAddr)> = village
        .nodes()
        .flat_map(|node| addresses(node).into_iter().map(|address| (node.name(), address)))
        .collect();
    let is_v6 = |(_, address): &&(&str, IpAddr)| address.is_ipv6();
    assert_eq!(all.iter().filter(is_v6).count(), village::NODES.len(), "one IPv6 address each: {all:?}");
    assert_eq!(all.len(), 2 * village::NODES.len(), "one IPv4 address each: {all:?}");
    std::thread::scope(|scope| {
        for from in village.nodes() {
            let others = all.iter().filter(|(name, _)| *name != from.name());
            scope.spawn(move || {
                for (name, address) in others {
                    let reply = from.host().ping(*address);
                    assert!(reply.is_ok(), "{} to {name}: {reply:?}", from.name());
                }
            });
        }
    });
    village.check_logs(&[]).unwrap();
}

#[test]
fn files_arrive_whole_on_direct_and_relayed_paths() {
    let lab = Lab::new("files").unwrap();
    let village = Village::start(&lab).unwrap();
    for (from, to) in [("macbook", "country"), ("office", "home-a"), ("home-a", "home-b")] {
        let receiver = village.node(to).unwrap();
        let sender = village.node(from).unwrap().host();
        let sent = transfer(sender, (receiver.host(), receiver.address().unwrap()), 5_000_000).unwrap();
        assert_eq!(sent.bytes, 5_000_000, "{from} to {to}");
        assert_eq!(sent.sent, sent.received, "{from} to {to}");
    }
    village.check_logs(&[]).unwrap();
}

#[test]
fn without_the_coordinator_pairs_go_on_and_agents_come_back() {
    let lab = Lab::new("away").unwrap();
    let village = Village::start(&lab).unwrap();
    let echo = Echo::all(&village, INTERVAL).unwrap();
    let first = Instant::now();
    echo.wait_all(first, PATIENCE).unwrap();
    wait_until(PUNCH_PATIENCE, "paths are as the NATs allow", || {
        Ok(village.wrong_paths(|_, _| true)?.is_empty())
    })
    .unwrap();
    let network = village.network();
    // What takes an effort takes a relay, too.
    let is_direct =
        |from: &str, to: &str| matches!(network.reach(from, to).unwrap(), Reach::Lan | Reach::Direct);

    village.coordinator().stop().unwrap();
    echo.forget();
    std::thread::sleep(Duration::from_secs(5));
    for flow in echo.flows().iter().filter(|flow| is_direct(&flow.from, &flow.to)) {
        assert!(flow.longest_gap < HICCUP, "{} to {}: silent for {:?}", flow.from, flow.to, flow.longest_gap);
    }
    let told = village.node("home-a").unwrap().status().unwrap().this.coordinator;
    assert_ne!(told.state, ConnectionState::Connected);
    assert!(told.error.is_some(), "it says why: {told:?}");

    // One stops in order, one is killed: both come back from what they have on disk.
    village.node("country").unwrap().restart().unwrap();
    village.node("home-a").unwrap().kill(Signal::SIGKILL).unwrap();
    village.node("home-a").unwrap().start().unwrap();
    let restarted = Instant::now();
    let is_wanted = |from: &str, to: &str| {
        is_direct(from, to) && ["country", "home-a"].iter().any(|name| [from, to].contains(name))
    };
    echo.wait_for(restarted, PATIENCE, is_wanted).unwrap();

    let back = Instant::now();
    village.start_coordinator().unwrap();
    echo.wait_all(back, PATIENCE).unwrap();
    wait_until(PATIENCE, "all are connected again", || {
        let state = |node: &Node| Ok(node.status()?.this.coordinator.state);
        let states = village.nodes().map(state).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(states.into_iter().all(|state| state == ConnectionState::Connected))
    })
    .unwrap();
    village.check_logs(&COORDINATOR_AWAY).unwrap();
}

#[test]
fn a_relayed_pair_survives_a_killed_relay() {
    let lab = Lab::new("relay").unwrap();
    let village = Village::start_relayed(&lab).unwrap();
    let echo = Echo::start(&village, INTERVAL, |from, to| (from, to) == ("office", "country")).unwrap();
    echo.wait_all(Instant::now(), PATIENCE).unwrap();
    for _ in 0..3 {
        village.coordinator().kill(Signal::SIGKILL).unwrap();
        village.start_coordinator().unwrap();
        echo.wait_all(Instant::now(), PATIENCE).unwrap();
        assert_eq!(village.node("office").unwrap().peer("country").unwrap().path.kind, PathKind::Relay);
    }
    village.check_logs(&COORDINATOR_AWAY).unwrap();
}

#[test]
fn a_stopped_mesh_leaves_nothing_on_its_hosts() {
    let lab = Lab::new("stop").unwrap();
    let village = Village::prepare(&lab).unwrap();
    let before = village.before().unwrap();
    village.mesh().start().unwrap();
    village.wait_connected(PATIENCE).unwrap();
    assert!(!village.leftovers(&before).unwrap().is_empty(), "a running mesh must be seen");
    village.stop().unwrap();
    assert_eq!(village.leftovers(&before).unwrap(), Vec::<String>::new());
    village.check_logs(&[]).unwrap();
}
