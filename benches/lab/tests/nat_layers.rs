//! Pairs behind NATs that stand behind others, or behave worse than their type says.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use mesh_lab::mesh::wait_until;
use mesh_lab::nat::{EarlyProbe, Hairpin};
use mesh_lab::traffic::Echo;
use mesh_lab::{Filtering, Lab, Mapping, Mesh, MeshOptions, Nat, Site, Topology};
use mesh_proto::status::PathKind;

const COORDINATOR: &str = "coordinator";
/// What each site adds to a round trip.
const LATENCY: Duration = Duration::from_millis(20);
/// Between the requests of a pair.
const INTERVAL: Duration = Duration::from_millis(100);
/// For a pair that plain probing gets through, on a busy machine.
const DIRECT_PATIENCE: Duration = Duration::from_secs(5);
/// A path is trusted for 2.5 s after its last answer; the rest is for a busy machine.
const RECOVERY: Duration = Duration::from_secs(5);
/// A pair that falls silent is forgotten by its agents' timers after 20 s.
const PAUSE: Duration = Duration::from_secs(25);

fn home() -> Nat {
    Nat::new(Mapping::Eim, Filtering::Apdf)
}

/// The carrier's site, with the addresses that RFC 6598 gives carriers.
fn carrier(nat: Nat) -> Site {
    Site::behind("carrier", nat)
        .latency(LATENCY)
        .inside(Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 24))
}

/// A coordinator, these sites, and agents on `a` and `b`.
fn start(lab: &Lab, sites: impl IntoIterator<Item = Site>) -> anyhow::Result<Mesh> {
    let public = Topology::new().site(Site::public(COORDINATOR).latency(LATENCY));
    let network = lab.build(sites.into_iter().fold(public, Topology::site))?;
    let address = network.host(COORDINATOR)?.address().to_string();
    let mesh = Mesh::new(network, &MeshOptions::new(COORDINATOR, &address, &["a", "b"]))?;
    mesh.start()?;
    Ok(mesh)
}

fn kinds(mesh: &Mesh) -> anyhow::Result<[PathKind; 2]> {
    Ok([mesh.node("a")?.peer("b")?.path.kind, mesh.node("b")?.peer("a")?.path.kind])
}

fn wait_direct(mesh: &Mesh) -> anyhow::Result<Echo> {
    let echo = Echo::all(mesh, INTERVAL)?;
    wait_until(DIRECT_PATIENCE, "both sides are direct", || Ok(kinds(mesh)? == [PathKind::Direct; 2]))?;
    Ok(echo)
}

#[test]
fn double_nat_is_punched() {
    let lab = Lab::new("double").unwrap();
    let sites = [
        carrier(home()),
        Site::behind("near", home()).host("a").customer_of("carrier"),
        Site::behind("far", home()).host("b").latency(LATENCY),
    ];
    let mesh = start(&lab, sites).unwrap();
    wait_direct(&mesh).unwrap();
    mesh.check_logs(&[]).unwrap();
}

#[test]
fn customers_of_one_carrier_meet_at_its_hairpin_or_at_the_relay() {
    for hairpin in [Hairpin::On, Hairpin::Off] {
        let lab = Lab::new("cgnat").unwrap();
        let sites = [
            carrier(home().hairpin(hairpin)),
            Site::behind("near", home()).host("a").customer_of("carrier"),
            Site::behind("far", home()).host("b").customer_of("carrier"),
        ];
        let mesh = start(&lab, sites).unwrap();
        match hairpin {
            Hairpin::On => drop(wait_direct(&mesh).unwrap()),
            Hairpin::Off => {
                let echo = Echo::all(&mesh, INTERVAL).unwrap();
                echo.wait_all(Instant::now(), DIRECT_PATIENCE).unwrap();
                std::thread::sleep(DIRECT_PATIENCE);
                assert_eq!(kinds(&mesh).unwrap(), [PathKind::Relay; 2]);
            }
        }
        mesh.check_logs(&[]).unwrap();
    }
}

#[test]
fn probes_that_come_too_early_do_no_harm() {
    let lab = Lab::new("early").unwrap();
    let nat = || home().early_probe(EarlyProbe::MovesMapping);
    let sites = [
        Site::behind("near", nat()).host("a").latency(LATENCY),
        Site::behind("far", nat()).host("b").latency(LATENCY),
    ];
    let mesh = start(&lab, sites).unwrap();
    wait_direct(&mesh).unwrap();
    mesh.check_logs(&[]).unwrap();
}

#[test]
fn a_rebooted_nat_is_punched_again() {
    let lab = Lab::new("reboot").unwrap();
    let sites = [
        Site::behind("near", home()).host("a").latency(LATENCY),
        Site::behind("far", home()).host("b").latency(LATENCY),
    ];
    let mesh = start(&lab, sites).unwrap();
    let echo = wait_direct(&mesh).unwrap();
    mesh.network().reboot("near").unwrap();
    echo.wait_all(Instant::now(), RECOVERY).unwrap();
    wait_until(RECOVERY, "both sides are direct again", || Ok(kinds(&mesh)? == [PathKind::Direct; 2]))
        .unwrap();
    mesh.check_logs(&[]).unwrap();
}

#[test]
fn mappings_that_end_in_a_pause_are_made_anew() {
    let lab = Lab::new("timers").unwrap();
    let nat = || home().udp_timeout(Duration::from_secs(10));
    let sites = [
        Site::behind("near", nat()).host("a").latency(LATENCY),
        Site::behind("far", nat()).host("b").latency(LATENCY),
    ];
    let mesh = start(&lab, sites).unwrap();
    drop(wait_direct(&mesh).unwrap());
    std::thread::sleep(PAUSE);
    // The first packet goes through the relay as well, and is not lost.
    mesh.ping("a", "b").unwrap();
    wait_direct(&mesh).unwrap();
    mesh.check_logs(&[]).unwrap();
}
