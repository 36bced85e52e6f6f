//! Who reaches whom, and is seen as whom.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use mesh_lab::kubernetes::pods::{HOST_PORT, POD_PORT, ask_from};
use mesh_lab::kubernetes::{CLUSTER_DNS, RunningPod};

use crate::rig::Rig;

/// Ports of the nodes that lead to pods; see the manifests.
const NODE_PORT: u16 = 30080;
const LOCAL_NODE_PORT: u16 = 30081;
const POD_HOST_PORT: u16 = 31080;

/// Each asks all: on the same node, on others, and itself; nobody's address is hidden.
pub(crate) fn every_pod_sees_every_pod(rig: &Rig) -> anyhow::Result<()> {
    let pods = rig.all_pods()?;
    ensure!(pods.len() == 2 * rig.workers().len(), "{pods:?}");
    let servers: Vec<String> = pods.iter().map(|pod| format!("{}:{POD_PORT}", pod.address)).collect();
    each(&pods, |from| {
        for (to, answer) in pods.iter().zip(rig.cluster.kubectl()?.ask(&from.name, &servers, 1)?) {
            let answer = answer.with_context(|| format!("{} gets nothing from {}", from.name, to.name))?;
            ensure!(
                answer.source == from.address && answer.server == to.name,
                "{from:?} asks {to:?}: {answer:?}"
            );
        }
        Ok(())
    })
}

/// By the mesh addresses of the nodes, which are the cluster's.
pub(crate) fn pods_and_nodes_see_each_other(rig: &Rig) -> anyhow::Result<()> {
    let pods = rig.all_pods()?;
    let nodes = addresses(rig)?;
    let servers: Vec<String> = nodes.iter().map(|(_, address)| format!("{address}:{HOST_PORT}")).collect();
    each(&pods, |from| {
        for ((to, _), answer) in nodes.iter().zip(rig.cluster.kubectl()?.ask(&from.name, &servers, 1)?) {
            let answer = answer.with_context(|| format!("{} gets nothing from node {to}", from.name))?;
            ensure!(answer.source == from.address, "{from:?} asks node {to}: {answer:?}");
        }
        Ok(())
    })?;
    for from in rig.nodes() {
        let node = rig.village.node(from)?;
        let own = IpAddr::from(node.address()?);
        for (to, address) in &nodes {
            let answer = ask_from(node.host(), &format!("{address}:{HOST_PORT}"))?;
            ensure!(answer.source == own, "{from} asks node {to}: {answer:?}");
        }
        for to in &pods {
            let answer = ask_from(node.host(), &format!("{}:{POD_PORT}", to.address))?;
            ensure!(answer.server == to.name, "{from} asks {to:?}: {answer:?}");
            // On its own bridge a node has another address.
            ensure!(answer.source == own || to.node == from, "{from} asks {to:?}: {answer:?}");
        }
    }
    Ok(())
}

/// By the Service's address, by its name, by the node's port, and by a pod's own port of its node.
pub(crate) fn services_reach_every_backend(rig: &Rig) -> anyhow::Result<()> {
    let kubectl = rig.cluster.kubectl()?;
    let web = rig.cluster.pods("web")?;
    let backends: BTreeSet<String> = web.values().map(|pod| pod.name.clone()).collect();
    let service = kubectl.get(["service", "web"])?;
    let service = service["spec"]["clusterIP"].as_str().context("the Service has an address")?.to_owned();
    let clients: Vec<RunningPod> = rig.cluster.pods("client")?.into_values().collect();
    each(&clients, |from| {
        kubectl.ask_all(&from.name, &service, &backends)?;
        let name = "web.default.svc.cluster.local";
        let found = kubectl.shell(&from.name, &format!("timeout 10 nslookup {name} {CLUSTER_DNS}"))?;
        ensure!(found.contains(&service), "{} finds {name} at {found}", from.name);
        // One's own Service may lead to oneself.
        let own = &web[&from.node].name;
        kubectl.ask_all(own, &service, &backends)
    })?;
    let nodes = addresses(rig)?;
    for from in rig.nodes() {
        let node = rig.village.node(from)?;
        for (to, address) in &nodes {
            ask_from(node.host(), &format!("{address}:{NODE_PORT}"))?;
            if from == *to {
                continue;
            }
            let answer = ask_from(node.host(), &format!("{address}:{POD_HOST_PORT}"))?;
            ensure!(answer.server.starts_with("client-"), "{from} asks {to} by a pod's port: {answer:?}");
            let answer = ask_from(node.host(), &format!("{address}:{LOCAL_NODE_PORT}"))?;
            let own = IpAddr::from(node.address()?);
            ensure!(
                answer.source == own && answer.server == web[*to].name,
                "{from} asks {to} for its own pods: {answer:?}"
            );
        }
    }
    Ok(())
}

/// The workers with their mesh addresses.
fn addresses(rig: &Rig) -> anyhow::Result<Vec<(&'static str, IpAddr)>> {
    rig.workers().iter().map(|&worker| Ok((worker, rig.village.node(worker)?.address()?.into()))).collect()
}

/// Does something for all pods at the same time.
fn each(pods: &[RunningPod], work: impl Fn(&RunningPod) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(move || work(pod))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a pod's thread does not panic"))
    })
}
