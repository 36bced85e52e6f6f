//! A network that runs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, bail};

use super::build::forward_addresses;
use super::host::Host;
use super::router::Router;
use super::{INTERNET, Ipv4, Ipv6, OBSERVERS, Topology};
use crate::dns::DnsServer;
use crate::linksim::{Line, LineId, LineStats, LinkSim};
use crate::nat::probe::Observers;
use crate::nat::{Egress, Nat};
use crate::netns::{self, Netns};
use crate::process::{HostCommand, Surroundings};
use crate::run::Lab;

/// A running network. Everything may be changed while it runs; all methods take `&self`.
#[derive(Debug)]
pub struct Network {
    pub(super) topology: Topology,
    pub(super) hosts: BTreeMap<String, Host>,
    pub(super) sites: BTreeMap<String, RunningSite>,
    pub(super) dns: DnsServer,
    pub(super) linksim: LinkSim,
    pub(super) lab: Lab,
}

/// The running parts of a site.
#[derive(Debug)]
pub(super) struct RunningSite {
    pub(super) name: String,
    pub(super) number: u16,
    pub(super) ipv4: Ipv4,
    pub(super) line: LineId,
    pub(super) current_line: Mutex<Line>,
    pub(super) gateway: RunningGateway,
    pub(super) outside: Mutex<Ipv4Addr>,
    pub(super) next_host: Mutex<u32>,
}

/// What a router loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Nothing.
    Nothing,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// What stands at the end of a running line.
#[derive(Debug)]
pub(super) enum RunningGateway {
    /// The host of this name.
    Public(String),
    /// A router.
    Router(Router),
}

impl RunningSite {
    pub(super) fn outside(&self) -> Ipv4Addr {
        *self.outside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn router(&self) -> anyhow::Result<&Router> {
        match &self.gateway {
            RunningGateway::Router(router) => Ok(router),
            RunningGateway::Public(_) => bail!("site {} has no router", self.name),
        }
    }
}

impl Network {
    /// The run to which this network belongs.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The description from which it was built.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The name server.
    pub fn dns(&self) -> &DnsServer {
        &self.dns
    }

    /// A host by name.
    ///
    /// # Errors
    ///
    /// If there is none of that name.
    pub fn host(&self, name: &str) -> anyhow::Result<&Host> {
        self.hosts.get(name).with_context(|| format!("there is no host {name}"))
    }

    /// All hosts, `internet` among them, by name.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.values()
    }

    /// The host that stands in the middle and sees everyone without impairment.
    pub fn internet(&self) -> &Host {
        &self.hosts[INTERNET]
    }

    /// The namespace of a site's router.
    ///
    /// # Errors
    ///
    /// If there is no such site, or it has none.
    pub fn router(&self, site: &str) -> anyhow::Result<&Netns> {
        Ok(self.site(site)?.router()?.netns())
    }

    /// A program to be run on a site's router.
    ///
    /// # Errors
    ///
    /// If there is no such site, or it has no router.
    pub fn router_command(&self, site: &str, program: impl AsRef<OsStr>) -> anyhow::Result<HostCommand> {
        let netns = netns::path_of(self.router(site)?.name());
        let surroundings = Surroundings { netns, hostname: site.to_owned(), files: Vec::new() };
        Ok(HostCommand::new(program.as_ref(), surroundings, self.lab.directory().join("logs")))
    }

    /// A site's public address.
    ///
    /// # Errors
    ///
    /// If there is no such site.
    pub fn outside(&self, site: &str) -> anyhow::Result<Ipv4Addr> {
        Ok(self.site(site)?.outside())
    }

    /// Opens the observers that measure NATs. They can be open once at a time.
    ///
    /// # Errors
    ///
    /// If their ports are taken.
    pub fn observers(&self) -> anyhow::Result<Observers> {
        Observers::open(self.internet().netns(), OBSERVERS)
    }

    /// The present impairments of a site's line.
    ///
    /// # Errors
    ///
    /// If there is no such site.
    pub fn line(&self, site: &str) -> anyhow::Result<Line> {
        Ok(*self.site(site)?.current_line.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the impairments of a site's line.
    ///
    /// # Errors
    ///
    /// If there is no such site.
    pub fn set_line(&self, site: &str, line: Line) -> anyhow::Result<()> {
        let site = self.site(site)?;
        *site.current_line.lock().unwrap_or_else(PoisonError::into_inner) = line;
        self.linksim.set_line(site.line, line)
    }

    /// Cuts a site off from the internet, or connects it again. Interfaces stay up, as when the provider fails.
    ///
    /// # Errors
    ///
    /// If there is no such site.
    pub fn set_connected(&self, site: &str, connected: bool) -> anyhow::Result<()> {
        self.linksim.set_connected(self.site(site)?.line, connected)
    }

    /// Cuts two sites off from each other only, or mends that.
    ///
    /// # Errors
    ///
    /// If there is no such site.
    pub fn set_pair_connected(&self, a: &str, b: &str, connected: bool) -> anyhow::Result<()> {
        self.linksim.set_pair_connected(self.site(a)?.line, self.site(b)?.line, connected)
    }

    /// What a site's line has carried and dropped.
    ///
    /// # Errors
    ///
    /// If there is no such site.
    pub fn stats(&self, site: &str) -> anyhow::Result<LineStats> {
        Ok(self.linksim.stats(self.site(site)?.line))
    }

    /// The present NAT of a site.
    ///
    /// # Errors
    ///
    /// If there is no such site, or it has no router.
    pub fn nat(&self, site: &str) -> anyhow::Result<Nat> {
        Ok(self.site(site)?.router()?.nat())
    }

    /// Replaces a site's NAT; all its mappings are lost.
    ///
    /// # Errors
    ///
    /// If the site has no router, or a forward leads to a host that was not built there.
    pub fn set_nat(&self, site: &str, nat: Nat) -> anyhow::Result<()> {
        let router = self.site(site)?.router()?;
        let described = self.topology.sites.iter().find(|known| known.name == site);
        let hosts = described.map_or(&[][..], |site| site.hosts.as_slice());
        let forwards = forward_addresses(&nat, hosts, router.place().inside)?;
        router.set_nat(nat, forwards)
    }

    /// Changes what a site lets out; its mappings are lost.
    ///
    /// # Errors
    ///
    /// If there is no such site, or it has no router.
    pub fn set_egress(&self, site: &str, egress: Egress) -> anyhow::Result<()> {
        self.set_nat(site, self.nat(site)?.egress(egress))
    }

    /// Has a site's router lose all that it should carry of an address family for its LAN, or carry everything again. Its hosts keep
    /// their addresses and routes; nobody is told.
    ///
    /// # Errors
    ///
    /// If there is no such site, or it has no router.
    pub fn set_lost(&self, site: &str, lost: Lost) -> anyhow::Result<()> {
        let rule = match lost {
            Lost::Nothing => "",
            Lost::Ipv4 => "  meta nfproto ipv4 iifname lan drop\n  meta nfproto ipv4 oifname lan drop\n",
            Lost::Ipv6 => "  meta nfproto ipv6 iifname lan drop\n  meta nfproto ipv6 oifname lan drop\n",
        };
        self.router(site)?.nft(&format!(
            "table inet lost {{\n chain f {{\n  type filter hook forward priority -20; policy accept;\n }}\n}}\n\
             flush chain inet lost f\ntable inet lost {{\n chain f {{\n{rule} }}\n}}\n"
        ))
    }

    /// Reboots a site's router: the address stays, all mappings and tracked connections are lost.
    ///
    /// # Errors
    ///
    /// If there is no such site, or it has no router.
    pub fn reboot(&self, site: &str) -> anyhow::Result<()> {
        self.site(site)?.router()?.load()
    }

    /// Has a site's router forget all mappings, as [`Network::reboot`], and give an inside port another outside port from
    /// then on. Nobody is told.
    ///
    /// # Errors
    ///
    /// If there is no such site, or it has no router.
    pub fn rebind(&self, site: &str, inside: u16, outside: u16) -> anyhow::Result<()> {
        let router = self.site(site)?.router()?;
        let address = router.place().outside;
        router.load()?;
        router.netns().nft(&format!(
            "insert rule ip nat post oifname \"wan\" udp sport {inside} snat to {address}:{outside}\n"
        ))?;
        // What was mapped between the two steps.
        router.netns().flush_connections()
    }

    /// Gives a site another public address, as a provider does over night.
    ///
    /// # Errors
    ///
    /// If there is no such site, or the kernel refuses.
    pub fn set_outside(&self, site: &str, outside: Ipv4Addr) -> anyhow::Result<()> {
        let running = self.site(site)?;
        let former =
            std::mem::replace(&mut *running.outside.lock().unwrap_or_else(PoisonError::into_inner), outside);
        match &running.gateway {
            RunningGateway::Router(router) => router.set_outside(outside)?,
            RunningGateway::Public(name) => {
                let host = self.host(name)?;
                host.netns()
                    .ip(&format!("addr add {outside}/32 dev eth0\naddr del {former}/32 dev eth0\n"))?;
                host.note_address(outside);
            }
        }
        let described = self.topology.sites.iter().find(|known| known.name == site);
        let ipv6 = described.map_or(Ipv6::None, |site| site.ipv6);
        self.linksim.set_routes(running.line, running.routes(ipv6))
    }

    /// Takes a host off its LAN: its interface disappears.
    ///
    /// # Errors
    ///
    /// If there is no such host, or it is nowhere.
    pub fn unplug(&self, host: &str) -> anyhow::Result<()> {
        let host = self.host(host)?;
        host.netns().ip("link del eth0\n")?;
        host.note_detached();
        Ok(())
    }

    /// Connects a host that is nowhere to the LAN of a site; it gets a new address there.
    ///
    /// # Errors
    ///
    /// If there is no such host or site, or the site has no LAN.
    pub fn plug(&self, host: &str, site: &str) -> anyhow::Result<()> {
        let running = self.site(site)?;
        let there = self.hosts().filter(|other| other.site() == site);
        let taken: Vec<Ipv4Addr> = there.map(Host::address).collect();
        running.plug(self.host(host)?, &taken)
    }

    /// Moves a host to the LAN of another site, as a laptop that roams.
    ///
    /// # Errors
    ///
    /// As [`Network::unplug`] and [`Network::plug`].
    pub fn move_host(&self, host: &str, site: &str) -> anyhow::Result<()> {
        self.unplug(host)?;
        self.plug(host, site)
    }

    fn site(&self, name: &str) -> anyhow::Result<&RunningSite> {
        self.sites.get(name).with_context(|| format!("there is no site {name}"))
    }
}
