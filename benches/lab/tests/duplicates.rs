//! Two machines with the same keys: the first one stays, the copy is silent, and both are told. A node that is restarted,
//! however often and however it ends, is never taken for a copy.

use std::time::Duration;

use mesh_lab::mesh::wait_until;
use mesh_lab::{Lab, Mesh, MeshOptions, Node, Site, Topology};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(30);
/// What each site adds to a round trip.
const LATENCY: Duration = Duration::from_millis(10);

/// A coordinator, and two nodes that talk; on a third host nothing runs.
fn mesh(name: &str) -> anyhow::Result<(Lab, Mesh)> {
    let lab = Lab::new(name)?;
    let sites = ["coord", "a", "b", "copy"].map(|name| Site::public(name).latency(LATENCY));
    let network = lab.build(sites.into_iter().fold(Topology::new(), Topology::site))?;
    let address = network.outside("coord")?.to_string();
    let mesh = Mesh::new(network, &MeshOptions::new("coord", &address, &["a", "b", "copy"]))?;
    mesh.start_coordinator()?;
    for name in ["a", "b"] {
        mesh.join(name)?;
    }
    wait_until(PATIENCE, "a and b talk", || Ok(mesh.ping("a", "b").is_ok() && mesh.ping("b", "a").is_ok()))?;
    Ok((lab, mesh))
}

fn status(node: &Node) -> anyhow::Result<String> {
    Ok(node.status_json()?.to_string())
}

#[test]
fn a_copy_is_refused_and_silent_and_both_are_told() {
    let (_lab, mesh) = mesh("copies").unwrap();
    let [a, b, copy] = ["a", "b", "copy"].map(|name| mesh.node(name).unwrap());
    let files = a.host().command("cp").arg("-r").arg(a.state_dir()).arg(copy.state_dir()).output().unwrap();
    files.success().unwrap();
    let address = a.address().unwrap();
    copy.start().unwrap();
    wait_until(PATIENCE, "both are told", || {
        Ok(status(copy)?.contains("this machine is a copy")
            && status(a)?.contains("a copy of this node's keys"))
    })
    .unwrap();
    // Through all that follows, b talks to a and to nobody else.
    for _ in 0..10 {
        b.host().ping(address).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    let routes = copy.host().command("ip").args(["route", "show", "proto", "109"]).output().unwrap();
    assert_eq!(routes.success().unwrap().stdout, "", "the copy sends nothing into the mesh");
    for (node, said) in [(a, "another machine has a copy"), (copy, "remove the agent's state directory")] {
        let log = node.agent().log().unwrap();
        assert_eq!(log.matches(said).count(), 1, "{log}");
    }
    assert!(!mesh.coordinator().log().unwrap().contains("disconnected"));
}

#[test]
fn a_node_that_is_restarted_again_and_again_is_never_called_a_copy() {
    let (_lab, mesh) = mesh("storm").unwrap();
    let a = mesh.node("a").unwrap();
    for round in 0..4 {
        match round % 2 {
            0 => a.kill(Signal::SIGKILL).unwrap(),
            _ => a.agent().stop().unwrap(),
        }
        a.start().unwrap();
        wait_until(PATIENCE, "a is back", || Ok(mesh.ping("b", "a").is_ok() && mesh.ping("a", "b").is_ok()))
            .unwrap();
    }
    wait_until(PATIENCE, "a is connected", || Ok(status(a)?.contains(r#""state":"connected""#))).unwrap();
    for daemon in mesh.daemons() {
        let Ok(log) = daemon.log() else { continue };
        assert!(!log.contains("copy") && !log.contains("same keys"), "{log}");
    }
}
