//! A node on the coordinator's own LAN: its name leads to the router's outside, which does not answer from inside.

use std::time::Duration;

use anyhow::Context as _;
use mesh_lab::mesh::wait_until;
use mesh_lab::nat::Protocol;
use mesh_lab::topology::Ipv6;
use mesh_lab::traffic::Echo;
use mesh_lab::{Filtering, Lab, Mapping, Mesh, MeshOptions, Nat, Site, Topology};
use mesh_proto::status::{ConnectionState, PathKind};

const PORT: u16 = 7443;
const LATENCY: Duration = Duration::from_millis(20);
/// To join, to connect, to find a direct path: each within this time, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// How the coordinator is to be found on the LAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// By IPv4's broadcast.
    Broadcast,
    /// By IPv6's multicast: broadcasts are lost.
    Multicast,
    /// The same, and there are no IPv6 addresses but those that only the link knows.
    LinkLocal,
}

#[test]
fn a_node_beside_the_coordinator_joins_by_its_public_name_and_is_reached_directly() {
    check(By::Broadcast).unwrap();
}

#[test]
fn without_broadcasts_the_coordinator_is_found_by_multicast() {
    check(By::Multicast).unwrap();
}

#[test]
fn an_address_that_only_the_link_knows_is_enough() {
    check(By::LinkLocal).unwrap();
}

fn check(by: By) -> anyhow::Result<()> {
    let lab = Lab::new("near")?;
    let nat = || Nat::new(Mapping::Eim, Filtering::Apdf);
    let forwarding = nat().forward(Protocol::Udp, PORT, "pi").forward(Protocol::Tcp, PORT, "pi");
    let home = Site::behind("home", forwarding).host("pi").host("beside").latency(LATENCY);
    let home = if by == By::Broadcast { home } else { home.ipv6(Ipv6::Filtered) };
    let away = Site::behind("away", nat()).host("away").latency(LATENCY);
    let network = lab.build(Topology::new().site(home).site(away))?;
    let outside = network.outside("home")?;
    let pi = network.host("pi")?;
    let lan = match by {
        By::Broadcast => pi.address().to_string(),
        By::Multicast => format!("[{}]", pi.address_v6().context("an IPv6 address")?),
        By::LinkLocal => "[fe80:".to_owned(),
    };
    if by != By::Broadcast {
        let wall = "table ip wall {\n chain out {\n  type filter hook output priority 0; policy accept;\n  \
                    ip daddr 255.255.255.255 drop\n }\n}\n";
        network.host("beside")?.netns().nft(wall)?;
    }
    if by == By::LinkLocal {
        for host in [pi, network.host("beside")?] {
            let global = host.address_v6().context("an IPv6 address")?;
            host.netns().ip(&format!("addr del {global}/64 dev eth0\n"))?;
        }
    }
    assert!(network.host("beside")?.ping(outside).is_ok(), "the router itself is there");
    let mesh = Mesh::new(network, &MeshOptions::new("pi", &outside.to_string(), &["beside", "away"]))?;
    mesh.start()?;

    let beside = mesh.node("beside")?;
    wait_until(PATIENCE, "the node beside the coordinator is connected", || {
        Ok(beside.status()?.this.coordinator.state == ConnectionState::Connected)
    })?;
    let met = beside.status()?.this.coordinator.address.unwrap_or_default();
    assert!(met.starts_with(&lan), "{met}");

    let _echo = Echo::all(&mesh, Duration::from_millis(100))?;
    wait_until(PATIENCE, "both are direct, although the coordinator sees only a LAN address", || {
        let paths = [("beside", "away"), ("away", "beside")];
        let kinds = paths.map(|(node, peer)| Ok(mesh.node(node)?.peer(peer)?.path.kind));
        let kinds = kinds.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        Ok(kinds.iter().all(|kind| *kind == PathKind::Direct))
    })?;

    // It knows by now where the coordinator is.
    beside.restart()?;
    mesh.wait_connected(PATIENCE)?;
    mesh.check_logs(&[])
}
