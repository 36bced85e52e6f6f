//! A pair of daemons that joins the two hosts.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context as _;
use mesh_lab::{Host, Mesh, Pod, Process};

use super::{
    Kind,
    peers::Program,
    stage::{ENDS, ENDS_V6},
};

/// What the others' interfaces get: what WireGuard leaves of 1500 on an IPv6 underlay.
pub(super) const OTHERS_MTU: u16 = 1420;

/// One implementation, running on both hosts.
#[derive(Debug)]
pub struct Tunnel {
    /// Which one.
    pub kind: Kind,
    /// What it says of its version.
    pub version: String,
    /// The MTU of its interfaces.
    pub mtu: u16,
    /// The far end's address in the tunnel.
    pub target: IpAddr,
    /// The hosts on which the daemons run.
    pub(super) ends: [&'static str; 2],
    /// The interface on each host.
    pub(super) interfaces: [String; 2],
    /// The process on each host.
    pub(super) daemons: [i32; 2],
    /// Ends them; our own belong to the mesh.
    _processes: Vec<Process>,
}

/// What is the same for all pairs but ours.
#[derive(Debug)]
pub(super) struct Pair<'a> {
    pub(super) program: &'a Program,
    pub(super) hosts: [&'a Host; 2],
    /// The interface on each host. Hosts share the directory of control sockets, so no two have the same.
    pub(super) interfaces: [String; 2],
    pub(super) addresses: [Ipv4Addr; 2],
    /// The UDP port on both hosts.
    pub(super) port: u16,
}

impl<'a> Pair<'a> {
    pub(super) fn new(program: &'a Program, hosts: [&'a Host; 2]) -> Self {
        let number = program.kind.number();
        let process = std::process::id();
        Self {
            program,
            hosts,
            interfaces: [0, 1].map(|end| format!("w{number}{end}-{process}")),
            addresses: [1, 2].map(|host| Ipv4Addr::new(10, 77, number, host)),
            port: 51_900 + u16::from(number),
        }
    }

    pub(super) fn into_tunnel(self, processes: Vec<Process>) -> anyhow::Result<Tunnel> {
        let pids: Vec<_> = processes.iter().map(Process::pid).collect();
        Ok(Tunnel {
            kind: self.program.kind,
            version: self.program.version.clone(),
            mtu: OTHERS_MTU,
            target: self.addresses[1].into(),
            ends: ENDS,
            interfaces: self.interfaces,
            daemons: pids.try_into().ok().context("a pair is two processes")?,
            _processes: processes,
        })
    }
}

/// Our own agents between two hosts, as a tunnel that is used in a certain way.
pub(super) fn ours(mesh: &Mesh, kind: Kind, far_pod: Option<&Pod>) -> anyhow::Result<Tunnel> {
    let ends = if kind == Kind::MeshOuterV6 { ENDS_V6 } else { ENDS };
    let [a, b] = [mesh.node(ends[0])?, mesh.node(ends[1])?];
    let (this, far) = (a.status()?.this, b.status()?.this);
    let version = a.agent_command().arg("--version").output()?.success()?.stdout;
    let v6 = || far.addresses.iter().copied().find(IpAddr::is_ipv6).context("no IPv6 in the mesh");
    let target = match kind {
        Kind::MeshPods => far_pod.context("there are no pods")?.v4(),
        Kind::MeshInnerV6 => v6()?,
        Kind::Mesh | Kind::MeshOuterV6 | Kind::WireguardGo | Kind::Boringtun | Kind::Nebula => {
            b.address()?.into()
        }
    };
    Ok(Tunnel {
        kind,
        version: version.trim().to_owned(),
        mtu: this.mtu,
        target,
        ends,
        interfaces: [this.interface, far.interface],
        daemons: [a.agent().pid().context("the agent runs")?, b.agent().pid().context("the agent runs")?],
        _processes: Vec::new(),
    })
}
