//! Nodes whose peers are shared by several engines, each with a thread, sockets and a queue of the TUN of its own,
//! talk to each other and to nodes with one: directly, through a relay, and through byte streams.
#![expect(clippy::unwrap_used, reason = "a test may fail that way")]

use std::{sync::Arc, thread, time::Duration};

use mesh_lab::{
    Lab, Mesh, MeshOptions, Network, Node, Topology,
    mesh::wait_until,
    nat::{Egress, Filtering, Mapping, Nat},
    topology::Site,
    traffic::transfer,
};
use mesh_proto::status::{EnginesStatus, PathKind};

/// For what has no budget here, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);
/// Bytes of a transfer: many superpackets.
const TRANSFER: u64 = 4_000_000;
/// The nodes and how many engines each has; the first talks to all others.
const NODES: [(&str, u32); 5] = [("hub", 2), ("a", 1), ("b", 2), ("c", 3), ("d", 1)];

/// Starts the nodes in these sites, with these offloads.
fn start(lab: &Lab, sites: Vec<Site>, offloads: &str) -> Mesh {
    let sites = sites.into_iter().fold(Topology::new().site(Site::public("coord")), Topology::site);
    let network: Arc<Network> = Arc::new(lab.build(sites).unwrap());
    let address = network.host("coord").unwrap().address().to_string();
    let mut options = MeshOptions::new("coord", &address, &NODES.map(|(name, _)| name));
    options.agent_args = vec![format!("--offloads={offloads}")];
    options.agent_args_of =
        NODES.map(|(name, count)| (name.into(), vec![format!("--shards={count}")])).into();
    let mesh = Mesh::new(network, &options).unwrap();
    mesh.start().unwrap();
    mesh.wait_connected(PATIENCE).unwrap();
    mesh
}

fn hub(mesh: &Mesh) -> &Node {
    mesh.node("hub").unwrap()
}

fn others(mesh: &Mesh) -> impl Iterator<Item = &Node> {
    NODES[1..].iter().map(|(name, _)| mesh.node(name).unwrap())
}

fn engines(node: &Node) -> EnginesStatus {
    node.status().unwrap().this.engines.unwrap()
}

/// Waits until the hub is on paths of this kind with everyone, as both sides see it.
fn wait_for_paths(mesh: &Mesh, kind: PathKind) {
    wait_until(PATIENCE, &format!("every path of the hub is {kind:?}"), || {
        for node in others(mesh) {
            mesh.ping("hub", node.name())?;
            let kinds = [hub(mesh).peer(node.name())?.path.kind, node.peer("hub")?.path.kind];
            if kinds != [kind; 2] {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .unwrap();
}

/// Sends streams between the hub and every other node, both ways, all at the same time.
fn transfer_all(mesh: &Mesh) {
    let hub = hub(mesh);
    let hub_address = hub.address().unwrap();
    thread::scope(|scope| {
        for node in others(mesh) {
            let address = node.address().unwrap();
            let ways = [(hub, node, address), (node, hub, hub_address)];
            for (from, to, address) in ways {
                scope.spawn(move || {
                    let sent = transfer(from.host(), (to.host(), address), TRANSFER).unwrap();
                    let what = format!("{} to {}", from.name(), to.name());
                    assert!((sent.bytes, &sent.sent) == (TRANSFER, &sent.received), "{what}: {sent:?}");
                });
            }
        }
    });
}

fn check_engines(mesh: &Mesh) {
    for (name, count) in NODES {
        let status = mesh.node(name).unwrap().status().unwrap();
        assert_eq!(status.this.engines.map_or(1, |engines| engines.count), count, "{name}");
        assert_eq!(status.peers.len(), NODES.len() - 1, "{name}");
        let drops = status.peers.iter().flat_map(|peer| &peer.drops).chain(&status.this.drops);
        for (reason, count) in drops {
            println!("{name}: {count} {reason}");
        }
        for refused in ["tun-write", "tun-read", "malformed-packet", "wrong-source", "bad-crypto"] {
            assert_eq!(status.this.drops.get(refused), None, "{name}: {refused}");
        }
    }
}

fn one_lan() -> Vec<Site> {
    let lan = Site::behind("lan", Nat::new(Mapping::Eim, Filtering::Apdf));
    vec![NODES.iter().fold(lan, |lan, (name, _)| lan.host(name))]
}

/// Every node behind a router of its own.
fn behind(nat: impl Fn(&str) -> Nat) -> Vec<Site> {
    let site = |name: &str| Site::behind(&format!("at-{name}"), nat(name)).host(name);
    NODES.iter().map(|(name, _)| site(name)).collect()
}

#[test]
fn directly_and_the_system_gives_each_engine_most_of_what_is_its_own() {
    let lab = Lab::new("shards-direct").unwrap();
    let mesh = start(&lab, one_lan(), "all");
    wait_for_paths(&mesh, PathKind::Direct);
    let before = engines(hub(&mesh));
    transfer_all(&mesh);
    let after = engines(hub(&mesh));
    println!("steered by the system: before {before:?}, after {after:?}");
    let datagrams = after.datagrams - before.datagrams;
    let handed_over = after.datagrams_handed_over - before.datagrams_handed_over;
    assert!(handed_over * 20 < datagrams, "{handed_over} of {datagrams} datagrams");
    let reads = after.tun_reads - before.tun_reads;
    let handed_over = after.tun_reads_handed_over - before.tun_reads_handed_over;
    assert!(handed_over * 4 < reads, "{handed_over} of {reads} reads of the TUN");
    check_engines(&mesh);
    mesh.stop().unwrap();
}

#[test]
fn directly_where_the_system_cannot_steer() {
    let lab = Lab::new("shards-unsteered").unwrap();
    let mesh = start(&lab, one_lan(), "tun,udp-send,udp-receive");
    wait_for_paths(&mesh, PathKind::Direct);
    transfer_all(&mesh);
    let engines = engines(hub(&mesh));
    println!("not steered: {engines:?}");
    // Two of the four peers are of the engine that does not read the TUN.
    assert!(engines.tun_reads_handed_over * 10 > engines.tun_reads, "{engines:?}");
    check_engines(&mesh);
    mesh.stop().unwrap();
}

#[test]
fn through_a_relay() {
    let lab = Lab::new("shards-relay").unwrap();
    let mesh = start(&lab, behind(|_| Nat::new(Mapping::Apdm, Filtering::Apdf)), "all");
    wait_for_paths(&mesh, PathKind::Relay);
    let before = engines(hub(&mesh));
    transfer_all(&mesh);
    let after = engines(hub(&mesh));
    println!("through a relay: before {before:?}, after {after:?}");
    check_engines(&mesh);
    mesh.stop().unwrap();
}

#[test]
fn through_byte_streams() {
    let lab = Lab::new("shards-stream").unwrap();
    let blocked = |name: &str| match name {
        "hub" | "c" => Nat::masquerade().egress(Egress::NoUdp),
        _ => Nat::masquerade(),
    };
    let mesh = start(&lab, behind(blocked), "all");
    wait_for_paths(&mesh, PathKind::Relay);
    transfer_all(&mesh);
    let engines = engines(hub(&mesh));
    println!("through a byte stream: {engines:?}");
    // The stream is the first engine's, whatever comes out of it.
    assert!(engines.datagrams_handed_over > 100, "{engines:?}");
    check_engines(&mesh);
    mesh.stop().unwrap();
}

#[test]
fn an_interface_that_is_deleted_is_made_again_with_all_its_queues() {
    let lab = Lab::new("shards-lost").unwrap();
    let mesh = start(&lab, one_lan(), "all");
    hub(&mesh).host().command("ip").args(["link", "del", "mesh0"]).output().unwrap().success().unwrap();
    mesh.wait_connected(PATIENCE).unwrap();
    transfer_all(&mesh);
    mesh.stop().unwrap();
}
