//! What an agent takes that does Kubernetes: by itself, or in a pod beside the host's agent.
//!
//! It has a range for pods of the coordinator's, makes a bridge, rules and plugins on its host, and watches its Node at an API
//! server of this program's. The host has no plugins before each run: the agent that installs them is the one that is
//! measured.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use mesh_lab::{
    Filtering, Lab, Mapping, Mesh, MeshOptions, Nat, Node, Process, Site, Topology, mesh::wait_until,
};
use mesh_proto::kubernetes::PodNetworkState;

use super::{
    BUDGET, PEERS, RUNS, Subject, Taken,
    cluster::{self, ApiServer},
};
use crate::{agent, figure::Figure, procfs};

/// The nodes: one whose agent does it all, and one with a pod beside its agent.
const WHOLE: &str = "whole";
const BESIDE: &str = "beside";
/// How many peers each has.
const FEW: usize = PEERS[0];

/// Measures.
///
/// # Errors
/// When the lab or the binaries fail, a peer gets no session, or pods get no network.
pub fn measure(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let site = Site::behind("lan", Nat::new(Mapping::Eim, Filtering::Apdf));
    let site = site.host(WHOLE).host(BESIDE).host("far");
    let network = Arc::new(lab.build(Topology::new().site(Site::public("coord")).site(site))?);
    let address = network.outside("coord")?.to_string();
    let far = network.host("far")?;
    let servers = [
        ApiServer::start(far, &directory(lab, WHOLE), (WHOLE, 1))?,
        ApiServer::start(far, &directory(lab, BESIDE), (BESIDE, 2))?,
    ];
    let [for_whole, for_beside] = &servers;
    let mut options = MeshOptions::new("coord", &address, &[WHOLE, BESIDE]);
    options.coordinator_args.push(format!("--pod-range={}", cluster::POD_RANGES));
    options.agent_args_of.insert(WHOLE.to_owned(), arguments(lab, WHOLE, for_whole));
    let mesh = Mesh::new(Arc::clone(&network), &options)?;
    mesh.start()?;
    let (mut whole, mut beside, mut in_pod) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..RUNS {
        eprintln!("run {}, Kubernetes", run + 1);
        remove_plugins(lab, WHOLE)?;
        let subject = Subject::start(mesh.node(WHOLE)?, far, FEW)?;
        wait_pod_network(subject.node)?;
        whole.push(subject.measure().context("an agent that does Kubernetes")?);
        eprintln!("run {}, a pod beside the agent", run + 1);
        remove_plugins(lab, BESIDE)?;
        let subject = Subject::start(mesh.node(BESIDE)?, far, FEW)?;
        let pod = start_pod(&mesh, subject.node, &arguments(lab, BESIDE, for_beside))?;
        wait_pod_network(subject.node)?;
        beside.push(subject.measure().context("an agent with a pod beside it")?);
        in_pod.push((procfs::resident_mb(pod.pid())?, procfs::peak_mb(pod.pid())?));
    }
    mesh.stop()?;
    let of = |taken: &[Taken], of: fn(&Taken) -> f64| taken.iter().map(of).collect::<Vec<_>>();
    let rows = [
        ("agent that does Kubernetes, 10 idle peers, resident", of(&whole, |taken| taken.idle), Some(BUDGET)),
        ("the most it had", of(&whole, |taken| taken.peak), None),
        (
            "agent with a pod beside it, 10 idle peers, resident",
            of(&beside, |taken| taken.idle),
            Some(BUDGET),
        ),
        ("the most it had", of(&beside, |taken| taken.peak), None),
        ("the pod beside it, resident", in_pod.iter().map(|pod| pod.0).collect(), Some(BUDGET)),
        ("the most it had", in_pod.iter().map(|pod| pod.1).collect(), None),
    ];
    rows.into_iter().map(|(what, values, budget)| Figure::new(what, "MB", values, budget)).collect()
}

/// Where what is of a node's part of the cluster is kept.
fn directory(lab: &Lab, node: &str) -> PathBuf {
    lab.directory().join("cluster").join(node)
}

fn plugins(lab: &Lab, node: &str) -> PathBuf {
    directory(lab, node).join("bin")
}

/// What an agent is told that does Kubernetes.
fn arguments(lab: &Lab, node: &str, server: &ApiServer) -> Vec<String> {
    let argument = |name: &str, path: &Path| format!("--kubernetes-{name}={}", path.display());
    vec![
        argument("kubeconfig", server.kubeconfig()),
        argument("cni-conf-dir", &directory(lab, node).join("net.d")),
        argument("cni-bin-dir", &plugins(lab, node)),
    ]
}

fn remove_plugins(lab: &Lab, node: &str) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(plugins(lab, node)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("plugins of a run before"),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Starts a second agent on a node, as a DaemonSet does.
fn start_pod(mesh: &Mesh, node: &Node, arguments: &[String]) -> anyhow::Result<Process> {
    let pod = node.host().command(&mesh.binaries().agent);
    // By this variable it knows that it is in a pod.
    pod.env("KUBERNETES_SERVICE_HOST", "10.96.0.1")
        .args(["run", "--state-dir"])
        .arg(node.state_dir().with_file_name("pod"))
        .arg("--socket")
        .arg(node.socket())
        .args(arguments)
        .spawn("pod")
}

/// Waits until pods have a network on a node.
fn wait_pod_network(node: &Node) -> anyhow::Result<()> {
    wait_until(agent::PATIENCE, "pods have a network", || {
        let pods = node.status()?.this.kubernetes.context("nobody does anything for pods")?;
        ensure!(pods.state == PodNetworkState::Ready && pods.problems.is_empty(), "{pods:?}");
        Ok(true)
    })
}
