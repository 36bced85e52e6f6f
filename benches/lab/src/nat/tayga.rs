//! A real `tayga` on a site's router: NAT64 for hosts that have IPv6 alone.
//!
//! It gives each of them an IPv4 address of its own pool, one to one, and the site's NAT translates from there on as for
//! any other host inside: so the translator is of the NAT's type.
//!
//! ```text
//!   host (IPv6) --- `lan` [router: route of the prefix --- TUN `nat64`: tayga --- IPv4 of the pool --- NAT] `wan` ---
//! ```
//!
//! The well-known prefix is of no use in the lab: tayga leads no addresses for documentation through it.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use ipnet::Ipv4Net;
use mesh_proto::nat64::Nat64Prefix;

use crate::process::Process;
use crate::topology::Network;

/// Its TUN.
const DEVICE: &str = "nat64";
/// The addresses that it gives to hosts, of the range for carriers.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 127, 0, 0), 24);
/// Its own, from which it reports errors.
const OWN: Ipv4Addr = Ipv4Addr::new(100, 127, 0, 1);

/// A running `tayga`.
#[derive(Debug)]
pub struct Tayga {
    _process: Process,
}

impl Tayga {
    /// Starts it on a site's router, behind a prefix that leads nowhere else.
    ///
    /// # Errors
    ///
    /// If the site has no router, or something cannot be made.
    pub fn start(network: &Network, site: &str, prefix: Nat64Prefix) -> anyhow::Result<Self> {
        let directory = network.lab().directory().join(format!("tayga-{site}"));
        std::fs::create_dir_all(&directory)?;
        let config = directory.join("tayga.conf");
        let text = format!(
            "tun-device {DEVICE}\nipv4-addr {OWN}\nprefix {prefix}\ndynamic-pool {POOL}\ndata-dir {}\n",
            directory.display()
        );
        std::fs::write(&config, text)?;
        let tayga = || Ok(network.router_command(site, "tayga")?.arg("--config").arg(&config));
        let made: anyhow::Result<_> = tayga().and_then(|tayga| tayga.arg("--mktun").output()?.success());
        made.context("tayga's TUN")?;
        network.router(site)?.ip(&format!(
            "link set {DEVICE} up\nroute add {POOL} dev {DEVICE}\nroute add {prefix} dev {DEVICE}\n"
        ))?;
        let running: anyhow::Result<_> =
            tayga().and_then(|tayga| tayga.arg("-d").spawn(&format!("tayga-{site}")));
        Ok(Self { _process: running? })
    }
}
