//! How soon a pair that talks is back after something befell it.

use std::{net::IpAddr, time::Duration};

use crate::{
    model::{is_punchable, plain_pair_is_direct},
    net::{NatProfile, NatType, PortChoice, Refresh},
    rng::Rng,
    topology::{BuiltSite, Topology},
    world::World,
};

const LINE_DELAY: Duration = Duration::from_millis(10);
/// Both sides ping the other this often.
const PING_INTERVAL: Duration = Duration::from_millis(100);
/// Time for a pair to find its best path before something befalls it.
const SETTLE: Duration = Duration::from_secs(20);
/// Time after which the pair is given up.
const DEADLINE: Duration = Duration::from_secs(20);
/// Budget for what the node does not notice.
const UNNOTICED: Duration = Duration::from_secs(3);
/// Budget for what the node notices.
const NOTICED: Duration = Duration::from_millis(500);

/// A mesh in which nodes 0 and 1 talk.
struct Talking {
    world: World,
    sites: Vec<BuiltSite>,
}

impl Talking {
    fn new(topology: &Topology, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let (mut world, sites) = topology.build(&mut rng);
        (0..world.nodes.len()).for_each(|node| world.start(node));
        world.run_for(Duration::from_secs(5));
        let mut talking = Self { world, sites };
        talking.talk(SETTLE);
        talking
    }

    fn talk(&mut self, time: Duration) {
        let end = self.world.now + time;
        while self.world.now < end {
            self.world.ping(0, 1);
            self.world.ping(1, 0);
            self.world.run_for(PING_INTERVAL);
        }
    }

    /// Goes on talking and returns the time until a ping of each side that was sent from now on is answered.
    fn recover(&mut self) -> Duration {
        let start = self.world.now;
        let mut pings = [Vec::new(), Vec::new()];
        while self.world.now < start + DEADLINE {
            pings[0].extend(self.world.ping(0, 1));
            pings[1].extend(self.world.ping(1, 0));
            self.world.run_for(PING_INTERVAL);
            let answered = |pings: &Vec<u64>| pings.iter().any(|ping| self.world.ledger.is_answered(*ping));
            if pings.iter().all(answered) {
                break;
            }
        }
        assert_eq!(self.world.violation(), None, "{}", self.world.trace);
        self.world.now - start
    }
}

fn random_ports(kind: NatType) -> NatProfile {
    NatProfile { ports: PortChoice::Random, ..NatProfile::new(kind) }
}

/// Runs something on many pairs of NAT types and prints and checks how long it took.
fn measure(what: &str, budget: Duration, mut run: impl FnMut(NatType, NatType) -> Duration) {
    let mut times: Vec<_> = NatType::ALL
        .into_iter()
        .flat_map(|a| NatType::ALL.map(|b| (a, b)))
        .map(|(a, b)| (run(a, b), a, b))
        .collect();
    times.sort_unstable();
    let (median, worst) = (&times[times.len() / 2], &times[times.len() - 1]);
    println!("{what}: median {:?}, longest {:?} ({:?} with {:?})", median.0, worst.0, worst.1, worst.2);
    let late: Vec<_> = times.iter().filter(|(time, _, _)| *time > budget).collect();
    assert!(late.is_empty(), "{what}: {} of {} are late: {late:?}", late.len(), times.len());
}

#[test]
fn a_silent_rebinding_is_overcome_within_three_seconds() {
    measure("nat reboot", UNNOTICED, |a, b| {
        let mut talking =
            Talking::new(&Topology::one_node_behind_each(&[a, b].map(random_ports), LINE_DELAY), 11);
        let nat = talking.sites[0].nat.unwrap();
        talking.world.net.reboot_nat(nat);
        talking.recover()
    });
}

#[test]
fn a_new_outer_address_is_overcome_within_three_seconds() {
    measure("new outer address", UNNOTICED, |a, b| {
        let mut talking =
            Talking::new(&Topology::one_node_behind_each(&[a, b].map(random_ports), LINE_DELAY), 12);
        let nat = talking.sites[0].nat.unwrap();
        talking.world.net.move_nat(nat, IpAddr::from([198, 51, 77, 1]));
        talking.recover()
    });
}

#[test]
fn a_network_change_that_is_noticed_is_overcome_at_once() {
    measure("roaming", NOTICED, |a, b| {
        let mut topology = Topology::one_node_behind_each(&[a, b, a].map(random_ports), LINE_DELAY);
        topology.nodes.truncate(2);
        let mut talking = Talking::new(&topology, 13);
        let host = talking.world.nodes[0].host;
        talking.sites[2].attach(&mut talking.world.net, host);
        talking.world.host_moved(0);
        talking.recover()
    });
}

#[test]
fn a_dead_direct_path_is_noticed_and_found_again() {
    measure("partition between the nodes", UNNOTICED, |a, b| {
        let mut talking =
            Talking::new(&Topology::one_node_behind_each(&[a, b].map(random_ports), LINE_DELAY), 14);
        let [one, other] =
            [0, 1].map(|node| talking.world.net.uplink_of(talking.world.nodes[node].host).unwrap());
        talking.world.net.cut(one, other);
        let time = talking.recover();
        talking.talk(Duration::from_secs(5));
        assert!(!talking.world.is_direct(0, 1), "a dead path is not primary");
        talking.world.net.heal();
        talking.talk(Duration::from_secs(60));
        let is_direct = talking.world.is_direct(0, 1);
        // What took an effort is not tried again at once: it may be direct by now.
        if plain_pair_is_direct(a, b) || !is_punchable([a, b]) {
            assert_eq!(is_direct, plain_pair_is_direct(a, b), "{a:?} with {b:?} after the partition");
        }
        time
    });
}

#[test]
fn a_dead_relay_is_replaced_by_another() {
    measure("relay death", UNNOTICED, |a, b| {
        let topology =
            Topology { relays: 2, ..Topology::one_node_behind_each(&[a, b].map(random_ports), LINE_DELAY) };
        let mut talking = Talking::new(&topology, 15);
        let used = match talking.world.path(0, 1) {
            Some(mesh_engine::event::PathAddress::Relay(relay)) => talking.world.relay_index(relay),
            Some(_) | None => 1,
        };
        talking.world.relays[used].kill();
        talking.recover()
    });
}

#[test]
fn a_killed_node_comes_back_to_its_peers() {
    measure("kill -9 and restart", UNNOTICED, |a, b| {
        let mut talking =
            Talking::new(&Topology::one_node_behind_each(&[a, b].map(random_ports), LINE_DELAY), 16);
        talking.world.kill(0);
        talking.world.run_for(Duration::from_millis(300));
        talking.world.start(0);
        talking.recover()
    });
}

#[test]
fn a_pair_goes_on_without_the_coordinator_and_a_restarted_node_finds_a_reachable_peer() {
    let open = NatProfile { refresh: Refresh::Both, ..NatProfile::new(NatType::ALL[0]) };
    let mut talking = Talking::new(&Topology::one_node_behind_each(&[open, open], LINE_DELAY), 17);
    talking.world.relays[0].kill();
    talking.world.coordinator.kill();
    talking.world.check_control();
    talking.talk(Duration::from_secs(6 * 3600));
    assert!(talking.recover() <= UNNOTICED);
    talking.world.kill(0);
    talking.world.run_for(Duration::from_millis(300));
    talking.world.start(0);
    assert!(talking.recover() <= UNNOTICED, "from the cached candidates alone");
}

#[test]
fn news_is_not_lost_with_a_relay_that_dies_with_the_coordinator() {
    measure("roaming right after relay death", DEADLINE, |a, b| {
        let mut topology = Topology::one_node_behind_each(&[a, b, a].map(random_ports), LINE_DELAY);
        topology.nodes.truncate(2);
        topology.relays = 2;
        let mut talking = Talking::new(&topology, 18);
        talking.world.relays[0].kill();
        talking.world.coordinator.kill();
        talking.world.check_control();
        let host = talking.world.nodes[0].host;
        talking.sites[2].attach(&mut talking.world.net, host);
        talking.world.host_moved(0);
        let time = talking.recover();
        talking.talk(Duration::from_secs(10));
        let direct = talking.world.is_direct(0, 1) && talking.world.is_direct(1, 0);
        assert_eq!(direct, plain_pair_is_direct(a, b), "{a:?} with {b:?}, ten seconds later");
        time
    });
}

#[test]
fn a_call_that_is_lost_is_repeated() {
    measure("new outer address while idle", DEADLINE, |a, b| {
        let mut talking =
            Talking::new(&Topology::one_node_behind_each(&[a, b].map(random_ports), LINE_DELAY), 19);
        talking.world.coordinator.kill();
        talking.world.check_control();
        talking.world.run_for(Duration::from_secs(600));
        let nat = talking.sites[1].nat.unwrap();
        talking.world.net.move_nat(nat, IpAddr::from([198, 51, 77, 1]));
        let time = talking.recover();
        talking.talk(Duration::from_secs(20));
        let direct = talking.world.is_direct(0, 1) && talking.world.is_direct(1, 0);
        assert_eq!(direct, plain_pair_is_direct(a, b), "{a:?} with {b:?}, twenty seconds later");
        time
    });
}
