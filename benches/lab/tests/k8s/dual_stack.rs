//! What a cluster with both families has beside what is checked of each.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_lab::mesh::wait_until;
use mesh_lab::topology::{INTERNET, NAME_SERVER, NAME_SERVER_V6};
use mesh_proto::kubernetes::PodNetworkState;

use crate::rig::{ON_IPV6, PATIENCE, Rig};

/// Whose site has no IPv6.
const WITHOUT_IPV6: &str = "office";
/// Where somebody in the world tells who asks.
const PORT: u16 = 5302;
/// For what is to be refused at once, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);
/// The pods' bridge.
const BRIDGE: &str = "cni-mesh0";

/// Each has a range of both families, which the mesh has accepted.
pub(crate) fn every_node_has_both(rig: &Rig) -> anyhow::Result<()> {
    for &worker in rig.workers() {
        let given = rig.pod_ranges(worker)?;
        let kinds: Vec<_> = given.iter().map(|range| range.addr().is_ipv4()).collect();
        ensure!(kinds == [true, false], "{worker} has {given:?}");
        wait_until(PATIENCE, "the mesh has accepted both", || {
            let kubernetes = rig.village.node(worker)?.peek()?.this.kubernetes;
            let kubernetes = kubernetes.context("nothing of Kubernetes in the status")?;
            ensure!(
                kubernetes.pod_ranges == given
                    && kubernetes.state == PodNetworkState::Ready
                    && kubernetes.problems.is_empty(),
                "{worker} has {given:?}, and {kubernetes:?}"
            );
            Ok(true)
        })?;
        let setting = |name: &str| {
            let path = format!("/proc/sys/net/ipv6/conf/{name}");
            Ok::<_, anyhow::Error>(
                rig.village.network().host(worker)?.command("cat").arg(path).output()?.success()?.stdout,
            )
        };
        ensure!(setting("all/forwarding")?.trim() == "1", "{worker} forwards nothing");
        ensure!(setting("eth0/accept_ra")?.trim() == "2", "{worker} is deaf to its own router");
        if setting(&format!("{BRIDGE}/accept_ra")).is_ok_and(|said| said.trim() != "0") {
            anyhow::bail!("{worker} takes its own pods for routers");
        }
    }
    Ok(())
}

/// Pods are seen there as their node; where a node has no way, they know at once.
pub(crate) fn pods_reach_the_world(rig: &Rig) -> anyhow::Result<()> {
    let clients = rig.cluster.pods("client")?;
    let world = rig.village.network().host(INTERNET)?;
    let ask = |worker: &str, server: IpAddr| -> anyhow::Result<IpAddr> {
        let listener = world.netns().enter(|| TcpListener::bind((server, PORT)))??;
        let server = SocketAddr::new(server, PORT);
        let pod = rig.cluster.netns(clients.get(worker).context("it has no pod")?)?;
        let mut stream = pod.enter(|| TcpStream::connect_timeout(&server, PATIENCE))??;
        let (accepted, seen) = listener.accept()?;
        // Who has been heard ends; whoever waits for that has been heard.
        drop(accepted);
        stream.read_to_end(&mut Vec::new())?;
        Ok(seen.ip())
    };
    let seen = ask(ON_IPV6, NAME_SERVER.into())?;
    ensure!(seen == IpAddr::from(rig.village.network().outside(ON_IPV6)?), "a pod is seen as {seen}");
    let seen = ask(ON_IPV6, NAME_SERVER_V6.into())?;
    let own = rig.village.network().host(ON_IPV6)?.address_v6().context("its site has IPv6")?;
    ensure!(seen == IpAddr::from(own), "a pod on {own} is seen as {seen}");
    ask(WITHOUT_IPV6, NAME_SERVER.into())?;
    let started = Instant::now();
    let refused = ask(WITHOUT_IPV6, NAME_SERVER_V6.into());
    ensure!(refused.is_err() && started.elapsed() < AT_ONCE, "{refused:?} after {:?}", started.elapsed());
    Ok(())
}
