//! A coordinator in the open, and two nodes behind routers that let out as much as a test wants.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_lab::mesh::{Mesh, MeshOptions, wait_until};
use mesh_lab::nat::{Egress, Nat};
use mesh_lab::topology::{Site, Topology};
use mesh_lab::{Lab, Network};
use mesh_proto::status::{ControlTransport, RelayTransport, Status};

/// Far beyond the budgets, which are printed and not asserted: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// What a site's line adds to a round trip: 40 ms from a node to the coordinator.
const LINE: Duration = Duration::from_millis(20);
/// How often a reply is asked for.
const ECHO_INTERVAL: &str = "0.02";

/// A coordinator `pi`, and `office` and `home` behind routers.
pub(crate) fn topology(office: Egress, home: Egress) -> Topology {
    let behind = |name: &str, host: &str, egress| {
        Site::behind(name, Nat::masquerade().egress(egress)).host(host).latency(LINE)
    };
    Topology::new()
        .site(Site::public("pi").latency(LINE))
        .site(behind("company", "office", office))
        .site(behind("house", "home", home))
}

pub(crate) fn build(lab: &Lab, topology: Topology) -> anyhow::Result<Arc<Network>> {
    let network = Arc::new(lab.build(topology)?);
    network.dns().set("pi.example", &[network.host("pi")?.address().into()]);
    Ok(network)
}

/// A mesh of `office` and `home` that is up.
pub(crate) fn start(network: &Arc<Network>, agent_args: &[&str]) -> anyhow::Result<Mesh> {
    let mesh = prepare(network, agent_args)?;
    mesh.start()?;
    mesh.wait_connected(PATIENCE)?;
    Ok(mesh)
}

/// The same, not started.
pub(crate) fn prepare(network: &Arc<Network>, agent_args: &[&str]) -> anyhow::Result<Mesh> {
    let mut options = MeshOptions::new("pi", "pi.example", &["office", "home"]);
    options.agent_args = agent_args.iter().map(|&arg| arg.to_owned()).collect();
    Mesh::new(Arc::clone(network), &options)
}

/// How a node says that it is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Udp,
    WebSocket,
}

/// Waits until a node says that control and relay are carried like this.
pub(crate) fn wait_carried(mesh: &Mesh, node: &str, by: By) -> anyhow::Result<Status> {
    let mut last = None;
    let wanted = match by {
        By::Udp => (Some(ControlTransport::Quic), Some(RelayTransport::Udp), false),
        By::WebSocket => (Some(ControlTransport::Websocket), Some(RelayTransport::Websocket), true),
    };
    wait_until(PATIENCE, &format!("{node} is carried by {by:?}"), || {
        let status = mesh.node(node)?.status()?;
        let this = &status.this;
        let relay = this.relay.as_ref().map(|relay| relay.transport);
        let is = (this.coordinator.transport, relay, this.nat.udp_blocked);
        last = Some(status);
        ensure!(is == wanted, "it says {is:?}");
        Ok(true)
    })?;
    last.context("looked at least once")
}

/// Starts a node's agent and measures how long it takes from then until a peer answers.
pub(crate) fn time_to_first_reply(mesh: &Mesh, from: &str, to: &str) -> anyhow::Result<Duration> {
    let (from, to) = (mesh.node(from)?, mesh.node(to)?.address()?);
    let start = Instant::now();
    from.start()?;
    time_to_reply(from.host(), to, start)
}

/// Asks until a reply comes, and returns how long that took since `start`.
pub(crate) fn time_to_reply(
    from: &mesh_lab::topology::Host,
    to: std::net::Ipv4Addr,
    start: Instant,
) -> anyhow::Result<Duration> {
    while start.elapsed() < PATIENCE {
        // Until the interface is up there is no way, and ping ends at once. It ends with the first reply, too.
        let args = ["-n", "-c", "1", "-i", ECHO_INTERVAL, "-w", "10", &to.to_string()];
        let finished = from.command("ping").args(args).output()?;
        if finished.stdout.contains("time=") {
            return Ok(start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    anyhow::bail!("no reply within {PATIENCE:?}")
}
