//! A pair of a userspace WireGuard that `wg` configures: wireguard-go, boringtun-cli.

use anyhow::bail;
use mesh_lab::{Process, mesh::wait_until};

use super::{
    Kind,
    tunnel::{OTHERS_MTU, Pair, Tunnel},
};
use crate::agent::PATIENCE;

/// Starts the pair and waits until it talks.
///
/// # Errors
/// When a program does not start, or no packet arrives.
pub(super) fn start(pair: Pair<'_>) -> anyhow::Result<Tunnel> {
    let options: &[&str] = match pair.program.kind {
        Kind::WireguardGo => &["-f"],
        Kind::Boringtun => &["-f", "--disable-drop-privileges"],
        Kind::Mesh | Kind::MeshPods | Kind::MeshInnerV6 | Kind::MeshOuterV6 | Kind::Nebula => {
            bail!("not a plain WireGuard")
        }
    };
    let (mut processes, mut keys) = (Vec::new(), Vec::new());
    for end in [0, 1] {
        let (process, key) = start_one(&pair, end, options)?;
        processes.push(process);
        keys.push(key);
    }
    for (end, other) in [(0, 1), (1, 0)] {
        let endpoint = format!("{}:{}", pair.hosts[other].address(), pair.port);
        let allowed = format!("{}/32", pair.addresses[other]);
        pair.hosts[end]
            .command("wg")
            .args(["set", &pair.interfaces[end], "peer", keys[other].trim()])
            .args(["endpoint", &endpoint, "allowed-ips", &allowed])
            .output()?
            .success()?;
    }
    wait_until(PATIENCE, "the tunnel carries packets", || Ok(pair.hosts[0].ping(pair.addresses[1]).is_ok()))?;
    pair.into_tunnel(processes)
}

/// Starts one end and returns its public key, too.
fn start_one(pair: &Pair<'_>, end: usize, options: &[&str]) -> anyhow::Result<(Process, String)> {
    let (host, interface) = (pair.hosts[end], &pair.interfaces[end]);
    let log = format!("{}-{}", pair.program.kind.name(), host.name());
    let process = host.command(&pair.program.path).args(options).arg(interface).spawn(&log)?;
    let file = std::env::temp_dir().join(format!("{interface}.key"));
    std::fs::write(&file, host.command("wg").arg("genkey").output()?.success()?.stdout)?;
    // Not every implementation tells its own key when it is asked.
    let public = host.command("sh").args(["-c", "wg pubkey < \"$0\""]).arg(&file).output()?.success()?.stdout;
    let port = pair.port.to_string();
    let configured = wait_until(PATIENCE, "the interface can be configured", || {
        let set = host.command("wg").args(["set", interface, "listen-port", &port, "private-key"]).arg(&file);
        set.output()?.success().map(|_| true)
    });
    std::fs::remove_file(&file)?;
    configured?;
    let address = pair.addresses[end];
    host.netns().ip(&format!(
        "address add {address}/24 dev {interface}\nlink set {interface} mtu {OTHERS_MTU} up\n"
    ))?;
    Ok((process, public))
}
