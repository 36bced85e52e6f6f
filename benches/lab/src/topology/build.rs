//! From the description of a network to namespaces, devices and rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;

use anyhow::{Context as _, bail, ensure};
use ipnet::{IpNet, Ipv4Net};

use super::host::{Attachment, AttachmentV4, Host};
use super::network::{Network, RunningGateway, RunningSite};
use super::router::{Router, place_v6};
use super::{Gateway, INTERNET, Ipv6, NAME_SERVER, NAME_SERVER_V6, OBSERVERS, Site, Topology};
use crate::dns::DnsServer;
use crate::linksim::{Line, LineId, LinkSim, MAX_MTU, QUEUE};
use crate::nat::rules::{OUTSIDE_INTERFACE, Place};
use crate::nat::{Allocator, Nat};
use crate::netns::Netns;
use crate::run::Lab;

/// The network of the host `internet`.
const INTERNET_NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24);
/// Automatic public addresses: 198.51.100.10 and on.
const OUTSIDE_BASE: u32 = Ipv4Addr::new(198, 51, 100, 9).to_bits();
/// The first host of a LAN has the address network + 10.
const FIRST_HOST: u32 = 10;
/// What the automatic addresses suffice for.
const MAX_SITES: usize = 240;

impl Network {
    pub(crate) fn build(lab: &Lab, topology: Topology) -> anyhow::Result<Self> {
        ensure!(topology.sites.len() <= MAX_SITES, "more than {MAX_SITES} sites");
        let linksim = LinkSim::start(topology.seed)?;
        let internet = internet(lab, &linksim)?;
        // Over both families: answers leave from the address that the host got first, which is the name server's.
        let dns = DnsServer::start(internet.netns(), (Ipv6Addr::UNSPECIFIED, 53).into())?;
        let mut hosts = BTreeMap::from([(INTERNET.to_owned(), internet)]);
        let mut sites = BTreeMap::new();
        for (number, site) in (1u16..).zip(&topology.sites) {
            ensure!(!sites.contains_key(&site.name), "two sites are called {}", site.name);
            for name in &site.hosts {
                let host = Host::make(lab, name, &site.name).with_context(|| format!("host {name}"))?;
                ensure!(hosts.insert(name.clone(), host).is_none(), "two hosts are called {name}");
            }
            let built = Built { lab, linksim: &linksim, hosts: &hosts, sites: &sites };
            let running = start(&built, site, number);
            sites.insert(site.name.clone(), running.with_context(|| format!("site {}", site.name))?);
        }
        Ok(Self { topology, hosts, sites, dns, linksim, lab: lab.clone() })
    }
}

/// The host with the name server and the observers.
fn internet(lab: &Lab, linksim: &LinkSim) -> anyhow::Result<Host> {
    let host = Host::make(lab, INTERNET, INTERNET)?;
    let line = linksim.attach(host.netns(), "eth0", Line::default())?;
    linksim.set_routes(line, vec![INTERNET_NETWORK.into(), IpNet::new_assert(NAME_SERVER_V6.into(), 48)])?;
    host.configure(&Attachment {
        site: INTERNET.to_owned(),
        v4: Some(AttachmentV4 { address: NAME_SERVER, prefix: 32, gateway: None }),
        v6: Some((NAME_SERVER_V6, None)),
    })?;
    let [a, b] = OBSERVERS;
    host.netns().ip(&format!(
        "link set eth0 txqueuelen {QUEUE}\naddr add {a}/32 dev eth0\naddr add {b}/32 dev eth0\n"
    ))?;
    Ok(host)
}

/// What stands already when a site is started.
struct Built<'a> {
    lab: &'a Lab,
    linksim: &'a LinkSim,
    hosts: &'a BTreeMap<String, Host>,
    sites: &'a BTreeMap<String, RunningSite>,
}

fn start(built: &Built<'_>, site: &Site, number: u16) -> anyhow::Result<RunningSite> {
    let Built { lab, linksim, hosts, sites } = *built;
    ensure!((1280..=MAX_MTU).contains(&site.mtu), "MTU {} is not within 1280..={MAX_MTU}", site.mtu);
    let carrier = match &site.carrier {
        Some(name) => Some(sites.get(name).with_context(|| format!("there is no carrier {name}"))?),
        None => None,
    };
    let (outside, uplink) = match carrier {
        Some(carrier) => carrier.customer()?,
        None => (site.outside.unwrap_or(Ipv4Addr::from_bits(OUTSIDE_BASE + u32::from(number))), None),
    };
    let (line, gateway) = match &site.gateway {
        Gateway::Public => {
            let [name] = site.hosts.as_slice() else { bail!("a public site has exactly one host") };
            let host = &hosts[name];
            let line = linksim.attach(host.netns(), "eth0", site.line)?;
            host.netns().ip(&format!("link set eth0 mtu {} txqueuelen {QUEUE}\n", site.mtu))?;
            let v6 = place_v6(site.ipv6, number).map(|place| (place.outside, None));
            host.configure(&Attachment {
                site: site.name.clone(),
                v4: site.ipv4.is_present().then_some(AttachmentV4 {
                    address: outside,
                    prefix: 32,
                    gateway: None,
                }),
                v6,
            })?;
            (line, RunningGateway::Public(name.clone()))
        }
        Gateway::Router(nat) => {
            let netns = lab.namespace(&format!("{}-router", site.name))?;
            let line = match carrier {
                Some(carrier) => carrier.attach(&netns)?,
                None => linksim.attach(&netns, OUTSIDE_INTERFACE, site.line)?,
            };
            let inside = site
                .inside
                .unwrap_or(Ipv4Net::new_assert(Ipv4Addr::new(192, 168, number.to_le_bytes()[0], 0), 24));
            let addresses = forward_addresses(nat, &site.hosts, inside)?;
            let place =
                Place { outside, inside, forwards: addresses, v6: place_v6(site.ipv6, number), uplink };
            (line, RunningGateway::Router(Router::start(netns, nat.clone(), place, site.mtu)?))
        }
    };
    let running = RunningSite {
        name: site.name.clone(),
        number,
        ipv4: site.ipv4,
        line,
        current_line: Mutex::new(site.line),
        gateway,
        outside: Mutex::new(outside),
        next_host: Mutex::new(FIRST_HOST),
    };
    if carrier.is_none() {
        linksim.set_routes(line, running.routes(site.ipv6))?;
    }
    if let RunningGateway::Router(_) = running.gateway {
        for name in &site.hosts {
            running.plug(&hosts[name], &[])?;
        }
    }
    Ok(running)
}

impl RunningSite {
    /// What the internet sends to this site.
    pub(super) fn routes(&self, ipv6: Ipv6) -> Vec<IpNet> {
        let mut routes = vec![IpNet::from(IpAddr::V4(self.outside()))];
        if let RunningGateway::Router(router) = &self.gateway
            && router.nat().allocator == Allocator::Routed
        {
            routes.push(router.place().inside.into());
        }
        if ipv6 != Ipv6::None {
            let segment = Ipv6Addr::new(0x2001, 0xdb8, self.number, 0, 0, 0, 0, 0);
            routes.push(IpNet::new_assert(segment.into(), 48));
        }
        routes
    }

    /// The next free address of the LAN, for a router whose access line ends here.
    fn customer(&self) -> anyhow::Result<(Ipv4Addr, Option<(Ipv4Net, Ipv4Addr)>)> {
        let RunningGateway::Router(router) = &self.gateway else { bail!("site {} has no LAN", self.name) };
        let inside = router.place().inside;
        let mut next = self.next_host.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *next += 1;
        let address = Ipv4Addr::from_bits(inside.network().to_bits() + *next - 1);
        Ok((address, Some((inside, router.gateway()))))
    }

    /// Connects a customer's router to the LAN; it shares this site's line.
    fn attach(&self, customer: &Netns) -> anyhow::Result<LineId> {
        let RunningGateway::Router(router) = &self.gateway else { bail!("site {} has no LAN", self.name) };
        router.plug_as(customer, OUTSIDE_INTERFACE)?;
        Ok(self.line)
    }

    /// Connects a host to the LAN, with the next address that is not taken there; those of guests who left come again
    /// when all others have been given.
    pub(super) fn plug(&self, host: &Host, taken: &[Ipv4Addr]) -> anyhow::Result<()> {
        let RunningGateway::Router(router) = &self.gateway else { bail!("site {} has no LAN", self.name) };
        let place = router.place();
        let base = place.inside.network().to_bits();
        let number = {
            let mut next = self.next_host.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let end = place.inside.broadcast().to_bits() - base;
            let numbers = (*next..end).chain(FIRST_HOST..*next);
            let mut free = numbers.filter(|number| !taken.contains(&Ipv4Addr::from_bits(base + number)));
            let number = free.next().with_context(|| format!("the LAN of {} is full", self.name))?;
            *next = number + 1;
            number
        };
        router.plug(host.netns())?;
        let v6 = place.v6.map(|v6| {
            let segment = v6.gateway.to_bits() & !u128::from(u64::MAX);
            (Ipv6Addr::from_bits(segment + u128::from(number)), Some(v6.gateway))
        });
        host.configure(&Attachment {
            site: self.name.clone(),
            v4: self.ipv4.is_present().then(|| AttachmentV4 {
                address: Ipv4Addr::from_bits(base + number),
                prefix: place.inside.prefix_len(),
                gateway: Some(router.gateway()),
            }),
            v6,
        })
    }
}

/// The addresses that the hosts of a NAT's forwards get, or have got.
pub(super) fn forward_addresses(
    nat: &Nat,
    hosts: &[String],
    inside: Ipv4Net,
) -> anyhow::Result<Vec<Ipv4Addr>> {
    let address = |name: &String| {
        let index = hosts.iter().position(|host| host == name);
        let index = index.with_context(|| format!("a port is forwarded to {name}, which is not there"))?;
        Ok(Ipv4Addr::from_bits(inside.network().to_bits() + FIRST_HOST + u32::try_from(index)?))
    };
    nat.forwards.iter().map(|forward| address(&forward.host)).collect()
}
