//! What a cluster with IPv6 has beside what is checked of each family.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_lab::Mesh;
use mesh_lab::kubernetes::{Cluster, Families};
use mesh_lab::mesh::wait_until;
use mesh_lab::topology::{INTERNET, NAME_SERVER, NAME_SERVER_V6};
use mesh_proto::kubernetes::PodNetworkState;

use crate::remade::pod_ranges;
use crate::rig::{ON_IPV6, PATIENCE, Rig};

/// Whose site has no IPv6.
const WITHOUT_IPV6: &str = "office";
/// Where somebody in the world tells who asks.
const PORT: u16 = 5302;
/// For what is to be refused at once, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);
/// The pods' bridge.
const BRIDGE: &str = "cni-mesh0";

/// Each has a range of each family of the cluster, which the mesh has accepted.
pub(crate) fn every_node_has_each(rig: &Rig) -> anyhow::Result<()> {
    rig.workers().iter().try_for_each(|worker| has_each(&rig.village, &rig.cluster, rig.families(), worker))
}

/// The same of one node.
pub(crate) fn has_each(
    mesh: &Mesh,
    cluster: &Cluster,
    families: Families,
    worker: &str,
) -> anyhow::Result<()> {
    let given = pod_ranges(cluster, worker)?;
    let kinds: Vec<_> = given.iter().map(|range| range.addr().is_ipv4()).collect();
    ensure!(kinds == families.pick([true, false]), "{worker} has {given:?}");
    wait_until(PATIENCE, "the mesh has accepted each", || {
        let kubernetes = mesh.node(worker)?.peek()?.this.kubernetes;
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
            mesh.network().host(worker)?.command("cat").arg(path).output()?.success()?.stdout,
        )
    };
    ensure!(setting("all/forwarding")?.trim() == "1", "{worker} forwards nothing");
    ensure!(setting("eth0/accept_ra")?.trim() == "2", "{worker} is deaf to its own router");
    if setting(&format!("{BRIDGE}/accept_ra")).is_ok_and(|said| said.trim() != "0") {
        anyhow::bail!("{worker} takes its own pods for routers");
    }
    Ok(())
}

/// An agent in a pod, or a pod beside one, may change no setting of its node: it says which one, and that is written there.
pub(crate) fn what_a_pod_may_not_set_is_told(rig: &Rig) -> anyhow::Result<()> {
    let sentence = "the kernel setting net/ipv6/conf/eth0/accept_ra cannot be set to 2: ";
    for &worker in rig.workers() {
        rig.is_told_by_status(worker, sentence)?;
        rig.is_told_in_cluster(worker, sentence)?;
        rig.village.network().host(worker)?.netns().sysctl(&[("net.ipv6.conf.eth0.accept_ra", "2")])?;
    }
    every_node_has_each(rig)
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
    let network = rig.village.network();
    let own = network.host(ON_IPV6)?.address_v6().context("its site has IPv6")?;
    let ways: [(IpAddr, IpAddr); 2] =
        [(NAME_SERVER.into(), network.outside(ON_IPV6)?.into()), (NAME_SERVER_V6.into(), own.into())];
    for (server, own) in rig.families().pick(ways) {
        let seen = ask(ON_IPV6, server)?;
        ensure!(seen == own, "a pod on {own} is seen as {seen}");
        let started = Instant::now();
        let elsewhere = ask(WITHOUT_IPV6, server);
        if server.is_ipv4() {
            elsewhere?;
        } else {
            let took = started.elapsed();
            ensure!(elsewhere.is_err() && took < AT_ONCE, "{elsewhere:?} after {took:?}");
        }
    }
    Ok(())
}
