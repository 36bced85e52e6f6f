//! A real Kubernetes on a mesh: the control plane on one node, and workers on others, that know each other by their
//! mesh addresses alone.
//!
//! ```text
//!   pi:      mesh-agent, etcd, kube-apiserver, kube-controller-manager, kube-scheduler
//!   a worker: mesh-agent | an init of its own: containerd, kubelet, kube-proxy, pods
//! ```
//!
//! Every worker's `--node-ip` is its mesh address, the API server is reached at the mesh address of its node, and there
//! is no other way between them: their sites' routers forward nothing. The programs of Kubernetes are built from source
//! by `benches/lab/kubernetes/build`, once per machine; containerd, runc and etcd are Debian's.
//!
//! What it takes of a machine: control groups (v1 or v2), overlayfs, and root; no systemd, no registry ([`image`]).
//! Workers may be arranged as k3s arranges its nodes: [`k3s`].
//!
//! Everything ends with the worker's init, which dies with the lab; only control groups stay, and they are removed by
//! the cluster, or by the next one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

mod balancer;
mod binaries;
mod control_plane;
mod credentials;
pub mod daemon_set;
mod families;
pub mod flannel;
pub mod image;
pub mod k3s;
pub mod kubeadm;
mod kubectl;
mod pki;
pub mod pods;
mod stream;
mod worker;

pub use binaries::Binaries;
pub use credentials::Credentials;
pub use families::Families;
pub use kubectl::Kubectl;
pub use pods::{Answer, RunningPod};
pub use stream::Stream;
pub use worker::Worker;

use self::control_plane::{ControlPlane, Place};
use self::pki::{Pki, Subject};
use self::worker::{NodeAddress, Shared};
use crate::cgroups;
use crate::mesh::{Mesh, MeshOptions, wait_until};
use crate::run::Lab;
use crate::topology::Network;

/// The range of all pods; each worker has a part of it.
pub const POD_RANGE: &str = "10.244.0.0/16";
/// The same in IPv6, where a worker has a /64.
pub const POD_RANGE_V6: &str = "fd00:10:244::/56";
/// The range of Services.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The same in IPv6.
pub const SERVICE_RANGE_V6: &str = "fd00:10:96::/112";

/// How kube-proxy does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyMode {
    /// Rules of nftables.
    Nftables,
    /// Rules of iptables.
    Iptables,
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

/// Who connects the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodNetwork {
    /// The agents themselves: they learn of the ranges and do the rest.
    Agents,
    /// A pod beside each agent: see [`daemon_set`].
    DaemonSet,
    /// The agents themselves, in pods: their hosts have none, and reach the API server without the mesh.
    PodAgents,
}

/// Whose arrangement of kubelet, runtime and credentials a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// As packages and kubeadm have it.
    Kubeadm,
    /// As k3s has it: see [`k3s`].
    K3s,
}

/// What a cluster consists of.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How its workers are arranged.
    pub distribution: Distribution,
    /// The node of the mesh that has the control plane.
    pub control_plane: String,
    /// A name that leads to the API server without the mesh, where a router forwards its port.
    pub public_name: Option<String>,
    /// The nodes of the mesh that are workers.
    pub workers: Vec<String>,
    /// What kube-proxy does on all of them.
    pub proxy: ProxyMode,
    /// Which addresses everything has.
    pub families: Families,
    /// Archives of images that they have beside the lab's own.
    pub images: Vec<PathBuf>,
}

/// A cluster on a mesh.
#[derive(Debug)]
pub struct Cluster {
    network: Arc<Network>,
    options: ClusterOptions,
    binaries: Binaries,
    directory: PathBuf,
    pki: Pki,
    images: Vec<PathBuf>,
    workers: BTreeMap<String, Worker>,
    control_plane: OnceLock<(IpAddr, ControlPlane)>,
}

/// How the pods of some workers are connected.
#[derive(Debug, Clone, Copy)]
pub struct Arrangement {
    /// The nodes of the mesh that are workers.
    pub workers: &'static [&'static str],
    /// Who does it.
    pub pods: PodNetwork,
    /// How the workers are arranged.
    pub distribution: Distribution,
    /// Which addresses pods have.
    pub families: Families,
}

/// Tells coordinator and agents who connects the pods; agents ask the API server as their kubelet does, whose credentials
/// they find by themselves where they are where k3s has them.
///
/// # Errors
///
/// If the binaries are missing.
pub fn announce(lab: &Lab, options: &mut MeshOptions, arranged: &Arrangement) -> anyhow::Result<()> {
    let Arrangement { workers, pods, distribution, families } = *arranged;
    let plugins = Binaries::find()?;
    for range in families.list([POD_RANGE, POD_RANGE_V6]).split(',') {
        options.coordinator_args.push(format!("--pod-range={range}"));
    }
    match pods {
        PodNetwork::DaemonSet | PodNetwork::PodAgents => {}
        PodNetwork::Agents => {
            for worker in workers {
                let args = options.agent_args_of.entry((*worker).to_owned()).or_default();
                match distribution {
                    Distribution::Kubeadm => {
                        let kubeconfig = pki::kubeconfig_of(&directory(lab), &worker::kubelet(worker));
                        args.push(format!("--kubernetes-kubeconfig={}", kubeconfig.display()));
                    }
                    Distribution::K3s => {}
                }
                args.push(format!("--kubernetes-cni-plugin-source={}", plugins.directory().display()));
                let services = families.list([SERVICE_RANGE, SERVICE_RANGE_V6]);
                args.push(format!("--kubernetes-service-ranges={services}"));
            }
        }
    }
    Ok(())
}

/// Where the kubeconfig of a user will be, once [`Cluster::make_user`] has made it.
pub fn kubeconfig_of(lab: &Lab, user: &str) -> PathBuf {
    pki::kubeconfig_of(&directory(lab), user)
}

/// Where a run keeps what is its cluster's.
fn directory(lab: &Lab) -> PathBuf {
    lab.directory().join("k8s")
}

impl Cluster {
    /// Prepares a cluster: keys, images, and directories of the workers' own, which agents that are started from now on
    /// see, too. Nothing is started.
    ///
    /// # Errors
    ///
    /// If the binaries are missing or a host is.
    pub fn prepare(network: &Arc<Network>, options: ClusterOptions) -> anyhow::Result<Self> {
        let binaries = Binaries::find()?;
        cgroups::sweep(network.lab().id());
        let directory = directory(network.lab());
        let pki = Pki::make(&directory)?;
        let mut images = image::make_all(&directory, &binaries.path("coredns"))?;
        images.extend(options.images.iter().cloned());
        let mut cluster = Self {
            network: Arc::clone(network),
            options,
            binaries,
            directory,
            pki,
            images,
            workers: BTreeMap::new(),
            control_plane: OnceLock::new(),
        };
        let names = cluster.options.workers.clone();
        for name in names {
            let worker = Worker::prepare(&name, &cluster.shared())?;
            cluster.workers.insert(name, worker);
        }
        Ok(cluster)
    }

    /// Starts the control plane, whose node's agent must be ready, and waits until the API server is.
    ///
    /// # Errors
    ///
    /// If it does not become so.
    pub fn start_control_plane(&self, mesh: &Mesh) -> anyhow::Result<()> {
        let host = &self.options.control_plane;
        let families = self.options.families;
        let addresses = families.of_node(&mesh.node(host)?.addresses()?);
        let address = *addresses.first().context("its host has no mesh address of the cluster's family")?;
        let public_name = self.options.public_name.as_deref();
        let place = Place { network: &self.network, host, address, public_name, families };
        let plane = ControlPlane::start(&place, &self.binaries, &self.pki, &self.directory)?;
        if self.control_plane.set((address, plane)).is_err() {
            bail!("the control plane was started before");
        }
        Ok(())
    }

    /// Starts a worker, whose agent must be ready.
    ///
    /// # Errors
    ///
    /// If it cannot be started. Whether its Node becomes ready is another question: see [`Cluster::wait_ready`].
    pub fn start_worker(&self, mesh: &Mesh, name: &str) -> anyhow::Result<()> {
        let (api_server, _) = self.plane()?;
        let address = NodeAddress::Mesh(self.options.families.of_node(&mesh.node(name)?.addresses()?));
        let server = match self.options.distribution {
            Distribution::Kubeadm => control_plane::server_at(*api_server),
            Distribution::K3s if name == self.options.control_plane => k3s::own_server(),
            Distribution::K3s => {
                self.worker(name)?.balance_to((*api_server, control_plane::PORT).into());
                k3s::balanced_server()
            }
        };
        self.worker(name)?.start(address, &server, &self.pki, &self.shared())
    }

    /// Starts a worker whose agent will be in a pod: it reaches the API server by its public name, and kubelet says where
    /// the node is.
    ///
    /// # Errors
    ///
    /// As [`Cluster::start_worker`]; and if there is no public name.
    pub fn start_bare_worker(&self, name: &str) -> anyhow::Result<()> {
        let public = self.options.public_name.as_deref().context("the API server has no public name")?;
        let server = control_plane::server(public);
        self.worker(name)?.start(NodeAddress::Unknown, &server, &self.pki, &self.shared())
    }

    /// Lets kubelet say that the node is at these addresses, as who writes `--node-ip` and restarts it.
    ///
    /// # Errors
    ///
    /// If the worker does not run.
    pub fn set_node_ip(&self, name: &str, addresses: &[IpAddr]) -> anyhow::Result<()> {
        self.worker(name)?.set_node_ip(addresses)
    }

    /// Makes a user of the API server, and returns its kubeconfig, which is at [`kubeconfig_of`].
    ///
    /// # Errors
    ///
    /// If there is no control plane yet.
    pub fn make_user(&self, name: &str) -> anyhow::Result<PathBuf> {
        let (api_server, _) = self.plane()?;
        let subject = Subject { name, group: None, serves: &[] };
        self.pki.kubeconfig(name, &control_plane::server_at(*api_server), &subject)
    }

    /// Waits until all of these Nodes are Ready.
    ///
    /// # Errors
    ///
    /// With those that are not, after `patience`.
    pub fn wait_ready(&self, names: &[&str], patience: Duration) -> anyhow::Result<()> {
        wait_until(patience, "all Nodes are Ready", || {
            let nodes = self.kubectl()?.get(["nodes"])?;
            let mut waiting = Vec::new();
            for name in names {
                let node = items(&nodes).find(|node| node["metadata"]["name"] == *name);
                match node.and_then(|node| condition(node, "Ready")) {
                    Some(ready) if ready["status"] == "True" => {}
                    Some(ready) => waiting.push(format!("{name}: {}", ready["message"])),
                    None => waiting.push(format!("{name}: not registered")),
                }
            }
            if waiting.is_empty() { Ok(true) } else { bail!("{}", waiting.join("; ")) }
        })
    }

    /// Kills the control plane, as when its machine loses power. Whoever runs goes on.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill_control_plane(&self) -> anyhow::Result<()> {
        self.plane()?.1.kill()
    }

    /// Kills the controller manager alone: nobody makes pods, or gives ranges to Nodes.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill_controllers(&self) -> anyhow::Result<()> {
        self.plane()?.1.kill_controllers()
    }

    /// Starts again what was killed of the control plane.
    ///
    /// # Errors
    ///
    /// If it does not become ready.
    pub fn resume_control_plane(&self) -> anyhow::Result<()> {
        self.plane()?.1.resume()
    }

    /// A worker by name.
    ///
    /// # Errors
    ///
    /// If there is none of that name.
    pub fn worker(&self, name: &str) -> anyhow::Result<&Worker> {
        self.workers.get(name).with_context(|| format!("there is no worker {name}"))
    }

    /// All workers, by name.
    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    /// `kubectl`, as the administrator runs it on the control plane's node.
    ///
    /// # Errors
    ///
    /// If there is no control plane yet.
    pub fn kubectl(&self) -> anyhow::Result<&Kubectl> {
        Ok(self.plane()?.1.kubectl())
    }

    /// The programs of Kubernetes.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    fn plane(&self) -> anyhow::Result<&(IpAddr, ControlPlane)> {
        self.control_plane.get().context("the control plane was not started")
    }

    fn shared(&self) -> Shared<'_> {
        Shared {
            network: &self.network,
            binaries: &self.binaries,
            images: &self.images,
            directory: &self.directory,
            proxy: self.options.proxy,
            families: self.options.families,
            distribution: self.options.distribution,
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for worker in self.workers.values() {
            // It may not have been started.
            let _ = worker.kill();
        }
        cgroups::sweep(self.network.lab().id());
    }
}

/// The objects of a list, as `kubectl get -o json` prints it.
pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// A condition of an object, by its type.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}
