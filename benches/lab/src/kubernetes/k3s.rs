//! Workers arranged as k3s arranges its nodes, from the same programs.
//!
//! k3s is one program for all of it, and is not built here. What of it concerns whoever makes the pod network is where it
//! has things, which its sources say (`pkg/agent`, `pkg/daemons/agent`, `pkg/cloudprovider`, `pkg/cli/server`, `install.sh`):
//!
//! | | |
//! |---|---|
//! | kubelet's credentials | `agent/kubelet.kubeconfig` below `/var/lib/rancher/k3s`, with files beside it that root alone reads; keys as `EC PRIVATE KEY` |
//! | the API server | on a server at its own loopback address, elsewhere behind a balancer at 127.0.0.1:6444, which ends with k3s |
//! | containerd | its socket in `/run/k3s`; told of directories of k3s' own for networks where flannel is on, else of none |
//! | a Node's addresses | from the cloud controller, which takes kubelet's `--node-ip`; a taint until then |
//! | kube-proxy | by iptables |
//! | restart | ends kubelet, kube-proxy, containerd and the balancer; pods live on |
//! | upgrade and removal | `iptables-restore` without the rules of Kubernetes, whoever has added others meanwhile |

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use super::pki::{Identity, Pki, Subject};
use super::{Cluster, Distribution, Worker, condition};
use crate::mesh::wait_until;

/// What k3s keeps.
pub(super) const DATA: &str = "/var/lib/rancher/k3s";
/// What it forgets at a reboot.
pub(super) const RUN: &str = "/run/k3s";
/// Where its containerd answers.
pub(super) const SOCKET: &str = "/run/k3s/containerd/containerd.sock";
/// What its containerd reads.
pub(super) const CONFIGURATION: &str = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";
/// Where nodes without an API server of their own find one.
pub(super) const BALANCER: u16 = 6444;
/// Keeps pods from a Node until the cloud controller knows where it is.
const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";
/// Where kubelet tells it.
const PROVIDED: &str = "alpha.kubernetes.io/provided-node-ip";
/// Root's alone.
const SECRET: u32 = 0o600;

/// Whether k3s was started with `--flannel-backend=none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flannel {
    /// It was not.
    On,
    /// It was.
    None,
}

impl Cluster {
    /// Does what k3s' cloud controller does with a Node that has registered: it gives it the address that kubelet was
    /// told, and lets pods come.
    ///
    /// # Errors
    ///
    /// If the Node does not register.
    pub fn admit(&self, name: &str, patience: Duration) -> anyhow::Result<()> {
        let kubectl = self.kubectl()?;
        let mut address = None;
        wait_until(patience, "kubelet has registered its Node", || {
            let node = kubectl.get(["node", name])?;
            address = node["metadata"]["annotations"][PROVIDED].as_str().map(str::to_owned);
            Ok(address.is_some() && condition(&node, "Ready").is_some())
        })?;
        let addresses =
            json!([{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]);
        let patch = json!({"status": {"addresses": addresses}}).to_string();
        kubectl.run(["patch", "node", name, "--subresource=status", "--type=merge", "--patch", &patch])?;
        kubectl.run(["taint", "node", name, &format!("{UNINITIALIZED}-")]).map(drop)
    }
}

impl Worker {
    /// Writes what k3s tells its containerd, which it does at each start.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn set_flannel(&self, flannel: Flannel) -> anyhow::Result<()> {
        let path = self.directory(CONFIGURATION);
        std::fs::create_dir_all(path.parent().context("a file lies in a directory")?)?;
        std::fs::write(path, containerd(flannel))?;
        Ok(())
    }

    /// Restarts k3s: everything but the pods.
    ///
    /// # Errors
    ///
    /// If something does not run.
    pub fn restart_k3s(&self) -> anyhow::Result<()> {
        self.end_balancer();
        ["kubelet", "proxy", "containerd"].into_iter().try_for_each(|name| self.end(name))?;
        self.start_balancer()
    }
}

/// The way to the API server of a node that has one.
pub(super) fn own_server() -> String {
    super::control_plane::server("127.0.0.1")
}

/// The way to it of all others.
pub(super) fn balanced_server() -> String {
    format!("https://127.0.0.1:{BALANCER}")
}

/// What containerd is told.
fn containerd(flannel: Flannel) -> String {
    let networks = match flannel {
        Flannel::None => String::new(),
        Flannel::On => format!(
            r#"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{DATA}/data/cni"
  conf_dir = "{DATA}/agent/etc/cni/net.d"
"#
        ),
    };
    format!(
        r#"{}root = "{DATA}/agent/containerd"
state = "{RUN}/containerd"
[grpc]
  address = "{SOCKET}"
{}{networks}"#,
        super::worker::CONTAINERD_VERSION,
        super::worker::containerd_plugins(),
    )
}

/// Writes kubelet's credentials where k3s has them, and returns the kubeconfig as the host sees it. `agent` is where its
/// directory is on this machine.
pub(super) fn write_credentials(
    agent: &Path,
    server: &str,
    pki: &Pki,
    (files, subject): (&str, &Subject<'_>),
) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(agent)?;
    std::fs::set_permissions(agent, std::fs::Permissions::from_mode(0o700))?;
    let Identity { certificate, key } = pki.sign(files, subject)?;
    let authority = std::fs::read(pki.authority())?;
    // Whose authority signed it stands behind it.
    write_secret(
        &agent.join("client-kubelet.crt"),
        &[std::fs::read(certificate)?, authority.clone()].concat(),
    )?;
    write_secret(&agent.join("client-kubelet.key"), &pki.ec_key(&key)?)?;
    write_secret(&agent.join("server-ca.crt"), &authority)?;
    let seen = Path::new(DATA).join("agent");
    let text = format!(
        "apiVersion: v1\nkind: Config\npreferences: {{}}\nclusters:\n- cluster:\n    server: {server}\n    \
         certificate-authority: {0}/server-ca.crt\n  name: local\ncontexts:\n- context:\n    cluster: local\n    \
         namespace: default\n    user: user\n  name: Default\ncurrent-context: Default\nusers:\n- name: user\n  user:\n    \
         client-certificate: {0}/client-kubelet.crt\n    client-key: {0}/client-kubelet.key\n",
        seen.display()
    );
    write_secret(&agent.join("kubelet.kubeconfig"), text.as_bytes())?;
    Ok(seen.join("kubelet.kubeconfig"))
}

fn write_secret(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, content)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SECRET))?;
    Ok(())
}

/// What is the host's own for k3s, beside what every worker has.
pub(super) fn directories(distribution: Distribution) -> &'static [&'static str] {
    match distribution {
        Distribution::Kubeadm => &[],
        Distribution::K3s => &[DATA, RUN],
    }
}

/// Which of them a reboot empties.
pub(super) fn volatile(distribution: Distribution) -> &'static [&'static str] {
    match distribution {
        Distribution::Kubeadm => &[],
        Distribution::K3s => &[RUN],
    }
}
