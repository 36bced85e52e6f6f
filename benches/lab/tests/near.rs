//! Near is near, and what only looks near is not: LANs with and without internet, with the same addresses on both sides,
//! and with walls inside.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use ipnet::Ipv4Net;
use mesh_lab::mesh::wait_until;
use mesh_lab::nat::Hairpin;
use mesh_lab::traffic::Echo;
use mesh_lab::{Filtering, Lab, Mapping, Mesh, MeshOptions, Nat, Site, Topology};
use mesh_proto::status::{ConnectionState, PathKind, PathReason, PathStatus};

const COORDINATOR: &str = "coordinator";
/// What each site adds to a round trip.
const LATENCY: Duration = Duration::from_millis(20);
/// Between the requests of a pair.
const INTERVAL: Duration = Duration::from_millis(20);
/// Far beyond the budgets, which are printed and not asserted: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// For so long a path is watched that must not become another one.
const WATCH: Duration = Duration::from_secs(3);

fn home() -> Nat {
    Nat::new(Mapping::Eim, Filtering::Apdf)
}

/// A coordinator, these sites, and agents on these hosts.
fn start(lab: &Lab, sites: impl IntoIterator<Item = Site>, nodes: &[&str]) -> anyhow::Result<Mesh> {
    let public = Topology::new().site(Site::public(COORDINATOR).latency(LATENCY));
    let network = lab.build(sites.into_iter().fold(public, Topology::site))?;
    let address = network.host(COORDINATOR)?.address().to_string();
    let mesh = Mesh::new(network, &MeshOptions::new(COORDINATOR, &address, nodes))?;
    mesh.start()?;
    Ok(mesh)
}

fn path(mesh: &Mesh, from: &str, to: &str) -> anyhow::Result<PathStatus> {
    Ok(mesh.node(from)?.peer(to)?.path)
}

/// Has `from` ask `to` until it says that it reaches it at that address.
fn wait_at(mesh: &Mesh, from: &str, to: &str, address: Ipv4Addr) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let _echo = Echo::start(mesh, INTERVAL, |asks, asked| (asks, asked) == (from, to))?;
    wait_until(PATIENCE, &format!("{from} reaches {to} at {address}"), || {
        let path = path(mesh, from, to)?;
        ensure!(path.address.is_some_and(|at| at.ip() == address), "{path:?}");
        Ok(true)
    })?;
    Ok(start.elapsed())
}

#[test]
fn neighbours_without_internet_meet_on_their_lan() {
    let lab = Lab::new("island").unwrap();
    let site = Site::behind("home", home()).host("a").host("b").latency(LATENCY);
    let mesh = start(&lab, [site], &["a", "b"]).unwrap();
    let lan = |name: &str| mesh.network().host(name).unwrap().address();
    // They have never spoken to one another when the line breaks.
    mesh.network().set_connected("home", false).unwrap();
    let took = wait_at(&mesh, "a", "b", lan("b")).unwrap();
    println!("cut off: on the LAN after {took:?}");
    wait_at(&mesh, "b", "a", lan("a")).unwrap();
    assert_eq!(path(&mesh, "a", "b").unwrap().code, PathReason::AnsweredOnLan);

    // A power cut: what they know is on disk, and the line is still broken.
    for name in ["a", "b"] {
        mesh.node(name).unwrap().agent().stop().unwrap();
    }
    for name in ["a", "b"] {
        mesh.node(name).unwrap().start().unwrap();
    }
    mesh.wait_ready(PATIENCE).unwrap();
    let took = wait_at(&mesh, "a", "b", lan("b")).unwrap();
    println!("cut off and restarted: on the LAN after {took:?}");
    mesh.wait_connected(PATIENCE).unwrap();
    mesh.check_logs(&["the coordinator is not reached"]).unwrap();

    mesh.network().set_connected("home", true).unwrap();
    wait_until(Duration::from_secs(40), "the coordinator is back", || {
        let states = mesh.nodes().map(|node| Ok(node.status()?.this.coordinator.state));
        let states = states.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(states.iter().all(|state| *state == ConnectionState::Connected))
    })
    .unwrap();
}

/// Two sites with the same private network. Whoever has a peer's private address on one's own LAN is somebody else, and a
/// node of the same mesh at that: only the keys tell.
fn check_same_ranges(range: Ipv4Net) -> anyhow::Result<()> {
    let lab = Lab::new("overlap")?;
    let site = |name: &str, hosts: [&str; 2]| {
        let [first, second] = hosts;
        Site::behind(name, home()).inside(range).host(first).host(second).latency(LATENCY)
    };
    let sites = [site("here", ["a", "x"]), site("there", ["y", "b"])];
    let mesh = start(&lab, sites, &["a", "b", "x", "y"])?;
    let network = mesh.network();
    ensure!(network.host("a")?.address() == network.host("y")?.address());
    ensure!(network.host("x")?.address() == network.host("b")?.address());
    let echo = Echo::all(&mesh, Duration::from_millis(200))?;
    let outside = |host: &str| network.outside(&network.host(host)?.site());
    let is_here = |host: &str| ["a", "x"].contains(&host);
    let names = ["a", "b", "x", "y"];
    let pairs = names.into_iter().flat_map(|from| names.map(|to| (from, to))).filter(|(from, to)| from != to);
    let look = || -> anyhow::Result<()> {
        for (from, to) in pairs.clone() {
            let path = path(&mesh, from, to)?;
            let wanted =
                if is_here(from) == is_here(to) { network.host(to)?.address() } else { outside(to)? };
            let at = path.address.map(|address| address.ip());
            ensure!(
                path.kind == PathKind::Direct && at == Some(wanted.into()),
                "{from} to {to} should be at {wanted}: {path:?}"
            );
        }
        Ok(())
    };
    let start = Instant::now();
    wait_until(PATIENCE, "everybody is where they are", || look().map(|()| true))?;
    println!("{range} on both sides: all pairs direct after {:?}", start.elapsed());
    echo.forget();
    std::thread::sleep(WATCH);
    look().context("it does not stay so")?;
    for flow in echo.flows() {
        ensure!(flow.received + 2 > flow.sent, "{} to {} loses: {flow:?}", flow.from, flow.to);
    }
    mesh.check_logs(&[])
}

#[test]
fn the_same_private_addresses_on_both_sides_fool_nobody() {
    check_same_ranges(Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 24)).unwrap();
}

/// As phones have it, whose carriers give each the same addresses.
#[test]
fn the_same_carrier_addresses_on_both_sides_fool_nobody() {
    check_same_ranges(Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 24)).unwrap();
}

/// Customers of two carriers, each with a router of its own: everything is the same on both sides but the outside.
#[test]
fn customers_of_two_carriers_with_the_same_ranges_meet_outside() {
    let lab = Lab::new("carriers").unwrap();
    let range = |a, b| Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), 24);
    let carrier = |name: &str| Site::behind(name, home()).inside(range(100, 64)).latency(LATENCY);
    let customer = |name: &str, host: &str, of: &str| {
        Site::behind(name, home()).inside(range(192, 168)).host(host).customer_of(of)
    };
    let sites = [
        carrier("carrier-1"),
        customer("near", "a", "carrier-1"),
        carrier("carrier-2"),
        customer("far", "b", "carrier-2"),
    ];
    let mesh = start(&lab, sites, &["a", "b"]).unwrap();
    let network = mesh.network();
    assert_eq!(network.host("a").unwrap().address(), network.host("b").unwrap().address());
    assert_eq!(network.outside("near").unwrap(), network.outside("far").unwrap());
    let took = wait_at(&mesh, "a", "b", network.outside("carrier-2").unwrap()).unwrap();
    println!("direct after {took:?}");
    wait_at(&mesh, "b", "a", network.outside("carrier-1").unwrap()).unwrap();
    mesh.check_logs(&[]).unwrap();
}

/// Two networks of one router, or a radio that keeps its clients apart: the way from one to the other is the router's
/// outside address, if it turns packets round.
#[test]
fn neighbours_that_are_kept_apart_meet_at_the_hairpin_or_at_the_relay() {
    for hairpin in [Hairpin::On, Hairpin::Off] {
        let lab = Lab::new("vlans").unwrap();
        let site = Site::behind("home", home().hairpin(hairpin)).host("a").host("b").latency(LATENCY);
        let public = Topology::new().site(Site::public(COORDINATOR).latency(LATENCY)).site(site);
        let network = lab.build(public).unwrap();
        let [a, b] = ["a", "b"].map(|name| network.host(name).unwrap());
        for (host, other) in [(a, b), (b, a)] {
            let wall = format!(
                "table ip wall {{\n chain out {{\n  type filter hook output priority 0; policy accept;\n  ip daddr {} drop\n }}\n}}\n",
                other.address()
            );
            host.netns().nft(&wall).unwrap();
        }
        assert!(a.ping(b.address()).is_err(), "they are kept apart");
        let (outside, address) =
            (network.outside("home").unwrap(), network.host(COORDINATOR).unwrap().address());
        let mesh =
            Mesh::new(network, &MeshOptions::new(COORDINATOR, &address.to_string(), &["a", "b"])).unwrap();
        mesh.start().unwrap();
        match hairpin {
            Hairpin::On => {
                let took = wait_at(&mesh, "a", "b", outside).unwrap();
                println!("direct through the hairpin after {took:?}");
                wait_at(&mesh, "b", "a", outside).unwrap();
            }
            Hairpin::Off => {
                let echo = Echo::all(&mesh, INTERVAL).unwrap();
                echo.wait_all(Instant::now(), PATIENCE).unwrap();
                std::thread::sleep(WATCH);
                let kinds = [("a", "b"), ("b", "a")].map(|(from, to)| path(&mesh, from, to).unwrap().kind);
                assert_eq!(kinds, [PathKind::Relay; 2]);
            }
        }
        mesh.check_logs(&[]).unwrap();
    }
}
