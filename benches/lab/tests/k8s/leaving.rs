//! A node leaves: nothing of the pod network stays behind.

use anyhow::ensure;
use mesh_lab::mesh::Binaries;

use crate::rig::Rig;

/// The pods' bridge on every worker.
const BRIDGE: &str = "cni-mesh0";
/// Where runtimes look for networks and plugins, and where addresses are noted.
const DIRECTORIES: [&str; 3] = ["/etc/cni/net.d", "/opt/cni/bin", "/run/cni"];

/// Its pods are gone, its agent is stopped, and is asked to take everything back.
pub(crate) fn nothing_is_left(rig: &Rig, worker: &str) -> anyhow::Result<()> {
    let host = rig.village.network().host(worker)?;
    let has_bridge =
        || Ok::<_, anyhow::Error>(host.command("ip").args(["link", "show", BRIDGE]).output()?.code() == 0);
    ensure!(has_bridge()?, "there is no {BRIDGE} on {worker} even before");
    rig.cluster.worker(worker)?.kill()?;
    rig.village.node(worker)?.agent().stop()?;
    let agent = Binaries::find()?.agent;
    host.command(agent).args(["remove-pod-network", "--kubernetes"]).output()?.success()?;

    ensure!(!has_bridge()?, "{BRIDGE} is left on {worker}");
    let rules = host.command("nft").args(["list", "tables"]).output()?.success()?.stdout;
    ensure!(!rules.contains("mesh"), "tables are left on {worker}: {rules}");
    let rules = host.command("iptables-save").output()?.success()?.stdout;
    ensure!(!rules.contains("mesh-pods"), "rules are left on {worker}: {rules}");
    for directory in DIRECTORIES {
        let left = host.command("find").args([directory, "-type", "f"]).output()?.success()?.stdout;
        ensure!(left.is_empty(), "files are left on {worker}: {left}");
    }
    Ok(())
}
