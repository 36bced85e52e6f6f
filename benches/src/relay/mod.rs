//! `make bench-relay`: what our relay pays for a packet, beside coturn.
//!
//! Three hosts on one LAN of the lab: two that talk, and one with both relays. Ours carries real agents that cannot reach
//! each other directly (a packet filter on each sees to that); iperf3 gives them datagrams. coturn carries datagrams of the
//! same size on the wire at the same rate, as channel data (RFC 8656, section 12) from a client of this program to a
//! peer. Rounds are interleaved, and what is judged is CPU time of the relaying process per packet that arrived.
//!
//! Our packets come in trains where the sending agent had several at once, as they do at work; coturn's client sends in the
//! same bursts, one datagram per call, since a train is nothing that TURN knows.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use mesh_lab::{
    Filtering, Host, Lab, Mapping, Mesh, MeshOptions, Nat, Process, Site, Topology, mesh::wait_until,
};
use mesh_proto::status::PathKind;

mod turn;

use crate::{
    agent::PATIENCE,
    figure::{Budget, Figure},
    procfs,
};

/// The hosts that talk.
const ENDS: [&str; 2] = ["a", "b"];
/// The host of both relays.
const RELAY: &str = "relay";
const TURN_PORT: u16 = 3478;
/// How often each is measured.
const ROUNDS: usize = 5;
const SECONDS: u32 = 4;
/// Share of the packets sent that may be lost: beyond that something else is measured.
const LOST: f64 = 0.05;
/// Inner IPv4 and UDP headers, and what WireGuard pads to.
const INNER_HEADERS: usize = 28;
const PADDING: usize = 16;
/// WireGuard's header and tag, and the relay's header.
const OVERHEAD: usize = 32 + 16;
/// Channel data's own header, which ours is held against.
const TURN_HEADER: usize = 4;

/// Datagrams that are sent.
#[derive(Debug, Clone, Copy)]
struct Load {
    /// Payload of each, inside our tunnel.
    payload: usize,
    per_second: u32,
}

/// Full packets, and small ones.
const LOADS: [Load; 2] =
    [Load { payload: 1200, per_second: 10_000 }, Load { payload: 128, per_second: 10_000 }];

/// What relaying took.
#[derive(Debug, Clone, Copy)]
struct Taken {
    /// CPU time per packet, in microseconds.
    per_packet: f64,
}

/// Measures.
///
/// # Errors
/// When the lab, the binaries, iperf3 or coturn fail, or too much is lost.
pub fn measure(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let lan = Site::behind("lan", Nat::new(Mapping::Eim, Filtering::Apdf));
    let lan = [RELAY, ENDS[0], ENDS[1]].into_iter().fold(lan, Site::host);
    let network = lab.build(Topology::new().site(lan))?;
    let router = network.outside("lan")?;
    let [a, b] = [network.host(ENDS[0])?.address(), network.host(ENDS[1])?.address()];
    for end in ENDS {
        network.host(end)?.netns().nft(&format!(
            "table inet relayed {{ chain out {{ type filter hook output priority 0;\n\
             ip daddr {{ {a}, {b}, {router} }} meta l4proto udp drop\n}}\n}}\n"
        ))?;
    }
    let address = network.host(RELAY)?.address().to_string();
    let mesh = Mesh::new(network, &MeshOptions::new(RELAY, &address, &ENDS))?;
    mesh.start()?;
    mesh.wait_connected(PATIENCE)?;
    let [from, to] = [mesh.node(ENDS[0])?, mesh.node(ENDS[1])?];
    let server = to.host().command("iperf3").args(["-s", "--forceflush"]).spawn("iperf3")?;
    let coturn = start_coturn(mesh.network().host(RELAY)?, lab.directory())?;
    let pids = [mesh.coordinator().pid().context("our relay runs")?, coturn.pid()];
    let mut taken: Vec<[Vec<Taken>; 2]> = LOADS.iter().map(|_| Default::default()).collect();
    for round in 0..ROUNDS {
        for (load, taken) in LOADS.iter().zip(&mut taken) {
            eprintln!("round {}, {} B", round + 1, load.payload);
            let target = to.address()?.into();
            taken[0].push(once(pids[0], *load, || load.through_ours(from.host(), target))?);
            let relay = SocketAddr::from((mesh.network().host(RELAY)?.address(), TURN_PORT));
            taken[1].push(once(pids[1], *load, || load.through_turn([from.host(), to.host()], relay))?);
        }
    }
    ensure!(from.peer(ENDS[1])?.path.kind == PathKind::Relay, "our agents were to be relayed");
    drop((server, coturn));
    mesh.stop()?;
    figures(&taken)
}

fn figures(taken: &[[Vec<Taken>; 2]]) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (load, [ours, theirs]) in LOADS.iter().zip(taken) {
        let name = |what: &str| format!("relay, {} B: {what}", load.payload);
        let of = |taken: &[Taken]| taken.iter().map(|taken| taken.per_packet).collect::<Vec<_>>();
        figures.push(Figure::new(name("ours, CPU per packet"), "us", of(ours), None)?);
        figures.push(Figure::new(name("coturn, CPU per packet"), "us", of(theirs), None)?);
        let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| theirs.per_packet / ours.per_packet);
        let what = name("packets per CPU second, to coturn");
        figures.push(Figure::new(what, "x", ratios.collect(), Some(Budget::AtLeast(1.0)))?);
    }
    Ok(figures)
}

fn once(pid: i32, load: Load, run: impl FnOnce() -> anyhow::Result<[u64; 2]>) -> anyhow::Result<Taken> {
    let before = procfs::cpu_time(pid)?;
    let [sent, arrived] = run()?;
    let cpu = (procfs::cpu_time(pid)? - before).total();
    ensure!(
        arrived as f64 > sent as f64 * (1.0 - LOST),
        "{arrived} of {sent} packets of {} B arrive",
        load.payload
    );
    Ok(Taken { per_packet: cpu * 1e6 / arrived as f64 })
}

/// Starts coturn, open for everyone: what it checks at the beginning of a session is not what is measured.
fn start_coturn(host: &Host, folder: &Path) -> anyhow::Result<Process> {
    let (address, port) = (host.address().to_string(), TURN_PORT.to_string());
    let process = host
        .command("turnserver")
        .args([
            "-n",
            "--no-auth",
            "--no-tls",
            "--no-dtls",
            "--no-cli",
            "--log-file",
            "stdout",
            "--simple-log",
        ])
        .args(["--listening-ip", &address, "--relay-ip", &address, "--listening-port", &port])
        .arg("--pidfile")
        .arg(folder.join("turnserver.pid"))
        .arg("--userdb")
        .arg(folder.join("turndb"))
        .spawn("turnserver")?;
    wait_until(PATIENCE, "coturn listens", || {
        ensure!(process.is_running(), "coturn has ended: {}", std::fs::read_to_string(process.log())?);
        let table = host.command("cat").arg("/proc/thread-self/net/udp").output()?.success()?.stdout;
        Ok(table.contains(&format!(":{TURN_PORT:04X} ")))
    })?;
    Ok(process)
}

impl Load {
    /// What one of our relayed packets is long, without UDP's header.
    fn on_the_wire(self) -> usize {
        (self.payload + INNER_HEADERS).next_multiple_of(PADDING) + OVERHEAD
    }

    fn through_ours(self, from: &Host, to: IpAddr) -> anyhow::Result<[u64; 2]> {
        let rate = (self.payload * 8) as u64 * u64::from(self.per_second);
        let finished = from
            .command("iperf3")
            .args(["-c", &to.to_string(), "-u", "-J", "-t", &SECONDS.to_string()])
            .args(["-l", &self.payload.to_string(), "-b", &rate.to_string()])
            .timeout(Duration::from_secs(u64::from(SECONDS) + PATIENCE.as_secs()))
            .output()?
            .success()?;
        let answer: serde_json::Value = serde_json::from_str(&finished.stdout)?;
        let received = &answer["end"]["sum_received"];
        let (all, lost) = (received["packets"].as_u64(), received["lost_packets"].as_u64());
        let all = all.context("iperf3's answer")?;
        Ok([all, all - lost.context("iperf3's answer")?])
    }

    fn through_turn(self, ends: [&Host; 2], relay: SocketAddr) -> anyhow::Result<[u64; 2]> {
        let len = self.on_the_wire() - TURN_HEADER;
        let arrived = turn::Client::connect(ends, relay)?.send(len, self.per_second, SECONDS)?;
        Ok([u64::from(self.per_second * SECONDS), arrived])
    }
}
