//! What a NAT profile can do beyond its type.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use mesh_lab::nat::probe::socket_in;
use mesh_lab::nat::{Allocator, EarlyProbe, Egress, Hairpin, Protocol, Step};
use mesh_lab::{Filtering, Host, Lab, Mapping, Nat, NatType, Network, Site, Topology};

const SECOND: Duration = Duration::from_secs(1);

/// Two hosts behind one router, and a public server.
fn network(lab: &Lab, nat: Nat) -> anyhow::Result<Network> {
    let home = Site::behind("home", nat).host("a").host("b");
    lab.build(Topology::new().site(home).site(Site::public("server")))
}

fn eim() -> Nat {
    Nat::new(Mapping::Eim, Filtering::Apdf)
}

fn udp(host: &Host, port: u16) -> anyhow::Result<UdpSocket> {
    socket_in(host.netns(), SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))
}

/// Whether a datagram gets from one socket to an address, and as whose it arrives.
fn arrives(
    from: &UdpSocket,
    to: &UdpSocket,
    address: impl Into<SocketAddr>,
) -> anyhow::Result<Option<SocketAddr>> {
    to.set_read_timeout(Some(SECOND / 2))?;
    from.send_to(b"datagram", address.into())?;
    Ok(to.recv_from(&mut [0; 16]).ok().map(|(_, source)| source))
}

/// Whether a TCP connection gets from one host to another's `port`.
fn connects(from: &Host, to: &Host, address: Ipv4Addr, port: u16) -> anyhow::Result<bool> {
    let listener = to.netns().enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))??;
    let serve = std::thread::spawn(move || listener.accept()?.0.write_all(b"hello"));
    let target = SocketAddr::from((address, port));
    let Ok(mut stream) = from.netns().enter(|| TcpStream::connect_timeout(&target, SECOND))? else {
        return Ok(false);
    };
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    serve.join().map_err(|_| anyhow::anyhow!("server panicked"))??;
    Ok(said == "hello")
}

#[test]
fn hairpin_shows_the_outside_address_or_nothing() {
    for (hairpin, passes) in [(Hairpin::On, true), (Hairpin::Off, false)] {
        let lab = Lab::new("hairpin").unwrap();
        let network = network(&lab, eim().hairpin(hairpin)).unwrap();
        let (a, b) = (network.host("a").unwrap(), network.host("b").unwrap());
        let (socket_a, socket_b) = (udp(a, 5000).unwrap(), udp(b, 6000).unwrap());
        let observers = network.observers().unwrap();
        let outside_a = observers.seen(&socket_a, 0, 0).unwrap();
        let outside_b = observers.seen(&socket_b, 0, 0).unwrap();
        let source = arrives(&socket_a, &socket_b, outside_b).unwrap();
        assert_eq!(source, passes.then_some(outside_a), "{hairpin:?}");
    }
}

#[test]
fn hosts_with_one_port_get_ports_of_their_own_for_all_destinations() {
    let lab = Lab::new("ports").unwrap();
    let network = network(&lab, eim()).unwrap();
    let observers = network.observers().unwrap();
    let sockets = ["a", "b"].map(|host| udp(network.host(host).unwrap(), 5000).unwrap());
    // The second one sends first to the second observer.
    let first = [(0, 0), (1, 1)].map(|(host, to)| observers.seen(&sockets[host], to, 0).unwrap());
    assert_eq!(first[0].port(), 5000);
    assert_ne!(first[1].port(), 5000);
    for (host, first) in (0..).zip(first) {
        for (address, port) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            assert_eq!(observers.seen(&sockets[host], address, port).unwrap(), first, "host {host}");
        }
    }
}

#[test]
fn a_port_stays_with_its_host_when_others_have_sent_first() {
    let lab = Lab::new("called").unwrap();
    let network = network(&lab, Nat::new(Mapping::Eim, Filtering::Eif)).unwrap();
    let observers = network.observers().unwrap();
    let (inside, server) = (udp(network.host("a").unwrap(), 5000).unwrap(), network.host("server").unwrap());
    let outside = observers.seen(&inside, 0, 0).unwrap();
    for port in [6000, 6001, 6002] {
        // Each is answered, and the port still leads inside for the next one.
        let caller = udp(server, port).unwrap();
        let source = arrives(&caller, &inside, outside).unwrap().expect("anyone reaches the port");
        assert_eq!(arrives(&inside, &caller, source).unwrap(), Some(outside));
    }
}

#[test]
fn a_port_that_packets_from_outside_keep_open_is_given_to_nobody_else() {
    let lab = Lab::new("inbound").unwrap();
    let network = network(&lab, eim().udp_timeout(2 * SECOND)).unwrap();
    let observers = network.observers().unwrap();
    let server = network.host("server").unwrap();
    let caller = udp(server, 6000).unwrap();
    let target = SocketAddrV4::new(server.address(), 6000);
    let first = udp(network.host("a").unwrap(), 5000).unwrap();
    let outside = arrives(&first, &caller, target).unwrap().unwrap();
    for _ in 0..4 {
        std::thread::sleep(SECOND);
        assert!(arrives(&caller, &first, outside).unwrap().is_some());
    }
    let second = udp(network.host("b").unwrap(), 5000).unwrap();
    let elsewhere = observers.seen(&second, 0, 0).unwrap();
    assert_ne!(elsewhere, outside);
    assert_eq!(arrives(&second, &caller, target).unwrap(), Some(elsewhere), "one port for all destinations");
}

#[test]
fn masquerade_keeps_ports_until_they_conflict() {
    let lab = Lab::new("masq").unwrap();
    let network = network(&lab, Nat::masquerade()).unwrap();
    let observers = network.observers().unwrap();
    let (a, b) = (network.host("a").unwrap(), network.host("b").unwrap());
    let kind = NatType { mapping: Mapping::Eim, filtering: Filtering::Apdf };
    assert_eq!(observers.measure(a.netns()).unwrap(), kind);
    let seen = |host| observers.seen(&udp(host, 5000).unwrap(), 0, 0).unwrap().port();
    assert_eq!(seen(a), 5000);
    assert_ne!(seen(b), 5000);
}

#[test]
fn sequential_ports_have_a_constant_distance() {
    let lab = Lab::new("seq").unwrap();
    let network = network(&lab, Nat::sequential(Step::Up1)).unwrap();
    for step in Step::ALL {
        network.set_nat("home", Nat::sequential(step)).unwrap();
        let observers = network.observers().unwrap();
        let socket = udp(network.host("a").unwrap(), 5000).unwrap();
        let port = |address, port| observers.seen(&socket, address, port).unwrap().port();
        let ports = [port(0, 0), port(0, 1), port(1, 0), port(1, 1)];
        let steps = ports.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]).cast_signed());
        assert!(steps.into_iter().all(|found| found == step.distance()), "{step:?}: {ports:?}");
        assert_eq!(network.nat("home").unwrap().allocator, Allocator::Sequential(step));
    }
}

#[test]
fn egress_lets_out_what_it_says() {
    let lab = Lab::new("egress").unwrap();
    let network = network(&lab, eim()).unwrap();
    let (a, server) = (network.host("a").unwrap(), network.host("server").unwrap());
    network.dns().set("name.example", &[server.address().into()]);
    let (from, to) = (udp(a, 5000).unwrap(), udp(server, 6000).unwrap());
    for (egress, udp_passes, port_80_passes) in
        [(Egress::Open, true, true), (Egress::NoUdp, false, true), (Egress::OnlyTcp443, false, false)]
    {
        network.set_egress("home", egress).unwrap();
        let target = SocketAddrV4::new(server.address(), 6000);
        assert_eq!(arrives(&from, &to, target).unwrap().is_some(), udp_passes, "{egress:?}");
        assert_eq!(connects(a, server, server.address(), 80).unwrap(), port_80_passes, "{egress:?}");
        assert!(connects(a, server, server.address(), 443).unwrap(), "{egress:?}");
        let lookup = a.command("getent").args(["ahostsv4", "name.example"]).output().unwrap();
        assert!(lookup.success().unwrap().stdout.starts_with(&server.address().to_string()), "{egress:?}");
    }
}

#[test]
fn early_probe_moves_the_mapping_only_where_it_should() {
    for (early, moves) in [(EarlyProbe::Dropped, false), (EarlyProbe::MovesMapping, true)] {
        let lab = Lab::new("early").unwrap();
        let network = network(&lab, eim().early_probe(early)).unwrap();
        let (a, server) = (network.host("a").unwrap(), network.host("server").unwrap());
        let (inside, outside) = (udp(a, 5000).unwrap(), udp(server, 6000).unwrap());
        let home = network.outside("home").unwrap();
        // The server's probe comes first, to the port that the mapping would have.
        let early = arrives(&outside, &inside, SocketAddrV4::new(home, 5000)).unwrap();
        assert_eq!(early, None);
        let seen = arrives(&inside, &outside, SocketAddrV4::new(server.address(), 6000)).unwrap().unwrap();
        assert_eq!(seen.port() != 5000, moves, "{seen}");
    }
}

#[test]
fn forwards_reach_their_host_in_both_protocols_through_every_filter() {
    for filtering in [Filtering::Eif, Filtering::Adf, Filtering::Apdf] {
        let lab = Lab::new("forward").unwrap();
        let nat = Nat::new(Mapping::Apdm, filtering);
        let nat = nat.forward(Protocol::Udp, 7443, "b").forward(Protocol::Tcp, 7443, "b");
        let network = network(&lab, nat).unwrap();
        let (b, server) = (network.host("b").unwrap(), network.host("server").unwrap());
        let home = network.outside("home").unwrap();
        assert!(connects(server, b, home, 7443).unwrap(), "{filtering:?}");
        let (inside, outside) = (udp(b, 7443).unwrap(), udp(server, 6000).unwrap());
        let source = arrives(&outside, &inside, SocketAddrV4::new(home, 7443)).unwrap().unwrap();
        assert_eq!(source.ip(), server.address());
        // The answer comes from the forwarded port, whatever the mapping.
        let answer = arrives(&inside, &outside, source).unwrap().unwrap();
        assert_eq!(answer, SocketAddr::from((home, 7443)), "{filtering:?}");
    }
}

#[test]
fn mappings_end_with_their_time_and_with_a_reboot() {
    let lab = Lab::new("timeout").unwrap();
    let network = network(&lab, eim().udp_timeout(2 * SECOND)).unwrap();
    let (a, server) = (network.host("a").unwrap(), network.host("server").unwrap());
    let (inside, outside) = (udp(a, 5000).unwrap(), udp(server, 6000).unwrap());
    let target = SocketAddrV4::new(server.address(), 6000);
    let open = || arrives(&inside, &outside, target).unwrap().unwrap();
    let mapped = open();
    assert!(arrives(&outside, &inside, mapped).unwrap().is_some());
    network.reboot("home").unwrap();
    assert!(arrives(&outside, &inside, mapped).unwrap().is_none(), "a reboot forgets");
    let mapped = open();
    assert!(arrives(&outside, &inside, mapped).unwrap().is_some());
    std::thread::sleep(3 * SECOND);
    assert!(arrives(&outside, &inside, mapped).unwrap().is_none(), "an unused mapping ends");
}
