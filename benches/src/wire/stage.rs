//! The two hosts, the tunnels between them, and iperf3's server.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, ensure};
use mesh_lab::{
    Host, Lab, Mesh, MeshOptions, Network, Pod, Process, Site,
    mesh::wait_until,
    pods::{self, Offloading},
};
use mesh_proto::status::PathKind;

use super::{
    Kind, OwnDrops, Plan, nebula,
    peers::{Peers, Program},
    tunnel::{self, Pair, Tunnel},
    wireguard,
};
use crate::agent::PATIENCE;

/// The hosts: traffic goes from the first to the second.
pub(super) const ENDS: [&str; 2] = ["a", "b"];
/// iperf3's port, for its control connections and its datagrams.
pub(super) const IPERF_PORT: u16 = 5201;

/// Two more hosts on a LAN of their own, which the tunnel between them crosses with IPv6.
pub(super) const ENDS_V6: [&str; 2] = ["c", "d"];
/// That LAN.
pub(super) const LAN_V6: &str = "lan-v6";

/// Everything that runs while it is measured.
#[derive(Debug)]
pub struct Stage {
    mesh: Mesh,
    /// One behind each of [`ENDS`], if they are wanted.
    pods: Vec<Pod>,
    tunnels: Vec<Tunnel>,
    missing: Vec<String>,
    _servers: Vec<Process>,
}

impl Stage {
    /// Builds the hosts and starts every tunnel. One that does not start is left out and named.
    ///
    /// # Errors
    /// When the lab, our own binaries or iperf3's server fail.
    pub fn build(lab: &Lab, peers: Peers, plan: &Plan) -> anyhow::Result<Self> {
        let network = lab.build(plan.link.topology().site(Site::public("coord")))?;
        plan.link.slow_down(&network)?;
        let address = network.outside("coord")?.to_string();
        let wants = |kind| plan.ways.contains(&kind);
        let mut nodes = ENDS.to_vec();
        if wants(Kind::MeshOuterV6) {
            refuse_v4(&network)?;
            nodes.extend(ENDS_V6);
        }
        let mut options = MeshOptions::new("coord", &address, &nodes);
        if wants(Kind::MeshPods) {
            pods::announce(&mut options, ENDS.into_iter().zip(1..));
        }
        let mesh = Mesh::new(network, &options)?;
        mesh.start()?;
        let mut pods = Vec::new();
        if wants(Kind::MeshPods) {
            for (node, number) in ENDS.into_iter().zip(1..) {
                pods.push(Pod::attach(&mesh, node, number, Offloading::On)?);
            }
            Pod::wait_announced(&pods, &mesh, PATIENCE)?;
        }
        let mut stage =
            Self { mesh, pods, tunnels: Vec::new(), missing: peers.missing, _servers: Vec::new() };
        for kind in [Kind::Mesh].into_iter().chain(plan.ways.iter().copied()) {
            stage.add_ours(kind)?;
        }
        for program in &peers.found {
            match start(&stage.mesh, program) {
                Ok(tunnel) => stage.tunnels.push(tunnel),
                Err(error) => stage.missing.push(format!("{}: {error:#}", program.kind.name())),
            }
        }
        stage.serve()?;
        Ok(stage)
    }

    /// Returns the hosts on which a tunnel's daemons run.
    #[must_use]
    pub fn hosts(&self, tunnel: &Tunnel) -> [&Host; 2] {
        hosts(&self.mesh, tunnel.ends)
    }

    /// Returns the hosts that talk through a tunnel: those of its daemons, or pods behind them.
    #[must_use]
    pub fn speakers(&self, tunnel: &Tunnel) -> [&Host; 2] {
        match (tunnel.kind, self.pods.as_slice()) {
            (Kind::MeshPods, [a, b]) => [a.host(), b.host()],
            _ => self.hosts(tunnel),
        }
    }

    /// Returns a folder that is removed with everything else.
    #[must_use]
    pub(super) fn directory(&self) -> &Path {
        self.mesh.network().lab().directory()
    }

    /// Returns the tunnels that run; ours is the first.
    #[must_use]
    pub fn tunnels(&self) -> &[Tunnel] {
        &self.tunnels
    }

    /// Returns what is not measured, and why.
    #[must_use]
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Returns what the agents at both ends of a tunnel have dropped so far; nothing is known of the others.
    ///
    /// # Errors
    /// When an agent does not answer.
    pub(super) fn own_drops(&self, tunnel: &Tunnel) -> anyhow::Result<OwnDrops> {
        let mut drops = OwnDrops::new();
        for end in tunnel.ends.iter().filter(|_| tunnel.kind.is_ours()) {
            let status = self.mesh.node(end)?.status()?;
            let of_peers = status.peers.into_iter().flat_map(|peer| peer.drops);
            for (reason, count) in status.this.drops.into_iter().chain(of_peers) {
                *drops.entry(reason).or_default() += count;
            }
        }
        Ok(drops)
    }

    /// Takes it down, and looks whether it was what it was said to be.
    ///
    /// # Errors
    /// When our agents do not talk directly any more, or do not stop in order.
    pub fn finish(self) -> anyhow::Result<()> {
        for tunnel in self.tunnels.iter().filter(|tunnel| tunnel.kind.is_ours()) {
            ensure!(
                is_direct(&self.mesh, tunnel.kind)?,
                "{} lost its direct path meanwhile",
                tunnel.kind.name()
            );
        }
        self.mesh.stop()
    }

    /// Waits until our agents talk directly in this way, and adds it.
    fn add_ours(&mut self, kind: Kind) -> anyhow::Result<()> {
        let Self { mesh, pods, .. } = self;
        let ends = if kind == Kind::MeshOuterV6 { ENDS_V6 } else { ENDS };
        wait_until(PATIENCE, "our agents talk directly", || {
            mesh.ping(ends[0], ends[1])?;
            is_direct(mesh, kind)
        })?;
        let tunnel = tunnel::ours(mesh, kind, pods.get(1))?;
        let [from, _] = self.speakers(&tunnel);
        wait_until(PATIENCE, "our tunnel carries packets", || Ok(from.ping(tunnel.target).is_ok()))?;
        self.tunnels.push(tunnel);
        Ok(())
    }

    /// Starts iperf3's server wherever a tunnel ends.
    fn serve(&mut self) -> anyhow::Result<()> {
        let ends = self.tunnels.iter().map(|tunnel| (self.speakers(tunnel)[1].name().to_owned(), tunnel));
        let ends: BTreeMap<_, _> = ends.collect();
        let mut servers = Vec::new();
        for tunnel in ends.into_values() {
            let host = self.speakers(tunnel)[1];
            servers.push(host.command("iperf3").args(["-s", "--forceflush"]).spawn("iperf3")?);
            wait_until(PATIENCE, "iperf3 listens", || {
                let table = host.command("cat").arg("/proc/thread-self/net/tcp6").output()?.success()?.stdout;
                Ok(table.contains(&format!(":{IPERF_PORT:04X} ")))
            })?;
        }
        self._servers = servers;
        Ok(())
    }
}

fn start(mesh: &Mesh, program: &Program) -> anyhow::Result<Tunnel> {
    let pair = Pair::new(program, hosts(mesh, ENDS));
    match program.kind {
        Kind::Mesh | Kind::MeshPods | Kind::MeshInnerV6 | Kind::MeshOuterV6 => {
            anyhow::bail!("ours is no peer of itself")
        }
        Kind::WireguardGo | Kind::Boringtun => wireguard::start(pair),
        Kind::Nebula => nebula::start(pair, &mesh.network().lab().directory().join("nebula")),
    }
}

/// Takes IPv4 from the way between [`ENDS_V6`]: straight, and by their router.
fn refuse_v4(network: &Network) -> anyhow::Result<()> {
    let router = network.outside(LAN_V6)?;
    let hosts = [network.host(ENDS_V6[0])?, network.host(ENDS_V6[1])?];
    let [c, d] = hosts.map(Host::address);
    for host in hosts {
        host.netns().nft(&format!(
            "table inet v6_only {{ chain out {{ type filter hook output priority 0;\n\
             ip daddr {{ {c}, {d}, {router} }} meta l4proto udp drop\n}}\n}}\n"
        ))?;
    }
    Ok(())
}

fn hosts<'m>(mesh: &'m Mesh, ends: [&str; 2]) -> [&'m Host; 2] {
    ends.map(|name| mesh.node(name).expect("the mesh was made with a node on each end").host())
}

fn is_direct(mesh: &Mesh, kind: Kind) -> anyhow::Result<bool> {
    let outer_v6 = kind == Kind::MeshOuterV6;
    let [from, to] = if outer_v6 { ENDS_V6 } else { ENDS };
    let path = mesh.node(from)?.peer(to).context("path of our agents")?.path;
    Ok(path.kind == PathKind::Direct && path.address.is_some_and(|address| address.is_ipv6() == outer_v6))
}
