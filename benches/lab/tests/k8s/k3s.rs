//! Nodes arranged as k3s arranges them, that of its server among them: the agents are told of the range of Services and of
//! nothing else, as `deploy/k8s/README.md` has it, and find the rest by themselves.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use mesh_lab::kubernetes::k3s::Flannel;
use mesh_lab::kubernetes::{Arrangement, Distribution, Families, PodNetwork, ProxyMode, items};
use mesh_lab::mesh::wait_until;

use crate::rig::{CONTROL_PLANE, PATIENCE, Rig};
use crate::talk::{goes_on, stream};
use crate::{access, adjacency, leaving, outages};

/// The server, and two behind NATs of different sites.
const NODES: [&str; 3] = [CONTROL_PLANE, "country", "home-b"];
/// On whose server flannel was left on.
const FORGETFUL: &str = "country";
/// Who is restarted, rebooted and removed.
const WEARY: &str = "home-b";
/// What k3s' script does to the packet filter before it starts a new version, while pods run.
const UPGRADE: &str = "iptables-save | grep -viE 'KUBE-|flannel' | iptables-restore";

#[test]
fn nodes_arranged_as_k3s_has_them_need_no_further_settings() {
    let arranged = Arrangement {
        workers: &NODES,
        pods: PodNetwork::Agents,
        distribution: Distribution::K3s,
        families: Families::Ipv4,
    };
    let rig = Rig::prepare(&arranged, ProxyMode::Iptables).unwrap();
    rig.start_control_plane().unwrap();
    somebody_has_left_flannel_on(&rig).unwrap();
    rig.said("flannel that was left on was told, and is off");
    for node in NODES.into_iter().filter(|node| *node != FORGETFUL) {
        rig.join(node).unwrap();
    }
    rig.wait_network().unwrap();
    every_node_has_its_mesh_address(&rig).unwrap();
    rig.said("all Nodes are Ready, with their mesh addresses");
    rig.start_pods().unwrap();
    rig.said("all pods are ready");
    adjacency::every_pod_sees_every_pod(&rig).unwrap();
    adjacency::pods_and_nodes_see_each_other(&rig).unwrap();
    rig.said("pods reach pods and nodes, and are seen as who they are");
    adjacency::services_reach_every_backend(&rig).unwrap();
    rig.said("Services reach every backend from everywhere, by address, by name and by port");
    access::an_operator_reaches_every_pod(&rig).unwrap();
    rig.said("logs, exec and port-forward reach every node");
    k3s_is_upgraded(&rig).unwrap();
    rig.said("a stream outlives an upgrade of k3s");
    outages::a_worker_reboots(&rig).unwrap();
    rig.said("a node is back after a reboot");
    leaving::nothing_is_left(&rig, WEARY).unwrap();
    rig.said("a node that left is as it was before");
}

/// The agent says what is wrong and what to do, and takes it up when that is done.
fn somebody_has_left_flannel_on(rig: &Rig) -> anyhow::Result<()> {
    let worker = rig.cluster.worker(FORGETFUL)?;
    worker.set_flannel(Flannel::On)?;
    rig.village.join(FORGETFUL)?;
    rig.wait_agent(FORGETFUL)?;
    rig.cluster.start_worker(&rig.village, FORGETFUL)?;
    rig.cluster.admit(FORGETFUL, PATIENCE)?;
    rig.is_told(
        FORGETFUL,
        "k3s' container runtime looks for networks in /var/lib/rancher/k3s/agent/etc/cni/net.d, not in /etc/cni/net.d: \
         start k3s' servers with --flannel-backend=none",
    )?;
    worker.set_flannel(Flannel::None)?;
    worker.restart_k3s()?;
    rig.is_well(FORGETFUL)
}

fn every_node_has_its_mesh_address(rig: &Rig) -> anyhow::Result<()> {
    let nodes = rig.cluster.kubectl()?.get(["nodes"])?;
    let mut seen = BTreeSet::new();
    for node in items(&nodes) {
        let name = node["metadata"]["name"].as_str().context("a Node has a name")?;
        let addresses = node["status"]["addresses"].as_array().context("a Node has addresses")?;
        let internal = addresses.iter().find(|address| address["type"] == "InternalIP");
        let internal = internal.and_then(|address| address["address"].as_str()).context("no InternalIP")?;
        let own = IpAddr::from(rig.village.node(name)?.address()?);
        ensure!(internal.parse() == Ok(own), "{name} is known as {internal}, and is {own}");
        seen.insert(name);
    }
    ensure!(seen == NODES.into_iter().collect(), "{seen:?}");
    Ok(())
}

/// Its script takes the rules of Kubernetes out, and starts it anew. Pods that talk do not notice, and Services are there
/// again.
fn k3s_is_upgraded(rig: &Rig) -> anyhow::Result<()> {
    let web = rig.cluster.pods("web")?;
    let stream = stream(&rig.cluster, &web[FORGETFUL], &web[WEARY])?;
    rig.village.network().host(WEARY)?.command("sh").args(["-ec", UPGRADE]).output()?.success()?;
    rig.cluster.worker(WEARY)?.restart_k3s()?;
    rig.is_well(WEARY)?;
    goes_on(&stream)?;
    println!("gap at an upgrade of k3s: {:.0?}", stream.take_longest());
    stream.finish().context("the stream")?;
    // kubelet and kube-proxy begin anew.
    wait_until(PATIENCE, "Services are there again", || {
        adjacency::services_reach_every_backend(rig).map(|()| true)
    })
}
