//! The pod network on a real kernel, with the reference plugins: what the container runtime does is done by hand.
//!
//! ```text
//!   pod --- cni-mesh0 [node] eth0 --- world          198.51.100.0/24, knows no pods
//!                            mesh0 --- other         another node: 10.90.0.2, and its pod 10.244.2.2
//! ```
//!
//! A veth stands in for the tunnels. `containernetworking-plugins`, `nftables`, `iptables` and perl are needed.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test may fail that way")]

#[path = "../../src/netns.rs"]
mod netns;
mod rig;
mod runtime;

use std::{fs, path::Path, time::Duration};

use mesh_agent::kubernetes::podnet::{CONFLIST, Desired, MeshState, PodNetwork, Problem, TABLE};

use rig::{Netns, Rig, eventually, run};
use runtime::{Attachment, Runtime};

/// Where the address of the node's way to the world is.
const NODE: &str = "198.51.100.1";
/// Who knows no pods.
const WORLD: [&str; 2] = ["198.51.100.2", "2001:db8::2"];
/// A pod of the other node.
const OTHER_POD: [&str; 2] = ["10.244.2.2", "fd00:10:244:2::2"];

/// The port of the node that leads to port 80 of its first pod.
const HOST_PORT: u16 = 8080;
/// Tells each client its address.
const SERVER: &str = "$s = IO::Socket::INET->new(Listen => 5, LocalPort => 80, ReuseAddr => 1) or die; \
                      while ($c = $s->accept) { print $c $c->peerhost; close $c }";

#[test]
fn pods_reach_pods_and_the_world_and_nothing_is_left_of_it() {
    netns::isolated("pods_reach_pods_and_the_world_and_nothing_is_left_of_it", async || {
        let rig = Rig::new();
        let mut network = PodNetwork::new(rig.places());
        let mut desired = rig.desired();

        // Docker was here.
        run("iptables-nft -P FORWARD DROP");
        run("ip6tables-nft -P FORWARD DROP");
        let conflist = rig.places().cni_conf_dir.join(CONFLIST);
        desired.mesh_state = MeshState::NotReady;
        assert_eq!(rig.problems(network.set(&desired).await), vec![]);
        assert!(!conflist.exists(), "it waits for the mesh");
        desired.mesh_state = MeshState::Ready;
        assert_eq!(rig.problems(network.set(&desired).await), vec![]);

        let mut runtime = Runtime::read(&conflist, &rig.places().cni_bin_dir);
        let a = Pod::new("pod-a", &runtime, &[(HOST_PORT, 80)]);
        let b = Pod::new("pod-b", &runtime, &[]);
        let b_addresses = b.place.addresses.clone();
        assert_eq!(b_addresses.len(), 2, "one of each family: {b_addresses:?}");

        for address in b_addresses.iter().map(String::as_str).chain(OTHER_POD).chain(WORLD) {
            a.ping(address, "");
        }
        // The other node refuses what is not from a pod: the source was kept. The world knows no pods: it was not.
        // A packet as large as the MTU passes whole, one that is larger does not.
        a.ping(OTHER_POD[0], "-M do -s 1392");
        assert!(a.netns.try_run(&format!("ping -c 1 -W 1 -M do -s 1393 {}", OTHER_POD[0])).is_err());
        // What the node itself sends with an address that the mesh does not know gets one that it knows.
        rig.accept_node();
        run(&format!("ping -c 1 -W 5 -I {NODE} {}", OTHER_POD[0]));

        // A port of the host leads to the pod, which sees who asks.
        let _server = a.netns.start("perl", &["-MIO::Socket::INET", "-e", SERVER]);
        let answer = eventually("the port of the host answers", || {
            rig.world.try_run(&format!("bash -c 'cat < /dev/tcp/{NODE}/{HOST_PORT}'")).ok()
        });
        assert_eq!(answer.trim(), WORLD[0]);

        meddling(&rig, &mut network, &desired).await;
        leak(&mut network, &desired, b, &rig.places().host_local_dir).await;

        // The node was deleted and made anew, with another range.
        desired.pods[0] = "10.244.9.0/24".parse().unwrap();
        let problems = rig.problems(network.set(&desired).await);
        assert_eq!(problems, [Problem::PodsOfOldRange]);
        runtime.delete(&a.place);
        assert_eq!(rig.problems(network.set(&desired).await), vec![]);
        runtime = Runtime::read(&conflist, &rig.places().cni_bin_dir);
        let c = Pod::new("pod-c", &runtime, &[]);
        assert!(c.place.addresses[0].starts_with("10.244.9."), "{:?}", c.place.addresses);
        c.ping(WORLD[0], "");
        runtime.delete(&c.place);

        assert_eq!(network.remove("mesh0").await, vec![]);
        nothing_is_left(&rig);
    });
}

#[test]
fn a_node_that_forwards_hears_its_routers_but_no_pods() {
    netns::isolated("a_node_that_forwards_hears_its_routers_but_no_pods", async || {
        let rig = Rig::new();
        let (mut network, desired) = (PodNetwork::new(rig.places()), rig.desired());
        let default_by = |device: &str| {
            eventually(&format!("the router of {device} is heard"), || {
                rig.announce_router(device);
                run("ip -6 route show default").contains(&format!("dev {device} proto ra")).then_some(())
            });
        };
        default_by("eth0");
        assert_eq!(rig.problems(network.set(&desired).await), vec![]);
        assert_eq!(run("sysctl -n net.ipv6.conf.all.forwarding").trim(), "1");
        assert!(run("ip -6 route show default").contains("dev eth0 proto ra"), "the way out is kept");

        // A machine that somebody has made a router before, or that gets another network.
        rig.add_uplink("eth1");
        assert_eq!(rig.problems(network.set(&desired).await), vec![]);
        default_by("eth1");

        let runtime = Runtime::read(&rig.places().cni_conf_dir.join(CONFLIST), &rig.places().cni_bin_dir);
        let pod = Pod::new("pod-a", &runtime, &[]);
        assert_eq!(rig.problems(network.set(&desired).await), vec![]);
        assert_eq!(run("sysctl -n net.ipv6.conf.cni-mesh0.accept_ra").trim(), "0");
        runtime.delete(&pod.place);
    });
}

#[test]
fn a_family_whose_range_is_in_use_leaves_the_other_one_alone() {
    netns::isolated("a_family_whose_range_is_in_use_leaves_the_other_one_alone", async || {
        let rig = Rig::new();
        let (mut network, desired) = (PodNetwork::new(rig.places()), rig.desired());
        let conflist = || fs::read_to_string(rig.places().cni_conf_dir.join(CONFLIST)).unwrap();
        let range = desired.pods[1];
        rig.add_uplink("eth1");
        run("ip addr add fd00:10:244:1::77/64 dev eth1 nodad");
        let problems = rig.problems(network.set(&desired).await);
        let (network_of_eth1, interface) = (range, "eth1".to_owned());
        assert_eq!(problems, [Problem::RangeInUse { range, network: network_of_eth1, interface }]);
        assert!(conflist().contains("10.244.1.0/24") && !conflist().contains("fd00:"), "{}", conflist());
        let runtime = Runtime::read(&rig.places().cni_conf_dir.join(CONFLIST), &rig.places().cni_bin_dir);
        let pod = Pod::new("pod-a", &runtime, &[]);
        pod.ping(OTHER_POD[0], "");
        pod.ping(WORLD[0], "");
        runtime.delete(&pod.place);

        run("ip addr del fd00:10:244:1::77/64 dev eth1");
        assert_eq!(rig.problems(network.set(&desired).await), vec![]);
        assert!(conflist().contains("fd00:10:244:1::/64"), "{}", conflist());
    });
}

/// A pod of this node.
struct Pod {
    netns: Netns,
    place: Attachment,
}

impl Pod {
    fn new(name: &str, runtime: &Runtime, ports: &[(u16, u16)]) -> Self {
        let netns = Netns::new();
        let place = runtime.add(name, &netns.path(), ports);
        Self { netns, place }
    }

    fn ping(&self, address: &str, options: &str) {
        // Another family's neighbours may take a moment.
        eventually(&format!("a pod reaches {address} {options}"), || {
            self.netns.try_run(&format!("ping -c 1 -W 1 {options} {address}")).ok()
        });
    }
}

/// What others change is put back.
async fn meddling(rig: &Rig, network: &mut PodNetwork, desired: &Desired) {
    let table = || run(&format!("nft list table inet {TABLE}"));
    let whole = table();
    run(&format!("nft flush chain inet {TABLE} postrouting"));
    assert_ne!(table(), whole);
    assert_eq!(rig.problems(network.set(desired).await), vec![]);
    assert_eq!(table(), whole);
    run("iptables-nft -F FORWARD");
    run(&format!("nft delete table inet {TABLE}"));
    run("ip addr add 10.244.77.1/24 dev cni-mesh0");
    let conflist = rig.places().cni_conf_dir.join(CONFLIST);
    let right = fs::read(&conflist).unwrap();
    fs::write(&conflist, "{ by hand").unwrap();
    assert_eq!(rig.problems(network.set(desired).await), vec![]);
    assert_eq!(table(), whole);
    assert_eq!(run("iptables-nft -S FORWARD").matches(TABLE).count(), 2);
    assert!(!run("ip addr show dev cni-mesh0").contains("10.244.77.1"));
    assert_eq!(fs::read(&conflist).unwrap(), right);
    // An agent that starts over finds all as it should be.
    let mut next = PodNetwork::new(rig.places());
    assert_eq!(rig.problems(next.set(desired).await), vec![]);
    assert_eq!(table(), whole);
    assert_eq!(run("iptables-nft -S FORWARD").matches(TABLE).count(), 2);
}

/// A pod that dies without a word gives its addresses back.
async fn leak(network: &mut PodNetwork, desired: &Desired, pod: Pod, host_local: &Path) {
    let leases: Vec<_> =
        pod.place.addresses.iter().map(|address| host_local.join("mesh").join(address)).collect();
    assert!(leases.iter().all(|lease| lease.exists()), "{leases:?}");
    network.set(desired).await;
    assert!(leases.iter().all(|lease| lease.exists()), "it lives");
    drop(pod);
    for _ in 0..50 {
        network.set(desired).await;
        if !leases.iter().any(|lease| lease.exists()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the addresses are still taken: {leases:?}");
}

fn nothing_is_left(rig: &Rig) {
    let links = run("ip -o link");
    assert!(!links.contains("cni-mesh0") && !links.contains("veth"), "{links}");
    assert!(!run("nft list tables").contains(TABLE));
    for program in ["iptables-nft", "ip6tables-nft"] {
        assert!(!run(&format!("{program} -S FORWARD")).contains(TABLE), "{program}");
    }
    let places = rig.places();
    for dir in [&places.cni_conf_dir, &places.cni_bin_dir] {
        let left: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{}: {left:?}", dir.display());
    }
    assert!(!places.host_local_dir.exists());
}
