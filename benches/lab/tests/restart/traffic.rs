//! A connection lives through restarts and crashes of either side, and nobody sees the interface go.

use mesh_lab::mesh::{Ending, wait_until};

use crate::rig::{self, Monitor, PATIENCE};

#[test]
fn a_connection_lives_through_restarts_and_crashes_of_both_sides() {
    let (_lab, mesh) = rig::mesh("restart").unwrap();
    let [service, _other] = rig::start(&mesh).unwrap();
    let (a, b) = (mesh.node("a").unwrap(), mesh.node("b").unwrap());
    let addresses = [a.address().unwrap(), b.address().unwrap()];
    let index = rig::interface_index(a.host()).unwrap();
    let monitor = Monitor::start(a.host()).unwrap();
    let restart_a = || {
        [Ending::Asked, Ending::Killed, Ending::Asked].into_iter().try_for_each(|ending| {
            service.restart(ending)?;
            rig::wait_back(&mesh)
        })
    };
    let upward = rig::stream_during(a.host(), (b.host(), addresses[1].into()), restart_a).unwrap();
    let downward = rig::stream_during(b.host(), (a.host(), addresses[0].into()), restart_a).unwrap();
    assert!(upward > 0 && downward > 0);
    assert_eq!(rig::interface_index(a.host()).unwrap(), index, "the interface is the same");
    assert_eq!(
        monitor.deleted().unwrap(),
        Vec::<String>::new(),
        "no route, address or link was gone at any time"
    );
    assert_eq!(
        service.kept(),
        ["mesh-record", "mesh-tun-0", "mesh-udp4-0", "mesh-udp6-0"],
        "nothing piles up"
    );
}

#[test]
fn a_stop_is_a_stop() {
    let (_lab, mesh) = rig::mesh("stop").unwrap();
    let [service, _other] = rig::start(&mesh).unwrap();
    let host = mesh.node("a").unwrap().host();
    service.stop().unwrap();
    wait_until(PATIENCE, "the interface goes", || {
        let shown = host.command("ip").args(["link", "show", "mesh0"]).output()?;
        Ok(shown.success().is_err())
    })
    .unwrap();
    let routes = host.command("ip").args(["route", "show", "proto", "109"]).output().unwrap();
    assert_eq!(routes.success().unwrap().stdout, "");
}
