//! A fresh machine: how long it takes until its pods are everywhere's neighbours.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mesh_lab::mesh::wait_until;

use crate::rig::{PATIENCE, Rig};

/// Who waits for it.
const NEIGHBOUR: &str = "country";

/// A machine whose predecessor has left joins mesh and cluster, and has its pods.
pub(crate) fn a_fresh_worker_has_pods(rig: &Rig, worker: &str) -> anyhow::Result<()> {
    rig.cluster.kubectl()?.run(["delete", "node", worker])?;
    rig.village.administer(["node", "remove", worker])?.success()?;
    std::fs::remove_dir_all(rig.village.node(worker)?.state_dir())?;
    rig.cluster.worker(worker)?.reset()?;
    let web = rig.cluster.pods("web")?;
    let neighbour = rig.cluster.netns(web.get(NEIGHBOUR).context("the neighbour has its pod")?)?;

    let joined = Instant::now();
    rig.join(worker)?;
    let ready = joined.elapsed();
    let mut first = Duration::ZERO;
    wait_until(PATIENCE, "a fresh worker's pod is reached", || {
        // Its server is asked by nobody before it is said to be ready.
        let pod = rig.cluster.pods("client")?.remove(worker).context("it has no pod")?;
        let mut ping = Command::new("ping");
        ping.args(["-n", "-c", "1", "-W", "1"]).arg(pod.address.to_string());
        let reached = neighbour.enter(|| ping.output())??.status.success();
        first = joined.elapsed();
        Ok(reached)
    })?;
    println!(
        "a fresh worker: {ready:.1?} from join to Ready, {:.1?} more to the first packet between pods",
        first.saturating_sub(ready)
    );
    rig.is_well(worker)
}
