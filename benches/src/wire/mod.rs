//! `make bench-wire`: our agents beside other userspace tunnels, all between the same two hosts.
//!
//! Two hosts stand on one LAN of the lab (veth and a bridge), or have a simulated [`Link`] between them. On both runs every tunnel that could be had, each with its own
//! interface: our agents (real binaries, joined at a real coordinator, on their direct path), wireguard-go, boringtun-cli,
//! nebula. iperf3 and ping run in the hosts' namespaces. Our own tunnel is measured in other [ways](Kind::WAYS), too: from
//! pods behind the hosts, with IPv6 inside, and between two more hosts that have only IPv6 for it outside.
//!
//! Within a round every [`Load`] goes through every tunnel, one after the other, and the next round begins with
//! another tunnel. A machine that is slower for a while is so for all of them, and what is judged are ratios within a round.
//!
//! - [`peers`]: gets the programs;
//! - [`stage`]: the hosts and the tunnels between them;
//! - [`load`]: runs a load once, and what iperf3 and ping say of it;
//! - [`counters`]: what the daemons and the kernel count meanwhile;
//! - [`profile`]: where the daemons' cycles go, if that is asked for;
//! - [`report`] and [`plot`]: medians, ratios and goals as table, JSON and picture.

use std::{collections::BTreeMap, fmt};

use mesh_lab::Lab;
use serde::Serialize;

pub mod counters;
pub mod goal;
pub mod link;
pub mod load;
mod nebula;
pub mod peers;
pub mod plot;
pub mod profile;
pub mod report;
pub mod stage;
mod tunnel;
mod wireguard;

pub use link::Link;
pub use load::Load;
pub use report::Report;
pub use tunnel::Tunnel;

use self::{counters::Counters, peers::Peers, stage::Stage};
use crate::procfs;

/// Which implementation, and which way of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Ours, from host to host, over IPv4 inside and outside.
    Mesh,
    /// Ours, from pod to pod: each behind a bridge and veth of its host.
    MeshPods,
    /// Ours, with IPv6 inside the tunnel.
    MeshInnerV6,
    /// Ours, with IPv6 outside it.
    MeshOuterV6,
    /// wireguard-go.
    WireguardGo,
    /// boringtun-cli.
    Boringtun,
    /// nebula.
    Nebula,
}

impl Kind {
    /// The others.
    pub const PEERS: [Self; 3] = [Self::WireguardGo, Self::Boringtun, Self::Nebula];
    /// Our other ways, which are measured beside the plain one.
    pub const WAYS: [Self; 3] = [Self::MeshPods, Self::MeshInnerV6, Self::MeshOuterV6];

    /// Returns its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::MeshPods => "mesh-pods",
            Self::MeshInnerV6 => "mesh-v6-inside",
            Self::MeshOuterV6 => "mesh-v6-outside",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun-cli",
            Self::Nebula => "nebula",
        }
    }

    /// Whether it is one of our own.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        match self {
            Self::Mesh | Self::MeshPods | Self::MeshInnerV6 | Self::MeshOuterV6 => true,
            Self::WireguardGo | Self::Boringtun | Self::Nebula => false,
        }
    }

    /// Whether a load is measured through it.
    const fn carries(self, load: Load) -> bool {
        match self {
            Self::Mesh | Self::WireguardGo | Self::Boringtun | Self::Nebula => true,
            Self::MeshPods | Self::MeshInnerV6 | Self::MeshOuterV6 => matches!(load, Load::Tcp1),
        }
    }

    /// Returns a small number that no other has, for addresses and ports.
    const fn number(self) -> u8 {
        match self {
            Self::Mesh | Self::MeshPods | Self::MeshInnerV6 | Self::MeshOuterV6 => 0,
            Self::WireguardGo => 1,
            Self::Boringtun => 2,
            Self::Nebula => 3,
        }
    }
}

/// What is measured of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// What arrived, in Gbit/s.
    Received,
    /// Share of datagrams that did not arrive, in percent.
    Loss,
    /// Segments that TCP sent again.
    Retransmits,
    /// CPU time of both daemons per GB (10^9 bytes) received, in seconds.
    Cpu,
    /// The part of it in user space.
    CpuUser,
    /// The part of it in the kernel.
    CpuSystem,
    /// The middle round trip, in milliseconds.
    RoundTrip,
    /// Most resident memory of either daemon, in MB.
    Resident,
    /// Packets dropped at the TUN queues of both hosts.
    TunDrops,
    /// Datagrams dropped at the daemons' full sockets.
    SocketDrops,
    /// Datagrams dropped at iperf3's own full socket: the tunnel carried them.
    ReceiverDrops,
    /// Packets that our agents dropped and counted, for any reason.
    OwnDrops,
}

impl Metric {
    /// Returns its name and unit.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Received => "received, Gbit/s",
            Self::Loss => "lost, %",
            Self::Retransmits => "TCP retransmits",
            Self::Cpu => "CPU s/GB, both ends",
            Self::CpuUser => "  user",
            Self::CpuSystem => "  system",
            Self::RoundTrip => "round trip, ms",
            Self::Resident => "resident, MB",
            Self::TunDrops => "drops: TUN queue",
            Self::SocketDrops => "drops: outer socket",
            Self::ReceiverDrops => "drops: iperf3's socket",
            Self::OwnDrops => "drops: our own",
        }
    }
}

/// What one run gave.
pub type Sample = BTreeMap<Metric, f64>;

/// What our agents dropped, by reason.
pub type OwnDrops = BTreeMap<String, u64>;

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many interleaved rounds.
    pub rounds: usize,
    /// How long a load runs, in seconds.
    pub seconds: u32,
    /// Which loads.
    pub loads: Vec<Load>,
    /// Over which link.
    pub link: Link,
    /// Which of [`Kind::WAYS`].
    pub ways: Vec<Kind>,
    /// Whether the daemons are sampled in one run more of each.
    pub profile: Profiling,
}

/// Whether the daemons are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profiling {
    /// They are.
    On,
    /// They are not.
    Off,
}

/// Which run.
#[derive(Debug, Clone, Copy)]
struct Run {
    round: usize,
    load: Load,
    kind: Kind,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "round {}, {}, {}", self.round + 1, self.load.name(), self.kind.name())
    }
}

/// Runs all of the plan. A run that fails is named in the report and leaves a gap there.
///
/// # Errors
/// When the lab, our own binaries or iperf3's server fail, or nothing at all could be measured.
pub fn measure(lab: &Lab, peers: Peers, plan: &Plan) -> anyhow::Result<Report> {
    let stage = Stage::build(lab, peers, plan)?;
    let mut report = Report::new(&stage, plan);
    for round in 0..plan.rounds {
        for &load in &plan.loads {
            let tunnels: Vec<_> = stage.tunnels().iter().filter(|tunnel| tunnel.kind.carries(load)).collect();
            for turn in 0..tunnels.len() {
                let tunnel = tunnels[(turn + round) % tunnels.len()];
                let run = Run { round, load, kind: tunnel.kind };
                eprintln!("{run}");
                match once(&stage, tunnel, load, plan.seconds) {
                    Ok((sample, drops)) => {
                        report.add(round, load, tunnel.kind, sample);
                        report.add_drops(load, tunnel.kind, drops);
                    }
                    Err(error) => report.add_failure(format!("{run}: {error:#}")),
                }
            }
        }
    }
    if plan.profile == Profiling::On {
        for &load in &plan.loads {
            for tunnel in stage.tunnels().iter().filter(|tunnel| tunnel.kind.carries(load)) {
                match profile::Profile::take(&stage, tunnel, load, plan.seconds) {
                    Ok(profile) => report.add_profile(profile),
                    Err(error) => report.add_failure(format!("profile of {}: {error:#}", tunnel.kind.name())),
                }
            }
        }
    }
    stage.finish()?;
    Ok(report)
}

/// Runs one load through one tunnel.
fn once(stage: &Stage, tunnel: &Tunnel, load: Load, seconds: u32) -> anyhow::Result<(Sample, OwnDrops)> {
    let own_before = stage.own_drops(tunnel)?;
    let before = Counters::read(stage, tunnel)?;
    let (outcome, resident) = procfs::watch_resident(&tunnel.daemons, || {
        load.run(stage.speakers(tunnel)[0], tunnel.target, seconds)
    });
    let outcome = outcome?;
    let counted = Counters::read(stage, tunnel)?.since(&before);
    let mut own = stage.own_drops(tunnel)?;
    for (reason, before) in own_before {
        *own.entry(reason).or_default() -= before;
    }
    own.retain(|_, count| *count > 0);

    let mut sample = outcome.sample();
    sample.insert(Metric::Resident, resident);
    if let Some(gigabytes) = outcome.gigabytes() {
        sample.insert(Metric::Cpu, counted.cpu.total() / gigabytes);
        sample.insert(Metric::CpuUser, counted.cpu.user / gigabytes);
        sample.insert(Metric::CpuSystem, counted.cpu.system / gigabytes);
        sample.insert(Metric::TunDrops, counted.tun as f64);
        sample.insert(Metric::SocketDrops, counted.sockets as f64);
        sample.insert(Metric::ReceiverDrops, counted.receiver as f64);
        if tunnel.kind.is_ours() {
            sample.insert(Metric::OwnDrops, own.values().sum::<u64>() as f64);
        }
    }
    Ok((sample, own))
}
