//! Finding the programs of Kubernetes, which `benches/lab/kubernetes/build` builds.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// The directory in which they are; `make test-k8s` sets it.
const VARIABLE: &str = "MESH_KUBERNETES_DIR";
/// All of them: the control plane, what runs on a worker, the CNI plugins and who asks them, and the cluster's DNS.
const NAMES: [&str; 12] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "kube-proxy",
    "bridge",
    "host-local",
    "loopback",
    "portmap",
    "coredns",
    "runtime",
];

/// A directory with Kubernetes.
#[derive(Debug, Clone)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Looks in `$MESH_KUBERNETES_DIR`.
    ///
    /// # Errors
    ///
    /// If it is not set, or a program is missing there.
    pub fn find() -> anyhow::Result<Self> {
        let directory: PathBuf = std::env::var_os(VARIABLE)
            .with_context(|| format!("{VARIABLE} is not set: run `make test-k8s`"))?
            .into();
        for name in NAMES {
            ensure!(
                directory.join(name).is_file(),
                "{name} is not in {}: run benches/lab/kubernetes/build",
                directory.display()
            );
        }
        Ok(Self { directory })
    }

    /// The path of one of them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where they all are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}
