//! What users of other meshes had to report, as this one lives through it.
//!
//! Each test tells what happened there, and asks that the same comes right here by itself. What belongs to the agent's
//! control client rather than to the engine (names that do not resolve, tokens, serials, empty maps) has its tests there:
//! `mesh-agent`, `netmap::store` and `control::tests`; here it is that what the engine has goes on meanwhile.

use std::{net::IpAddr, time::Duration};

use mesh_engine::{command::Command, event::PathAddress};

use crate::{
    net::{Filtering, Mapping, NatProfile, NatType, PortChoice},
    rng::Rng,
    topology::{BuiltSite, Topology},
    world::World,
};

const LINE_DELAY: Duration = Duration::from_millis(10);
const PING_INTERVAL: Duration = Duration::from_millis(100);
/// What the node is told of, or finds out from the clocks.
const NOTICED: Duration = Duration::from_millis(500);
/// What nothing tells it of.
const UNNOTICED: Duration = Duration::from_secs(3);
/// Direct again by then.
const DIRECT_WITHIN: Duration = Duration::from_secs(10);
const EASY: NatType = NatType { mapping: Mapping::Eim, filtering: Filtering::Apdf };

struct Pair {
    world: World,
    sites: Vec<BuiltSite>,
}

impl Pair {
    /// Nodes 0 and 1 behind easy NATs, with so many relays, talking directly; and two sites more to roam to.
    fn new(seed: u64, relays: usize) -> Self {
        let easy = NatProfile { ports: PortChoice::Random, ..NatProfile::new(EASY) };
        let mut topology = Topology { relays, ..Topology::one_node_behind_each(&[easy; 4], LINE_DELAY) };
        topology.nodes.truncate(2);
        let (mut world, sites) = topology.build(&mut Rng::new(seed));
        (0..2).for_each(|node| world.start(node));
        world.run_for(Duration::from_secs(5));
        let mut pair = Self { world, sites };
        pair.talk(Duration::from_secs(15));
        assert!(pair.is_direct());
        pair
    }

    fn is_direct(&self) -> bool {
        self.world.is_direct(0, 1) && self.world.is_direct(1, 0)
    }

    fn talk(&mut self, time: Duration) {
        let end = self.world.now + time;
        while self.world.now < end {
            self.world.ping(0, 1);
            self.world.ping(1, 0);
            self.world.run_for(PING_INTERVAL);
        }
        assert_eq!(self.world.violation(), None, "{}", self.world.trace);
    }

    fn roam(&mut self, node: usize, site: usize) {
        let host = self.world.nodes[node].host;
        self.sites[site].attach(&mut self.world.net, host);
        self.world.host_moved(node);
    }

    fn kill_coordinator(&mut self) {
        self.world.relays[0].kill();
        self.world.coordinator.kill();
        self.world.check_control();
    }

    fn revive_coordinator(&mut self) {
        self.world.relays[0].up = true;
        self.world.coordinator.up = true;
    }

    /// Talks until each side has had an answer to something that was sent from now on.
    fn comes_back_within(&mut self, budget: Duration) {
        let (start, mut pings) = (self.world.now, [Vec::new(), Vec::new()]);
        let back = |world: &World, pings: &[Vec<u64>; 2]| {
            pings.iter().all(|side| side.iter().any(|ping| world.ledger.is_answered(*ping)))
        };
        while !back(&self.world, &pings) {
            let waited = self.world.now - start;
            assert!(waited <= budget, "not back after {waited:?}: {}", self.world.trace);
            pings[0].extend(self.world.ping(0, 1));
            pings[1].extend(self.world.ping(1, 0));
            self.world.run_for(PING_INTERVAL);
        }
        assert_eq!(self.world.violation(), None, "{}", self.world.trace);
    }

    fn is_direct_within(&mut self, budget: Duration) {
        let start = self.world.now;
        while !self.is_direct() {
            assert!(self.world.now - start < budget, "not direct again: {}", self.world.trace);
            self.talk(PING_INTERVAL);
        }
    }
}

/// [NetBird #2454](https://github.com/netbirdio/netbird/issues/2454): after a roam the control streams broke; the overlay
/// owned DNS, so the relay's name no longer resolved, the fallback to the relay never engaged, and a restart did not help. The engine
/// knows relays by address: with nobody to resolve a name or to open a channel, the one that it has is bound anew from
/// the new network and carries the traffic.
#[test]
fn netbird_2454_a_roam_while_no_name_resolves_goes_on_through_the_known_relay() {
    let mut pair = Pair::new(1, 2);
    pair.kill_coordinator();
    pair.talk(Duration::from_secs(30));
    let one = pair.world.net.uplink_of(pair.world.nodes[1].host).unwrap();
    pair.roam(0, 2);
    let other = pair.world.net.uplink_of(pair.world.nodes[0].host).unwrap();
    // No direct path either: the relay is all there is.
    pair.world.net.cut(one, other);
    pair.comes_back_within(UNNOTICED);
    assert!(!pair.world.nodes[0].control.connected);
    pair.talk(Duration::from_secs(10));
    assert_eq!(pair.world.path(0, 1), Some(PathAddress::Relay(pair.world.relays[1].id)));
}

/// The end of [NetBird #2454](https://github.com/netbirdio/netbird/issues/2454): "restart does not help". Here it begins from what was on disk.
#[test]
fn netbird_2454_a_restart_after_the_roam_helps() {
    let mut pair = Pair::new(2, 2);
    pair.kill_coordinator();
    pair.world.kill(0);
    let host = pair.world.nodes[0].host;
    pair.sites[2].attach(&mut pair.world.net, host);
    pair.world.start(0);
    pair.comes_back_within(UNNOTICED);
    pair.is_direct_within(DIRECT_WITHIN);
}

/// [NetBird #1892](https://github.com/netbirdio/netbird/issues/1892): the gateway changed and the peers never came back, for ten minutes. Here the
/// router before a node is another one, with another address outside, and nothing tells the node.
#[test]
fn netbird_1892_another_gateway_is_overcome_by_itself() {
    let mut pair = Pair::new(3, 1);
    let nat = pair.sites[0].nat.unwrap();
    pair.world.net.move_nat(nat, IpAddr::from([198, 51, 77, 1]));
    pair.comes_back_within(UNNOTICED);
    pair.is_direct_within(DIRECT_WITHIN);
}

/// [NetBird #2507](https://github.com/netbirdio/netbird/issues/2507): what was direct stayed on the relay for ever after sleep.
#[test]
fn netbird_2507_direct_again_after_sleep() {
    for (seed, asleep) in [(4, 55), (5, 600), (6, 8 * 3600)] {
        let mut pair = Pair::new(seed, 1);
        pair.world.fall_asleep(0);
        pair.world.run_for(Duration::from_secs(asleep));
        pair.world.wake_up(0);
        pair.comes_back_within(NOTICED);
        pair.is_direct_within(DIRECT_WITHIN);
    }
}

/// [NetBird #4196](https://github.com/netbirdio/netbird/issues/4196): no recovery after an outage of six hours.
#[test]
fn netbird_4196_back_after_six_hours_without_any_network() {
    let mut pair = Pair::new(7, 1);
    let host = pair.world.nodes[0].host;
    pair.world.net.detach(host);
    pair.world.host_moved(0);
    pair.talk(Duration::from_secs(6 * 3600));
    pair.roam(0, 0);
    pair.comes_back_within(UNNOTICED);
    pair.is_direct_within(DIRECT_WITHIN);
}

/// The same with an uplink that is dead behind a live link: nothing tells the node that it goes, or that it comes back.
#[test]
fn netbird_4196_back_after_six_hours_of_a_dead_uplink() {
    let mut pair = Pair::new(8, 1);
    let line = |world: &World, node: usize| world.net.uplink_of(world.nodes[node].host).unwrap();
    let server = pair.world.net.uplink_of(pair.world.relays[0].host).unwrap();
    let (own, peers) = (line(&pair.world, 0), line(&pair.world, 1));
    pair.world.net.cut(own, peers);
    pair.world.net.cut(own, server);
    pair.world.check_control();
    pair.talk(Duration::from_secs(6 * 3600));
    pair.world.net.heal();
    // The relay is tried every 5 s, and a session that is not answered every 5 s as well.
    pair.comes_back_within(Duration::from_secs(10));
    pair.is_direct_within(Duration::from_secs(60));
}

/// [NetBird #3327](https://github.com/netbirdio/netbird/issues/3327): the relay refused an "expired token" and clients stayed without it. A
/// relay that has forgotten a channel says so, and the node opens another, as often as that happens.
#[test]
fn netbird_3327_a_relay_that_forgets_its_channels_gets_new_ones() {
    let mut pair = Pair::new(9, 1);
    let [one, other] = [0, 1].map(|node| pair.world.net.uplink_of(pair.world.nodes[node].host).unwrap());
    pair.world.net.cut(one, other);
    pair.talk(Duration::from_secs(10));
    for _ in 0..20 {
        pair.world.relays[0].kill();
        pair.world.relays[0].up = true;
        pair.comes_back_within(UNNOTICED);
        pair.talk(Duration::from_secs(7));
    }
}

/// [NetBird #2114](https://github.com/netbirdio/netbird/issues/2114) (a serial that went back was ignored for ever) and
/// [#2090](https://github.com/netbirdio/netbird/issues/2090) (a locked database gave empty maps, and all peers were dropped). Which maps are believed is
/// for the agent's store (`netmap::store`); a coordinator that has lost everything but who is there takes nothing away from a pair
/// that talks.
#[test]
fn netbird_2090_a_coordinator_that_knows_nothing_of_a_peer_takes_no_path_away() {
    let mut pair = Pair::new(10, 1);
    for node in 0..2 {
        let id = pair.world.nodes[1 - node].id;
        let nothing = Command::PeerState {
            id,
            online: false,
            candidates: vec![],
            relays: vec![],
            home: None,
            observed: None,
        };
        pair.world.command(node, nothing);
    }
    let before = [pair.world.path(0, 1), pair.world.path(1, 0)];
    pair.talk(Duration::from_secs(600));
    assert_eq!([pair.world.path(0, 1), pair.world.path(1, 0)], before);
    // And an empty answer does not keep them from each other after a pause.
    pair.world.run_for(Duration::from_secs(3600));
    pair.comes_back_within(UNNOTICED);
}

/// [Tailscale #1134](https://github.com/tailscale/tailscale/issues/1134): no way back after wake until it is restarted, here with another Wi-Fi at wake, and
/// with the peer having moved meanwhile as well.
#[test]
fn tailscale_1134_awake_in_another_network() {
    let mut pair = Pair::new(11, 1);
    pair.world.fall_asleep(0);
    pair.world.run_for(Duration::from_secs(3600));
    pair.roam(1, 3);
    pair.world.run_for(Duration::from_secs(3600));
    let host = pair.world.nodes[0].host;
    pair.sites[2].attach(&mut pair.world.net, host);
    pair.world.wake_up(0);
    pair.comes_back_within(NOTICED);
    pair.is_direct_within(DIRECT_WITHIN);
}

/// [Tailscale #15838](https://github.com/tailscale/tailscale/issues/15838): after wake, races over DNS left clients disconnected. Here the coordinator cannot be
/// reached for an hour after wake; what goes on must not wait for it.
#[test]
fn tailscale_15838_awake_while_the_coordinator_cannot_be_reached() {
    let mut pair = Pair::new(12, 2);
    pair.world.fall_asleep(0);
    pair.world.run_for(Duration::from_secs(8 * 3600));
    pair.kill_coordinator();
    pair.world.wake_up(0);
    pair.comes_back_within(UNNOTICED);
    pair.is_direct_within(DIRECT_WITHIN);
    pair.talk(Duration::from_secs(3600));
    pair.revive_coordinator();
    pair.talk(Duration::from_secs(60));
    assert!(pair.world.nodes.iter().all(|node| node.control.connected));
}

/// [Tailscale #19981](https://github.com/tailscale/tailscale/issues/19981): "loses DERP until break-derp-conns". The relay is gone for a minute, for the node alone,
/// while it is all that the pair has.
#[test]
fn tailscale_19981_a_relay_that_was_lost_is_found_again() {
    let mut pair = Pair::new(13, 1);
    let [one, other] = [0, 1].map(|node| pair.world.net.uplink_of(pair.world.nodes[node].host).unwrap());
    let server = pair.world.net.uplink_of(pair.world.relays[0].host).unwrap();
    for _ in 0..10 {
        pair.world.net.cut(one, other);
        pair.world.net.cut(one, server);
        pair.world.check_control();
        pair.talk(Duration::from_secs(60));
        pair.world.net.heal();
        pair.world.net.cut(one, other);
        pair.comes_back_within(Duration::from_secs(10));
        assert!(matches!(pair.world.path(0, 1), Some(PathAddress::Relay(_))));
    }
}

/// [Tailscale #15776](https://github.com/tailscale/tailscale/issues/15776): clients do not promptly observe the loss of DERP. One of two relays dies under a
/// pair that has nothing else.
#[test]
fn tailscale_15776_the_loss_of_a_relay_is_seen_promptly() {
    let mut pair = Pair::new(14, 2);
    let [one, other] = [0, 1].map(|node| pair.world.net.uplink_of(pair.world.nodes[node].host).unwrap());
    pair.world.net.cut(one, other);
    pair.talk(Duration::from_secs(20));
    let Some(PathAddress::Relay(used)) = pair.world.path(0, 1) else { panic!("not relayed") };
    let used = pair.world.relay_index(used);
    pair.world.relays[used].kill();
    pair.comes_back_within(Duration::from_secs(2));
}

/// [Kilo](https://github.com/squat/kilo/blob/main/pkg/mesh/backend.go): a node that cannot reach the API for a minute is removed by all others, although its
/// tunnels work. Here one node is cut off from the coordinator for a day, told to be offline, and talks on.
#[test]
fn kilo_a_node_that_only_the_coordinator_does_not_see_talks_on() {
    let mut pair = Pair::new(15, 1);
    let own = pair.world.net.uplink_of(pair.world.nodes[0].host).unwrap();
    let server = pair.world.net.uplink_of(pair.world.coordinator.host).unwrap();
    pair.world.net.cut(own, server);
    pair.world.check_control();
    let id = pair.world.nodes[0].id;
    for _ in 0..24 {
        pair.world.run_for(Duration::from_secs(3540));
        assert!(!pair.world.nodes[1].states[&id].online, "so it is told");
        pair.talk(Duration::from_secs(60));
    }
    assert!(pair.is_direct());
    assert_eq!(pair.world.peer(1, 0).map(|peer| peer.online), Some(true), "who answers is there");
}

/// [Firezone](https://www.firezone.dev/blog/devlog/2026-01): relays shut down and dropped their allocations when the portal was gone for 15 minutes. A relay that
/// stands alone serves those who have channels for as long as it runs, and those who come back.
#[test]
fn firezone_a_relay_serves_without_the_coordinator_for_days() {
    let mut pair = Pair::new(16, 2);
    pair.kill_coordinator();
    let [one, other] = [0, 1].map(|node| pair.world.net.uplink_of(pair.world.nodes[node].host).unwrap());
    pair.world.net.cut(one, other);
    for day in 0..3 {
        pair.world.run_for(Duration::from_secs(86_400));
        pair.comes_back_within(UNNOTICED);
        pair.world.kill(day % 2);
        pair.world.start(day % 2);
        pair.comes_back_within(UNNOTICED);
    }
}

/// WireGuard on machines without a clock that goes on while they are off, as a Raspberry Pi (the whitepaper, section 5.4.2,
/// leaves it to them): after a reboot their handshakes bear an earlier time than before, and are taken for recordings until
/// the clock has been set, or is where it was. Here the peer begins a handshake itself, which bears its own time.
#[test]
fn a_node_that_rebooted_with_a_clock_that_went_back_is_answered() {
    const BACK: Duration = Duration::from_secs(100);
    let mut pair = Pair::new(6, 2);
    // Its handshakes are what the other one remembers, which has nothing to say since.
    pair.world.run_for(Duration::from_secs(400));
    pair.world.ping(1, 0);
    pair.world.run_for(Duration::from_secs(60));
    pair.world.kill(1);
    pair.world.run_for(Duration::from_secs(20));
    pair.world.nodes[1].slept += BACK;
    pair.world.start(1);
    // Only the one that rebooted has something to say.
    let (start, mut pings) = (pair.world.now, Vec::new());
    while !pings.iter().any(|ping| pair.world.ledger.is_answered(*ping)) {
        let waited = pair.world.now - start;
        assert!(waited <= UNNOTICED, "not back after {waited:?}: {}", pair.world.trace);
        pings.extend(pair.world.ping(1, 0));
        pair.world.run_for(PING_INTERVAL);
    }
    pair.is_direct_within(DIRECT_WITHIN);
}
