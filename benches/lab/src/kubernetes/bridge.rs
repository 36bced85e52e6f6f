//! A pod network by hand: what a worker has when nothing but the mesh's routes connects its pods to those of others.
//!
//! The Node is made before its kubelet registers, so that its range of pods is known when agents offer it to the mesh.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use super::{Cluster, Worker};
use crate::mesh::MeshOptions;

/// The reference plugins of CNI that it takes.
const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];
/// Less than any path of the mesh takes.
const MTU: u16 = 1280;

/// The range of the pods of the worker with this number.
pub fn range(number: usize) -> String {
    format!("10.244.{number}.0/24")
}

/// Lets agents offer the ranges of their pods, and the coordinator approve them.
pub fn announce(options: &mut MeshOptions, workers: &[&str]) {
    options.coordinator_args.push(format!("--approve-routes={}", super::POD_RANGE));
    for (number, worker) in workers.iter().enumerate() {
        let advertise = format!("--advertise={}", range(number));
        options.agent_args_of.entry((*worker).to_owned()).or_default().push(advertise);
    }
}

impl Cluster {
    /// Makes the Node of a worker, with the range of its number, and its pod network.
    ///
    /// # Errors
    ///
    /// If the API server refuses the Node, or a file cannot be written.
    pub fn connect_by_hand(&self, worker: &str, number: usize) -> anyhow::Result<()> {
        let range = range(number);
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": worker},
            "spec": {"podCIDR": range, "podCIDRs": [range]},
        });
        self.kubectl()?.apply(&node.to_string())?;
        let worker = self.worker(worker)?;
        self.install_plugins(worker)?;
        let network = json!({
            "cniVersion": "1.0.0",
            "name": "lab",
            "plugins": [
                {
                    "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": false, "mtu": MTU,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": range}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                        "dataDir": "/run/cni/lab",
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        std::fs::write(worker.directory("/etc/cni/net.d").join("10-lab.conflist"), network.to_string())?;
        Ok(())
    }

    /// Puts the reference plugins where the worker's containerd looks for them.
    ///
    /// # Errors
    ///
    /// If they cannot be copied.
    pub fn install_plugins(&self, worker: &Worker) -> anyhow::Result<()> {
        let directory = worker.directory("/opt/cni/bin");
        for plugin in PLUGINS {
            let to = directory.join(plugin);
            std::fs::copy(self.binaries().path(plugin), &to)?;
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }
}
