//! A real `miniupnpd` on a site's router: PCP, NAT-PMP and UPnP-IGD.
//!
//! It writes its mappings into chains of a table of its own. They translate before the NAT profile's, and what it lets in
//! it marks, for a packet that one base chain accepts goes on to the next: the profile's rules let the mark pass (see
//! [`rules`](super::rules)). Only what came through a mapping counts as let in; an inside port that has one does not
//! become open on the outside ports that the NAT itself has given to it.
//!
//! It refuses to map on an address that is not of the internet, those for documentation among them.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;

use super::rules::{MAPPED_MARK, OUTSIDE_INTERFACE};
use crate::process::Process;
use crate::topology::Network;

/// An address of the internet, which no network of the lab leads to: for a site whose router maps ports.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 10);
/// Its table, and in part the names of its chains.
const TABLE: &str = "miniupnpd";
/// Where PCP and NAT-PMP servers listen.
const PORT: u16 = 5351;

/// What the router understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// PCP, and NAT-PMP on the same port.
    Pcp,
    /// NAT-PMP: PCP is not answered.
    NatPmp,
    /// UPnP-IGD alone.
    Upnp,
    /// All of them.
    All,
}

/// A running `miniupnpd`. When it is dropped, its mappings stay in the rules, as if it had crashed.
#[derive(Debug)]
pub struct Miniupnpd {
    network: Arc<Network>,
    site: String,
    config: PathBuf,
    process: Option<Process>,
}

impl Miniupnpd {
    /// Starts it on a site's router. Whoever loads the router's rules anew takes its chains away.
    ///
    /// # Errors
    ///
    /// If the site has no router, or something cannot be made.
    pub fn start(network: &Arc<Network>, site: &str, speaks: Speaks) -> anyhow::Result<Self> {
        let directory = network.lab().directory().join(format!("miniupnpd-{site}"));
        std::fs::create_dir_all(&directory)?;
        let config = directory.join("miniupnpd.conf");
        let yes = |is| if is { "yes" } else { "no" };
        let text = format!(
            "ext_ifname={OUTSIDE_INTERFACE}\nlistening_ip=lan\nenable_natpmp={natpmp}\nenable_upnp={upnp}\n\
             secure_mode=yes\nsystem_uptime=no\nlease_file={leases}\nuuid=6d657368-6c61-6221-8000-000000000001\n\
             upnp_table_name={TABLE}\nupnp_nat_table_name={TABLE}\nupnp_forward_chain={TABLE}\n\
             upnp_nat_chain=prerouting_{TABLE}\nupnp_nat_postrouting_chain=postrouting_{TABLE}\n\
             allow 1024-65535 0.0.0.0/0 1024-65535\n",
            natpmp = yes(speaks != Speaks::Upnp),
            upnp = yes(matches!(speaks, Speaks::Upnp | Speaks::All)),
            leases = directory.join("leases").display(),
        );
        std::fs::write(&config, text)?;
        let mut router = Self { network: Arc::clone(network), site: site.to_owned(), config, process: None };
        router.network.router(site)?.nft(&script(speaks))?;
        router.spawn()?;
        Ok(router)
    }

    /// Starts it over with nothing mapped, as a router does that loses power.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn reboot(&mut self) -> anyhow::Result<()> {
        self.process = None;
        let mut script = String::new();
        for chain in [TABLE, "prerouting_miniupnpd", "postrouting_miniupnpd"] {
            let _ = writeln!(script, "flush chain inet {TABLE} {chain}");
        }
        let router = self.network.router(&self.site)?;
        router.nft(&script)?;
        router.flush_connections()?;
        let leases = self.config.with_file_name("leases");
        match std::fs::remove_file(&leases) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("leases"),
            _ => self.spawn(),
        }
    }

    /// The rules that lead packets to hosts inside, as `nft` shows them.
    ///
    /// # Errors
    ///
    /// If `nft` cannot show them.
    pub fn mappings(&self) -> anyhow::Result<Vec<String>> {
        let list = self.network.router_command(&self.site, "nft")?;
        let list = list.args(["list", "chain", "inet", TABLE, "prerouting_miniupnpd"]).output()?.success()?;
        let rules = list.stdout.lines().filter(|line| line.contains("dnat"));
        Ok(rules.map(|line| line.trim().to_owned()).collect())
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let command = self.network.router_command(&self.site, "miniupnpd")?;
        let command = command.arg("-d").arg("-f").arg(&self.config).arg("-P");
        let pid = self.config.with_file_name("pid");
        self.process = Some(command.arg(pid).spawn(&format!("miniupnpd-{}", self.site))?);
        Ok(())
    }
}

fn script(speaks: Speaks) -> String {
    let mut out = format!(
        "table inet {TABLE} {{\n chain forward {{\n  type filter hook forward priority -5; policy accept;\n  \
         iifname \"{OUTSIDE_INTERFACE}\" meta mark set {MAPPED_MARK}\n  jump {TABLE}\n  meta mark set 0\n }}\n \
         chain {TABLE} {{\n }}\n \
         chain prerouting {{\n  type nat hook prerouting priority -110; policy accept;\n  jump prerouting_{TABLE}\n }}\n \
         chain postrouting {{\n  type nat hook postrouting priority 90; policy accept;\n  jump postrouting_{TABLE}\n }}\n \
         chain prerouting_{TABLE} {{\n }}\n chain postrouting_{TABLE} {{\n }}\n"
    );
    if speaks == Speaks::NatPmp {
        // The version is the first byte after the header of UDP.
        let _ = write!(
            out,
            " chain natpmp {{\n  type filter hook input priority 0; policy accept;\n  \
             udp dport {PORT} @th,64,8 2 drop\n }}\n"
        );
    }
    out.push_str("}\n");
    out
}
