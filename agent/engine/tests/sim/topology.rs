//! Topologies: what stands where, drawn or written down, and how it becomes a world.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use mesh_proto::netmap::RelayId;

use crate::{
    coordinator::Coordinator,
    net::{
        EarlyProbe, Firewall, Hairpin, INTERNET, LinkProfile, NatId, NatProfile, NatType, Net, PortChoice,
        RealmId, Refresh, UplinkId,
    },
    relay::Relay,
    rng::Rng,
    world::World,
};

/// Mapping timers that real NATs have.
const NAT_TIMEOUTS: [u64; 4] = [30, 60, 120, 300];
/// How NATs choose ports; those that count on are rare.
const PORT_CHOICES: [PortChoice; 8] = [
    PortChoice::Preserving,
    PortChoice::Preserving,
    PortChoice::Preserving,
    PortChoice::Random,
    PortChoice::Random,
    PortChoice::Random,
    PortChoice::Sequential(1),
    PortChoice::Sequential(-1),
];
/// UDP port of coordinator and relays.
const SERVER_PORT: u16 = 7443;
/// Numbers of relays beside the coordinator's come after this one, beyond those of nodes.
const FIRST_RELAY: u32 = 1000;
/// Delay of the servers' lines.
const SERVER_DELAY: Duration = Duration::from_millis(5);

/// What stands where.
#[derive(Debug, Clone)]
pub(crate) struct Topology {
    /// Carrier-grade NATs.
    pub(crate) carriers: Vec<Carrier>,
    pub(crate) sites: Vec<Site>,
    /// The nodes, and where they are at first.
    pub(crate) nodes: Vec<Placed>,
    /// How many relays there are; the first is the coordinator's.
    pub(crate) relays: usize,
}

/// A carrier with a NAT of its own.
#[derive(Debug, Clone)]
pub(crate) struct Carrier {
    pub(crate) line: LinkProfile,
    pub(crate) nat: NatProfile,
}

/// A place where nodes can be: a LAN behind a NAT, or a place without one.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) uplink: SiteUplink,
    pub(crate) nat: Option<NatProfile>,
    pub(crate) v6: SiteV6,
}

/// Whether a site's hosts have global IPv6 addresses, behind a filter that lets in what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SiteV6 {
    Absent,
    Filtered,
}

/// How a site is connected.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SiteUplink {
    /// By a line to the internet.
    Line(LinkProfile),
    /// By the inside of a carrier's NAT.
    Carrier(usize),
}

/// Where a node is, and what guards it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed {
    pub(crate) site: usize,
    pub(crate) guard: Guard,
}

/// Whether a host has a firewall of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    Open,
    Firewall,
}

/// A site as it was built.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BuiltSite {
    pub(crate) realm: RealmId,
    pub(crate) uplink: Option<UplinkId>,
    pub(crate) nat: Option<NatId>,
    /// First bytes of its hosts' addresses.
    network: [u8; 3],
    /// Its line to the internet, and its number, if its hosts have IPv6 addresses.
    v6: Option<(UplinkId, u16)>,
}

impl Topology {
    /// Draws a topology.
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let nodes = rng.range(2..13);
        let lossy = rng.chance(300);
        let carriers: Vec<_> =
            (0..rng.below(3)).map(|_| Carrier { line: draw_line(rng, lossy), nat: draw_nat(rng) }).collect();
        let sites: Vec<_> = (0..rng.range(1..nodes + 2))
            .map(|_| {
                let uplink = if !carriers.is_empty() && rng.chance(300) {
                    SiteUplink::Carrier(rng.index(carriers.len()))
                } else {
                    SiteUplink::Line(draw_line(rng, lossy))
                };
                let v6 = if rng.chance(150) { SiteV6::Filtered } else { SiteV6::Absent };
                Site { uplink, nat: rng.chance(800).then(|| draw_nat(rng)), v6 }
            })
            .collect();
        let nodes = (0..nodes)
            .map(|_| {
                let guard = if rng.chance(150) { Guard::Firewall } else { Guard::Open };
                Placed { site: rng.index(sites.len()), guard }
            })
            .collect();
        Self { carriers, sites, nodes, relays: if rng.chance(400) { 2 } else { 1 } }
    }

    /// A site of its own for each NAT, with one node in it; every line delays by the same time.
    pub(crate) fn one_node_behind_each(nats: &[NatProfile], delay: Duration) -> Self {
        let line = LinkProfile::clean(delay);
        let site =
            |nat: &NatProfile| Site { uplink: SiteUplink::Line(line), nat: Some(*nat), v6: SiteV6::Absent };
        Self {
            carriers: Vec::new(),
            sites: nats.iter().map(site).collect(),
            nodes: (0..nats.len()).map(|site| Placed { site, guard: Guard::Open }).collect(),
            relays: 1,
        }
    }

    /// Whether no line loses or reorders anything.
    pub(crate) fn is_lossless(&self) -> bool {
        let lines = self.sites.iter().filter_map(|site| match site.uplink {
            SiteUplink::Line(line) => Some(line),
            SiteUplink::Carrier(_) => None,
        });
        lines.chain(self.carriers.iter().map(|carrier| carrier.line)).all(|line| line.is_lossless())
    }

    /// Builds the world, with every node in its place and nothing started.
    pub(crate) fn build(&self, rng: &mut Rng) -> (World, Vec<BuiltSite>) {
        let mut net = Net::new(rng.fork());
        let servers: Vec<_> = (0..self.relays.max(1))
            .map(|number| {
                let uplink = net.add_uplink(LinkProfile::clean(SERVER_DELAY));
                let host = net.add_host(None);
                let address = IpAddr::from([203, 0, 113, low_byte(number + 1)]);
                net.attach(host, INTERNET, address, Some(uplink));
                (host, SocketAddr::new(address, SERVER_PORT))
            })
            .collect();
        let (host, address) = servers[0];
        let coordinator = Coordinator::new(host, address);
        let relays = (0..self.relays)
            .map(|number| {
                // As the coordinator deals them out: no relay's number is a node's.
                let id = RelayId(if number == 0 { 0 } else { FIRST_RELAY + u32::from(low_byte(number)) });
                Relay::new(id, servers[number].0, servers[number].1, rng.fork())
            })
            .collect();
        let sites = self.build_sites(&mut net);
        let hosts: Vec<_> = self
            .nodes
            .iter()
            .map(|placed| {
                let host = net.add_host((placed.guard == Guard::Firewall).then(Firewall::default));
                sites[placed.site].attach(&mut net, host);
                host
            })
            .collect();
        let mut world = World::new(net, coordinator, relays, rng.fork());
        hosts.into_iter().for_each(|host| world.add_node(host));
        world.distribute_map();
        (world, sites)
    }

    fn build_sites(&self, net: &mut Net) -> Vec<BuiltSite> {
        let carriers: Vec<_> = (0..)
            .zip(&self.carriers)
            .map(|(number, carrier)| {
                let uplink = net.add_uplink(carrier.line);
                let address = IpAddr::from([192, 0, 2, low_byte(number + 1)]);
                (net.add_nat(carrier.nat, INTERNET, address, Some(uplink)).1, uplink)
            })
            .collect();
        (0..)
            .zip(&self.sites)
            .map(|(number, site)| {
                let low = low_byte(number + 1);
                let (outer, line, outer_network) = match site.uplink {
                    SiteUplink::Line(line) => (INTERNET, net.add_uplink(line), [198, 51, low]),
                    SiteUplink::Carrier(carrier) => {
                        (carriers[carrier].0, carriers[carrier].1, [100, 64, low])
                    }
                };
                let uplink = (outer == INTERNET).then_some(line);
                let v6 = (site.v6 == SiteV6::Filtered).then_some((line, u16::from(low)));
                let Some(profile) = site.nat else {
                    return BuiltSite { realm: outer, uplink, nat: None, network: outer_network, v6 };
                };
                let [a, b, c] = outer_network;
                let (nat, realm) = net.add_nat(profile, outer, IpAddr::from([a, b, c, 1]), uplink);
                // Few private networks for many sites: the same addresses mean other hosts elsewhere.
                BuiltSite { realm, uplink: None, nat: Some(nat), network: [192, 168, low % 2], v6 }
            })
            .collect()
    }
}

impl BuiltSite {
    /// Attaches a host to this site, at the first free address.
    pub(crate) fn attach(&self, net: &mut Net, host: crate::net::HostId) {
        let [a, b, c] = self.network;
        net.detach(host);
        let address = (10..=254)
            .map(|d| IpAddr::from([a, b, c, d]))
            .find(|address| net.is_free(self.realm, *address))
            .expect("a network has room for every node");
        net.attach(host, self.realm, address, self.uplink);
        if let Some((line, number)) = self.v6 {
            let host_number = u16::try_from(host.0).expect("few hosts");
            net.attach_v6(host, Ipv6Addr::new(0x2001, 0xdb8, number, 0, 0, 0, 0, host_number).into(), line);
        }
    }
}

fn draw_line(rng: &mut Rng, lossy: bool) -> LinkProfile {
    let mut line = LinkProfile::clean(rng.duration(Duration::from_millis(1)..Duration::from_millis(80)));
    if rng.chance(400) {
        line.jitter = rng.duration(Duration::from_millis(1)..Duration::from_millis(20));
    }
    if lossy {
        line.loss = u32::try_from(rng.below(40)).expect("small");
        line.reorder = u32::try_from(rng.below(100)).expect("small");
    }
    if rng.chance(200) {
        line.mtu = 1420;
    }
    line
}

fn draw_nat(rng: &mut Rng) -> NatProfile {
    NatProfile {
        kind: rng.pick(&NatType::ALL),
        timeout: Duration::from_secs(rng.pick(&NAT_TIMEOUTS)),
        refresh: rng.pick(&[Refresh::Both, Refresh::Outbound]),
        ports: rng.pick(&PORT_CHOICES),
        hairpin: rng.pick(&[Hairpin::Off, Hairpin::On]),
        early_probe: if rng.chance(100) { EarlyProbe::TakesPort } else { EarlyProbe::Dropped },
    }
}

fn low_byte(number: usize) -> u8 {
    u8::try_from(number).expect("a simulation has fewer than 256 of anything")
}
