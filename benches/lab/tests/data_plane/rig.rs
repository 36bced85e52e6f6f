//! What all these tests stand on: two nodes on one LAN, a pod behind each, and traffic of every kind between them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use mesh_lab::{
    Capture, Filtering, Host, Lab, Mapping, Mesh, MeshOptions, Nat, Node, Pod, Site, Topology,
    capture::Seen,
    mesh::wait_until,
    pods::{self, Offloading},
};
use mesh_proto::status::PathKind;
use nix::sys::socket::{setsockopt, sockopt};

/// For what has no budget here, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How long one datagram may take before it is sent again.
const ANSWER: Duration = Duration::from_secs(1);
/// Room for a burst.
const RECEIVE_BUFFER: usize = 32 << 20;

pub(crate) struct Rig {
    pub(crate) mesh: Mesh,
    pub(crate) pods: [Pod; 2],
    _lab: Lab,
}

impl Rig {
    /// Starts two agents with these offloads that talk directly, and pods that reach each other.
    pub(crate) fn start(offloads: &str, offloading: Offloading) -> Self {
        let lab = Lab::new("dataplane").unwrap();
        let lan = Site::behind("lan", Nat::new(Mapping::Eim, Filtering::Apdf)).host("a").host("b");
        let network = lab.build(Topology::new().site(Site::public("coord")).site(lan)).unwrap();
        let address = network.outside("coord").unwrap().to_string();
        let mut options = MeshOptions::new("coord", &address, &["a", "b"]);
        options.agent_args = vec![format!("--offloads={offloads}")];
        pods::announce(&mut options, [("a", 1), ("b", 2)]);
        let mesh = Mesh::new(network, &options).unwrap();
        mesh.start().unwrap();
        let pods = [("a", 1), ("b", 2)].map(|(node, n)| Pod::attach(&mesh, node, n, offloading).unwrap());
        Pod::wait_announced(&pods, &mesh, PATIENCE).unwrap();
        let rig = Self { mesh, pods, _lab: lab };
        rig.wait_connected();
        rig
    }

    pub(crate) fn nodes(&self) -> [&Node; 2] {
        ["a", "b"].map(|name| self.mesh.node(name).unwrap())
    }

    /// The hosts with their addresses: of the nodes, and of their pods.
    pub(crate) fn pairs(&self) -> [[(&Host, IpAddr); 2]; 4] {
        let [a, b] = self.nodes();
        let of = |node: &Node| {
            let addresses = node.status().unwrap().this.addresses;
            [addresses[0], addresses[1]]
        };
        let ([a4, a6], [b4, b6]) = (of(a), of(b));
        let [p, q] = &self.pods;
        [
            [(a.host(), a4), (b.host(), b4)],
            [(a.host(), a6), (b.host(), b6)],
            [(p.host(), p.v4()), (q.host(), q.v4())],
            [(p.host(), p.v6()), (q.host(), q.v6())],
        ]
    }

    /// Waits until everything answers, on direct paths.
    pub(crate) fn wait_connected(&self) {
        wait_until(PATIENCE, "hosts and pods reach each other directly", || {
            for [(from, _), (_, to)] in self.pairs() {
                from.ping(to)?;
            }
            let [a, b] = self.nodes();
            Ok(a.peer("b")?.path.kind == PathKind::Direct && b.peer("a")?.path.kind == PathKind::Direct)
        })
        .unwrap();
    }

    /// Captures what the nodes' tunnels give to their hosts, and what their pods get.
    pub(crate) fn capture_all(&self, keeps: fn(&[u8]) -> bool) -> Vec<(String, Capture)> {
        let nodes = self.nodes().map(|node| (node.host(), "mesh0"));
        let pods = self.pods.each_ref().map(|pod| (pod.host(), "eth0"));
        let start = |(host, interface): (&Host, &str)| {
            let name = format!("{} {interface}", host.name());
            (name, Capture::start(host.netns(), interface, keeps).unwrap())
        };
        nodes.into_iter().chain(pods).map(start).collect()
    }
}

/// Ends captures.
pub(crate) fn finish(captures: Vec<(String, Capture)>) -> Vec<(String, Seen)> {
    captures.into_iter().map(|(name, capture)| (name, capture.finish().unwrap())).collect()
}

/// A socket of a host at an address, with much room.
pub(crate) fn socket(host: &Host, address: IpAddr) -> UdpSocket {
    let socket = host.netns().enter(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A socket of a host that sends to an address.
pub(crate) fn sender(host: &Host, to: SocketAddr) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = socket(host, any);
    socket.connect(to).unwrap();
    socket
}

/// Sends datagrams of many lengths at once, and expects each as it was sent, in order.
pub(crate) fn burst(from: &Host, to: (&Host, IpAddr), what: &str) {
    let receiver = socket(to.0, to.1);
    let sender = sender(from, receiver.local_addr().unwrap());
    // Runs of equal lengths, so that there is something to merge, and lengths of all kinds.
    let datagram = |index: usize| vec![index as u8; 1 + (index / 10) * 100 + (index % 10) / 8];
    for index in 0..130 {
        sender.send(&datagram(index)).unwrap();
    }
    expect(&receiver, (0..130).map(datagram), what);
}

/// Sends superpackets of datagrams, each with one call, and expects the datagrams in order.
pub(crate) fn superpackets(from: &Host, to: (&Host, IpAddr), what: &str) {
    let receiver = socket(to.0, to.1);
    let sender = sender(from, receiver.local_addr().unwrap());
    for (stride, total) in [(1200, 24_000), (1000, 5300), (1, 5), (300, 301)] {
        setsockopt(&sender, sockopt::UdpGsoSegment, &stride).unwrap();
        let bytes: Vec<u8> = (0..total).map(|at| (at * 7 + total) as u8).collect();
        sender.send(&bytes).unwrap();
        expect(&receiver, bytes.chunks(stride as usize).map(<[u8]>::to_vec), what);
    }
}

/// Sends a datagram that is far larger than any path carries in one piece, until it arrives: what is sent first tells
/// the sender of the path's MTU.
pub(crate) fn fragmented(from: &Host, to: (&Host, IpAddr), what: &str) {
    let receiver = socket(to.0, to.1);
    receiver.set_read_timeout(Some(ANSWER)).unwrap();
    let sender = sender(from, receiver.local_addr().unwrap());
    let bytes: Vec<u8> = (0..5000).map(|at| (at * 13) as u8).collect();
    let mut buffer = vec![0; 1 << 16];
    for _ in 0..PATIENCE.as_secs() {
        // Told of the MTU meanwhile, the kernel refuses once.
        let _ = sender.send(&bytes);
        if let Ok(len) = receiver.recv(&mut buffer) {
            assert!(buffer[..len] == bytes, "{what}: another datagram, of {len} bytes");
            return;
        }
    }
    panic!("{what}: no datagram of {} bytes arrives", bytes.len());
}

fn expect(receiver: &UdpSocket, datagrams: impl Iterator<Item = Vec<u8>>, what: &str) {
    let mut buffer = vec![0; 1 << 16];
    for (index, datagram) in datagrams.enumerate() {
        let len = receiver.recv(&mut buffer).unwrap_or_else(|error| panic!("{what}, {index}: {error}"));
        assert!(buffer[..len] == datagram, "{what}: datagram {index} of {} came as {len}", datagram.len());
    }
}

/// How many packets with a wrong checksum a host's own sockets would have got.
pub(crate) fn checksum_errors(host: &Host) -> u64 {
    let read = |path| host.netns().enter(|| std::fs::read_to_string(path)).unwrap().unwrap();
    let (snmp, snmp6): (String, String) =
        (read("/proc/thread-self/net/snmp"), read("/proc/thread-self/net/snmp6"));
    let lines: Vec<Vec<&str>> = snmp.lines().map(|line| line.split_whitespace().collect()).collect();
    let pairs = lines.chunks_exact(2).flat_map(|pair| pair[0].iter().zip(&pair[1]));
    let v4 = pairs.filter(|(name, _)| **name == "InCsumErrors").map(|(_, count)| *count);
    let v6 = snmp6.lines().filter_map(|line| {
        let (name, count) = line.split_once(char::is_whitespace)?;
        name.ends_with("InCsumErrors").then(|| count.trim())
    });
    let counts: Vec<u64> = v4.chain(v6).map(|count| count.parse().unwrap()).collect();
    assert!(counts.len() >= 3, "{snmp}{snmp6}");
    counts.iter().sum()
}
