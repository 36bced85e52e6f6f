//! Two nodes behind symmetric, port-filtering NATs, which nothing gets through but a port mapping: one of the routers has a
//! real `miniupnpd`.

use std::collections::BTreeSet;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_lab::mesh::wait_until;
use mesh_lab::nat::miniupnpd::{Miniupnpd, OUTSIDE, Speaks};
use mesh_lab::traffic::Echo;
use mesh_lab::{Filtering, Lab, Mapping, Mesh, MeshOptions, Nat, Network, Site, Topology};
use mesh_proto::candidate::CandidateKind;
use mesh_proto::status::{PathKind, PortMapping};
use nix::sys::signal::Signal;

const COORDINATOR: &str = "coordinator";
/// The site with the router that maps ports, and its node.
const NEAR: (&str, &str) = ("near", "a");
/// The other one.
const FAR: (&str, &str) = ("far", "b");
/// What each site adds to a round trip.
const LATENCY: Duration = Duration::from_millis(20);
/// Between the requests of the pair.
const INTERVAL: Duration = Duration::from_millis(100);
/// UPnP devices may take a second to answer; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(15);
/// For so long a router has run before it starts over.
const UPTIME: Duration = Duration::from_secs(5);
/// Less than the 20 s after which an agent looks by itself.
const ANNOUNCED_PATIENCE: Duration = Duration::from_secs(10);
/// Keeps announcements from a host.
const DEAF: &str = "table inet deaf {\n chain input {\n  type filter hook input priority 0; policy accept;\n  udp dport 5350 drop\n }\n}\n";
/// An agent looks every 20 s whether the router has started over.
const REBOOT_PATIENCE: Duration = Duration::from_secs(20 + 15);
/// The agent's usual port.
const PORT: u16 = 51820;

struct Rig {
    router: Miniupnpd,
    mesh: Mesh,
    lab: Lab,
}

impl Rig {
    fn start(speaks: Speaks, agent_args: &[&str]) -> anyhow::Result<Self> {
        let hard = || Nat::new(Mapping::Apdm, Filtering::Apdf);
        let lab = Lab::new("portmap")?;
        let topology = Topology::new()
            .site(Site::public(COORDINATOR).latency(LATENCY))
            .site(Site::behind(NEAR.0, hard()).host(NEAR.1).outside(OUTSIDE).latency(LATENCY))
            .site(Site::behind(FAR.0, hard()).host(FAR.1).latency(LATENCY));
        let network = Arc::new(lab.build(topology)?);
        let router = Miniupnpd::start(&network, NEAR.0, speaks)?;
        let mesh = Self::mesh(&network, agent_args)?;
        mesh.start()?;
        Ok(Self { router, mesh, lab })
    }

    fn mesh(network: &Arc<Network>, agent_args: &[&str]) -> anyhow::Result<Mesh> {
        let address = network.host(COORDINATOR)?.address().to_string();
        let mut options = MeshOptions::new(COORDINATOR, &address, &[NEAR.1, FAR.1]);
        options.agent_args = agent_args.iter().map(|&arg| arg.to_owned()).collect();
        Mesh::new(Arc::clone(network), &options)
    }

    /// Waits until the near node says that its port is mapped, and the router says the same.
    fn wait_mapped(&self, by: PortMapping) -> anyhow::Result<()> {
        self.wait_mapped_within(PATIENCE, by)
    }

    fn wait_mapped_within(&self, patience: Duration, by: PortMapping) -> anyhow::Result<()> {
        wait_until(patience, &format!("the port is mapped by {by:?}"), || {
            let this = self.mesh.node(NEAR.1)?.status()?.this;
            ensure!(this.nat.port_mapping == by, "{:?}", this.nat);
            ensure!(this.nat.mapped_address == Some(mapped()), "{:?}", this.nat);
            let is_mapped = |candidate: &&mesh_proto::candidate::Candidate| {
                candidate.kind == CandidateKind::PortMapped && candidate.address == mapped()
            };
            ensure!(this.candidates.iter().any(|own| is_mapped(&own)), "{:?}", this.candidates);
            let mappings = self.router.mappings()?;
            let inside = format!("{}:{PORT}", self.mesh.node(NEAR.1)?.host().address());
            ensure!(mappings.len() == 1 && mappings[0].contains(&inside), "{mappings:?}");
            Ok(true)
        })
    }

    /// Sends echoes until both sides are on the mapping.
    fn wait_direct(&self) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let _echo = Echo::start(&self.mesh, INTERVAL, |from, _| from == NEAR.1)?;
        wait_until(PATIENCE, "both sides are direct", || {
            let path = self.mesh.node(FAR.1)?.peer(NEAR.1)?.path;
            ensure!(path.kind == PathKind::Direct && path.address == Some(mapped()), "{path:?}");
            let path = self.mesh.node(NEAR.1)?.peer(FAR.1)?.path;
            ensure!(path.kind == PathKind::Direct, "{path:?}");
            Ok(true)
        })?;
        Ok(start.elapsed())
    }

    fn wait_unmapped(&self) -> anyhow::Result<()> {
        wait_until(PATIENCE, "the router has no mapping", || {
            let mappings = self.router.mappings()?;
            ensure!(mappings.is_empty(), "{mappings:?}");
            Ok(true)
        })
    }
}

fn mapped() -> SocketAddr {
    SocketAddrV4::new(OUTSIDE, PORT).into()
}

/// Found, used, taken over after a kill, and removed at the end.
fn check(speaks: Speaks, by: PortMapping) -> anyhow::Result<()> {
    let rig = Rig::start(speaks, &[])?;
    rig.wait_mapped(by)?;
    println!("{by:?}: both sides direct after {:?}", rig.wait_direct()?);
    let node = rig.mesh.node(NEAR.1)?;
    let netcheck = node.meshctl(["netcheck"])?.success()?.stdout;
    ensure!(netcheck.contains(&format!("{}", mapped())), "{netcheck}");
    node.kill(Signal::SIGKILL)?;
    ensure!(rig.router.mappings()?.len() == 1, "a killed agent cannot have removed it");
    node.start()?;
    rig.wait_mapped(by).context("after a kill")?;
    node.agent().stop()?;
    rig.wait_unmapped().context("after the end")?;
    rig.mesh.check_logs(&[])
}

#[test]
fn pcp_makes_two_hard_nats_direct() {
    check(Speaks::Pcp, PortMapping::Pcp).unwrap();
}

#[test]
fn nat_pmp_makes_two_hard_nats_direct() {
    check(Speaks::NatPmp, PortMapping::NatPmp).unwrap();
}

#[test]
fn upnp_makes_two_hard_nats_direct() {
    check(Speaks::Upnp, PortMapping::Upnp).unwrap();
}

#[test]
fn a_router_that_starts_over_is_asked_again() {
    let mut rig = Rig::start(Speaks::All, &[]).unwrap();
    rig.wait_mapped(PortMapping::Pcp).unwrap();
    // What has run for two seconds cannot be told from what has run for one.
    std::thread::sleep(UPTIME);
    let start = Instant::now();
    rig.router.reboot().unwrap();
    rig.wait_mapped_within(ANNOUNCED_PATIENCE, PortMapping::Pcp).unwrap();
    println!("announced: mapped again {:?} after the router went down", start.elapsed());

    let host = rig.mesh.node(NEAR.1).unwrap().host();
    host.netns().nft(DEAF).unwrap();
    std::thread::sleep(UPTIME);
    let start = Instant::now();
    rig.router.reboot().unwrap();
    rig.wait_mapped_within(REBOOT_PATIENCE, PortMapping::Pcp).unwrap();
    println!("not announced: mapped again {:?} after the router went down", start.elapsed());
    rig.wait_direct().unwrap();
    rig.mesh.check_logs(&[]).unwrap();
}

/// Two nodes of one home, both on the usual port, as the router sees them.
fn check_two_nodes(speaks: Speaks, by: PortMapping) -> anyhow::Result<()> {
    let lab = Lab::new("portmap")?;
    let home = Site::behind("home", Nat::masquerade()).host("home-a").host("home-b").outside(OUTSIDE);
    let network = Arc::new(lab.build(Topology::new().site(Site::public(COORDINATOR)).site(home))?);
    let router = Miniupnpd::start(&network, "home", speaks)?;
    let address = network.host(COORDINATOR)?.address().to_string();
    let mesh =
        Mesh::new(Arc::clone(&network), &MeshOptions::new(COORDINATOR, &address, &["home-a", "home-b"]))?;
    mesh.start()?;
    wait_until(PATIENCE, &format!("each has a port by {by:?}"), || {
        let nats =
            mesh.nodes().map(|node| Ok(node.status()?.this.nat)).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(nats.iter().all(|nat| nat.port_mapping == by), "{nats:?}");
        let ports: BTreeSet<_> = nats.iter().filter_map(|nat| nat.mapped_address).collect();
        ensure!(ports.len() == 2 && ports.iter().all(|port| port.ip() == OUTSIDE), "{nats:?}");
        ensure!(router.mappings()?.len() == 2, "{:?}", router.mappings()?);
        Ok(true)
    })?;
    mesh.stop()?;
    ensure!(router.mappings()?.is_empty(), "left at the end: {:?}", router.mappings()?);
    mesh.check_logs(&[])
}

#[test]
fn two_nodes_behind_one_router_get_a_port_each() {
    check_two_nodes(Speaks::Pcp, PortMapping::Pcp).unwrap();
    check_two_nodes(Speaks::NatPmp, PortMapping::NatPmp).unwrap();
    check_two_nodes(Speaks::Upnp, PortMapping::Upnp).unwrap();
}

#[test]
fn a_node_that_roams_is_mapped_where_it_is() {
    let rig = Rig::start(Speaks::All, &[]).unwrap();
    rig.wait_mapped(PortMapping::Pcp).unwrap();
    let wait = |wanted: PortMapping| {
        let start = Instant::now();
        wait_until(PATIENCE, &format!("port mapping is {wanted:?}"), || {
            let nat = rig.mesh.node(NEAR.1)?.status()?.this.nat;
            ensure!(nat.port_mapping == wanted, "{nat:?}");
            ensure!(nat.mapped_address.is_some() == (wanted != PortMapping::None), "{nat:?}");
            Ok(true)
        })
        .unwrap();
        println!("{wanted:?} {:?} after the move", start.elapsed());
    };
    rig.mesh.network().move_host(NEAR.1, FAR.0).unwrap();
    wait(PortMapping::None);
    rig.mesh.network().move_host(NEAR.1, NEAR.0).unwrap();
    wait(PortMapping::Pcp);
    rig.mesh.check_logs(&[]).unwrap();
}

#[test]
fn without_a_mapping_the_pair_stays_relayed() {
    let rig = Rig::start(Speaks::All, &["--port-mapping", "off"]).unwrap();
    let _echo = Echo::start(&rig.mesh, INTERVAL, |from, _| from == NEAR.1).unwrap();
    // As long as everything takes that makes the others direct.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        let this = rig.mesh.node(NEAR.1).unwrap().status().unwrap().this;
        assert_eq!((this.nat.port_mapping, this.nat.mapped_address), (PortMapping::None, None));
        std::thread::sleep(INTERVAL);
    }
    assert_eq!(rig.mesh.node(NEAR.1).unwrap().peer(FAR.1).unwrap().path.kind, PathKind::Relay);
    assert!(rig.router.mappings().unwrap().is_empty());
    drop(rig.lab);
}
