//! Pods that come and go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use mesh_lab::kubernetes::{image::TOOLS, items};
use mesh_lab::mesh::wait_until;
use serde_json::json;

use crate::rig::Rig;

/// How many come at once.
const PODS: usize = 40;
/// How often, unless `MESH_POD_ROUNDS` says: with 7 there are more than a range of 254 has addresses.
const ROUNDS: u64 = 5;
/// On a busy machine, for all of a round.
const PATIENCE: Duration = Duration::from_secs(180);
/// Where.
const NODE: &str = "home-a";
const NAME: &str = "many";

/// No address is lost when pods come and go.
pub(crate) fn addresses_are_given_back(rig: &Rig) -> anyhow::Result<()> {
    let kubectl = rig.cluster.kubectl()?;
    let started = Instant::now();
    kubectl.apply(&deployment().to_string())?;
    let rounds = std::env::var("MESH_POD_ROUNDS").map_or(Ok(ROUNDS), |rounds| rounds.parse())?;
    for _ in 0..rounds {
        kubectl.run(["scale", "deployment", NAME, &format!("--replicas={PODS}")])?;
        wait_until(PATIENCE, "all pods run", || {
            let deployment = kubectl.get(["deployment", NAME])?;
            Ok(deployment["status"]["readyReplicas"] == PODS)
        })?;
        kubectl.run(["scale", "deployment", NAME, "--replicas=0"])?;
        wait_until(PATIENCE, "all pods are gone, and their addresses are free", || {
            let (live, leased) = (live(rig)?, rig.cluster.worker(NODE)?.leases()?);
            ensure!(live == leased, "{live:?} live, {leased:?} are taken");
            Ok(true)
        })?;
    }
    kubectl.run(["delete", "deployment", NAME])?;
    println!("{} pods came and went in {:.1?}", PODS as u64 * rounds, started.elapsed());
    Ok(())
}

/// The addresses of all pods of the node that have one of their own.
fn live(rig: &Rig) -> anyhow::Result<BTreeSet<IpAddr>> {
    let field = format!("--field-selector=spec.nodeName={NODE}");
    let pods = rig.cluster.kubectl()?.get(["pods", "--all-namespaces", &field])?;
    let own = items(&pods).filter(|pod| pod["spec"]["hostNetwork"] != true);
    let addresses = own.filter_map(|pod| pod["status"]["podIPs"].as_array()).flatten();
    Ok(addresses.filter_map(|own| own["ip"].as_str()?.parse().ok()).collect())
}

fn deployment() -> serde_json::Value {
    let labels = json!({"app": NAME});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "Recreate"},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "nodeName": NODE,
                    "terminationGracePeriodSeconds": 0,
                    "enableServiceLinks": false,
                    "automountServiceAccountToken": false,
                    "containers": [{"name": NAME, "image": TOOLS, "imagePullPolicy": "Never"}],
                },
            },
        },
    })
}
