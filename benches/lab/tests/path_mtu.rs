//! Path MTUs on real kernels: over lines of several MTUs, directly and through the relay.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use mesh_lab::mesh::wait_until;
use mesh_lab::traffic::transfer;
use mesh_lab::{Filtering, Host, Lab, Mapping, Mesh, MeshOptions, Nat, Node, Site, Topology};
use mesh_proto::status::PathKind;

const PATIENCE: Duration = Duration::from_secs(30);
/// The interface's MTU.
const FULL: u16 = 1420;
/// IPv4 and ICMP header.
const ECHO_HEADERS: u16 = 28;
const TRANSFER: u64 = 10_000_000;
/// A large answer of a name server.
const DATAGRAM: usize = 1400;

/// How two nodes reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The hosts' own interfaces have the line's MTU: the system refuses what is larger.
    Public,
    /// Routers have it, which drop what is larger.
    Direct,
    Relayed,
}

/// Makes a mesh of two nodes, each behind a line with this MTU: the lab holds to it on the way out.
fn mesh(lab: &Lab, way: Way, line: u16) -> anyhow::Result<Mesh> {
    let site = |site: &str, host: &str| match way {
        Way::Public => Site::public(host),
        Way::Direct => Site::behind(site, Nat::new(Mapping::Eim, Filtering::Apdf)).host(host),
        Way::Relayed => Site::behind(site, Nat::new(Mapping::Apdm, Filtering::Apdf)).host(host),
    };
    let topology = Topology::new()
        .site(Site::public("pi"))
        .site(site("near", "a").mtu(line))
        .site(site("far", "b").mtu(line));
    let network = Arc::new(lab.build(topology)?);
    network.dns().set("pi.example", &[network.host("pi")?.address().into()]);
    let mut options = MeshOptions::new("pi", "pi.example", &["a", "b"]);
    if way == Way::Relayed {
        // A direct path that is found by chance, in the middle of it, is another path.
        options.agent_args = ["--punch-rate", "0"].map(str::to_owned).to_vec();
    }
    let mesh = Mesh::new(network, &options)?;
    mesh.start()?;
    mesh.wait_connected(PATIENCE)?;
    Ok(mesh)
}

/// Waits until both nodes say that their path carries this much, while they talk.
fn wait_mtu(mesh: &Mesh, way: Way, mtu: u16) -> anyhow::Result<()> {
    let kind = match way {
        Way::Public | Way::Direct => PathKind::Direct,
        Way::Relayed => PathKind::Relay,
    };
    wait_until(PATIENCE, &format!("both paths carry {mtu}"), || {
        mesh.ping_all();
        let mut is_so = true;
        for (node, peer) in [("a", "b"), ("b", "a")] {
            let path = mesh.node(node)?.peer(peer)?.path;
            is_so &= path.kind == kind && path.mtu == Some(mtu);
            anyhow::ensure!(is_so, "{node} says {path:?}");
        }
        Ok(is_so)
    })
}

/// Pings with packets of `len` bytes that may not be fragmented; what ping printed, and whether all was answered.
fn ping(from: &Node, to: Ipv4Addr, len: u16) -> anyhow::Result<(bool, String)> {
    let payload = (len - ECHO_HEADERS).to_string();
    let to = to.to_string();
    let args = ["-M", "do", "-c", "3", "-i", "0.2", "-W", "2", "-s", &payload, &to];
    let finished = from.host().command("ping").args(args).output()?;
    Ok((finished.stdout.contains(" 0% packet loss"), finished.stdout + &finished.stderr))
}

/// Has one host ask another for a datagram of [`DATAGRAM`] bytes.
fn answers(asking: &Host, answering: &Host, address: Ipv4Addr) -> anyhow::Result<()> {
    let server = answering.netns().enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    let client = asking.netns().enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    let to = SocketAddr::from((address, server.local_addr()?.port()));
    let mut buffer = [0; 2000];
    // Linux lets UDP fragment only once it knows the path's MTU: as a resolver, ask again.
    for _ in 0..3 {
        client.send_to(b"?", to)?;
        let (_, from) = server.recv_from(&mut buffer)?;
        if server.send_to(&[7; DATAGRAM], from).is_err() {
            continue;
        }
        if let Ok((len, _)) = client.recv_from(&mut buffer) {
            anyhow::ensure!(buffer[..len] == [7; DATAGRAM], "another answer, of {len} bytes");
            return Ok(());
        }
    }
    anyhow::bail!("no answer of {DATAGRAM} bytes arrives")
}

/// What holds on a path that carries `mtu`.
fn check(mesh: &Mesh, mtu: u16) -> anyhow::Result<()> {
    for (from, to) in [("a", "b"), ("b", "a")] {
        let (from, to) = (mesh.node(from)?, mesh.node(to)?);
        let address = to.address()?;
        let (passes, said) = ping(from, address, mtu)?;
        anyhow::ensure!(passes, "{mtu} bytes from {}: {said}{:#?}", from.name(), from.peer(to.name())?);
        let (passes, said) = ping(from, address, mtu + 1)?;
        let told = said.contains(&format!("mtu={mtu}")) || said.contains(&format!("mtu = {mtu}"));
        anyhow::ensure!(!passes && told, "{} bytes from {}: {said}", mtu + 1, from.name());
        answers(from.host(), to.host(), address)?;
        let transfer = transfer(from.host(), (to.host(), address), TRANSFER)?;
        anyhow::ensure!(transfer.bytes == TRANSFER && transfer.sent == transfer.received, "{transfer:?}");
        println!("{} to {}: {:.0} Mbit/s", from.name(), to.name(), transfer.mbit_per_second());
    }
    Ok(())
}

#[test]
fn direct_paths_carry_what_their_line_does() {
    use Way::{Direct, Public};
    for (way, line, mtu) in
        [(Direct, 1500, FULL), (Direct, 1492, FULL), (Direct, 1400, 1340), (Public, 1400, 1340)]
    {
        let lab = Lab::new("mtu-direct").unwrap();
        let mesh = mesh(&lab, way, line).unwrap();
        wait_mtu(&mesh, way, mtu).unwrap();
        check(&mesh, mtu).unwrap_or_else(|error| panic!("{way:?}, line of {line}: {error:#}"));
    }
}

#[test]
fn relayed_paths_carry_what_their_line_does() {
    for (line, mtu) in [(1500, FULL), (1492, 1416), (1400, 1324)] {
        let lab = Lab::new("mtu-relay").unwrap();
        let mesh = mesh(&lab, Way::Relayed, line).unwrap();
        wait_mtu(&mesh, Way::Relayed, mtu).unwrap();
        check(&mesh, mtu).unwrap_or_else(|error| panic!("line of {line}: {error:#}"));
    }
}

/// The very first packet of a pair is a large one that may not be fragmented. The sender's system keeps for ten minutes what
/// it is told, so it is told nothing but what the path does carry.
#[test]
fn a_first_large_packet_is_answered_with_what_the_path_carries_or_not_at_all() {
    for (way, line, told) in
        [(Way::Direct, 1500, None), (Way::Relayed, 1500, None), (Way::Relayed, 1400, Some(1324))]
    {
        let lab = Lab::new("mtu-big").unwrap();
        let mesh = mesh(&lab, way, line).unwrap();
        let (a, b) = (mesh.node("a").unwrap(), mesh.node("b").unwrap());
        let to = b.address().unwrap();
        let args = ["-M", "do", "-c", "5", "-i", "1", "-W", "5", "-s", "1372", &to.to_string()];
        let said = a.host().command("ping").args(args).output().unwrap().stdout;
        let route = ["route", "get", &to.to_string()];
        let route = a.host().command("ip").args(route).output().unwrap().success().unwrap().stdout;
        let known = route.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
        let known = known.map(|mtu| mtu.parse::<u16>().unwrap());
        assert_eq!(known, told, "{way:?}, line of {line}: {route}{said}");
        if told.is_none() {
            assert!(said.contains(" 0% packet loss"), "{way:?}, line of {line}: {said}");
        }
    }
}

/// A new connection, over paths of which nothing is known yet, is not slowed down for good.
#[test]
fn a_first_connection_gets_the_full_segment_size() {
    let lab = Lab::new("mtu-first").unwrap();
    let mesh = mesh(&lab, Way::Direct, 1500).unwrap();
    wait_mtu(&mesh, Way::Direct, FULL).unwrap();
    let (a, b) = (mesh.node("a").unwrap(), mesh.node("b").unwrap());
    let listener = b.host().netns().enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap().unwrap();
    let to = SocketAddr::from((b.address().unwrap(), listener.local_addr().unwrap().port()));
    let mut stream = a.host().netns().enter(|| TcpStream::connect(to)).unwrap().unwrap();
    stream.write_all(&[1; 100]).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.read_exact(&mut [0; 100]).unwrap();
    let seen = a.host().command("ss").args(["-tin"]).output().unwrap().success().unwrap().stdout;
    // 1420 less 40 of headers and 12 of timestamps.
    assert!(seen.contains("mss:1368"), "{seen}");
}
