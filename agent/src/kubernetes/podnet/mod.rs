//! The node's own half of the pod network: what the container runtime, the kernel and the packet filter of this host
//! need so that its pods reach all others, and the world.
//!
//! ```text
//!   plugins, conflist -> runtime -> pod eth0 --- veth --- bridge cni-mesh0 --- [forwarding] --- mesh0 --- tunnels
//!                                                                                  |
//!                                                                 own nft table: masquerade, MSS
//! ```
//!
//! [`PodNetwork::set`] takes the whole desired state. It is to be called at each change and every few seconds: it does
//! nothing where nothing is missing, and puts back what others took. What cannot be had is a [`Problem`], and nothing
//! that works stops because of one. The order is the one in which a pod needs it: settings of the kernel, bridge,
//! addresses, packet filter, plugins, and last of all the file by which the runtime knows that there is a network.
//!
//! A stopping agent leaves all of it in place: pods go on, and the next agent finds it as it should be.
//! [`PodNetwork::remove`] is for a node that leaves for good.

mod bridge;
mod conflist;
mod forwarding;
mod k3s;
mod leases;
pub mod plugin;
mod plugins;
mod problem;
mod program;

use std::{fs, io, path::PathBuf, time::Instant};

use ipnet::IpNet;

pub use conflist::{FILE as CONFLIST, NETWORK};
pub use forwarding::TABLE;
pub use k3s::K3s;
pub use problem::Problem;

use self::{
    bridge::Surroundings, conflist::IfMissing, forwarding::Forwarding, leases::Leases, plugins::Plugins,
};

/// Longest name of an interface.
const MAX_INTERFACE: usize = 15;

/// Where things are on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Where the runtime reads configurations: `/etc/cni/net.d`.
    pub cni_conf_dir: PathBuf,
    /// Where the runtime finds plugins: `/opt/cni/bin`.
    pub cni_bin_dir: PathBuf,
    /// Where plugins are that can be installed, the best first.
    pub plugin_sources: Vec<PathBuf>,
    /// Where host-local keeps the pods' addresses. In memory, so that none outlives a boot: `/run/cni/mesh`.
    pub host_local_dir: PathBuf,
    /// Where k3s keeps what its container runtime is told.
    pub k3s: K3s,
}

/// What the pod network of this node should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The ranges of this node's pods, one of each family at most, in the order of the Node's `podCIDRs`.
    pub pods: Vec<IpNet>,
    /// The ranges of all pods of the cluster.
    pub cluster_pods: Vec<IpNet>,
    /// The ranges of Services.
    pub services: Vec<IpNet>,
    /// The ranges of the mesh's own addresses.
    pub mesh: Vec<IpNet>,
    /// Other networks that this node offers to the mesh: what comes from them keeps its source.
    pub offered: Vec<IpNet>,
    /// The mesh's interface.
    pub interface: String,
    /// The largest packet of a pod.
    pub mtu: u16,
    /// Where the agent answers.
    pub socket: PathBuf,
    /// Whether the mesh carries packets.
    pub mesh_state: MeshState,
}

/// Whether the mesh carries packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeshState {
    /// The interface, its addresses and the routes are up.
    Ready,
    /// Not yet, or not at the moment.
    NotReady,
}

/// The pod network of this node.
#[derive(Debug)]
pub struct PodNetwork {
    places: Places,
    plugins: Plugins,
    forwarding: Forwarding,
}

impl Default for Places {
    fn default() -> Self {
        let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(PathBuf::from));
        let shipped = ["/usr/lib/mesh/cni", "/usr/lib/cni", "/usr/libexec/cni"].map(PathBuf::from);
        Self {
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dir: "/opt/cni/bin".into(),
            plugin_sources: shipped.into_iter().chain(beside).collect(),
            host_local_dir: "/run/cni/mesh".into(),
            k3s: K3s::default(),
        }
    }
}

impl Desired {
    /// Returns the name of the pods' bridge. It begins with `cni`, as those do through which no peer is looked for.
    #[must_use]
    pub fn bridge(&self) -> String {
        bridge_of(&self.interface)
    }
}

impl PodNetwork {
    /// Makes one; nothing is changed yet.
    #[must_use]
    pub fn new(places: Places) -> Self {
        Self { places, plugins: Plugins::default(), forwarding: Forwarding::default() }
    }

    /// Has everything be as wanted, and returns what is not. Must be called within a tokio runtime.
    ///
    /// Not cancel-safe: what was begun may be half done, and the next call finishes it.
    pub async fn set(&mut self, desired: &Desired) -> Vec<Problem> {
        if desired.pods.is_empty() {
            return Vec::new();
        }
        let mut problems = self.try_set(desired).await;
        problems.sort();
        problems.dedup();
        problems
    }

    /// Takes everything back: the node is as it was before, but for settings of the kernel that others may have come to
    /// need. For a node that leaves, without pods; `interface` is the mesh's.
    pub async fn remove(&mut self, interface: &str) -> Vec<Problem> {
        let Places { cni_conf_dir, cni_bin_dir, plugin_sources: _, host_local_dir, k3s: _ } = &self.places;
        let mut problems = Vec::new();
        let others = conflist::others_present(cni_conf_dir);
        let path = cni_conf_dir.join(CONFLIST);
        if let Err(error) = mesh_durable::remove(&path) {
            problems.push(Problem::ConflistUnwritable { path, reason: error.to_string() });
        }
        if let Err(error) = plugins::remove(cni_bin_dir, others) {
            problems.push(Problem::PluginNotRemoved { dir: cni_bin_dir.clone(), reason: error.to_string() });
        }
        let bridge = bridge_of(interface);
        if let Err(error) = bridge::remove(&bridge).await {
            problems.push(Problem::Bridge { bridge, reason: format!("{error:#}") });
        }
        problems.extend(self.forwarding.remove().await);
        match fs::remove_dir_all(host_local_dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                problems.push(Problem::Leases { dir: host_local_dir.clone(), reason: error.to_string() });
            }
            Ok(()) | Err(_) => {}
        }
        self.plugins = Plugins::default();
        problems
    }

    async fn try_set(&mut self, desired: &Desired) -> Vec<Problem> {
        let mut problems = k3s::looks_elsewhere(&self.places);
        let around = match Surroundings::read(&desired.interface).await {
            Ok(around) => around,
            Err(error) => return vec![Problem::Surroundings { reason: format!("{error:#}") }],
        };
        let clashes = around.clashes(desired);
        let possible = match clashes.is_empty() {
            true => Some(desired.clone()),
            false => around.without_clashes(desired),
        };
        problems.extend(clashes);
        // Whatever was there before goes on as it is.
        let Some(desired) = &possible else { return problems };
        problems.extend(self.forwarding.set(desired, &around.uplinks(), Instant::now()).await);
        match around.set_bridge(desired).await {
            Ok(true) => tracing::info!(bridge = desired.bridge(), "bridge put right"),
            Ok(false) => {}
            Err(error) => {
                problems.push(Problem::Bridge { bridge: desired.bridge(), reason: format!("{error:#}") });
            }
        }
        problems.extend(self.free_leases(&around, desired));
        let (versions, missing) = self.plugins.install(&self.places, Instant::now()).await;
        problems.extend(missing);
        if let Some(versions) = versions {
            problems.extend(self.set_conflist(desired, &versions));
        }
        problems
    }

    /// Frees addresses that are nobody's.
    fn free_leases(&self, around: &Surroundings, desired: &Desired) -> Option<Problem> {
        let dir = &self.places.host_local_dir;
        match Leases::new(dir).sweep(&around.devices(), &desired.pods) {
            Ok(plan) => {
                if !plan.free.is_empty() {
                    tracing::info!(count = plan.free.len(), "addresses of pods that are gone were freed");
                }
                (plan.of_old_range > 0).then_some(Problem::PodsOfOldRange)
            }
            Err(error) => Some(Problem::Leases { dir: dir.clone(), reason: error.to_string() }),
        }
    }

    /// Says to the runtime that there is a network.
    fn set_conflist(&self, desired: &Desired, versions: &[&'static str]) -> Vec<Problem> {
        let dir = &self.places.cni_conf_dir;
        let if_missing = match desired.mesh_state {
            MeshState::Ready => IfMissing::Make,
            MeshState::NotReady => IfMissing::Leave,
        };
        let content = conflist::render(desired, &self.places.host_local_dir, versions);
        match conflist::write(dir, &content, if_missing) {
            Ok(true) => tracing::info!(file = CONFLIST, "network configuration written"),
            Ok(false) => {}
            Err(problem) => return vec![problem],
        }
        conflist::others_first(dir).unwrap_or_default()
    }
}

/// Returns the name of the pods' bridge beside a mesh interface.
fn bridge_of(interface: &str) -> String {
    format!("cni-{interface}").chars().take(MAX_INTERFACE).collect()
}

#[cfg(test)]
mod fixtures {
    use super::*;

    /// Node number 1 of the village.
    pub(super) fn desired() -> Desired {
        let nets = |all: &[&str]| all.iter().map(|net| net.parse().unwrap()).collect();
        Desired {
            pods: nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]),
            cluster_pods: nets(&["10.244.0.0/16", "fd00:10:244::/48"]),
            services: nets(&["10.96.0.0/12", "fd00:10:96::/112"]),
            mesh: nets(&["10.90.0.0/16", "fd5d::/48"]),
            offered: vec![],
            interface: "mesh0".to_owned(),
            mtu: 1420,
            socket: "/run/mesh-agent/agent.sock".into(),
            mesh_state: MeshState::Ready,
        }
    }
}
