//! What happens to laptops and routers, with a download that goes on through all of it.
//!
//! How soon a pair is back is measured by `make bench-roam`; here it has to come back, and nothing may break.

use std::time::{Duration, Instant};

use mesh_lab::mesh::wait_until;
use mesh_lab::nat::Egress;
use mesh_lab::traffic::{Download, Probe};
use mesh_lab::{Lab, Village};
use nix::sys::signal::Signal;

/// Far beyond what is promised: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(15);
const INTERVAL: Duration = Duration::from_millis(20);
/// Longer than a process stands still that has only to wait for its turn.
const SLEEP: Duration = Duration::from_secs(4);
const MOVES: &str = "macbook";
const STAYS: &str = "country";

#[test]
fn a_download_goes_on_through_roams_routers_and_sleep() {
    let lab = Lab::new("roaming").unwrap();
    let village = Village::start(&lab).unwrap();
    let network = village.network();
    let [moves, stays] = [MOVES, STAYS].map(|name| village.node(name).unwrap());
    let target = stays.address().unwrap().into();
    let download = Download::start(moves.host(), (stays.host(), target)).unwrap();
    let probe = Probe::start(moves.host(), (stays.host(), target), INTERVAL).unwrap();
    let back = |what: &str| {
        let took = probe.wait_reply(Instant::now(), PATIENCE);
        println!("{what}: {took:?}");
        took.unwrap();
        // The next thing shall not happen before this one is over.
        wait_until(PATIENCE, "an answer on the path in use", || {
            let path = moves.primary(STAYS)?;
            Ok(path.is_some_and(|path| {
                path.answered.is_some_and(|at| at.elapsed().is_ok_and(|ago| ago < Duration::from_secs(1)))
            }))
        })
        .unwrap();
    };
    back("at first");
    network.move_host(MOVES, "cafe").unwrap();
    back("in another network");
    network.rebind(STAYS, mesh_proto::DEFAULT_AGENT_PORT, 40_000).unwrap();
    back("the peer's router gives another port");
    network.set_outside("cafe", [198, 51, 100, 61].into()).unwrap();
    back("the own router has another address");
    network.set_egress("cafe", Egress::NoUdp).unwrap();
    back("UDP is blocked");
    network.move_host(MOVES, "home").unwrap();
    back("in a network that lets UDP out");

    moves.kill(Signal::SIGSTOP).unwrap();
    network.move_host(MOVES, "lte").unwrap();
    std::thread::sleep(SLEEP);
    moves.kill(Signal::SIGCONT).unwrap();
    back("awake in yet another network");
    assert!(moves.agent().log().unwrap().contains("this host was away"), "it has noticed its sleep");

    let file = download.finish().unwrap();
    assert_eq!(file.sent, file.received, "the download of {} bytes", file.bytes);
    village.check_logs(&["the coordinator is not reached"]).unwrap();
}
