//! This node's part of a Kubernetes cluster whose pod network is the mesh.
//!
//! ```text
//! API server -- own Node --> watch --> ranges (pure) -- offered ----> coordinator -- approved --+
//!      ^                       |          ^                                                     |
//!      |                       v          +-- host's networks, Services, cluster's range        v
//!      |                     memory (on disk)                                       podnet: bridge, plugins, packet filter
//!      |                                                                                        |
//!      +---- tell: condition NetworkUnavailable, Events <-------------- task -------------------+--> meshctl status
//! ```
//!
//! Tasks: the watch of the Node (stopped between two events), the teller (stopped between or within requests: a request that
//! was cut off is made again by the next run), and the task that brings it all together (stopped between two looks, or
//! within one: every effect takes the whole desired state). While the API server is away nothing that runs changes, and an
//! agent that is started then goes on from what it remembers.
//!
//! Of the cluster no more is read than the own Node, by its name, and where RBAC permits it whether there is any
//! NetworkPolicy and which ranges Services have.

mod api;
pub mod beside;
mod memory;
mod objects;
mod owner;
#[cfg(target_os = "linux")]
pub mod podnet;
mod ranges;
#[cfg(target_os = "linux")]
mod task;
mod tell;
#[cfg(test)]
mod tests;
mod trouble;
mod watch;

use std::{
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use mesh_proto::{
    kubernetes::{ApiStatus, KubernetesStatus, NetworkPolicies, PodNetworkState},
    status::Status,
};
use tokio::sync::{Notify, watch as channel};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::identity::StateDir;
use api::Api;
use memory::Memory;
use mesh_kubeapi::Access;
#[cfg(target_os = "linux")]
use podnet::{Places, PodNetwork};
#[cfg(target_os = "linux")]
use task::{Parts, Task};
use tell::{Answers, Teller, Wanted};
use watch::{Seen, Watcher};

pub use mesh_kubeapi::{AccessError, ApiError, is_pod};

/// What this node does for a Kubernetes cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// Whose credentials the API server is asked with; `None` to look for them.
    pub kubeconfig: Option<PathBuf>,
    /// The name of this node's Node.
    pub node_name: String,
    /// The whole cluster's ranges for pods; empty for what the mesh has.
    pub pod_ranges: Vec<IpNet>,
    /// The cluster's ranges for Services; empty for what the API server says.
    pub service_ranges: Vec<IpNet>,
    /// Where the container runtime finds its networks.
    pub cni_conf_dir: PathBuf,
    /// Where it finds plugins.
    pub cni_bin_dir: PathBuf,
    /// Where missing or older plugins are copied from, before the usual places.
    pub cni_plugin_source: Option<PathBuf>,
    /// The MTU of pods; `None` for the interface's.
    pub pod_mtu: Option<u16>,
}

/// The mesh, as far as the pod network has to do with it.
pub trait Mesh: Send + Sync + 'static {
    /// Returns the status document.
    fn status(&self) -> impl Future<Output = anyhow::Result<Status>> + Send;

    /// Offers these ranges, all of them, as this node's pods.
    fn offer_pods(&self, ranges: &[IpNet]);

    /// Waits until what the status says of this node may have changed. Cancel-safe.
    fn changed(&self) -> impl Future<Output = ()> + Send;
}

/// What is shown of the pod network.
#[derive(Debug, Clone)]
pub struct KubernetesHandle {
    shown: Arc<Mutex<KubernetesStatus>>,
    /// Says that the API server may be back.
    sign: Arc<Notify>,
}

impl KubernetesHandle {
    /// Makes one for a pod network that is to be started.
    #[must_use]
    pub fn new(config: &KubernetesConfig) -> Self {
        let shown = KubernetesStatus {
            node: config.node_name.clone(),
            state: PodNetworkState::Waiting,
            pod_ranges: Vec::new(),
            api: ApiStatus::default(),
            from_cache: false,
            network_policies: NetworkPolicies::Unknown,
            problems: Vec::new(),
        };
        Self { shown: Arc::new(Mutex::new(shown)), sign: Arc::default() }
    }

    /// Returns what there is to show.
    #[must_use]
    pub fn status(&self) -> KubernetesStatus {
        self.lock().clone()
    }

    /// Says that the network has changed: the API server is tried at once.
    pub fn network_changed(&self) {
        self.sign.notify_one();
    }

    fn set(&self, status: KubernetesStatus) {
        *self.lock() = status;
    }

    fn lock(&self) -> MutexGuard<'_, KubernetesStatus> {
        // It is whole at any moment.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a pod network is started with.
#[derive(Debug)]
pub struct Start<M> {
    /// What it does.
    pub config: KubernetesConfig,
    /// The mesh.
    pub mesh: Arc<M>,
    /// Where it is shown.
    pub handle: KubernetesHandle,
    /// Where the Node is remembered.
    pub state_dir: StateDir,
    /// Where the agent answers, for the plugins.
    pub socket: PathBuf,
}

impl KubernetesConfig {
    /// Where the container runtime of this host looks, and where plugins come from.
    #[cfg(target_os = "linux")]
    fn places(&self) -> Places {
        let usual = Places::default();
        Places {
            cni_conf_dir: self.cni_conf_dir.clone(),
            cni_bin_dir: self.cni_bin_dir.clone(),
            plugin_sources: self.cni_plugin_source.iter().cloned().chain(usual.plugin_sources).collect(),
            host_local_dir: usual.host_local_dir,
            k3s: usual.k3s,
        }
    }
}

/// Takes everything back that made this host a part of the pod network, and returns what could not be. For a node that
/// leaves its cluster, with the agent stopped and its pods gone.
#[cfg(target_os = "linux")]
pub async fn remove(config: &KubernetesConfig, interface: &str) -> Vec<podnet::Problem> {
    PodNetwork::new(config.places()).remove(interface).await
}

/// Starts it.
///
/// # Errors
/// When the host's networks cannot be looked at.
#[cfg(target_os = "linux")]
pub fn spawn<M: Mesh>(
    start: Start<M>,
    cancel: &CancellationToken,
    tracker: &TaskTracker,
) -> anyhow::Result<()> {
    let Start { config, mesh, handle, state_dir, socket } = start;
    let api = || Api::new(Access::new(config.kubeconfig.clone()), config.node_name.clone());
    let (seen, seen_by_teller) = channel::channel(Seen::default());
    let (wanted, wanted_by_teller) = channel::channel(Wanted::default());
    let (answers, answered) = channel::channel(Answers::default());
    let teller =
        Teller::new(api(), config.node_name.clone(), (seen_by_teller.clone(), wanted_by_teller), answers);
    let watcher = Watcher::new(api(), seen, Arc::clone(&handle.sign));
    let memory = Memory::load(state_dir, &config.node_name);
    let task = Task::new(
        config,
        mesh,
        Parts { handle, memory, seen: seen_by_teller, wanted, answers: answered, socket },
    )?;
    tracker.spawn(watcher.run(cancel.clone()));
    tracker.spawn(teller.run(cancel.clone()));
    tracker.spawn(task.run(cancel.clone()));
    Ok(())
}

/// Refuses: pods run on Linux.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn spawn<M: Mesh>(_: Start<M>, _: &CancellationToken, _: &TaskTracker) -> anyhow::Result<()> {
    anyhow::bail!("[kubernetes] is for Linux: no pods run here")
}
