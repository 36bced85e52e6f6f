//! What was opened for other settings is opened anew; the rest is kept.

use mesh_lab::Node;
use mesh_lab::mesh::Ending;

use crate::rig;

/// The interface of node `a`, and whether its agent has this UDP port.
fn look(node: &Node, port: u16) -> anyhow::Result<(String, bool)> {
    let shown = node.host().command("ss").args(["-Hulnp"]).output()?.success()?.stdout;
    let is_its = |line: &str| line.contains("mesh-agent") && line.contains(&format!("0.0.0.0:{port} "));
    Ok((rig::interface_index(node.host())?, shown.lines().any(is_its)))
}

#[test]
fn what_does_not_fit_is_opened_anew_and_the_rest_goes_on() {
    let (_lab, mesh) = rig::mesh("settings").unwrap();
    let [service, _other] = rig::start(&mesh).unwrap();
    let a = mesh.node("a").unwrap();
    let before = look(a, 51820).unwrap();
    assert!(before.1);

    service.end(Ending::Asked).unwrap();
    service.start_with(&["--mtu", "1300"]).unwrap();
    rig::wait_back(&mesh).unwrap();
    assert_eq!(look(a, 51820).unwrap(), before, "another MTU needs nothing new");
    let link = a.host().command("ip").args(["link", "show", "mesh0"]).output().unwrap();
    assert!(link.success().unwrap().stdout.contains("mtu 1300"));

    service.end(Ending::Asked).unwrap();
    service.start_with(&["--offloads", "none"]).unwrap();
    rig::wait_back(&mesh).unwrap();
    let plain = look(a, 51820).unwrap();
    assert_ne!(plain.0, before.0, "a TUN with other offloads");
    assert!(plain.1);

    service.end(Ending::Killed).unwrap();
    service.start_with(&["--offloads", "none", "--listen-port", "4711"]).unwrap();
    rig::wait_back(&mesh).unwrap();
    assert_eq!(look(a, 4711).unwrap(), (plain.0, true));
    assert!(!look(a, 51820).unwrap().1, "the older port is closed");

    service.end(Ending::Asked).unwrap();
    service.start_with(&["--offloads", "none", "--listen-port", "4711", "--shards", "2"]).unwrap();
    rig::wait_back(&mesh).unwrap();
    assert!(service.kept().contains(&"mesh-udp4-1".to_owned()), "{:?}", service.kept());
    service.restart(Ending::Killed).unwrap();
    rig::wait_back(&mesh).unwrap();
    assert_eq!(service.kept(), ["mesh-record", "mesh-tun-0", "mesh-udp4-0", "mesh-udp6-0"]);
}
