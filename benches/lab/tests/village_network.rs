//! The village's network without the mesh: names, delays, forwards, and who is behind which NAT.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use mesh_lab::nat::Egress;
use mesh_lab::village::roaming::{NETWORKS, roaming_topology};
use mesh_lab::{Lab, Nat, Network, village};

const MS: Duration = Duration::from_millis(1);

#[test]
fn delays_add_up_and_lans_are_short() {
    let lab = Lab::new("delays").unwrap();
    let network = lab.build(village::topology()).unwrap();
    let from = network.host("country").unwrap();
    from.ping(network.outside("home").unwrap()).unwrap();
    let round_trip = from.ping_many(network.outside("home").unwrap(), 5).unwrap().median().unwrap();
    assert!((43 * MS..46 * MS).contains(&round_trip), "{round_trip:?}");
    let (a, b) = (network.host("home-a").unwrap(), network.host("home-b").unwrap());
    assert!(a.ping(b.address()).unwrap() < 2 * MS);
    assert!(from.ping(b.address()).is_err(), "a private address must not be reached from elsewhere");
}

#[test]
fn every_router_is_of_its_type() {
    let lab = Lab::new("types").unwrap();
    let network = lab.build(village::topology()).unwrap();
    let observers = network.observers().unwrap();
    for host in village::NODES {
        let host = network.host(host).unwrap();
        let wanted = network.nat(&host.site()).unwrap().kind;
        assert_eq!(observers.measure(host.netns()).unwrap(), wanted, "{}", host.name());
    }
}

#[test]
fn forwarded_port_is_reached_by_name_and_follows_the_address() {
    let lab = Lab::new("names").unwrap();
    let network = lab.build(village::topology()).unwrap();
    network.dns().set(village::COORDINATOR_NAME, &[network.outside("pi").unwrap().into()]);
    let pi = network.host("pi").unwrap();
    let listener = pi.netns().enter(|| TcpListener::bind("0.0.0.0:7443")).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(b"pi").unwrap();
        }
    });
    assert_eq!(lookup(&network, "office").unwrap(), "203.0.113.10");
    assert_eq!(greeting(&network, "office", "203.0.113.10:7443").unwrap(), "pi");

    let moved = "203.0.113.11".parse().unwrap();
    network.set_outside("pi", moved).unwrap();
    network.dns().set(village::COORDINATOR_NAME, &[moved.into()]);
    assert_eq!(lookup(&network, "office").unwrap(), "203.0.113.11");
    assert_eq!(greeting(&network, "office", "203.0.113.11:7443").unwrap(), "pi");
    assert!(greeting(&network, "office", "203.0.113.10:7443").is_err());
}

#[test]
fn a_host_roams_between_sites() {
    let lab = Lab::new("roams").unwrap();
    let network = lab.build(village::topology()).unwrap();
    let macbook = network.host("macbook").unwrap();
    let lte = macbook.ping(network.internet().address()).unwrap();
    network.move_host("macbook", "cafe").unwrap();
    assert_eq!(macbook.site(), "cafe");
    let cafe = macbook.ping(network.internet().address()).unwrap();
    assert!(cafe < lte && (20 * MS..24 * MS).contains(&cafe), "{lte:?}, then {cafe:?}");
    network.unplug("macbook").unwrap();
    assert!(macbook.ping(network.internet().address()).is_err());
}

#[test]
fn nodes_roam_to_every_network_and_their_links_flap() {
    let lab = Lab::new("networks").unwrap();
    let network = lab.build(roaming_topology()).unwrap();
    let observers = network.observers().unwrap();
    let macbook = network.host("macbook").unwrap();
    let mut addresses = BTreeSet::new();
    for site in NETWORKS.into_iter().chain(["home"]) {
        network.move_host("macbook", site).unwrap();
        macbook.ping(network.internet().address()).unwrap();
        assert!(addresses.insert(macbook.address()), "{site} gives an address again: {}", macbook.address());
        let nat = network.nat(site).unwrap();
        if nat.egress == Egress::Open {
            assert_eq!(observers.measure(macbook.netns()).unwrap(), nat.kind, "{site}");
        }
        if nat == Nat::none() {
            let country = network.host("country").unwrap();
            country.ping(macbook.address()).expect("a public address is reached from everywhere");
        }
        macbook.link_down().unwrap();
        assert!(
            macbook.ping(network.internet().address()).is_err(),
            "{site}: nothing goes through a link that is down"
        );
        macbook.link_up().unwrap();
        macbook.ping(network.internet().address()).unwrap();
    }
    network.host("vps").unwrap().ping(macbook.address()).expect_err("it is behind a NAT again");
}

/// What the resolver of a host says about the coordinator's name.
fn lookup(network: &Network, host: &str) -> anyhow::Result<String> {
    let command = network.host(host)?.command("getent").args(["ahostsv4", village::COORDINATOR_NAME]);
    let finished = command.output()?.success()?;
    Ok(finished.stdout.split_whitespace().next().unwrap_or_default().to_owned())
}

/// What a TCP server says to a host.
fn greeting(network: &Network, host: &str, to: &str) -> anyhow::Result<String> {
    let to: SocketAddr = to.parse()?;
    let mut stream = network.host(host)?.netns().enter(|| TcpStream::connect_timeout(&to, 1000 * MS))??;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}
