//! A pair of nebula, with its own authority and its default cipher (AES-256-GCM).

use std::path::Path;

use mesh_lab::mesh::wait_until;
use serde_json::json;

use super::tunnel::{OTHERS_MTU, Pair, Tunnel};
use crate::agent::PATIENCE;

/// Starts the pair, with files in `folder`, and waits until it talks.
///
/// # Errors
/// When a program does not start, or no packet arrives.
pub(super) fn start(pair: Pair<'_>, folder: &Path) -> anyhow::Result<Tunnel> {
    std::fs::create_dir_all(folder)?;
    let certify = |arguments: &[&str]| -> anyhow::Result<()> {
        let tool = pair.program.path.with_file_name("nebula-cert");
        let sign = pair.hosts[0].command(tool).args(arguments);
        sign.output()?.success().map(drop)
    };
    let file = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let (authority, authority_key) = (file("ca.crt"), file("ca.key"));
    certify(&["ca", "-name", "bench", "-out-crt", &authority, "-out-key", &authority_key])?;
    let mut processes = Vec::new();
    for (end, host) in pair.hosts.into_iter().enumerate() {
        let name = host.name();
        let (certificate, key) = (file(&format!("{name}.crt")), file(&format!("{name}.key")));
        let network = format!("{}/24", pair.addresses[end]);
        let mut sign = vec!["sign", "-ca-crt", &authority, "-ca-key", &authority_key, "-name", name];
        sign.extend(["-networks", &network, "-out-crt", &certificate, "-out-key", &key]);
        certify(&sign)?;
        let config = file(&format!("{name}.yml"));
        std::fs::write(&config, self::config(&pair, end, [&authority, &certificate, &key]))?;
        let log = format!("nebula-{name}");
        processes.push(host.command(&pair.program.path).args(["-config", &config]).spawn(&log)?);
    }
    wait_until(PATIENCE, "nebula carries packets", || Ok(pair.hosts[1].ping(pair.addresses[0]).is_ok()))?;
    pair.into_tunnel(processes)
}

/// The settings of one end, in the part of YAML that is JSON. The first host is the lighthouse.
fn config(pair: &Pair<'_>, end: usize, [authority, certificate, key]: [&str; 3]) -> String {
    let [first, second] = pair.addresses.map(|address| address.to_string());
    let endpoint = |host: usize| vec![format!("{}:{}", pair.hosts[host].address(), pair.port)];
    let lighthouses = if end == 0 { vec![] } else { vec![&first] };
    let anything = json!([{"port": "any", "proto": "any", "host": "any"}]);
    json!({
        "pki": {"ca": authority, "cert": certificate, "key": key},
        "static_host_map": {&first: endpoint(0), &second: endpoint(1)},
        "lighthouse": {"am_lighthouse": end == 0, "hosts": lighthouses},
        "listen": {"host": "0.0.0.0", "port": pair.port},
        "tun": {"dev": pair.interfaces[end], "mtu": OTHERS_MTU},
        "firewall": {"outbound": anything, "inbound": anything},
        "logging": {"level": "warning"},
    })
    .to_string()
}
