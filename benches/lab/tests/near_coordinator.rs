//! A node on the coordinator's own LAN: its name leads to the router's outside, which does not answer from inside.

use std::time::Duration;

use mesh_lab::mesh::wait_until;
use mesh_lab::nat::Protocol;
use mesh_lab::traffic::Echo;
use mesh_lab::{Filtering, Lab, Mapping, Mesh, MeshOptions, Nat, Site, Topology};
use mesh_proto::status::{ConnectionState, PathKind};

const PORT: u16 = 7443;
const LATENCY: Duration = Duration::from_millis(20);
/// To join, to connect, to find a direct path: each within this time, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn a_node_beside_the_coordinator_joins_by_its_public_name_and_is_reached_directly() {
    let lab = Lab::new("near").unwrap();
    let nat = || Nat::new(Mapping::Eim, Filtering::Apdf);
    let forwarding = nat().forward(Protocol::Udp, PORT, "pi").forward(Protocol::Tcp, PORT, "pi");
    let home = Site::behind("home", forwarding).host("pi").host("beside").latency(LATENCY);
    let away = Site::behind("away", nat()).host("away").latency(LATENCY);
    let network = lab.build(Topology::new().site(home).site(away)).unwrap();
    let outside = network.outside("home").unwrap();
    let lan = network.host("pi").unwrap().address();
    assert!(network.host("beside").unwrap().ping(outside).is_ok(), "the router itself is there");
    let mesh =
        Mesh::new(network, &MeshOptions::new("pi", &outside.to_string(), &["beside", "away"])).unwrap();
    mesh.start().unwrap();

    let beside = mesh.node("beside").unwrap();
    wait_until(PATIENCE, "the node beside the coordinator is connected", || {
        Ok(beside.status()?.this.coordinator.state == ConnectionState::Connected)
    })
    .unwrap();
    let met = beside.status().unwrap().this.coordinator.address.unwrap_or_default();
    assert!(met.starts_with(&lan.to_string()), "{met}");

    let _echo = Echo::all(&mesh, Duration::from_millis(100)).unwrap();
    wait_until(PATIENCE, "both are direct, although the coordinator sees only a LAN address", || {
        let paths = [("beside", "away"), ("away", "beside")];
        let kinds = paths.map(|(node, peer)| Ok(mesh.node(node)?.peer(peer)?.path.kind));
        let kinds = kinds.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        Ok(kinds.iter().all(|kind| *kind == PathKind::Direct))
    })
    .unwrap();

    // It knows by now where the coordinator is.
    beside.restart().unwrap();
    mesh.wait_connected(PATIENCE).unwrap();
    mesh.check_logs(&[]).unwrap();
}
