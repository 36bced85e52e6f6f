//! The two hosts, the tunnels between them, and iperf3's server.

use std::path::Path;

use anyhow::{Context as _, ensure};
use mesh_lab::{Host, Lab, Mesh, MeshOptions, Process, Site, mesh::wait_until};
use mesh_proto::status::PathKind;

use super::{
    Kind, Link, nebula,
    peers::{Peers, Program},
    tunnel::{self, Pair, Tunnel},
    wireguard,
};
use crate::agent::PATIENCE;

/// The hosts: traffic goes from the first to the second.
pub(super) const ENDS: [&str; 2] = ["a", "b"];
/// iperf3's port, for its control connections and its datagrams.
pub(super) const IPERF_PORT: u16 = 5201;

/// Everything that runs while it is measured.
#[derive(Debug)]
pub struct Stage {
    mesh: Mesh,
    tunnels: Vec<Tunnel>,
    missing: Vec<String>,
    _server: Process,
}

impl Stage {
    /// Builds the hosts and starts every tunnel. One that does not start is left out and named.
    ///
    /// # Errors
    /// When the lab, our own binaries or iperf3's server fail.
    pub fn build(lab: &Lab, peers: Peers, link: Link) -> anyhow::Result<Self> {
        let network = lab.build(link.topology().site(Site::public("coord")))?;
        let address = network.outside("coord")?.to_string();
        let mesh = Mesh::new(network, &MeshOptions::new("coord", &address, &ENDS))?;
        mesh.start()?;
        wait_until(PATIENCE, "our agents talk directly", || {
            mesh.ping(ENDS[0], ENDS[1])?;
            is_direct(&mesh)
        })?;
        let mut tunnels = vec![tunnel::ours(&mesh)?];
        let mut missing = peers.missing;
        for program in &peers.found {
            match start(&mesh, program) {
                Ok(tunnel) => tunnels.push(tunnel),
                Err(error) => missing.push(format!("{}: {error:#}", program.kind.name())),
            }
        }
        let server = mesh.node(ENDS[1])?.host().command("iperf3").args(["-s", "--forceflush"]);
        let server = server.spawn("iperf3")?;
        let stage = Self { mesh, tunnels, missing, _server: server };
        wait_until(PATIENCE, "iperf3 listens", || stage.server_listens())?;
        Ok(stage)
    }

    /// Returns the hosts.
    #[must_use]
    pub fn hosts(&self) -> [&Host; 2] {
        hosts(&self.mesh)
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

    /// Returns how many packets our agents have dropped so far; nothing is known of the others.
    ///
    /// # Errors
    /// When an agent does not answer.
    pub(super) fn own_drops(&self, tunnel: &Tunnel) -> anyhow::Result<u64> {
        if tunnel.kind != Kind::Mesh {
            return Ok(0);
        }
        let mut drops = 0;
        for node in self.mesh.nodes() {
            let status = node.status()?;
            drops += status.this.drops.values().sum::<u64>();
            drops += status.peers.iter().flat_map(|peer| peer.drops.values()).sum::<u64>();
        }
        Ok(drops)
    }

    /// Takes it down, and looks whether it was what it was said to be.
    ///
    /// # Errors
    /// When our agents do not talk directly any more, or do not stop in order.
    pub fn finish(self) -> anyhow::Result<()> {
        ensure!(is_direct(&self.mesh)?, "our agents lost their direct path meanwhile");
        self.mesh.stop()
    }

    fn server_listens(&self) -> anyhow::Result<bool> {
        let table =
            self.hosts()[1].command("cat").arg("/proc/thread-self/net/tcp6").output()?.success()?.stdout;
        Ok(table.contains(&format!(":{IPERF_PORT:04X} ")))
    }
}

fn start(mesh: &Mesh, program: &Program) -> anyhow::Result<Tunnel> {
    let pair = Pair::new(program, hosts(mesh));
    match program.kind {
        Kind::Mesh => anyhow::bail!("ours is no peer of itself"),
        Kind::WireguardGo | Kind::Boringtun => wireguard::start(pair),
        Kind::Nebula => nebula::start(pair, &mesh.network().lab().directory().join("nebula")),
    }
}

fn hosts(mesh: &Mesh) -> [&Host; 2] {
    ENDS.map(|name| mesh.node(name).expect("the mesh was made with a node on each end").host())
}

fn is_direct(mesh: &Mesh) -> anyhow::Result<bool> {
    let path = mesh.node(ENDS[0])?.peer(ENDS[1]).context("path of our agents")?.path;
    Ok(path.kind == PathKind::Direct && path.address.is_some())
}
