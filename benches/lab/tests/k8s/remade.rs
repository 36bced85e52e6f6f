//! A Node that is deleted and made again, with other ranges for its pods.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use mesh_lab::kubernetes::Cluster;
use mesh_lab::mesh::wait_until;
use mesh_proto::kubernetes::PodNetworkState;
use serde_json::json;

use crate::rig::{CONTROL_PLANE, PATIENCE, Rig, WORKERS};

/// Which one.
const NODE: &str = "home-b";
/// Far from what the controller manager gives: IPv6 alone, and then both with IPv6 first.
const OTHERS: [&[&str]; 2] = [&["fd00:10:244:c9::/64"], &["fd00:10:244:c8::/64", "10.244.200.0/24"]];
/// What the bridge has then.
const GATEWAYS: [&[&str]; 2] = [&["fd00:10:244:c9::1/64"], &["10.244.200.1/24", "fd00:10:244:c8::1/64"]];
/// The pods' bridge.
const BRIDGE: &str = "cni-mesh0";

/// A range, as the mesh has it.
pub(crate) type Range = ipnet::IpNet;

/// Reads one of any family.
pub(crate) fn range(text: &str) -> anyhow::Result<Range> {
    text.parse().with_context(|| format!("{text:?} is no range"))
}

/// The bridge, the pods' addresses and everybody's routes follow; pods that had an address of the old range are told of, and
/// are right when they were made anew.
pub(crate) fn everything_follows_other_ranges(rig: &Rig) -> anyhow::Result<()> {
    for (others, gateways) in OTHERS.into_iter().zip(GATEWAYS) {
        let others = others.iter().map(|other| range(other)).collect::<anyhow::Result<Vec<_>>>()?;
        everything_follows(rig, &others, gateways).with_context(|| format!("{NODE} with {others:?}"))?;
    }
    Ok(())
}

fn everything_follows(rig: &Rig, after: &[Range], gateways: &[&str]) -> anyhow::Result<()> {
    let before = rig.pod_ranges(NODE)?;
    let (kubectl, node) = (rig.cluster.kubectl()?, rig.village.node(NODE)?);
    let started = Instant::now();
    rig.make_again(NODE, after)?;
    wait_until(PATIENCE, "the agent has the other ranges, and says what of the old one is left", || {
        let kubernetes = node.peek()?.this.kubernetes.context("nothing of Kubernetes in the status")?;
        let left = "pods still have addresses of an old pod range of this node: delete them";
        ensure!(
            kubernetes.pod_ranges == after
                && kubernetes.state == PodNetworkState::Ready
                && kubernetes.problems.iter().any(|problem| problem.contains(left)),
            "{kubernetes:?}"
        );
        Ok(true)
    })?;
    wait_until(PATIENCE, "all others have the other ranges, and none of the old ones", || {
        for other in WORKERS.iter().copied().chain([CONTROL_PLANE]).filter(|other| *other != NODE) {
            let behind = rig.village.node(other)?.peer(NODE)?.allowed_ips;
            for after in after {
                ensure!(behind.contains(after), "{other}: {behind:?}");
                ensure!(leads_to_mesh(rig, other, *after)?, "{other} has no route to {after}");
            }
            for before in &before {
                ensure!(!behind.contains(before), "{other}: {behind:?}");
                ensure!(!leads_to_mesh(rig, other, *before)?, "{other} still has a route to {before}");
            }
        }
        Ok(true)
    })?;
    println!("from other ranges of a Node until all others know: {:.1?}", started.elapsed());
    kubectl.run([
        "delete",
        "pods",
        "--all-namespaces",
        "--force",
        "--grace-period=0",
        &format!("--field-selector=spec.nodeName={NODE}"),
    ])?;
    let mut pods = Vec::new();
    wait_until(PATIENCE, "its pods are made anew", || {
        pods.clear();
        for app in ["web", "client"] {
            let pod = rig.cluster.pods(app)?.remove(NODE).with_context(|| format!("{app} is not there"))?;
            let is_of = |range: &Range| pod.addresses.iter().any(|address| range.contains(address));
            ensure!(pod.addresses.len() == after.len() && after.iter().all(is_of), "{pod:?}");
            pods.push(pod);
        }
        Ok(true)
    })?;
    for pod in &pods {
        rig.sees_others(pod)?;
    }
    let others = rig.cluster.pods("web")?;
    for other in others.values() {
        pods.iter().try_for_each(|pod| rig.asks(other, pod))?;
    }
    let bridge = rig.village.network().host(NODE)?.command("ip");
    let bridge =
        bridge.args(["-o", "address", "show", BRIDGE, "scope", "global"]).output()?.success()?.stdout;
    let has = |gateway: &&str| bridge.contains(&format!(" {gateway} "));
    ensure!(bridge.lines().count() == gateways.len() && gateways.iter().all(has), "{bridge}");
    wait_until(PATIENCE, "nobody has an address of the old ranges", || {
        let leases = rig.cluster.worker(NODE)?.leases()?;
        let is_given = |address| after.iter().any(|range| range.contains(address));
        ensure!(leases.iter().all(is_given), "{leases:?}");
        Ok(true)
    })?;
    rig.is_well(NODE)
}

impl Rig {
    /// What the cluster has given to a Node.
    pub(crate) fn pod_ranges(&self, worker: &str) -> anyhow::Result<Vec<Range>> {
        pod_ranges(&self.cluster, worker)
    }

    /// Deletes a Node, and makes it again with these ranges.
    pub(crate) fn make_again(&self, worker: &str, ranges: &[Range]) -> anyhow::Result<()> {
        let kubectl = self.cluster.kubectl()?;
        kubectl.run(["delete", "node", worker])?;
        let spec = match ranges.first() {
            Some(first) => json!({"podCIDR": first, "podCIDRs": ranges}),
            None => json!({}),
        };
        let labels = json!({"kubernetes.io/hostname": worker, "kubernetes.io/os": "linux"});
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": worker, "labels": labels},
            "spec": spec,
        });
        kubectl.apply(&node.to_string())
    }
}

/// What a cluster has given to a Node.
pub(crate) fn pod_ranges(cluster: &Cluster, worker: &str) -> anyhow::Result<Vec<Range>> {
    let node = cluster.kubectl()?.get(["node", worker])?;
    let ranges = node["spec"]["podCIDRs"].as_array().context("the Node has no range")?;
    ranges.iter().map(|text| range(text.as_str().context("a range is text")?)).collect()
}

/// Whether a node sends what is for a range into the mesh.
fn leads_to_mesh(rig: &Rig, node: &str, range: Range) -> anyhow::Result<bool> {
    let host = rig.village.network().host(node)?;
    let to = range.hosts().nth(1).context("a range of one address")?.to_string();
    // Where there is no way at all, that is an answer, too.
    Ok(host.command("ip").args(["route", "get", &to]).output()?.stdout.contains("dev mesh0"))
}
