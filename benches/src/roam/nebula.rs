//! The same script over nebula: lighthouse and relay on `pi`, as our coordinator is, found by its outside address.
//!
//! Its settings are the ones its documentation recommends for hosts behind NATs: hole punching on, answered, and a relay
//! for what cannot be punched. The forwarded port is its own.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use mesh_lab::mesh::{Daemon, wait_until};
use mesh_lab::{Host, Lab, Network, Process, village};
use serde_json::json;

use super::overlay::{Before, Overlay};
use super::report::{Budget, Series};
use super::{Addresses, Kind, script, series};
use crate::wire::peers::Program;

/// The port that the router of `pi` forwards.
const FORWARDED: u16 = 7443;
/// The port of the others.
const PORT: u16 = 4242;
/// The lighthouse, and relay.
const LIGHTHOUSE: &str = "pi";
const INTERFACE: &str = "nebula1";
const MTU: u16 = 1300;
/// How long anything may take to settle: nebula forgets a dead tunnel after some 15 s.
const PATIENCE: Duration = Duration::from_secs(120);
/// Replies in a row that say that a pair is quiet again.
const REPLIES: u32 = 5;

/// A village with nebula on every host.
struct Nebula {
    network: Arc<Network>,
    addresses: Addresses,
    _processes: Vec<Process>,
}

/// Times this kind over nebula.
///
/// # Errors
/// When the lab or nebula fail.
pub fn measure(program: &Program, kind: Kind, trials: usize) -> anyhow::Result<Vec<Series>> {
    let lab = Lab::new("nebula")?;
    let stage = Nebula::start(&lab, program)?;
    let (samples, whole) = script::run(kind, &stage, trials)?;
    Ok(series("nebula", kind, &samples, whole, Budget::default()))
}

impl Nebula {
    fn start(lab: &Lab, program: &Program) -> anyhow::Result<Self> {
        let network = Arc::new(lab.build(village::topology())?);
        let folder = lab.directory().join("nebula");
        std::fs::create_dir_all(&folder)?;
        let file = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let (authority, authority_key) = (file("ca.crt"), file("ca.key"));
        let certify = |host: &Host, arguments: &[&str]| -> anyhow::Result<()> {
            let tool = program.path.with_file_name("nebula-cert");
            host.command(tool).args(arguments).output()?.success().map(drop)
        };
        certify(
            network.host(LIGHTHOUSE)?,
            &["ca", "-name", "bench", "-out-crt", &authority, "-out-key", &authority_key],
        )?;
        let mut addresses = Addresses::new();
        let mut processes = Vec::new();
        for (number, name) in (1..).zip(village::NODES) {
            let host = network.host(name)?;
            let address = Ipv4Addr::new(10, 77, 9, number);
            addresses.insert(name.to_owned(), address.into());
            let (certificate, key) = (file(&format!("{name}.crt")), file(&format!("{name}.key")));
            let within = format!("{address}/24");
            let mut sign = vec!["sign", "-ca-crt", &authority, "-ca-key", &authority_key, "-name", name];
            sign.extend(["-networks", &within, "-out-crt", &certificate, "-out-key", &key]);
            certify(host, &sign)?;
            let config = file(&format!("{name}.yml"));
            let pki = json!({"ca": authority, "cert": certificate, "key": key});
            std::fs::write(&config, settings(name, network.outside(LIGHTHOUSE)?, pki))?;
            processes.push(
                host.command(&program.path).args(["-config", &config]).spawn(&format!("nebula-{name}"))?,
            );
        }
        let nebula = Self { network, addresses, _processes: processes };
        for name in village::NODES.into_iter().filter(|name| *name != LIGHTHOUSE) {
            nebula.settle([name, LIGHTHOUSE])?;
        }
        Ok(nebula)
    }
}

impl Overlay for Nebula {
    fn network(&self) -> &Network {
        &self.network
    }

    fn port(&self) -> u16 {
        PORT
    }

    fn address(&self, host: &str) -> anyhow::Result<IpAddr> {
        self.addresses.get(host).copied().with_context(|| format!("{host} has no address"))
    }

    fn settle(&self, pair: [&str; 2]) -> anyhow::Result<()> {
        let [from, to] = pair;
        let address = self.address(to)?;
        wait_until(PATIENCE, &format!("{from} and {to} are quiet again"), || {
            let seen = self.network.host(from)?.ping_many(address, REPLIES)?;
            ensure!(seen.received() == REPLIES as usize, "{} of {REPLIES} replies", seen.received());
            Ok(true)
        })
    }

    fn daemons(&self) -> Vec<&Daemon> {
        Vec::new()
    }

    fn look(&self, _pair: [&str; 2]) -> Option<Before> {
        None
    }

    fn wait_direct(&self, _: [&str; 2], _: &Before, _: (Instant, SystemTime)) -> Option<Duration> {
        None
    }
}

/// The settings of one host, in the part of YAML that is JSON.
fn settings(name: &str, lighthouse: Ipv4Addr, pki: serde_json::Value) -> String {
    let is_lighthouse = name == LIGHTHOUSE;
    let inside = Ipv4Addr::new(10, 77, 9, 1).to_string();
    let others = |list: Vec<String>| if is_lighthouse { Vec::new() } else { list };
    let anything = json!([{"port": "any", "proto": "any", "host": "any"}]);
    let hosts =
        if is_lighthouse { json!({}) } else { json!({&inside: [format!("{lighthouse}:{FORWARDED}")]}) };
    json!({
        "pki": pki,
        "static_host_map": hosts,
        "lighthouse": {"am_lighthouse": is_lighthouse, "hosts": others(vec![inside.clone()]), "interval": 10},
        "listen": {"host": "0.0.0.0", "port": if is_lighthouse { FORWARDED } else { PORT }},
        "punchy": {"punch": true, "respond": true, "delay": "1s"},
        "relay": {"am_relay": is_lighthouse, "use_relays": true, "relays": others(vec![inside.clone()])},
        "tun": {"dev": INTERFACE, "mtu": MTU},
        "firewall": {"outbound": anything, "inbound": anything},
        "logging": {"level": "warning"},
    })
    .to_string()
}

/// Where programs that are fetched are kept.
#[must_use]
pub fn folder() -> &'static Path {
    Path::new(crate::wire::peers::FOLDER)
}
