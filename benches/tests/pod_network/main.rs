//! The pod network of two village nodes, over the real mesh: pods that the reference plugins have attached reach each
//! other from one NAT to the other with their own addresses, whatever the size of what they send.
//!
//! ```text
//!   pod --- cni-mesh0 [country] mesh0 === tunnel === mesh0 [home-a] cni-mesh0 --- pod
//! ```
#![expect(clippy::unwrap_used, reason = "a test may fail that way")]

#[path = "../../../agent/tests/podnet/runtime.rs"]
mod runtime;

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    thread,
    time::Duration,
};

use ipnet::IpNet;
use mesh_agent::kubernetes::podnet::{CONFLIST, Desired, K3s, MeshState, Places, PodNetwork, Problem};
use mesh_lab::{
    Lab, Mesh, MeshOptions, Netns, Village,
    mesh::wait_until,
    netns, pods,
    village::{COORDINATOR_HOST, COORDINATOR_NAME},
};

use runtime::{Attachment, Runtime};

/// The nodes, with the numbers of their pod ranges.
const NODES: [(&str, u8); 2] = [("country", 1), ("home-a", 2)];
const PATIENCE: Duration = Duration::from_secs(20);
/// The mesh's interface, and so the pods'.
const MTU: u16 = 1420;
/// A large answer of a name server.
const LARGE: usize = 1400;
/// What goes over TCP.
const BYTES: usize = 10 << 20;

/// A node of the village, with its pod.
struct Side<'a> {
    node: &'a Netns,
    network: PodNetwork,
    places: Places,
    pod: Netns,
    place: Attachment,
}

#[test]
fn pods_talk_from_nat_to_nat_with_their_own_addresses() {
    let lab = Lab::new("podnet").unwrap();
    let mut options =
        MeshOptions::new(COORDINATOR_HOST, COORDINATOR_NAME, &[COORDINATOR_HOST, "country", "home-a"]);
    options.agent_args.push(format!("--mtu={MTU}"));
    pods::announce(&mut options, NODES);
    let village = Village::prepare_with(&lab, options).unwrap();
    let mesh = village.mesh();
    mesh.start().unwrap();
    let mut sides = NODES.map(|(name, number)| Side::start(&lab, mesh, name, number));
    wait_routes(mesh);
    let [a, b] = &sides;
    for (from, to) in [(a, b), (b, a)] {
        for address in &to.place.addresses {
            wait_until(PATIENCE, "pods reach each other", || Ok(from.ping(address, "-W 1").is_ok())).unwrap();
        }
        let v4 = &to.place.addresses[0];
        // 20 bytes of IPv4, 8 of ICMP.
        let full = format!("-W 1 -M do -s {}", MTU - 28);
        wait_until(PATIENCE, "a full packet passes whole", || Ok(from.ping(v4, &full).is_ok())).unwrap();
        assert!(from.ping(v4, &format!("-W 1 -M do -s {}", MTU - 27)).is_err(), "it is too large");
        for index in 0..2 {
            from.ask(to, index);
            from.send_all(to, index);
        }
    }
    for side in &mut sides {
        side.end();
    }
}

impl<'a> Side<'a> {
    fn start(lab: &Lab, mesh: &'a Mesh, name: &str, number: u8) -> Self {
        let node = mesh.node(name).unwrap();
        let root = lab.directory().join("podnet").join(name);
        let places = Places {
            cni_conf_dir: root.join("net.d"),
            cni_bin_dir: root.join("bin"),
            plugin_sources: vec![mesh.binaries().agent.parent().unwrap().to_owned(), "/usr/lib/cni".into()],
            host_local_dir: root.join("leases"),
            k3s: K3s { socket: root.join("k3s.sock"), configuration: root.join("k3s.toml") },
        };
        let nets = |all: &[String]| all.iter().map(|net| net.parse::<IpNet>().unwrap()).collect();
        let desired = Desired {
            pods: nets(&[format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")]),
            cluster_pods: nets(&["10.244.0.0/16".to_owned(), "fd00:10:244::/48".to_owned()]),
            services: nets(&["10.96.0.0/12".to_owned()]),
            mesh: nets(&["10.90.0.0/16".to_owned()]),
            offered: vec![],
            interface: "mesh0".to_owned(),
            mtu: MTU,
            socket: node.socket(),
            mesh_state: MeshState::Ready,
        };
        let netns = node.host().netns();
        let mut network = PodNetwork::new(places.clone());
        let problems = netns.enter(|| block_on(network.set(&desired))).unwrap();
        let serious: Vec<_> =
            problems.iter().filter(|problem| **problem != Problem::NoBridgeFilter).collect();
        assert!(serious.is_empty(), "{serious:?}");
        let pod = lab.namespace(&format!("{name}-pod")).unwrap();
        pod.ip("link set lo up\n").unwrap();
        let runtime = Runtime::read(&places.cni_conf_dir.join(CONFLIST), &places.cni_bin_dir);
        let place = netns.enter(|| runtime.add("pod", &netns::path_of(pod.name()), &[])).unwrap();
        Self { node: netns, network, places, pod, place }
    }

    /// Pings once, with these options.
    fn ping(&self, to: &str, options: &str) -> Result<(), String> {
        let run =
            || std::process::Command::new("ping").args(["-c", "1"]).args(options.split(' ')).arg(to).output();
        let output = self.pod.enter(run).unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    }

    fn address(&self, index: usize) -> IpAddr {
        self.place.addresses[index].parse().unwrap()
    }

    fn udp(&self, index: usize) -> UdpSocket {
        let socket = self.pod.enter(|| UdpSocket::bind((self.address(index), 0))).unwrap().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Sends a large datagram and gets one back; either side sees the other's own address.
    fn ask(&self, to: &Self, index: usize) {
        let (client, server) = (self.udp(index), to.udp(index));
        let mut buffer = vec![0; 1 << 16];
        client.send_to(&vec![1; LARGE], server.local_addr().unwrap()).unwrap();
        let (length, source) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((length, source), (LARGE, client.local_addr().unwrap()));
        server.send_to(&vec![2; LARGE], source).unwrap();
        let (length, source) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((length, source), (LARGE, server.local_addr().unwrap()));
    }

    /// Sends much over TCP; the other side sees the pod's own address.
    fn send_all(&self, to: &Self, index: usize) {
        let listener = to.pod.enter(|| TcpListener::bind((to.address(index), 0))).unwrap().unwrap();
        let at: SocketAddr = listener.local_addr().unwrap();
        let mut stream = self.pod.enter(|| TcpStream::connect_timeout(&at, PATIENCE)).unwrap().unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        thread::scope(|scope| {
            let received = scope.spawn(|| {
                let (mut stream, source) = listener.accept().unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                (all.len(), source.ip())
            });
            stream.write_all(&vec![7; BYTES]).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(received.join().unwrap(), (BYTES, self.address(index)));
        });
    }

    /// The pod goes, then the network: nothing is left.
    fn end(&mut self) {
        let Self { node, network, places, pod: _, place } = self;
        let runtime = Runtime::read(&places.cni_conf_dir.join(CONFLIST), &places.cni_bin_dir);
        node.enter(|| runtime.delete(place)).unwrap();
        assert_eq!(node.enter(|| block_on(network.remove("mesh0"))).unwrap(), vec![]);
        let left = |dir: &Path| std::fs::read_dir(dir).unwrap().count();
        assert_eq!((left(&places.cni_conf_dir), left(&places.cni_bin_dir)), (0, 0));
        let links = node.enter(|| std::process::Command::new("ip").args(["-o", "link"]).output());
        let links = String::from_utf8(links.unwrap().unwrap().stdout).unwrap();
        assert!(links.contains("mesh0") && !links.contains("cni-mesh0"), "{links}");
    }
}

/// Waits until each of the two knows where the other's pods are.
fn wait_routes(mesh: &Mesh) {
    wait_until(PATIENCE, "the nodes know where the pods are", || {
        for [(name, _), (peer, number)] in [NODES, [NODES[1], NODES[0]]] {
            let range: IpNet = format!("10.244.{number}.0/24").parse()?;
            if !mesh.node(name)?.peer(peer)?.allowed_ips.contains(&range) {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .unwrap();
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
