//! What strangers and peers may send to the open ports: it is counted, not answered, and costs nothing that stays.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    time::Duration,
};

use mesh_lab::{Mesh, Node, mesh::wait_until};
use mesh_proto::demux::{DatagramKind, classify};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use crate::rig::{self, COORDINATOR, PATIENCE, resident};

/// Longer than any datagram of the underlay.
const LONGEST: usize = 1600;
/// First bytes: of nothing known, of each WireGuard type, disco, STUN, relay frames and QUIC.
const FIRST_BYTES: [u8; 14] =
    [0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x20, 0x6d, 0x80, 0x81, 0x82, 0x83, 0x40, 0xc3];
/// Memory that a process may have more after a flood, in KiB: what its allocator keeps for itself.
const MAX_GROWTH: u64 = 3072;
/// How long answers are waited for that must not come.
const SILENCE: Duration = Duration::from_millis(500);
/// Connections of one flood of the TCP port: more than are served at once.
const CONNECTIONS: u64 = 300;

/// Random datagrams of every length that begin with this byte.
fn datagrams(first: u8) -> impl Iterator<Item = Vec<u8>> {
    let mut random = ChaCha8Rng::seed_from_u64(first.into());
    (0..=LONGEST).map(move |len| {
        let mut datagram = vec![0; len];
        random.fill_bytes(&mut datagram);
        if let Some(byte) = datagram.first_mut() {
            *byte = first;
        }
        datagram
    })
}

/// A socket of a host, which stays in its namespace.
fn socket(mesh: &Mesh, host: &str, to: SocketAddr) -> UdpSocket {
    let open = || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(SILENCE))?;
        Ok::<_, std::io::Error>(socket)
    };
    mesh.network().host(host).unwrap().netns().enter(open).unwrap().unwrap()
}

/// Everything that a socket has received.
fn answers(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut buffer = [0; 2048];
    std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec())).collect()
}

/// All packets that an agent has dropped, whoever they belong to.
fn dropped(node: &Node) -> anyhow::Result<u64> {
    let status = node.status()?;
    let all = std::iter::once(&status.this.drops).chain(status.peers.iter().map(|peer| &peer.drops));
    Ok(all.flat_map(BTreeMap::values).sum())
}

#[test]
fn an_agent_counts_garbage_of_every_length_and_answers_nothing() {
    let (_lab, mesh) = rig::mesh(&["a", "b"]);
    mesh.start().unwrap();
    mesh.wait_connected(PATIENCE).unwrap();
    let a = mesh.node("a").unwrap();
    let pid = a.agent().pid().unwrap();
    let to = SocketAddr::from((a.host().address(), 51820));
    let socket = socket(&mesh, "b", to);
    let mut wanted = dropped(a).unwrap();
    let mut before = None;
    for first in FIRST_BYTES {
        for datagram in datagrams(first) {
            socket.send(&datagram).unwrap();
            wanted += 1;
        }
        wait_until(PATIENCE, "everything is counted", || Ok(dropped(a)? >= wanted)).unwrap();
        // The first ones still find buffers that grow to the size they need.
        before.get_or_insert_with(|| resident(pid));
    }
    assert_eq!(answers(&socket), Vec::<Vec<u8>>::new());
    let (before, after) = (before.unwrap(), resident(pid));
    assert!(after <= before + MAX_GROWTH, "{before} KiB became {after} KiB");
    mesh.wait_connected(PATIENCE).unwrap();
    mesh.check_logs(&[]).unwrap();
}

#[test]
fn a_coordinator_counts_garbage_of_every_length_and_never_says_more_than_it_heard() {
    let (_lab, mesh) = rig::mesh(&["a"]);
    let pid = mesh.coordinator().pid().unwrap();
    let to = SocketAddr::from((mesh.network().host(COORDINATOR).unwrap().address(), 7443));
    let socket = socket(&mesh, "a", to);
    let heard = || -> u64 {
        let metrics = rig::metrics(&mesh);
        metrics
            .iter()
            .filter(|(name, _)| name.starts_with("mesh_datagrams_total"))
            .map(|(_, count)| count)
            .sum()
    };
    let mut wanted = heard();
    let mut before = None;
    for first in FIRST_BYTES {
        let kinds: Vec<DatagramKind> = datagrams(first).map(|datagram| classify(&datagram)).collect();
        let mut sent = 0;
        for datagram in datagrams(first) {
            socket.send(&datagram).unwrap();
            wanted += 1;
            sent += datagram.len();
        }
        wait_until(PATIENCE, "everything is counted", || Ok(heard() >= wanted)).unwrap();
        before.get_or_insert_with(|| resident(pid));
        let answers = answers(&socket);
        let said: usize = answers.iter().map(Vec::len).sum();
        assert!(said < sent / 4, "{said} bytes answer {sent}");
        let is_protocol = |kind: &DatagramKind| matches!(kind, DatagramKind::Quic | DatagramKind::Relay);
        if !kinds.iter().any(is_protocol) {
            assert_eq!(answers, Vec::<Vec<u8>>::new(), "what begins with {first:#04x}");
        }
    }
    let (before, after) = (before.unwrap(), resident(pid));
    assert!(after <= before + MAX_GROWTH, "{before} KiB became {after} KiB");
    mesh.join("a").unwrap();
    mesh.wait_ready(PATIENCE).unwrap();
    mesh.check_logs(&[]).unwrap();
}

/// What TLS says to a hello that is none: a record of this type and length (RFC 8446 section 6).
const TLS_ALERT: u8 = 21;
const ALERT_LEN: usize = 7;

#[test]
fn garbage_on_the_tcp_port_is_closed_with_an_alert_at_most() {
    let (_lab, mesh) = rig::mesh(&["a"]);
    let pid = mesh.coordinator().pid().unwrap();
    let to = SocketAddr::from((mesh.network().host(COORDINATOR).unwrap().address(), 7443));
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let open_before = descriptors();
    let garbage: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff\x01", &[0; 65_536], &[0xff; 65_536]];
    let a = mesh.network().host("a").unwrap();
    let flood = || {
        let streams: Vec<TcpStream> =
            (0..CONNECTIONS).map(|_| TcpStream::connect_timeout(&to, PATIENCE).unwrap()).collect();
        for (mut stream, garbage) in streams.into_iter().zip(garbage.into_iter().cycle()) {
            // It may be closed already.
            let _ = stream.write_all(garbage);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let is_alert = answer.len() == ALERT_LEN && answer[0] == TLS_ALERT;
            assert!(answer.is_empty() || is_alert, "{answer:?}");
        }
    };
    a.netns().enter(flood).unwrap();
    let before = resident(pid);
    a.netns().enter(flood).unwrap();
    let metrics = rig::metrics(&mesh);
    assert_eq!(metrics["mesh_tcp_connections_total"], 2 * CONNECTIONS);
    assert!(metrics["mesh_tcp_turned_away_total"] > 0, "there is a limit");
    wait_until(PATIENCE, "all are closed", || Ok(descriptors() <= open_before)).unwrap();
    let after = resident(pid);
    assert!(after <= before + MAX_GROWTH, "{before} KiB became {after} KiB");
    mesh.join("a").unwrap();
    mesh.wait_ready(PATIENCE).unwrap();
    mesh.check_logs(&[]).unwrap();
}

#[test]
fn garbage_on_the_local_sockets_ends_that_connection_alone() {
    let (_lab, mesh) = rig::mesh(&["a"]);
    mesh.join("a").unwrap();
    mesh.wait_ready(PATIENCE).unwrap();
    let a = mesh.node("a").unwrap();
    let long_head = format!("GET /v1/status HTTP/1.1\r\nHost: local\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let long_body =
        format!("POST /v1/tokens HTTP/1.1\r\nHost: local\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40);
    let garbage =
        [b"\0\xff\r\n\r\n".to_vec(), vec![0xff; 1 << 20], long_head.into_bytes(), long_body.into_bytes()];
    let admin = mesh.coordinator_dir().join("admin.sock");
    for socket in [&a.socket(), &admin] {
        for garbage in &garbage {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let _ = stream.write_all(garbage);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        }
    }
    assert!(a.is_ready());
    mesh.administer(["node", "list"]).unwrap().success().unwrap();
    mesh.check_logs(&[]).unwrap();
}

#[test]
fn inner_packets_with_a_foreign_source_are_dropped_and_counted() {
    let (_lab, mesh) = rig::mesh(&["a", "b"]);
    mesh.start().unwrap();
    mesh.wait_connected(PATIENCE).unwrap();
    let (a, b) = (mesh.node("a").unwrap(), mesh.node("b").unwrap());
    let forged =
        || Ok::<_, anyhow::Error>(a.peer("b")?.drops.get("wrong-source").copied().unwrap_or_default());
    assert_eq!(forged().unwrap(), 0);
    let received = a.peer("b").unwrap().rx_bytes;
    // Also a's own address, and one of the mesh that nobody has.
    let own = a.address().unwrap();
    let sources = [IpAddr::from([10, 99, 0, 1]), IpAddr::from([10, 90, 255, 254]), own.into()];
    for (number, source) in (1..).zip(sources) {
        let forge = format!(
            "table ip forge {{ chain post {{ type nat hook postrouting priority 100; oifname mesh0 snat to {source}; }}; }}"
        );
        b.host().netns().nft(&forge).unwrap();
        let ping = b.host().ping_many(own, 3).unwrap();
        assert!(ping.round_trips.is_empty(), "{source}: {ping:?}");
        b.host().netns().nft("delete table ip forge").unwrap();
        wait_until(PATIENCE, "they are counted", || Ok(forged()? == 3 * number)).unwrap();
    }
    assert_eq!(a.peer("b").unwrap().rx_bytes, received, "nothing of it came in");
    mesh.wait_connected(PATIENCE).unwrap();
    mesh.check_logs(&[]).unwrap();
}
