//! A connection lives through restarts and crashes of either side, and nobody sees the interface go.

use std::time::{Duration, Instant};

use mesh_lab::mesh::{Ending, wait_until};
use mesh_lab::traffic::Probe;

use crate::rig::{self, Monitor, PATIENCE};

/// Between two questions to the node that is restarted.
const INTERVAL: Duration = Duration::from_millis(5);
/// How often it is.
const RESTARTS: u64 = 3;
/// Questions that may be lost each time, on a busy machine: a tenth of those that fall into a restart.
const MAX_LOST: u64 = 3;
/// The last of them are answered by then.
const IN_FLIGHT: Duration = Duration::from_secs(2);

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
fn next_to_nothing_is_lost_at_a_restart_that_was_asked_for() {
    let (_lab, mesh) = rig::mesh("asked").unwrap();
    let [service, _other] = rig::start(&mesh).unwrap();
    let (a, b) = (mesh.node("a").unwrap(), mesh.node("b").unwrap());
    let probe = Probe::start(b.host(), (a.host(), a.address().unwrap().into()), INTERVAL).unwrap();
    wait_until(PATIENCE, "questions are answered", || Ok(probe.counts().1 > 50)).unwrap();
    for _ in 0..RESTARTS {
        service.restart(Ending::Asked).unwrap();
        rig::wait_back(&mesh).unwrap();
        rig::wait_direct(&mesh).unwrap();
        probe.wait_reply(Instant::now(), PATIENCE).unwrap();
    }
    probe.set_silent(true);
    let lost = || {
        let (sent, received) = probe.counts();
        sent - received
    };
    // Those that are on their way come; if one is lost, this is waited for in vain.
    let _ = wait_until(IN_FLIGHT, "all are answered", || Ok(lost() == 0));
    println!("{} of {} questions were lost", lost(), probe.counts().0);
    assert!(lost() <= RESTARTS * MAX_LOST);
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
