//! `make bench-shards`: what several engines in one agent bring where it talks to several peers at once.
//!
//! On one LAN of the lab stand two hubs, one whose agent has one engine and one whose agent has two, and four other nodes.
//! Streams of TCP go from all of these to one hub, then from it to all of them, then the same with the other hub. What is
//! judged are ratios within a round: of what arrives, and of the hub's CPU time for it.
//!
//! A second engine moves more only where there is a core for it: everything here, the senders too, shares the machine's.

use std::{net::IpAddr, num::NonZeroUsize, thread, time::Duration};

use anyhow::{Context as _, anyhow, ensure};
use mesh_lab::{
    Filtering, Host, Lab, Mapping, Mesh, MeshOptions, Nat, Node, Process, Site, Topology, mesh::wait_until,
};
use mesh_proto::status::PathKind;

use crate::{agent::PATIENCE, figure::Figure, procfs};

/// The hubs, and how many engines each has.
const HUBS: [(&str, u32); 2] = [("hub-1", 1), ("hub-2", 2)];
/// Those that talk to them.
const SPOKES: [&str; 4] = ["a", "b", "c", "d"];
/// iperf3's first port: it serves one client at a time, so each has its own.
const FIRST_PORT: u16 = 5201;
const ROUNDS: usize = 5;
const SECONDS: u32 = 3;

/// Which way the streams go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToHub,
    FromHub,
}

/// What came of one load.
#[derive(Debug, Clone, Copy)]
struct Taken {
    /// All streams together, in Gbit/s.
    rate: f64,
    /// The hub's CPU time, in seconds per GB.
    cpu: f64,
}

impl Way {
    const ALL: [Self; 2] = [Self::ToHub, Self::FromHub];

    fn name(self) -> &'static str {
        match self {
            Self::ToHub => "from 4 peers",
            Self::FromHub => "to 4 peers",
        }
    }
}

/// Measures.
///
/// # Errors
/// When the lab, the binaries or iperf3 fail.
pub fn measure(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let nodes: Vec<_> = HUBS.iter().map(|(name, _)| *name).chain(SPOKES).collect();
    let lan = Site::behind("lan", Nat::new(Mapping::Eim, Filtering::Apdf));
    let lan = nodes.iter().fold(lan, |lan, name| lan.host(name));
    let network = lab.build(Topology::new().site(Site::public("coord")).site(lan))?;
    let address = network.host("coord")?.address().to_string();
    let mut options = MeshOptions::new("coord", &address, &nodes);
    let engines = |name: &str| HUBS.iter().find(|(hub, _)| *hub == name).map_or(1, |(_, engines)| *engines);
    options.agent_args_of =
        nodes.iter().map(|name| ((*name).to_owned(), vec![format!("--shards={}", engines(name))])).collect();
    let mesh = Mesh::new(network, &options)?;
    mesh.start()?;
    let mut servers = Vec::new();
    for (hub, _) in HUBS {
        wait_direct(&mesh, hub)?;
        servers.extend(serve(mesh.node(hub)?.host())?);
    }
    let mut taken: [[Vec<Taken>; 2]; 2] = Default::default();
    for round in 0..ROUNDS {
        for turn in 0..HUBS.len() {
            // Each is first as often as the other.
            let index = (round + turn) % HUBS.len();
            let hub = mesh.node(HUBS[index].0)?;
            for (way, taken) in Way::ALL.into_iter().zip(&mut taken) {
                eprintln!("round {}, {}, {}", round + 1, hub.name(), way.name());
                taken[index].push(once(&mesh, hub, way)?);
            }
        }
    }
    let figures = figures(&mesh, &taken);
    drop(servers);
    mesh.stop()?;
    figures
}

/// Waits until a hub is on direct paths with all.
fn wait_direct(mesh: &Mesh, hub: &str) -> anyhow::Result<()> {
    wait_until(PATIENCE, "all paths are direct", || {
        for spoke in SPOKES {
            mesh.ping(hub, spoke)?;
            let path = mesh.node(hub)?.peer(spoke)?.path;
            ensure!(path.kind == PathKind::Direct, "{hub} to {spoke}: {path:?}");
        }
        Ok(true)
    })
}

/// Starts a server for each of the others.
fn serve(host: &Host) -> anyhow::Result<Vec<Process>> {
    let server = |port: u16| {
        let server = host.command("iperf3").args(["-s", "--forceflush", "-p", &port.to_string()]);
        server.spawn("iperf3")
    };
    let servers = (FIRST_PORT..).take(SPOKES.len()).map(server).collect::<anyhow::Result<_>>()?;
    wait_until(PATIENCE, "iperf3 listens", || {
        let table = host.command("cat").arg("/proc/thread-self/net/tcp6").output()?.success()?.stdout;
        let listens = |port: u16| table.contains(&format!(":{port:04X} "));
        Ok((FIRST_PORT..).take(SPOKES.len()).all(listens))
    })?;
    Ok(servers)
}

/// Sends streams between a hub and all others at the same time.
fn once(mesh: &Mesh, hub: &Node, way: Way) -> anyhow::Result<Taken> {
    let pid = hub.agent().pid().context("the hub runs")?;
    let address = hub.address()?.into();
    let before = procfs::cpu_time(pid)?;
    let rates: Vec<f64> = thread::scope(|scope| {
        let streams: Vec<_> = (FIRST_PORT..)
            .zip(SPOKES)
            .map(|(port, spoke)| scope.spawn(move || stream(mesh.node(spoke)?.host(), (address, port), way)))
            .collect();
        let joined =
            streams.into_iter().map(|stream| stream.join().map_err(|_| anyhow!("a stream panicked"))?);
        joined.collect::<anyhow::Result<_>>()
    })?;
    let cpu = (procfs::cpu_time(pid)? - before).total();
    let rate = rates.iter().sum::<f64>() / 1e9;
    Ok(Taken { rate, cpu: cpu / (rate / 8.0 * f64::from(SECONDS)) })
}

/// Runs one stream; returns what arrives, in bit/s.
fn stream(from: &Host, (to, port): (IpAddr, u16), way: Way) -> anyhow::Result<f64> {
    let reverse = match way {
        Way::ToHub => &[][..],
        Way::FromHub => &["-R"],
    };
    let finished = from
        .command("iperf3")
        .args(["-c", &to.to_string(), "-p", &port.to_string(), "-J", "-t", &SECONDS.to_string()])
        .args(reverse)
        .timeout(Duration::from_secs(u64::from(SECONDS) + PATIENCE.as_secs()))
        .output()?
        .success()?;
    let answer: serde_json::Value = serde_json::from_str(&finished.stdout)?;
    answer["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3's answer")
}

fn figures(mesh: &Mesh, taken: &[[Vec<Taken>; 2]; 2]) -> anyhow::Result<Vec<Figure>> {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut figures = Vec::new();
    for (way, [one, two]) in Way::ALL.into_iter().zip(taken) {
        let name = |what: &str| format!("TCP {}, {cores} cores: {what}", way.name());
        for (engines, taken) in [("one engine", one), ("two engines", two)] {
            let of = |value: fn(&Taken) -> f64| taken.iter().map(value).collect::<Vec<_>>();
            figures.push(Figure::new(name(engines), "Gbit/s", of(|taken| taken.rate), None)?);
            figures.push(Figure::new(name(engines), "s/GB", of(|taken| taken.cpu), None)?);
        }
        let ratios = |value: fn(&Taken) -> f64| -> Vec<f64> {
            one.iter().zip(two).map(|(one, two)| value(two) / value(one)).collect()
        };
        figures.push(Figure::new(name("rate, two to one"), "x", ratios(|taken| taken.rate), None)?);
        figures.push(Figure::new(name("CPU, two to one"), "x", ratios(|taken| taken.cpu), None)?);
    }
    for (hub, engines) in HUBS {
        let node = mesh.node(hub)?;
        let resident = procfs::resident_mb(node.agent().pid().context("the hub runs")?)?;
        figures.push(Figure::new(format!("resident, {engines} engines"), "MB", vec![resident], None)?);
        if let Some(engines) = node.status()?.this.engines {
            let share = |part: u64, whole: u64| vec![100.0 * part as f64 / whole.max(1) as f64];
            let datagrams = share(engines.datagrams_handed_over, engines.datagrams);
            figures.push(Figure::new("datagrams handed over", "%", datagrams, None)?);
            let reads = share(engines.tun_reads_handed_over, engines.tun_reads);
            figures.push(Figure::new("reads of the TUN handed over", "%", reads, None)?);
        }
    }
    Ok(figures)
}
