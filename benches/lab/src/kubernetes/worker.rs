//! A worker: containerd, kubelet and kube-proxy beside a host's agent, as on a machine of its own.
//!
//! They and their pods live in a PID and a mount namespace under a small init (`worker.sh`), in the host's network
//! namespace. What must be the host's own for the agent, too, is a directory of the host ([`DIRECTORIES`]).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use serde_json::json;

use super::balancer::Balancer;
use super::binaries::Binaries;
use super::image::TOOLS;
use super::k3s;
use super::pki::{Identity, Pki, Subject};
use super::{Distribution, Families, POD_RANGE, POD_RANGE_V6, ProxyMode};
use crate::cgroups;
use crate::mesh::{Daemon, wait_until};
use crate::process::HostCommand;
use crate::topology::Network;

/// What a host with pods has for itself; `/run/cni` is gone after a reboot.
const DIRECTORIES: [&str; 4] = ["/etc/cni/net.d", "/opt/cni/bin", "/run/cni", "/var/lib/cni"];
/// The number that a machine has for itself, which kubelets and agents read.
const MACHINE_ID: &str = "/etc/machine-id";
/// Where addresses are noted: a reboot empties it.
const VOLATILE: &str = "/run/cni";

/// What kubelet keeps, below the worker's own directory.
const KUBELET: &str = "var/lib/kubelet";

/// Where Debian's containerd answers.
const SOCKET: &str = "/run/containerd/containerd.sock";

/// The first line of what containerd reads.
pub(super) const CONTAINERD_VERSION: &str = "version = 2\n";

/// How long the kernel may take to remove what has ended.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of them one becomes the address of a node that is not in the mesh yet, in a lab with few of them: for its certificate.
const FIRST_MESH_ADDRESSES: [&str; 6] =
    ["10.90.0.1", "10.90.0.2", "10.90.0.3", "10.90.0.4", "10.90.0.5", "10.90.0.6"];
/// The devices that a host is built with.
const DEVICES: [&str; 2] = ["lo", "eth0"];

/// A worker of the cluster.
#[derive(Debug)]
pub struct Worker {
    name: String,
    state: PathBuf,
    network: Arc<Network>,
    distribution: Distribution,
    init: Daemon,
    balanced: Mutex<Balanced>,
}

/// The way to the API server through a port of the host's own.
#[derive(Debug, Default)]
struct Balanced {
    server: Option<SocketAddr>,
    balancer: Option<Balancer>,
}

/// What is known of a node's address when it is started.
#[derive(Debug, Clone)]
pub(super) enum NodeAddress {
    /// It is in the mesh already, and has one of each family that the cluster has.
    Mesh(Vec<IpAddr>),
    /// It will be.
    Unknown,
}

/// What all workers have in common.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    pub(super) network: &'a Arc<Network>,
    pub(super) binaries: &'a Binaries,
    pub(super) images: &'a [PathBuf],
    pub(super) directory: &'a Path,
    pub(super) proxy: ProxyMode,
    pub(super) families: Families,
    pub(super) distribution: Distribution,
}

impl Worker {
    /// Gives a host its own directories; nothing is started.
    pub(super) fn prepare(name: &str, shared: &Shared<'_>) -> anyhow::Result<Self> {
        let state = shared.directory.join(name);
        std::fs::create_dir_all(&state)?;
        let host = shared.network.host(name)?;
        for directory in DIRECTORIES.iter().chain(k3s::directories(shared.distribution)) {
            host.set_directory(Path::new(directory), &own(&state, directory))?;
        }
        let machine_id = state.join("machine-id");
        std::fs::write(&machine_id, number(name))?;
        host.set_file(Path::new(MACHINE_ID), &machine_id)?;
        let script = state.join("worker");
        std::fs::write(&script, include_str!("worker.sh"))?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        let logs = shared.network.lab().directory().join("logs").join(name);
        let configuration = match shared.distribution {
            Distribution::Kubeadm => state.join("containerd.toml"),
            Distribution::K3s => k3s::CONFIGURATION.into(),
        };
        let images: Vec<_> = shared.images.iter().map(|image| image.display().to_string()).collect();
        let variables = [
            ("STATE", state.display().to_string()),
            ("NODE", name.to_owned()),
            ("LOGS", logs.display().to_string()),
            ("KUBERNETES", shared.binaries.directory().display().to_string()),
            ("IMAGES", images.join(" ")),
            ("CONTAINERD_CONFIG", configuration.display().to_string()),
            ("CONTAINERD_ADDRESS", socket(shared.distribution).to_owned()),
        ];
        // Its variables are in a file of its own: what is known of a worker grows until it is started.
        write_variables(&state, &variables)?;
        let line = format!(
            "set -a; . {0}/variables; . {0}/kubeconfig; exec unshare --pid --fork --kill-child --mount --mount-proc \"$STATE/worker\"",
            state.display()
        );
        let start = state.join("start-worker");
        std::fs::write(&start, format!("#!/bin/bash\n{line}\n"))?;
        std::fs::set_permissions(&start, std::fs::Permissions::from_mode(0o755))?;
        let init = Daemon::new(Arc::clone(shared.network), name, start, Vec::new());
        let (name, distribution) = (name.to_owned(), shared.distribution);
        let network = Arc::clone(shared.network);
        let worker = Self { name, state, network, distribution, init, balanced: Mutex::default() };
        match distribution {
            Distribution::Kubeadm => {}
            Distribution::K3s => worker.set_flannel(k3s::Flannel::None)?,
        }
        Ok(worker)
    }

    /// Starts it as the node with this address, of the cluster whose API server is there.
    pub(super) fn start(
        &self,
        address: NodeAddress,
        server: &str,
        pki: &Pki,
        shared: &Shared<'_>,
    ) -> anyhow::Result<()> {
        let node = format!("system:node:{}", self.name);
        let mut serves: Vec<String> = match &address {
            NodeAddress::Mesh(addresses) => addresses.iter().map(|address| format!("IP:{address}")).collect(),
            NodeAddress::Unknown => FIRST_MESH_ADDRESSES.map(|address| format!("IP:{address}")).into(),
        };
        serves.push(format!("DNS:{}", self.name));
        let subject = Subject { name: &node, group: Some("system:nodes"), serves: &serves };
        let files = kubelet(&self.name);
        let kubelet = match self.distribution {
            Distribution::Kubeadm => pki.kubeconfig(&files, server, &subject)?,
            Distribution::K3s => {
                let agent = own(&self.state, k3s::DATA).join("agent");
                k3s::write_credentials(&agent, server, pki, (&files, &subject))?
            }
        };
        let identity = pki.identity(&files);
        let subject = Subject { name: "system:kube-proxy", group: None, serves: &[] };
        let proxy = pki.kubeconfig(&format!("proxy-{}", self.name), server, &subject)?;
        match self.distribution {
            Distribution::Kubeadm => std::fs::write(self.state.join("containerd.toml"), containerd())?,
            // As k3s has been told: see `set_flannel`.
            Distribution::K3s => {}
        }
        let cgroup = cgroups::of(self.network.lab().id(), &self.name);
        cgroups::make(&cgroup)?;
        std::fs::write(
            self.state.join("kubelet.json"),
            kubelet_configuration(&cgroup, shared, pki, &identity).to_string(),
        )?;
        std::fs::write(self.state.join("proxy.json"), proxy_configuration(shared, &proxy).to_string())?;
        std::fs::write(self.state.join("kubeconfig"), format!("KUBECONFIG={}\n", kubelet.display()))?;
        std::fs::write(self.state.join("node-name"), &self.name)?;
        self.write_addresses(&match address {
            NodeAddress::Mesh(addresses) => addresses,
            NodeAddress::Unknown => Vec::new(),
        })?;
        self.resume()
    }

    /// Has the host's own port lead to the API server, from the next start on.
    pub(super) fn balance_to(&self, server: SocketAddr) {
        self.balanced().server = Some(server);
    }

    fn balanced(&self) -> MutexGuard<'_, Balanced> {
        self.balanced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts who leads to the API server, if somebody is to and does not.
    pub(super) fn start_balancer(&self) -> anyhow::Result<()> {
        let mut balanced = self.balanced();
        if let (Some(server), None) = (balanced.server, &balanced.balancer) {
            balanced.balancer = Some(Balancer::start(&self.network, &self.name, k3s::BALANCER, server)?);
        }
        Ok(())
    }

    /// Ends it, with all connections.
    pub(super) fn end_balancer(&self) {
        self.balanced().balancer = None;
    }

    /// Lets kubelet say that the node is at these addresses.
    pub(super) fn set_node_ip(&self, addresses: &[IpAddr]) -> anyhow::Result<()> {
        self.write_addresses(addresses)?;
        self.end("kubelet")
    }

    /// Has kubelet be that Node from now on, with the credentials that are in its file then.
    ///
    /// # Errors
    ///
    /// If the worker does not run.
    pub fn set_node_name(&self, node: &str) -> anyhow::Result<()> {
        std::fs::write(self.state.join("node-name"), node)?;
        self.end("kubelet")
    }

    /// Ends one of the programs that the init keeps; it starts it again.
    pub(super) fn end(&self, program: &str) -> anyhow::Result<()> {
        let pid = std::fs::read_to_string(self.state.join(format!("{program}.pid")))?;
        self.command("kill")?.arg(pid.trim()).output()?.success().map(drop)
    }

    /// What kubelet reads whenever it is started.
    fn write_addresses(&self, addresses: &[IpAddr]) -> std::io::Result<()> {
        let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
        let address = match addresses.is_empty() {
            true => String::new(),
            false => format!("--node-ip={}", addresses.join(",")),
        };
        let cloud = match self.distribution {
            Distribution::Kubeadm => "",
            Distribution::K3s => " --cloud-provider=external",
        };
        std::fs::write(self.state.join("node-ip"), address + cloud)
    }

    /// A program that sees what the worker's own see: its containers, and its directories.
    ///
    /// # Errors
    ///
    /// If the worker does not run.
    pub fn command(&self, program: &str) -> anyhow::Result<HostCommand> {
        // The process that is known is the init's parent: what it has made for its child it is not in itself.
        let namespaces = format!("/proc/{}/ns", self.init.pid().context("the worker does not run")?);
        let enter = self.network.host(&self.name)?.command("nsenter");
        Ok(enter
            .arg(format!("--mount={namespaces}/mnt"))
            .arg(format!("--pid={namespaces}/pid_for_children"))
            .args(["--", program]))
    }

    /// Its name, in the cluster and as a host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where on this machine a directory is that the host has for itself, as `/etc/cni/net.d`.
    pub fn directory(&self, directory: &str) -> PathBuf {
        own(&self.state, directory)
    }

    /// The addresses that its pods have, as the plugin that gives them away knows it.
    ///
    /// # Errors
    ///
    /// If its notes cannot be read.
    pub fn leases(&self) -> anyhow::Result<BTreeSet<IpAddr>> {
        let mut found = BTreeSet::new();
        leases(&own(&self.state, VOLATILE), &mut found)?;
        Ok(found)
    }

    /// Ends everything at once, and all pods; what is stored stays.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.end_balancer();
        self.init.kill(Signal::SIGKILL)
    }

    /// Starts it again, after [`Worker::kill`].
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.start_balancer()?;
        self.init.start()
    }

    /// Forgets all that its kubelet knew, and what a reboot forgets; it keeps its images.
    ///
    /// # Errors
    ///
    /// If the kernel or the file system refuses.
    pub fn reset(&self) -> anyhow::Result<()> {
        std::fs::remove_dir_all(self.state.join(KUBELET))?;
        self.forget()
    }

    /// Forgets what a reboot forgets: everything in `/run`, control groups, and what the kernel holds in the host's namespace.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn forget(&self) -> anyhow::Result<()> {
        for volatile in [VOLATILE].iter().chain(k3s::volatile(self.distribution)) {
            let volatile = own(&self.state, volatile);
            std::fs::remove_dir_all(&volatile)?;
            std::fs::create_dir_all(&volatile)?;
        }
        cgroups::make_again(&cgroups::of(self.network.lab().id(), &self.name))?;
        let host = self.network.host(&self.name)?;
        host.netns().nft("flush ruleset\n")?;
        // Those of pods go with their namespaces, some time after their processes.
        wait_until(PATIENCE, "the devices of pods are gone", || {
            let links = host.command("ip").args(["-j", "link", "show"]).output()?.success()?;
            let links: Vec<serde_json::Value> = serde_json::from_str(&links.stdout)?;
            let names = links.iter().filter_map(|link| link["ifname"].as_str());
            let made_later: Vec<&str> = names.filter(|name| !DEVICES.contains(name)).collect();
            for name in &made_later {
                host.netns().ip(&format!("link del {name}\n"))?;
            }
            Ok(made_later.is_empty())
        })
    }
}

/// What the files of a worker's kubelet are called.
pub(super) fn kubelet(worker: &str) -> String {
    format!("kubelet-{worker}")
}

/// Where containerd answers.
fn socket(distribution: Distribution) -> &'static str {
    match distribution {
        Distribution::Kubeadm => SOCKET,
        Distribution::K3s => k3s::SOCKET,
    }
}

/// Where a host's own directory is.
fn own(state: &Path, directory: &str) -> PathBuf {
    state.join("host").join(directory.trim_start_matches('/'))
}

/// Files that are called as an address, at any depth.
fn leases(directory: &Path, found: &mut BTreeSet<IpAddr>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            leases(&entry.path(), found)?;
        } else if let Some(address) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            found.insert(address);
        }
    }
    Ok(())
}

/// A machine's number, out of its name.
fn number(name: &str) -> String {
    let digits: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{digits:0<32.32}\n")
}

fn write_variables(state: &Path, variables: &[(&str, String)]) -> std::io::Result<()> {
    let lines: String = variables.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
    std::fs::write(state.join("variables"), lines)
}

fn containerd() -> String {
    format!("{CONTAINERD_VERSION}{}", containerd_plugins())
}

/// What containerd is told on every worker, whoever has arranged it.
pub(super) fn containerd_plugins() -> String {
    format!(
        r#"[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{TOOLS}"
  # Nothing here may lower what the kernel's out-of-memory killer thinks of a process.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#
    )
}

fn kubelet_configuration(
    cgroup: &str,
    shared: &Shared<'_>,
    pki: &Pki,
    identity: &Identity,
) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki.authority()},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": identity.certificate,
        "tlsPrivateKeyFile": identity.key,
        "containerRuntimeEndpoint": format!("unix://{}", socket(shared.distribution)),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "failSwapOn": false,
        "failCgroupV1": false,
        "oomScoreAdj": 0,
        "clusterDNS": [shared.families.dns()],
        "clusterDomain": "cluster.local",
        // A full disk of the machine is not the cluster's.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": false,
        "enforceNodeAllocatable": [],
        "maxPods": 250,
        "registryPullQPS": 0,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 100,
    })
}

fn proxy_configuration(shared: &Shared<'_>, kubeconfig: &Path) -> serde_json::Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": shared.proxy.to_string(),
        "clusterCIDR": shared.families.list([POD_RANGE, POD_RANGE_V6]),
        "detectLocalMode": "ClusterCIDR",
        "clientConnection": {"kubeconfig": kubeconfig},
        // The table of connections is the whole machine's.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}
