//! What happens to the village as a whole: a site that blocks UDP, a coordinator that moves.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use mesh_lab::mesh::wait_until;
use mesh_lab::nat::Egress;
use mesh_lab::village::{COORDINATOR_HOST, COORDINATOR_NAME, NODES};
use mesh_lab::{Lab, MeshOptions, Village};
use mesh_proto::status::{ConnectionState, RelayTransport};

use super::overlay::Overlay as _;
use super::slowest::Slowest;
use super::{Kind, PATIENCE, Pair, Sample, out_of_step, progress};

/// Who talks through what happens.
const PAIR: [&str; 2] = ["macbook", "country"];
/// A pair of which one end is behind a NAT that lets nothing direct through, while no effort is made.
const HARD: [&str; 2] = ["office", "country"];
/// The outside addresses of the coordinator's home, in turns.
const HOMES: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 11), Ipv4Addr::new(203, 0, 113, 10)];
/// The TTL of the coordinator's record; DuckDNS has 60 s, which says nothing more.
const TTL: Duration = Duration::from_secs(2);
/// A change that every watch sees, and that changes nothing: an address more on the interface, for a moment.
const TOUCH: [&str; 2] = ["addr add 198.18.0.9/32 dev eth0\n", "addr del 198.18.0.9/32 dev eth0\n"];

/// Starts the village with further arguments for every agent, and waits until all pairs answer.
pub(super) fn start(lab: &Lab, agent_args: &[&str]) -> anyhow::Result<Village> {
    let mut options = MeshOptions::new(COORDINATOR_HOST, COORDINATOR_NAME, &NODES);
    options.agent_args = agent_args.iter().map(|&arg| arg.to_owned()).collect();
    let village = Village::prepare_with(lab, options)?;
    village.network().dns().set_ttl(TTL);
    village.mesh().start()?;
    village.wait_connected(PATIENCE)?;
    Ok(village)
}

/// UDP is blocked in mid-session, again and again.
pub(super) fn udp_blocked(village: &Village, trials: usize) -> anyhow::Result<(Vec<Sample>, bool)> {
    let network = village.network();
    let pair = Pair::start(village, network, PAIR)?;
    let host = network.host(PAIR[0])?;
    let mut samples = Vec::new();
    let mut slowest = Slowest::new(Kind::UdpBlocked, village.daemons());
    for trial in 0..trials {
        village.settle(PAIR)?;
        progress(Kind::UdpBlocked, trial, &samples);
        slowest.begin();
        std::thread::sleep(out_of_step(trial));
        network.set_egress(&host.site(), Egress::NoUdp)?;
        let since = Instant::now();
        let sample = Sample { reply: pair.wait(since), direct: None };
        slowest.end(trial, &sample)?;
        samples.push(sample);
        network.set_egress(&host.site(), Egress::Open)?;
        // By itself UDP is tried once a minute; a change of the network has it tried at once.
        wait_until(PATIENCE, "UDP is used again", || {
            for batch in TOUCH {
                host.netns().ip(batch)?;
            }
            std::thread::sleep(Duration::from_secs(1));
            let relay = village.node(PAIR[0])?.status()?.this.relay;
            Ok(relay.is_some_and(|relay| relay.transport == RelayTransport::Udp))
        })?;
    }
    Ok((samples, pair.finish()))
}

/// The coordinator moves, and its record follows: measured from the end of the former record's TTL until a relayed pair
/// talks and every agent has a connection again.
pub(super) fn dns(village: &Village, trials: usize) -> anyhow::Result<(Vec<Sample>, bool)> {
    let pair = Pair::start(village, village.network(), HARD)?;
    let mut samples = Vec::new();
    let mut slowest = Slowest::new(Kind::Dns, village.daemons());
    for trial in 0..trials {
        progress(Kind::Dns, trial, &samples);
        slowest.begin();
        wait_connected(village, HOMES[(trial + 1) % HOMES.len()], trial > 0)?;
        std::thread::sleep(out_of_step(trial) * 4);
        village.move_home(HOMES[trial % HOMES.len()])?;
        let moved = Instant::now();
        let reply = pair.wait(moved);
        wait_connected(village, HOMES[trial % HOMES.len()], true)?;
        // Whichever of the two took longer.
        let took = reply.map(|_| moved.elapsed().saturating_sub(TTL));
        let sample = Sample { reply: took, direct: None };
        slowest.end(trial, &sample)?;
        samples.push(sample);
    }
    Ok((samples, pair.finish()))
}

/// Waits until all but the coordinator's own neighbour are connected to it, at this address if that is known.
fn wait_connected(village: &Village, home: Ipv4Addr, is_known: bool) -> anyhow::Result<()> {
    wait_until(PATIENCE, "every agent is connected", || {
        for node in village.nodes().filter(|node| node.name() != COORDINATOR_HOST) {
            let status = node.get("/v1/status")?;
            let coordinator = &status["self"]["coordinator"];
            let state = serde_json::from_value(coordinator["state"].clone())?;
            let address = coordinator["address"].as_str().unwrap_or_default();
            let is_there = !is_known || address.starts_with(&format!("{home}:"));
            anyhow::ensure!(
                matches!(state, ConnectionState::Connected) && is_there,
                "{} says {coordinator}",
                node.name()
            );
        }
        Ok(true)
    })
}
