//! Two families, of which one has addresses and routes and leads nowhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_lab::mesh::wait_until;
use mesh_lab::nat::tayga::Tayga;
use mesh_lab::topology::{Ipv6, Lost};
use mesh_lab::traffic::Echo;
use mesh_lab::{Filtering, Lab, Mapping, Mesh, Nat, Network, Site, Topology};
use mesh_proto::nat64::Nat64Prefix;
use mesh_proto::status::{ConnectionState, ControlTransport, FamilyState, Status};

use crate::rig::{COORDINATOR, LATENCY, PATIENCE, over_ipv6, paths, prepare, wait_direct};

const NAME: &str = "coordinator.example";
/// A family that dies under a connection is left within this time, on a busy machine.
const RECOVERY: Duration = Duration::from_secs(10);

/// Far below the 8 s that one attempt may take: whoever waits for it does not wait for the other family.
const NO_WAIT: Duration = Duration::from_secs(5);

/// Both families everywhere, and a name with addresses of both.
fn build(lab: &Lab, ipv6_of_coordinator: Ipv6, ipv6_of_b: Ipv6) -> anyhow::Result<Arc<Network>> {
    let site = |name: &str, host: &str, ipv6| {
        let nat = Nat::new(Mapping::Eim, Filtering::Apdf);
        Site::behind(name, nat).host(host).latency(LATENCY).ipv6(ipv6)
    };
    let topology = Topology::new()
        .site(Site::public(COORDINATOR).latency(LATENCY).ipv6(ipv6_of_coordinator))
        .site(site("near", "a", Ipv6::Filtered))
        .site(site("far", "b", ipv6_of_b));
    let network = Arc::new(lab.build(topology)?);
    let host = network.host(COORDINATOR)?;
    let addresses: Vec<std::net::IpAddr> =
        host.address_v6().map(Into::into).into_iter().chain([host.address().into()]).collect();
    network.dns().set(NAME, &addresses);
    Ok(network)
}

/// Joins and starts both nodes, one after the other, and tells how long `a` takes.
fn start(mesh: &Mesh) -> anyhow::Result<()> {
    mesh.start_coordinator()?;
    let line = mesh.token(&["--uses", "2"])?;
    mesh.node("b")?.join(&line)?;
    mesh.node("b")?.start()?;
    let start = Instant::now();
    mesh.node("a")?.join(&line)?;
    println!("a has joined after {:?}", start.elapsed());
    ensure!(start.elapsed() < NO_WAIT, "a has joined after {:?}", start.elapsed());
    let start = Instant::now();
    mesh.node("a")?.start()?;
    wait_until(NO_WAIT, "a is connected", || {
        Ok(mesh.node("a")?.status()?.this.coordinator.state == ConnectionState::Connected)
    })?;
    println!("a is connected {:?} after its start", start.elapsed());
    mesh.wait_ready(PATIENCE)
}

/// Waits until `a` says what works.
fn wait_families(mesh: &Mesh, wanted: (FamilyState, FamilyState)) -> anyhow::Result<Status> {
    let mut last = None;
    wait_until(PATIENCE, &format!("a says {wanted:?}"), || {
        let status = mesh.node("a")?.status()?;
        let nat = &status.this.nat;
        ensure!((nat.ipv4, nat.ipv6) == wanted, "{nat:?}");
        last = Some(status);
        Ok(true)
    })?;
    last.context("looked at least once")
}

fn check(lost: Lost, is_right: impl Fn(&[mesh_proto::status::PathStatus; 2]) -> bool) -> anyhow::Result<()> {
    let lab = Lab::new("broken")?;
    let network = build(&lab, Ipv6::Open, Ipv6::Filtered)?;
    network.set_lost("near", lost)?;
    let mesh = prepare(&network, NAME, &[])?;
    start(&mesh)?;
    let (_, took) = wait_direct(&mesh, is_right)?;
    println!("{lost:?} is lost: direct after {took:?}");
    let wanted = match lost {
        Lost::Nothing => (FamilyState::Works, FamilyState::Works),
        Lost::Ipv4 => (FamilyState::Silent, FamilyState::Works),
        Lost::Ipv6 => (FamilyState::Works, FamilyState::Silent),
    };
    let status = wait_families(&mesh, wanted)?;
    ensure!(
        status.this.coordinator.transport == Some(ControlTransport::Quic),
        "{:?}",
        status.this.coordinator
    );
    ensure!(status.this.relay.is_some() && !status.this.nat.udp_blocked, "{:?}", status.this);
    mesh.check_logs(&[])
}

#[test]
fn both_families_work() {
    check(Lost::Nothing, over_ipv6).unwrap();
}

#[test]
fn ipv4_that_leads_nowhere_holds_up_nothing() {
    check(Lost::Ipv4, over_ipv6).unwrap();
}

#[test]
fn ipv6_that_leads_nowhere_holds_up_nothing() {
    check(Lost::Ipv6, |paths| paths.iter().all(|path| path.address.is_some_and(|to| to.is_ipv4()))).unwrap();
}

#[test]
fn a_family_that_dies_is_left_for_the_other_one() {
    let lab = Lab::new("dying").unwrap();
    let network = build(&lab, Ipv6::Open, Ipv6::Filtered).unwrap();
    let mesh = prepare(&network, NAME, &[]).unwrap();
    start(&mesh).unwrap();
    wait_direct(&mesh, over_ipv6).unwrap();
    let echo = Echo::all(&mesh, Duration::from_millis(100)).unwrap();
    for (lost, wanted) in [
        (Lost::Ipv6, (FamilyState::Works, FamilyState::Silent)),
        (Lost::Nothing, (FamilyState::Works, FamilyState::Works)),
        (Lost::Ipv4, (FamilyState::Silent, FamilyState::Works)),
    ] {
        let start = Instant::now();
        network.set_lost("near", lost).unwrap();
        echo.wait_all(start, RECOVERY).unwrap();
        println!("{lost:?} is lost: answers again after {:?}", start.elapsed());
        wait_until(RECOVERY, "both sides are direct over what works", || {
            let both = paths(&mesh)?;
            let fits = |path: &mesh_proto::status::PathStatus| match (path.address, lost) {
                (Some(address), Lost::Ipv6) => address.is_ipv4(),
                (Some(address), Lost::Ipv4) => address.is_ipv6(),
                (Some(_), Lost::Nothing) => true,
                (None, _) => false,
            };
            ensure!(both.iter().all(fits), "{both:?}");
            Ok(true)
        })
        .unwrap();
        // Observers are asked every 20 to 26 s.
        wait_until(Duration::from_secs(30), &format!("a says {wanted:?} and is connected"), || {
            let this = mesh.node("a")?.status()?.this;
            let is_connected = this.coordinator.state == ConnectionState::Connected;
            ensure!((this.nat.ipv4, this.nat.ipv6) == wanted && is_connected, "{this:?}");
            Ok(true)
        })
        .unwrap();
    }
}

/// Coordinator and peer have IPv4 alone, and this node's IPv4 leads nowhere: there is a translator.
#[test]
fn where_ipv4_leads_nowhere_the_translator_stands_in() {
    let lab = Lab::new("standin").unwrap();
    let network = build(&lab, Ipv6::None, Ipv6::None).unwrap();
    let prefix: Nat64Prefix = "2001:db8:64::/96".parse().unwrap();
    network.dns().set_dns64(Some(prefix));
    let _tayga = Tayga::start(&network, "near", prefix).unwrap();
    network.set_lost("near", Lost::Ipv4).unwrap();
    let mesh = prepare(&network, &network.host(COORDINATOR).unwrap().address().to_string(), &[]).unwrap();
    start(&mesh).unwrap();
    let (paths, took) = wait_direct(&mesh, |_| true).unwrap();
    println!("direct through the translator after {took:?}");
    assert!(paths[0].address.is_some_and(|address| address.is_ipv6()), "{paths:?}");
    wait_families(&mesh, (FamilyState::Silent, FamilyState::Works)).unwrap();
    mesh.check_logs(&[]).unwrap();
}
