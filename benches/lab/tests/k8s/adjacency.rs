//! Who reaches whom, and is seen as whom.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, ensure};
use mesh_lab::kubernetes::RunningPod;
use mesh_lab::kubernetes::pods::{HOST_PORT, POD_PORT, ask_from};

use crate::rig::{CONTROL_PLANE, Rig};

/// Ports that lead to pods, of a Service and of the nodes; see the manifests.
const SERVICE_PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const LOCAL_NODE_PORT: u16 = 30081;
const POD_HOST_PORT: u16 = 31080;

/// Each asks all, by each of their addresses: on the same node, on others, and itself; nobody's address is hidden.
pub(crate) fn every_pod_sees_every_pod(rig: &Rig) -> anyhow::Result<()> {
    let pods = rig.all_pods()?;
    ensure!(pods.len() == 2 * rig.workers().len(), "{pods:?}");
    let of_pod = |pod: &RunningPod| -> Vec<_> {
        pod.addresses.iter().map(|address| (pod.name.clone(), *address)).collect()
    };
    let targets: Vec<(String, IpAddr)> = pods.iter().flat_map(of_pod).collect();
    ensure!(targets.len() == pods.len() * rig.addresses(CONTROL_PLANE)?.len(), "{pods:?}");
    let servers: Vec<String> = targets.iter().map(|(_, address)| at(*address, POD_PORT)).collect();
    each(&pods, |from| {
        for ((to, address), answer) in
            targets.iter().zip(rig.cluster.kubectl()?.ask(&from.name, &servers, 1)?)
        {
            let answer =
                answer.with_context(|| format!("{} gets nothing from {to} at {address}", from.name))?;
            ensure!(
                answer.source == from.address_like(*address)? && answer.server == *to,
                "{from:?} asks {to} at {address}: {answer:?}"
            );
        }
        Ok(())
    })
}

/// By the mesh addresses of the nodes, which are the cluster's.
pub(crate) fn pods_and_nodes_see_each_other(rig: &Rig) -> anyhow::Result<()> {
    let pods = rig.all_pods()?;
    let nodes = addresses(rig)?;
    let servers: Vec<String> = nodes.iter().map(|(_, address)| at(*address, HOST_PORT)).collect();
    each(&pods, |from| {
        for ((to, address), answer) in nodes.iter().zip(rig.cluster.kubectl()?.ask(&from.name, &servers, 1)?)
        {
            let answer =
                answer.with_context(|| format!("{} gets nothing from node {to} at {address}", from.name))?;
            ensure!(answer.source == from.address_like(*address)?, "{from:?} asks node {to}: {answer:?}");
        }
        Ok(())
    })?;
    each(&rig.nodes().collect::<Vec<_>>(), |&from| {
        let node = rig.village.node(from)?;
        let own = rig.addresses(from)?;
        for (to, address) in &nodes {
            let answer = ask_from(node.host(), &at(*address, HOST_PORT))?;
            ensure!(own.contains(&answer.source), "{from} asks node {to} at {address}: {answer:?}");
        }
        for to in &pods {
            for address in &to.addresses {
                let answer = ask_from(node.host(), &at(*address, POD_PORT))?;
                ensure!(answer.server == to.name, "{from} asks {to:?}: {answer:?}");
                // On its own bridge a node has another address.
                ensure!(own.contains(&answer.source) || to.node == from, "{from} asks {to:?}: {answer:?}");
            }
        }
        Ok(())
    })
}

/// By the Service's address, by its name, by the node's port, and by a pod's own port of its node.
pub(crate) fn services_reach_every_backend(rig: &Rig) -> anyhow::Result<()> {
    let kubectl = rig.cluster.kubectl()?;
    let web = rig.cluster.pods("web")?;
    let backends: BTreeSet<String> = web.values().map(|pod| pod.name.clone()).collect();
    let service = kubectl.get(["service", "web"])?;
    let services = service["spec"]["clusterIPs"].as_array().context("the Service has addresses")?;
    let services: Vec<IpAddr> = services
        .iter()
        .map(|service| Ok(service.as_str().context("an address is text")?.parse()?))
        .collect::<anyhow::Result<_>>()?;
    ensure!(services.len() == rig.addresses(CONTROL_PLANE)?.len(), "the Service is at {services:?}");
    let clients: Vec<RunningPod> = rig.cluster.pods("client")?.into_values().collect();
    let dns = rig.families().dns();
    each(&clients, |from| {
        let name = "web.default.svc.cluster.local";
        let found = kubectl.shell(&from.name, &format!("timeout 10 nslookup {name} {dns}"))?;
        for service in &services {
            kubectl.ask_all(&from.name, &at(*service, SERVICE_PORT), &backends)?;
            ensure!(found.contains(&service.to_string()), "{} finds {name} at {found}", from.name);
            // One's own Service may lead to oneself.
            let own = &web[&from.node].name;
            kubectl.ask_all(own, &at(*service, SERVICE_PORT), &backends)?;
        }
        Ok(())
    })?;
    let nodes = addresses(rig)?;
    each(&rig.nodes().collect::<Vec<_>>(), |&from| {
        let node = rig.village.node(from)?;
        let own = rig.addresses(from)?;
        for (to, address) in &nodes {
            ask_from(node.host(), &at(*address, NODE_PORT))?;
            if from == *to {
                continue;
            }
            let answer = ask_from(node.host(), &at(*address, POD_HOST_PORT))?;
            ensure!(answer.server.starts_with("client-"), "{from} asks {to} by a pod's port: {answer:?}");
            let answer = ask_from(node.host(), &at(*address, LOCAL_NODE_PORT))?;
            ensure!(
                own.contains(&answer.source) && answer.server == web[*to].name,
                "{from} asks {to} for its own pods: {answer:?}"
            );
        }
        Ok(())
    })
}

/// The workers, once with each of their mesh addresses.
fn addresses(rig: &Rig) -> anyhow::Result<Vec<(&'static str, IpAddr)>> {
    let mut found = Vec::new();
    for &worker in rig.workers() {
        found.extend(rig.addresses(worker)?.into_iter().map(|address| (worker, address)));
    }
    Ok(found)
}

/// A server, as it stands in a URL.
fn at(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

/// Does something for all of them at the same time.
fn each<T: Sync>(all: &[T], work: impl Fn(&T) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|one| scope.spawn(move || work(one))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a thread of its own does not panic"))
    })
}
