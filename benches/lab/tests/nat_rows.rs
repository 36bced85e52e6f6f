//! What every pair must get through besides the types of its NATs: forwards and clouds, firewalls on hosts, mappings that
//! end early or move, addresses that lead nowhere, and bad lines.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use mesh_lab::mesh::wait_until;
use mesh_lab::nat::{EarlyProbe, Protocol, Refresh};
use mesh_lab::traffic::Echo;
use mesh_lab::{
    Filtering, Host, Impairment, Lab, Loss, Mapping, Mesh, MeshOptions, Nat, NatType, Rate, Site, Topology,
};
use mesh_proto::status::{PathKind, PathReason};

const COORDINATOR: &str = "coordinator";
/// What each site adds to a round trip.
const LATENCY: Duration = Duration::from_millis(20);
/// Between the requests of a pair.
const INTERVAL: Duration = Duration::from_millis(100);
/// For a pair that plain probing gets through, on a busy machine.
const DIRECT_PATIENCE: Duration = Duration::from_secs(8);
/// After a path has died: it is trusted for 2.5 s, and the machine is busy.
const RECOVERY: Duration = Duration::from_secs(8);
/// The port of every agent.
const AGENT_PORT: u16 = 51820;

fn home() -> Nat {
    Nat::new(Mapping::Eim, Filtering::Apdf)
}

fn hard() -> Nat {
    Nat::new(Mapping::Apdm, Filtering::Apdf)
}

fn near(nat: Nat) -> Site {
    Site::behind("near", nat).host("a").latency(LATENCY)
}

fn far(nat: Nat) -> Site {
    Site::behind("far", nat).host("b").latency(LATENCY)
}

/// A public coordinator, these sites, and agents on these hosts.
fn prepare(lab: &Lab, sites: impl IntoIterator<Item = Site>, nodes: &[&str]) -> anyhow::Result<Mesh> {
    let public = Topology::new().seed(5).site(Site::public(COORDINATOR).latency(LATENCY));
    let network = lab.build(sites.into_iter().fold(public, Topology::site))?;
    let address = network.host(COORDINATOR)?.address().to_string();
    Mesh::new(network, &MeshOptions::new(COORDINATOR, &address, nodes))
}

fn start(lab: &Lab, sites: impl IntoIterator<Item = Site>) -> anyhow::Result<Mesh> {
    let mesh = prepare(lab, sites, &["a", "b"])?;
    mesh.start()?;
    Ok(mesh)
}

fn kinds(mesh: &Mesh) -> anyhow::Result<[PathKind; 2]> {
    Ok([mesh.node("a")?.peer("b")?.path.kind, mesh.node("b")?.peer("a")?.path.kind])
}

/// Has the pair talk; returns the traffic and how long it took until both sides were direct.
fn talk_until_direct(mesh: &Mesh) -> anyhow::Result<(Echo, Duration)> {
    let started = Instant::now();
    let echo = Echo::all(mesh, INTERVAL)?;
    wait_until(DIRECT_PATIENCE, "both sides are direct", || Ok(kinds(mesh)? == [PathKind::Direct; 2]))?;
    Ok((echo, started.elapsed()))
}

/// Ubuntu's firewall as it comes: nothing comes in but answers and pings.
fn raise_firewall(host: &Host) -> anyhow::Result<()> {
    host.netns().nft(
        "table inet ufw {\n chain input {\n  type filter hook input priority 0; policy drop;\n  \
         iifname { \"lo\", \"mesh0\" } accept\n  ct state established,related accept\n  \
         meta l4proto { icmp, ipv6-icmp } accept\n }\n}\n",
    )
}

/// Both NATs give every destination another port and filter by it. One router forwards the agent's port, as `why` advises.
#[test]
fn a_forwarded_port_is_reached_behind_any_nat() {
    let lab = Lab::new("forward").unwrap();
    let mesh = start(&lab, [near(hard().forward(Protocol::Udp, AGENT_PORT, "a")), far(hard())]).unwrap();
    let _talk = talk_until_direct(&mesh).unwrap();
    let path = mesh.node("b").unwrap().peer("a").unwrap().path;
    assert_ne!(path.code, PathReason::AnsweredPunched, "{path:?}");
    mesh.check_logs(&[]).unwrap();
}

#[test]
fn a_cloud_with_an_address_of_its_own_for_every_host_is_reached() {
    let lab = Lab::new("cloud").unwrap();
    let mesh = start(&lab, [near(Nat::one_to_one("a")), far(hard())]).unwrap();
    let _talk = talk_until_direct(&mesh).unwrap();
    mesh.check_logs(&[]).unwrap();
}

#[test]
fn firewalls_on_hosts_are_got_through() {
    for both in [false, true] {
        let lab = Lab::new("ufw").unwrap();
        let sites = [Site::public("a").latency(LATENCY), far(home())];
        let mesh = prepare(&lab, sites, &["a", "b"]).unwrap();
        raise_firewall(mesh.network().host("a").unwrap()).unwrap();
        if both {
            raise_firewall(mesh.network().host("b").unwrap()).unwrap();
        }
        mesh.start().unwrap();
        let _talk = talk_until_direct(&mesh).unwrap();
        mesh.check_logs(&[]).unwrap();
    }
}

/// What comes in does not keep the mapping; what goes out has to, even of a node that only listens.
#[test]
fn mappings_that_inbound_packets_do_not_refresh_are_kept() {
    let lab = Lab::new("refresh").unwrap();
    let short = || home().udp_timeout(Duration::from_secs(5)).refresh(Refresh::Outbound);
    let mesh = start(&lab, [near(short()), far(short())]).unwrap();
    let (echo, _) = talk_until_direct(&mesh).unwrap();
    drop(echo);
    // One way only: no reply is asked for, so that nothing but the agents' own messages goes out from `a`.
    let (a, b) = (mesh.node("a").unwrap(), mesh.node("b").unwrap());
    let receiver = a.host().netns().enter(|| std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9000)));
    let receiver = receiver.unwrap().unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    let to = std::net::SocketAddr::from((a.address().unwrap(), 9000));
    let sender = b.host().netns().enter(|| std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let sender = sender.unwrap().unwrap();
    let (mut sent, mut received) = (0, 0);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(20) {
        sender.send_to(&[0; 100], to).unwrap();
        sent += 1;
        received += u32::from(receiver.recv(&mut [0; 200]).is_ok());
        std::thread::sleep(INTERVAL);
    }
    assert!(received + 2 >= sent, "{received} of {sent}");
    assert_eq!(kinds(&mesh).unwrap(), [PathKind::Direct; 2]);
    mesh.check_logs(&[]).unwrap();
}

#[test]
fn a_new_address_from_the_provider_is_followed() {
    let lab = Lab::new("renumber").unwrap();
    let mesh = start(&lab, [near(home()), far(home())]).unwrap();
    let (echo, _) = talk_until_direct(&mesh).unwrap();
    mesh.network().set_outside("near", Ipv4Addr::new(198, 51, 100, 77)).unwrap();
    echo.wait_all(Instant::now(), RECOVERY).unwrap();
    let is_there = |path: mesh_proto::status::PathStatus| {
        path.address.is_some_and(|address| address.ip() == Ipv4Addr::new(198, 51, 100, 77))
    };
    wait_until(RECOVERY, "both are direct, at the new address", || {
        Ok(kinds(&mesh)? == [PathKind::Direct; 2] && is_there(mesh.node("b")?.peer("a")?.path))
    })
    .unwrap();
    mesh.check_logs(&[]).unwrap();
}

/// Every type with endpoint-independent mapping on routers that let a probe which comes too early take the port; the
/// pairs are the same as of those that do not.
#[test]
fn probes_that_come_too_early_cost_no_pair() {
    let lab = Lab::new("early-types").unwrap();
    let (mut sites, mut names) = (Vec::new(), Vec::new());
    for side in ["a", "b"] {
        for filtering in [Filtering::Eif, Filtering::Adf, Filtering::Apdf] {
            let kind = NatType { mapping: Mapping::Eim, filtering };
            let name = format!("{side}-{kind}").to_lowercase();
            let nat = Nat::of(kind).early_probe(EarlyProbe::MovesMapping);
            sites.push(Site::behind(&format!("at-{name}"), nat).host(&name).latency(LATENCY));
            names.push(name);
        }
    }
    let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
    let mesh = prepare(&lab, sites, &nodes).unwrap();
    mesh.start().unwrap();
    let _echo =
        Echo::start(&mesh, INTERVAL, |from, to| from.starts_with("a-") && to.starts_with("b-")).unwrap();
    wait_until(DIRECT_PATIENCE * 2, "all nine pairs are direct, both ways", || {
        let wrong = mesh.wrong_paths(|from, to| from.starts_with("a-") != to.starts_with("a-"))?;
        anyhow::ensure!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
        Ok(true)
    })
    .unwrap();
    mesh.check_logs(&[]).unwrap();
}

/// Linux gives the same outside port to two hosts as long as they speak to different destinations ("port overloading").
#[test]
fn hosts_that_share_one_outside_port_are_both_reached() {
    let lab = Lab::new("overload").unwrap();
    let crowded = Site::behind("near", Nat::masquerade()).host("a").host("c").latency(LATENCY);
    let mesh = prepare(&lab, [crowded, far(home())], &["a", "b", "c"]).unwrap();
    mesh.start().unwrap();
    let _echo = Echo::start(&mesh, INTERVAL, |from, to| (from == "b") != (to == "b")).unwrap();
    wait_until(DIRECT_PATIENCE, "both are direct with the far one", || {
        let pairs = [("a", "b"), ("b", "a"), ("c", "b"), ("b", "c")];
        let kinds = pairs.map(|(node, peer)| Ok(mesh.node(node)?.peer(peer)?.path.kind));
        let kinds = kinds.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        Ok(kinds.iter().all(|kind| *kind == PathKind::Direct))
    })
    .unwrap();
    mesh.check_logs(&[]).unwrap();
}

/// Virtual machines, containers and old cables: addresses at which nobody else can reach a host do not slow it down.
#[test]
fn addresses_that_lead_nowhere_cost_no_time() {
    let lab = Lab::new("nowhere").unwrap();
    let mesh = prepare(&lab, [near(home()), far(home())], &["a", "b"]).unwrap();
    for host in ["a", "b"] {
        let mut batch = String::new();
        for number in 0..32 {
            let _ = write!(
                batch,
                "link add lan{number} type veth peer name end{number}\nlink set end{number} up\n\
                 addr add 10.{}.{number}.1/24 dev lan{number}\nlink set lan{number} up\n",
                if host == "a" { 100 } else { 101 }
            );
        }
        mesh.network().host(host).unwrap().netns().ip(&batch).unwrap();
    }
    mesh.start().unwrap();
    let (_echo, took) = talk_until_direct(&mesh).unwrap();
    println!("direct after {took:?} in spite of 32 addresses that lead nowhere");
    mesh.check_logs(&[]).unwrap();
}

/// Lines as bad as a mobile network's edge and a geostationary satellite's: a mesh forms and carries data, directly.
#[test]
fn bad_lines_are_slow_and_nothing_else() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let edge = Impairment::delay(Duration::from_millis(215))
        .loss(Loss::bursty(0.08, 20.0))
        .rate(Rate { bits_per_second: 800_000, queue_bytes: 30_000 });
    let satellite = Impairment::delay(Duration::from_millis(290));
    for (name, line) in [("edge", edge), ("satellite", satellite)] {
        let lab = Lab::new(name).unwrap();
        let bad = Site::behind("near", home()).host("a").impaired(line);
        let mesh = start(&lab, [bad, far(home())]).unwrap();
        let echo = Echo::all(&mesh, Duration::from_millis(500)).unwrap();
        wait_until(PATIENCE, "both sides are direct", || Ok(kinds(&mesh)? == [PathKind::Direct; 2]))
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        echo.wait_all(Instant::now(), PATIENCE).unwrap();
    }
}
