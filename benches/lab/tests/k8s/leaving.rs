//! A node leaves: nothing of the pod network stays behind.

use anyhow::ensure;
use mesh_lab::mesh::Binaries;

use crate::remade::Range;
use crate::rig::Rig;

/// What the mesh's interface is called, and what the bridge's name ends with.
const MESH: &str = "mesh0";
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
    let ranges = rig.pod_ranges(worker)?;
    rig.cluster.worker(worker)?.kill()?;
    rig.village.node(worker)?.agent().stop()?;
    let agent = Binaries::find()?.agent;
    host.command(agent).args(["remove-pod-network", "--kubernetes"]).output()?.success()?;

    ensure!(!has_bridge()?, "{BRIDGE} is left on {worker}");
    let rules = host.command("nft").args(["list", "tables"]).output()?.success()?.stdout;
    ensure!(!rules.contains("mesh"), "tables are left on {worker}: {rules}");
    for program in ["iptables-save", "ip6tables-save"] {
        let rules = host.command(program).output()?.success()?.stdout;
        ensure!(!rules.contains("mesh-pods"), "rules are left on {worker}: {rules}");
    }
    for family in ["-4", "-6"] {
        for what in [
            &["address", "show"][..],
            &["rule", "show"],
            &["route", "show", "table", "all"],
            &["neigh", "show"],
        ] {
            let shown = host.command("ip").arg(family).args(what).output()?.success()?.stdout;
            let left: Vec<_> =
                shown.lines().filter(|line| ranges.iter().any(|range| names(line, range))).collect();
            ensure!(
                left.is_empty() && !shown.contains(MESH),
                "ip {family} {what:?} on {worker} shows {shown}"
            );
        }
    }
    for directory in DIRECTORIES {
        let left = host.command("find").args([directory, "-type", "f"]).output()?.success()?.stdout;
        ensure!(left.is_empty(), "files are left on {worker}: {left}");
    }
    Ok(())
}

/// Whether a line of `ip` names an address or a part of a range.
fn names(line: &str, range: &Range) -> bool {
    line.split_whitespace().any(|word| {
        let address = word.split('/').next().unwrap_or(word).parse();
        address.is_ok_and(|address: std::net::IpAddr| range.contains(&address))
    })
}
