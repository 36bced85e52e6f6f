//! A node whose network has IPv6 alone, and a coordinator and a peer that have IPv4 alone: `tayga` stands in between.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_lab::mesh::wait_until;
use mesh_lab::nat::tayga::Tayga;
use mesh_lab::nat::{Egress, Nat};
use mesh_lab::topology::Ipv6;
use mesh_lab::{Filtering, Lab, Mapping, Mesh, Network, Site, Topology};
use mesh_proto::candidate::CandidateKind;
use mesh_proto::nat64::Nat64Prefix;
use mesh_proto::status::{ControlTransport, FamilyState, PathKind};

use crate::rig::{COORDINATOR, LATENCY, PATIENCE, paths, prepare, wait_direct};

const NAME: &str = "coordinator.example";

/// How the node finds the coordinator, and the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finds {
    /// The resolver makes an IPv6 address of the coordinator's name.
    Name,
    /// The coordinator is named by its address; the resolver tells of the prefix.
    Prefix,
    /// The coordinator is named by its address, and the prefix by the operator.
    Nothing,
}

struct Rig {
    network: Arc<Network>,
    mesh: Mesh,
    prefix: Nat64Prefix,
    _tayga: Tayga,
}

fn easy() -> Nat {
    Nat::new(Mapping::Eim, Filtering::Apdf)
}

impl Rig {
    /// Nothing is started. The translator is of the type of the first NAT.
    fn build(lab: &Lab, nats: [Nat; 2], prefix: &str, finds: Finds) -> anyhow::Result<Self> {
        let [translator, far] = nats;
        let prefix: Nat64Prefix = prefix.parse()?;
        let near = Site::behind("near", translator).host("a").latency(LATENCY).ipv6(Ipv6::Filtered);
        let topology = Topology::new()
            .site(Site::public(COORDINATOR).latency(LATENCY))
            .site(near.without_ipv4())
            .site(Site::behind("far", far).host("b").latency(LATENCY));
        let network = Arc::new(lab.build(topology)?);
        let address = network.host(COORDINATOR)?.address();
        network.dns().set(NAME, &[address.into()]);
        network.dns().set_dns64(Some(prefix).filter(|_| finds != Finds::Nothing));
        let tayga = Tayga::start(&network, "near", prefix)?;
        let behind = prefix.embed(address).context("a public address")?;
        wait_until(PATIENCE, "the translator leads to the coordinator", || {
            network.host("a")?.ping(behind).map(|_| true)
        })?;
        let given = prefix.to_string();
        let args: &[&str] = if finds == Finds::Nothing { &["--nat64-prefix", &given] } else { &[] };
        let name = if finds == Finds::Name { NAME.to_owned() } else { address.to_string() };
        let mesh = prepare(&network, &name, args)?;
        Ok(Self { network, mesh, prefix, _tayga: tayga })
    }

    fn start(&self, finds: Finds) -> anyhow::Result<()> {
        self.mesh.start_coordinator()?;
        let line = self.mesh.token(&["--uses", "2"])?;
        let given = match finds {
            Finds::Nothing => format!("{line} --nat64-prefix {}", self.prefix),
            Finds::Name | Finds::Prefix => line.clone(),
        };
        for (name, line) in [("a", &given), ("b", &line)] {
            let node = self.mesh.node(name)?;
            let start = Instant::now();
            node.join(line).with_context(|| format!("{name} does not join"))?;
            println!("{name} has joined after {:?}", start.elapsed());
            node.start()?;
        }
        self.mesh.wait_ready(PATIENCE)
    }

    /// Whether an address is of this translator's making and stands for an IPv4 one.
    fn is_behind(&self, ip: IpAddr) -> bool {
        matches!(ip, IpAddr::V6(v6) if self.prefix.extract(v6).is_some())
    }
}

fn check(prefix: &str, finds: Finds) -> anyhow::Result<()> {
    let lab = Lab::new("nat64")?;
    let rig = Rig::build(&lab, [easy(), easy()], prefix, finds)?;
    rig.start(finds)?;
    let outside = rig.network.outside("near")?;
    let (paths, took) = wait_direct(&rig.mesh, |_| true)?;
    println!("{prefix}, {finds:?}: direct through the translator after {took:?}");
    let [a, b] = paths.map(|path| path.address.map(|address| address.ip()));
    ensure!(a.is_some_and(|ip| rig.is_behind(ip)), "a sends to {a:?}");
    ensure!(b == Some(outside.into()), "b sends to {b:?}");
    let this = rig.mesh.node("a")?.status()?.this;
    ensure!((this.nat.ipv4, this.nat.ipv6) == (FamilyState::None, FamilyState::Works), "{:?}", this.nat);
    ensure!(this.nat.nat64 == [rig.prefix], "{:?}", this.nat);
    let is_reflexive = |candidate: &&mesh_proto::candidate::Candidate| {
        candidate.kind == CandidateKind::Reflexive && candidate.address.ip() == outside
    };
    ensure!(this.candidates.iter().any(|candidate| is_reflexive(&candidate)), "{:?}", this.candidates);
    let b = rig.mesh.node("b")?.status()?.this.nat;
    ensure!((b.ipv4, b.ipv6) == (FamilyState::Works, FamilyState::None), "{b:?}");
    rig.mesh.node("a")?.agent().stop()?;
    rig.mesh.node("a")?.start()?;
    rig.mesh.wait_connected(PATIENCE).context("after a restart")?;
    rig.mesh.check_logs(&[])
}

#[test]
fn a_node_without_ipv4_joins_by_name_and_is_direct_with_one_that_has_nothing_else() {
    check("2001:db8:64::/96", Finds::Name).unwrap();
}

#[test]
fn the_resolvers_tell_of_the_prefix_where_the_coordinator_is_an_address() {
    for prefix in ["2001:db8:64::/96", "2001:db8:6464:6400::/64", "2001:db8:6464::/48"] {
        check(prefix, Finds::Prefix).unwrap();
    }
}

#[test]
fn an_operator_may_name_the_prefix() {
    check("2001:db8:6464:6400::/56", Finds::Nothing).unwrap();
}

#[test]
fn a_translator_that_is_punched_through_by_nobody_leaves_the_relay() {
    let hard = || Nat::new(Mapping::Apdm, Filtering::Apdf);
    let lab = Lab::new("nat64hard").unwrap();
    let rig = Rig::build(&lab, [hard(), hard()], "2001:db8:64::/96", Finds::Prefix).unwrap();
    rig.start(Finds::Prefix).unwrap();
    rig.mesh.wait_connected(PATIENCE).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(paths(&rig.mesh).unwrap().map(|path| path.kind), [PathKind::Relay; 2]);
    rig.mesh.wait_connected(PATIENCE).unwrap();
    rig.mesh.check_logs(&[]).unwrap();
}

#[test]
fn a_byte_pipe_goes_through_the_translator_too() {
    let lab = Lab::new("nat64tcp").unwrap();
    let nats = [easy().egress(Egress::NoUdp), easy()];
    let rig = Rig::build(&lab, nats, "2001:db8:64::/96", Finds::Prefix).unwrap();
    rig.start(Finds::Prefix).unwrap();
    rig.mesh.wait_connected(PATIENCE).unwrap();
    let coordinator = rig.mesh.node("a").unwrap().status().unwrap().this.coordinator;
    assert_eq!(coordinator.transport, Some(ControlTransport::Websocket));
    rig.mesh.check_logs(&[]).unwrap();
}

#[test]
fn a_hard_nat_is_punched_through_the_translator() {
    let lab = Lab::new("nat64birthday").unwrap();
    let hard = Nat::new(Mapping::Apdm, Filtering::Apdf);
    let rig = Rig::build(&lab, [easy(), hard], "2001:db8:64::/96", Finds::Prefix).unwrap();
    rig.start(Finds::Prefix).unwrap();
    let (_, took) = wait_direct(&rig.mesh, |_| true).unwrap();
    println!("direct through the translator after {took:?}");
    rig.mesh.check_logs(&[]).unwrap();
}
