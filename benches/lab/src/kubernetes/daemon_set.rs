//! The manifests and the image of `deploy/`, on a cluster of the lab: a pod beside every worker's agent.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::binaries::Binaries;
use super::{Cluster, SERVICE_RANGE, directory};
use crate::mesh::{self, Mesh};
use crate::run::Lab;

/// The image's name in the lab.
pub const IMAGE: &str = "lab.invalid/mesh-agent:1";
/// The DaemonSet of the manifests.
pub const NAME: &str = "daemonset/mesh-agent";
/// Its namespace.
pub const NAMESPACE: &str = "mesh-system";
/// Where an agent has its socket on a machine of its own, and where what the pod keeps.
const DIRECTORIES: [&str; 2] = ["/run/mesh-agent", "/var/lib/mesh-agent-pod"];

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
pub fn prepare(mesh: &Mesh, workers: &[&str]) -> anyhow::Result<()> {
    let [socket, state] = DIRECTORIES;
    for worker in workers {
        let node = mesh.node(worker)?;
        let host = mesh.network().host(worker)?;
        host.set_directory(Path::new(socket), node.directory())?;
        host.set_directory(Path::new(state), &node.directory().join("pod"))?;
        host.netns().sysctl(&[("net.ipv4.ip_forward", "1")])?;
    }
    Ok(())
}

/// Applies `deploy/k8s/overlays/host-agent`, with what is the lab's own: image, socket, and where the API server is.
///
/// # Errors
///
/// If the API server refuses a manifest.
pub fn apply(cluster: &Cluster, lab: &Lab) -> anyhow::Result<()> {
    let copy = directory(lab).join("manifests");
    let copied = Command::new("cp").arg("-r").arg(deploy().join("k8s")).arg(&copy).status()?;
    ensure!(copied.success(), "the manifests cannot be copied to {}", copy.display());
    let overlay = copy.join("overlays/lab");
    std::fs::create_dir_all(&overlay)?;
    let (api_server, _) = cluster.plane()?;
    let (image, tag) = IMAGE.rsplit_once(':').context("an image without a tag")?;
    std::fs::write(
        overlay.join("kustomization.yaml"),
        format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\n\
             kind: Kustomization\n\
             resources: [../host-agent, settings.yaml]\n\
             images: [{{name: mesh-agent, newName: {image}, newTag: \"{tag}\"}}]\n\
             patches:\n\
             - target: {{kind: DaemonSet}}\n\
             \x20 patch: |\n\
             \x20   - {{op: add, path: /spec/template/spec/containers/0/imagePullPolicy, value: Never}}\n"
        ),
    )?;
    std::fs::write(
        overlay.join("settings.yaml"),
        format!(
            "apiVersion: v1\n\
             kind: ConfigMap\n\
             metadata: {{name: mesh-agent, namespace: {NAMESPACE}}}\n\
             data:\n\
             \x20 KUBERNETES_SERVICE_HOST: \"{api_server}\"\n\
             \x20 KUBERNETES_SERVICE_PORT: \"{}\"\n\
             \x20 MESH_SOCKET: /run/mesh-agent/sock\n\
             \x20 MESH_KUBERNETES_SERVICE_RANGES: {SERVICE_RANGE}\n",
            super::control_plane::PORT
        ),
    )?;
    cluster.kubectl()?.run(["apply".as_ref(), "-k".as_ref(), overlay.as_os_str()]).map(drop)
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}
