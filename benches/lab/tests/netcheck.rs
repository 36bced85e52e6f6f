//! `meshctl netcheck` on real kernels: what it says of a network is what the network is.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_lab::mesh::wait_until;
use mesh_lab::nat::{Egress, Hairpin, Protocol};
use mesh_lab::{Filtering, Lab, Mapping, Mesh, MeshOptions, Nat, NatType, Network, Node, Site, Topology};
use mesh_proto::netreport::{self, NetReport};
use mesh_proto::status;

const COORDINATOR: &str = "pi";
/// What each site adds to a round trip.
const LATENCY: Duration = Duration::from_millis(10);
/// To be connected, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// The coordinator's second port.
const SECOND_PORT: u16 = 7444;

/// A public coordinator, these sites, and agents on `nodes`; the coordinator answers on a second port if it is told to.
fn start(
    lab: &Lab,
    topology: Topology,
    nodes: &[&str],
    coordinator_args: &[&str],
) -> anyhow::Result<(Arc<Network>, Mesh)> {
    let network = Arc::new(lab.build(topology.site(Site::public(COORDINATOR).latency(LATENCY)))?);
    let address = network.host(COORDINATOR)?.address().to_string();
    let coordinator_args = coordinator_args.iter().map(|&arg| arg.to_owned()).collect();
    let options = MeshOptions { coordinator_args, ..MeshOptions::new(COORDINATOR, &address, nodes) };
    let mesh = Mesh::new(Arc::clone(&network), &options)?;
    mesh.start()?;
    mesh.wait_connected(PATIENCE)?;
    Ok((network, mesh))
}

fn check(node: &Node) -> anyhow::Result<NetReport> {
    let finished = node.meshctl(["netcheck", "--json"])?.success()?;
    serde_json::from_str(&finished.stdout).with_context(|| finished.stdout.clone())
}

fn filtering(kind: NatType) -> netreport::Filtering {
    match kind.filtering {
        Filtering::Eif => netreport::Filtering::Eif,
        Filtering::Adf => netreport::Filtering::Adf,
        Filtering::Apdf => netreport::Filtering::Apdf,
    }
}

fn mapping(kind: NatType) -> status::Mapping {
    match kind.mapping {
        Mapping::Eim => status::Mapping::Eim,
        Mapping::Adm => status::Mapping::Adm,
        Mapping::Apdm => status::Mapping::Apdm,
    }
}

/// All nine types, with one other node at a public address, which knocks and is an observer as every peer is.
#[test]
fn every_type_of_nat_is_told_by_name() {
    let lab = Lab::new("netcheck").unwrap();
    let mut topology = Topology::new().site(Site::public("other").latency(LATENCY));
    let mut names = vec!["other".to_owned()];
    for kind in NatType::all() {
        let name = format!("n-{kind}").to_lowercase();
        topology =
            topology.site(Site::behind(&format!("at-{name}"), Nat::of(kind)).host(&name).latency(LATENCY));
        names.push(name);
    }
    let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
    let port = SECOND_PORT.to_string();
    let (_network, mesh) = start(&lab, topology, &nodes, &["--listen-stun", &port]).unwrap();
    for kind in NatType::all() {
        let node = mesh.node(&format!("n-{kind}").to_lowercase()).unwrap();
        let report = check(node).unwrap();
        assert_eq!(report.nat.filtering, filtering(kind), "{kind}: {report:?}");
        // Two ports of one address do not tell these two apart; the other node's address does, once it was spoken to.
        let told = report.nat.status.mapping;
        let may_be_unknown = kind.mapping != Mapping::Apdm && told == status::Mapping::Unknown;
        assert!(may_be_unknown || told == mapping(kind), "{kind}: {report:?}");
        assert_eq!(report.nat.hairpin, Some(false), "{kind}");
        assert_eq!(report.observers.len(), 2, "{kind}: {report:?}");
    }
    // A peer at another address that sees the same mapping is enough for EIM.
    let eim = mesh.node("n-eimxapdf").unwrap();
    let ping = eim.meshctl(["ping", "other", "-c", "40", "--until-direct"]).unwrap();
    ping.success().unwrap();
    wait_until(PATIENCE, "the mapping is known", || {
        let kind = NatType { mapping: Mapping::Eim, filtering: Filtering::Apdf };
        Ok(check(eim)?.nat.status.mapping == mapping(kind))
    })
    .unwrap();
    let open = check(mesh.node("other").unwrap()).unwrap();
    let told = (open.nat.status.mapping, open.nat.filtering);
    assert_eq!(told, (status::Mapping::None, netreport::Filtering::None), "{open:?}");
    mesh.check_logs(&[]).unwrap();
}

/// Without a second port, and with no other node: what cannot be measured is not guessed.
#[test]
fn what_nobody_can_tell_is_unknown() {
    let lab = Lab::new("netcheck-alone").unwrap();
    let home = Nat::new(Mapping::Eim, Filtering::Apdf).forward(Protocol::Udp, 7443, COORDINATOR);
    let home = home.forward(Protocol::Tcp, 7443, COORDINATOR);
    let site = Site::behind("home", home).host(COORDINATOR).latency(LATENCY);
    let away = Nat::new(Mapping::Apdm, Filtering::Apdf);
    let away = Site::behind("away", away).host("away").latency(LATENCY);
    let network = lab.build(Topology::new().site(site).site(away)).unwrap();
    let outside = network.outside("home").unwrap().to_string();
    let mesh = Mesh::new(network, &MeshOptions::new(COORDINATOR, &outside, &["away"])).unwrap();
    mesh.start().unwrap();
    mesh.wait_connected(PATIENCE).unwrap();
    let report = check(mesh.node("away").unwrap()).unwrap();
    assert_eq!(report.nat.status.mapping, status::Mapping::Unknown);
    // The coordinator's knock may or may not get out of its own router; here it does not come from the known address.
    assert_eq!(report.nat.filtering, netreport::Filtering::Unknown, "{report:?}");
    assert_eq!(report.observers.len(), 1);
    mesh.check_logs(&[]).unwrap();
}

#[test]
fn the_rest_of_the_network_is_described() {
    let lab = Lab::new("netcheck-rest").unwrap();
    let nat = Nat::new(Mapping::Eim, Filtering::Apdf).hairpin(Hairpin::On);
    let site = Site::behind("home", nat).host("a").latency(LATENCY).mtu(1492);
    let (network, mesh) = start(&lab, Topology::new().site(site), &["a"], &[]).unwrap();
    let a = mesh.node("a").unwrap();
    let report = check(a).unwrap();
    assert_eq!(report.nat.hairpin, Some(true));
    assert_eq!(report.uplink_mtu, Some(1492));
    assert_eq!(report.captive_portal, Some(false));
    assert_eq!(report.proxy, None);
    assert!(report.clock_offset_ms.is_some_and(|offset| offset.abs() < 50.0), "{report:?}");
    let [relay] = &report.relays[..] else { panic!("{report:?}") };
    for reach in [relay.udp, relay.tcp] {
        assert_eq!(reach.reachable, Some(true), "{report:?}");
        assert!(reach.rtt_ms.is_some_and(|rtt| rtt >= 20.0), "{report:?}");
    }
    let text = a.meshctl(["netcheck"]).unwrap().success().unwrap().stdout;
    for expected in ["\nuplink mtu     1492\n", "\nhairpin        yes\n", "\ncaptive portal no\n"] {
        assert!(text.contains(expected), "{expected:?} in\n{text}");
    }

    // A network whose UDP is shut: the same questions, other answers.
    network.set_egress("home", Egress::NoUdp).unwrap();
    wait_until(PATIENCE, "the check says that UDP is blocked", || {
        let report = check(a)?;
        let [relay] = &report.relays[..] else { anyhow::bail!("{report:?}") };
        anyhow::ensure!(relay.tcp.reachable == Some(true), "{report:?}");
        Ok(report.nat.status.udp_blocked && relay.udp.reachable == Some(false))
    })
    .unwrap();
    mesh.check_logs(&[]).unwrap();
}

/// A hotel: until somebody signs in, the router leads every connection to its own page, and no UDP out.
#[test]
fn a_captive_portal_is_told_and_left_behind() {
    let lab = Lab::new("netcheck-portal").unwrap();
    let nat = Nat::new(Mapping::Eim, Filtering::Apdf);
    let hotel = Site::behind("hotel", nat).host("a").latency(LATENCY);
    let page = Site::public("page").latency(LATENCY);
    let (network, mesh) = start(&lab, Topology::new().site(hotel).site(page), &["a"], &[]).unwrap();
    let page = network.host("page").unwrap();
    let listener = page.netns().enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80))).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = stream.read(&mut [0; 2000]);
            let _ = stream.write_all(
                b"HTTP/1.1 302 Found\r\nLocation: http://sign.in/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
    });
    let a = mesh.node("a").unwrap();
    assert_eq!(check(a).unwrap().captive_portal, Some(false));
    let page = SocketAddrV4::new(page.address(), 80);
    network.set_egress("hotel", Egress::Portal(page)).unwrap();
    wait_until(PATIENCE, "the portal is noticed", || Ok(check(a)?.captive_portal == Some(true))).unwrap();
    // Signed in.
    network.set_egress("hotel", Egress::Open).unwrap();
    mesh.wait_connected(PATIENCE).unwrap();
    wait_until(PATIENCE, "the portal is gone", || Ok(check(a)?.captive_portal == Some(false))).unwrap();
}
