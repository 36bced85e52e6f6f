//! A Node that is deleted and made again, with another range for its pods.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use mesh_lab::mesh::wait_until;
use mesh_proto::kubernetes::PodNetworkState;
use serde_json::json;

use crate::rig::{CONTROL_PLANE, PATIENCE, Rig, WORKERS};

/// Which one.
const NODE: &str = "home-b";
/// Far from what the controller manager gives.
const ANOTHER: &str = "10.244.200.0/24";
/// The pods' bridge.
const BRIDGE: &str = "cni-mesh0";

/// A range, as the mesh has it.
pub(crate) type Range = ipnet::IpNet;

/// Reads one.
pub(crate) fn range(text: &str) -> anyhow::Result<Range> {
    text.parse().with_context(|| format!("{text:?} is no range"))
}

/// The bridge, the pods' addresses and everybody's routes follow; pods that had an address of the old range are told of, and
/// are right when they were made anew.
pub(crate) fn everything_follows_another_range(rig: &Rig) -> anyhow::Result<()> {
    let (before, after) = (rig.pod_range(NODE)?, range(ANOTHER)?);
    let (kubectl, node) = (rig.cluster.kubectl()?, rig.village.node(NODE)?);
    let started = Instant::now();
    rig.make_again(NODE, Some(after))?;
    wait_until(PATIENCE, "the agent has the other range, and says what of the old one is left", || {
        let kubernetes = node.peek()?.this.kubernetes.context("nothing of Kubernetes in the status")?;
        let left = "pods still have addresses of an old pod range of this node: delete them";
        ensure!(
            kubernetes.pod_ranges == [after]
                && kubernetes.state == PodNetworkState::Ready
                && kubernetes.problems.iter().any(|problem| problem.contains(left)),
            "{kubernetes:?}"
        );
        Ok(true)
    })?;
    wait_until(PATIENCE, "all others have the other range, and none the old one", || {
        for other in WORKERS.iter().copied().chain([CONTROL_PLANE]).filter(|other| *other != NODE) {
            let behind = rig.village.node(other)?.peer(NODE)?.allowed_ips;
            ensure!(behind.contains(&after) && !behind.contains(&before), "{other}: {behind:?}");
            ensure!(leads_to_mesh(rig, other, after)?, "{other} has no route to {after}");
            ensure!(!leads_to_mesh(rig, other, before)?, "{other} still has a route to {before}");
        }
        Ok(true)
    })?;
    println!("from another range of a Node until all others know: {:.1?}", started.elapsed());
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
            ensure!(after.contains(&pod.address), "{pod:?}");
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
    let bridge = bridge.args(["-4", "-o", "address", "show", BRIDGE]).output()?.success()?.stdout;
    ensure!(bridge.lines().count() == 1 && bridge.contains(" 10.244.200.1/24 "), "{bridge}");
    wait_until(PATIENCE, "nobody has an address of the old range", || {
        let leases = rig.cluster.worker(NODE)?.leases()?;
        ensure!(leases.iter().all(|address| after.contains(address)), "{leases:?}");
        Ok(true)
    })?;
    rig.is_well(NODE)
}

impl Rig {
    /// What the cluster has given to a Node.
    pub(crate) fn pod_range(&self, worker: &str) -> anyhow::Result<Range> {
        let node = self.cluster.kubectl()?.get(["node", worker])?;
        range(node["spec"]["podCIDR"].as_str().context("the Node has no range")?)
    }

    /// Deletes a Node, and makes it again with this range.
    pub(crate) fn make_again(&self, worker: &str, range: Option<Range>) -> anyhow::Result<()> {
        let kubectl = self.cluster.kubectl()?;
        kubectl.run(["delete", "node", worker])?;
        let spec = match range {
            Some(range) => json!({"podCIDR": range, "podCIDRs": [range]}),
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

/// Whether a node sends what is for a range into the mesh.
fn leads_to_mesh(rig: &Rig, node: &str, range: Range) -> anyhow::Result<bool> {
    let host = rig.village.network().host(node)?;
    let to = range.hosts().nth(1).context("a range of one address")?.to_string();
    // Where there is no way at all, that is an answer, too.
    Ok(host.command("ip").args(["route", "get", &to]).output()?.stdout.contains("dev mesh0"))
}
