//! The manifests and the image of `deploy/`, on a cluster of the lab: a pod beside every worker's agent, or the agent
//! itself in a pod.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::binaries::Binaries;
use super::{Cluster, Families, directory};
use crate::mesh::{self, Mesh};
use crate::run::Lab;

/// The image's name in the lab.
pub const IMAGE: &str = "lab.invalid/mesh-agent:1";
/// The DaemonSet of the manifests.
pub const NAME: &str = "daemonset/mesh-agent";
/// Its namespace.
pub const NAMESPACE: &str = "mesh-system";
/// Where an agent has its socket on a machine of its own.
const SOCKET_DIRECTORY: &str = "/run/mesh-agent";
/// Where a pod beside it keeps what it knows, and where an agent keeps its identity.
const STATE_DIRECTORIES: [(&str, &str); 2] =
    [("/var/lib/mesh-agent-pod", "pod"), ("/var/lib/mesh-agent", "state")];

/// What of `deploy/k8s/overlays` is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlay {
    /// A pod beside the agent of each host.
    HostAgent,
    /// The agent in the pod, which joins with a token that it is given.
    PodAgent,
    /// The agent in the pod, which joins with its service account's token.
    ServiceAccount,
}

impl Overlay {
    fn directory(self) -> &'static str {
        match self {
            Self::HostAgent => "host-agent",
            Self::PodAgent => "pod-agent",
            Self::ServiceAccount => "service-account",
        }
    }
}

/// Builds the image as `deploy/docker/build` does, and returns its archive.
///
/// # Errors
///
/// If the script fails.
pub fn image(lab: &Lab) -> anyhow::Result<PathBuf> {
    let archive = lab.directory().join("mesh-agent.tar");
    let agent = mesh::Binaries::find()?.agent;
    let built = Command::new(deploy().join("docker/build"))
        .args([archive.as_os_str(), IMAGE.as_ref()])
        .env("MESH_BIN_DIR", agent.parent().context("a program without a directory")?)
        .env("MESH_CNI_DIR", Binaries::find()?.directory())
        .output()?;
    ensure!(built.status.success(), "deploy/docker/build: {}", String::from_utf8_lossy(&built.stderr));
    Ok(archive)
}

/// Gives the hosts of these workers the directories that the manifests name, and what kubeadm asks of a host.
///
/// # Errors
///
/// If a host is missing.
pub fn prepare(mesh: &Mesh, workers: &[&str], families: Families) -> anyhow::Result<()> {
    for worker in workers {
        let node = mesh.node(worker)?;
        let host = mesh.network().host(worker)?;
        host.set_directory(Path::new(SOCKET_DIRECTORY), node.directory())?;
        // Not within the socket's: whoever cleans up empties both.
        let own = directory(mesh.network().lab()).join("hosts").join(worker);
        for (target, source) in STATE_DIRECTORIES {
            host.set_directory(Path::new(target), &own.join(source))?;
        }
        host.netns().sysctl(&[("net.ipv4.ip_forward", "1")])?;
        if families.has_ipv6() {
            host.netns().sysctl(&[("net.ipv6.conf.all.forwarding", "1")])?;
        }
    }
    Ok(())
}

/// Applies what the coordinator needs to have tokens reviewed.
///
/// # Errors
///
/// If the API server refuses a manifest.
pub fn apply_coordinator(cluster: &Cluster) -> anyhow::Result<()> {
    let manifests = deploy().join("k8s/coordinator");
    cluster.kubectl()?.run(["apply".as_ref(), "-k".as_ref(), manifests.as_os_str()]).map(drop)
}

/// Writes an overlay of the lab's own on one of `deploy/k8s/overlays`: image, socket, and where the API server is. Returns
/// its directory, for `kubectl apply -k` and `delete -k`.
///
/// # Errors
///
/// If there is no control plane yet.
pub fn write(cluster: &Cluster, lab: &Lab, overlay: Overlay) -> anyhow::Result<PathBuf> {
    let copy = directory(lab).join("manifests");
    if !copy.exists() {
        let copied = Command::new("cp").arg("-r").arg(deploy().join("k8s")).arg(&copy).status()?;
        ensure!(copied.success(), "the manifests cannot be copied to {}", copy.display());
    }
    let below = overlay.directory();
    let own = copy.join("overlays").join(format!("lab-{below}"));
    std::fs::create_dir_all(&own)?;
    let (image, tag) = IMAGE.rsplit_once(':').context("an image without a tag")?;
    let mut kustomization = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\n\
         kind: Kustomization\n\
         resources: [../{below}, settings.yaml]\n\
         images: [{{name: mesh-agent, newName: {image}, newTag: \"{tag}\"}}]\n\
         patches:\n\
         - target: {{kind: DaemonSet}}\n\
         \x20 patch: |\n"
    );
    let containers: &[&str] = match overlay {
        Overlay::HostAgent => &["containers"],
        Overlay::PodAgent | Overlay::ServiceAccount => &["containers", "initContainers"],
    };
    for list in containers {
        writeln!(
            kustomization,
            "    - {{op: add, path: /spec/template/spec/{list}/0/imagePullPolicy, value: Never}}"
        )?;
    }
    std::fs::write(own.join("kustomization.yaml"), kustomization)?;
    let (address, _) = cluster.plane()?;
    let api_server = cluster.options.public_name.clone().unwrap_or_else(|| address.to_string());
    std::fs::write(
        own.join("settings.yaml"),
        format!(
            "apiVersion: v1\n\
             kind: ConfigMap\n\
             metadata: {{name: mesh-agent, namespace: {NAMESPACE}}}\n\
             data:\n\
             \x20 KUBERNETES_SERVICE_HOST: \"{api_server}\"\n\
             \x20 KUBERNETES_SERVICE_PORT: \"{}\"\n\
             \x20 MESH_SOCKET: {SOCKET_DIRECTORY}/sock\n",
            super::control_plane::PORT
        ),
    )?;
    Ok(own)
}

/// Applies an overlay.
///
/// # Errors
///
/// If the API server refuses a manifest.
pub fn apply(cluster: &Cluster, lab: &Lab, overlay: Overlay) -> anyhow::Result<()> {
    let own = write(cluster, lab, overlay)?;
    cluster.kubectl()?.run(["apply".as_ref(), "-k".as_ref(), own.as_os_str()]).map(drop)
}

/// Takes it back.
///
/// # Errors
///
/// If something of it stays.
pub fn delete(cluster: &Cluster, lab: &Lab, overlay: Overlay) -> anyhow::Result<()> {
    let own = write(cluster, lab, overlay)?;
    cluster.kubectl()?.run(["delete".as_ref(), "-k".as_ref(), own.as_os_str()]).map(drop)
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}
