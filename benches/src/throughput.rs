//! A first figure of throughput: one TCP stream through two agents, beside Debian's wireguard-go.

use std::net::Ipv4Addr;

use anyhow::{Context, ensure};
use mesh_lab::{
    Filtering, Host, Lab, Mapping, Mesh, MeshOptions, Nat, Process, Site, Topology, mesh::wait_until,
};

use crate::{agent, figure::Figure};

/// Rounds, interleaved.
const ROUNDS: usize = 5;
/// How long one stream runs, in seconds.
const SECONDS: &str = "3";
/// wireguard-go's tunnel.
const WG_ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];
const WG_PORT: u16 = 51_999;

/// Measures.
///
/// # Errors
/// When the lab, the binaries or iperf3 fail.
pub fn measure(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let lan = Site::behind("lan", Nat::new(Mapping::Eim, Filtering::Apdf)).host("a").host("b");
    let network = lab.build(Topology::new().site(Site::public("coord")).site(lan))?;
    let address = network.outside("coord")?.to_string();
    let mesh = Mesh::new(network, &MeshOptions::new("coord", &address, &["a", "b"]))?;
    mesh.start()?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    wait_until(agent::PATIENCE, "a and b talk directly", || {
        mesh.ping("a", "b")?;
        Ok(a.peer("b")?.path.address.is_some())
    })?;
    let mesh_address = b.address()?;
    let _tunnels = wireguard_go([a.host(), b.host()])?;

    let server = b.host().command("iperf3").args(["-s", "--forceflush"]).spawn("iperf3")?;
    wait_until(agent::PATIENCE, "iperf3 listens", || Ok(stream(a.host(), mesh_address, "1").is_ok()))?;
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let our = stream(a.host(), mesh_address, SECONDS)?;
        let their = stream(a.host(), WG_ADDRESSES[1], SECONDS)?;
        ours.push(our);
        theirs.push(their);
        ratios.push(our / their);
    }
    drop(server);
    mesh.stop()?;
    Ok(vec![
        Figure::new("TCP, one stream, two agents on one machine", "Gbit/s", ours, None)?,
        Figure::new("TCP, one stream, two wireguard-go of Debian", "Gbit/s", theirs, None)?,
        Figure::new("TCP, one stream, ratio of these rounds", "x", ratios, None)?,
    ])
}

/// Starts a pair of wireguard-go, which end when they are dropped, and waits until they talk.
fn wireguard_go(hosts: [&Host; 2]) -> anyhow::Result<Vec<Process>> {
    let (mut keys, mut processes) = (Vec::new(), Vec::new());
    // Hosts share the directory of wireguard-go's control sockets, so each interface has a name of its own.
    let interfaces = [0, 1].map(|index| format!("wg{index}-{}", std::process::id()));
    for ((host, address), interface) in hosts.into_iter().zip(WG_ADDRESSES).zip(&interfaces) {
        let log = format!("wireguard-go-{}", host.name());
        processes.push(host.command("wireguard-go").args(["-f", interface]).spawn(&log)?);
        let private = host.command("wg").arg("genkey").output()?.success()?.stdout;
        let file =
            std::env::temp_dir().join(format!("mesh-bench-{}-{}.key", std::process::id(), host.name()));
        std::fs::write(&file, private)?;
        wait_until(agent::PATIENCE, "wireguard-go is up", || {
            let set = host
                .command("wg")
                .args(["set", interface, "listen-port", &WG_PORT.to_string(), "private-key"])
                .arg(&file)
                .output()?;
            Ok(set.success().is_ok())
        })?;
        std::fs::remove_file(&file)?;
        keys.push(host.command("wg").args(["show", interface, "public-key"]).output()?.success()?.stdout);
        host.netns()
            .ip(&format!("address add {address}/24 dev {interface}\nlink set {interface} mtu 1420 up\n"))?;
    }
    for (index, host) in hosts.into_iter().enumerate() {
        let other = 1 - index;
        let endpoint = format!("{}:{WG_PORT}", hosts[other].address());
        let allowed = format!("{}/32", WG_ADDRESSES[other]);
        host.command("wg")
            .args(["set", &interfaces[index], "peer", keys[other].trim()])
            .args(["endpoint", &endpoint, "allowed-ips", &allowed])
            .output()?
            .success()?;
    }
    wait_until(agent::PATIENCE, "wireguard-go talks", || Ok(hosts[0].ping(WG_ADDRESSES[1]).is_ok()))?;
    Ok(processes)
}

/// Runs one TCP stream and returns what arrived, in Gbit/s.
fn stream(from: &Host, to: Ipv4Addr, seconds: &str) -> anyhow::Result<f64> {
    let output =
        from.command("iperf3").args(["-c", &to.to_string(), "-t", seconds, "-J"]).output()?.success()?.stdout;
    let report: serde_json::Value = serde_json::from_str(&output)?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 said no rate")?;
    ensure!(rate > 0.0, "nothing arrived");
    Ok(rate / 1e9)
}
