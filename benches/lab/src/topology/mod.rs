//! What a network looks like, before and after it is built.
//!
//! A [`Topology`] is a list of [`Site`]s around one internet. A site is either one public host, or a router with a
//! NAT and hosts on a LAN behind it. Building makes, per site, a namespace for the router and one for each host:
//!
//! ```text
//!   host eth0 --- bridge `lan` [router: NAT] TUN `wan` --- line --- internet (linksim) --- line --- ...
//! ```
//!
//! and besides a host `internet` with a perfect line: there are the name server and the observers that see what
//! NATs do. Addresses come from the documentation ranges outside and from private ranges inside.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

mod build;
mod expect;
mod footprint;
mod host;
mod network;
mod ping;
mod router;

pub use expect::Reach;
pub use footprint::Footprint;
pub use host::Host;
pub use network::{Lost, Network};
pub use ping::Ping;

use crate::linksim::{Impairment, Line};
use crate::nat::Nat;

/// Where the name server of every network stands.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
/// The same over IPv6; sites have 2001:db8:N::/48 with N from 1.
pub const NAME_SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);
/// The two addresses from which NATs are observed.
pub const OBSERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
/// The name of the host that every network has.
pub const INTERNET: &str = "internet";

/// A network to be built.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Topology {
    /// The sites, in order; automatic addresses follow it.
    pub sites: Vec<Site>,
    /// The seed of the link simulator.
    pub seed: u64,
}

impl Topology {
    /// A network with nothing but the internet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a site.
    #[must_use]
    pub fn site(mut self, site: Site) -> Self {
        self.sites.push(site);
        self
    }

    /// Sets the seed of the link simulator.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }
}

/// What stands at a site's end of its access line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gateway {
    /// The site's only host, with a public address of its own.
    Public,
    /// A router with a NAT.
    Router(Nat),
}

/// What a site has of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ipv6 {
    /// Nothing.
    #[default]
    None,
    /// Public addresses behind a stateful filter, as home routers have it.
    Filtered,
    /// Public addresses that anyone reaches.
    Open,
}

/// What the hosts of a site have of IPv4. Its router has it in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ipv4 {
    /// An address and a route.
    #[default]
    Present,
    /// Nothing: IPv6 is all they have.
    Absent,
}

impl Ipv4 {
    /// Whether there is any.
    #[must_use]
    pub fn is_present(self) -> bool {
        self == Self::Present
    }
}

/// A place with an access line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Site {
    /// Its name.
    pub name: String,
    /// What stands at the end of its line.
    pub gateway: Gateway,
    /// The hosts behind the router, or the one public host.
    pub hosts: Vec<String>,
    /// Its access line.
    pub line: Line,
    /// The public address, or automatic.
    pub outside: Option<Ipv4Addr>,
    /// The network behind the router, or automatic.
    pub inside: Option<Ipv4Net>,
    /// What it has of IPv6.
    pub ipv6: Ipv6,
    /// What its hosts have of IPv4.
    #[serde(default)]
    pub ipv4: Ipv4,
    /// The MTU of its access line.
    pub mtu: u16,
    /// The site whose LAN its access line ends at, as with a carrier that translates for its customers.
    pub carrier: Option<String>,
}

/// Ethernet's.
const DEFAULT_MTU: u16 = 1500;

impl Site {
    /// A site with a router; hosts are added by [`Site::host`].
    pub fn behind(name: &str, nat: Nat) -> Self {
        Self {
            name: name.to_owned(),
            gateway: Gateway::Router(nat),
            hosts: Vec::new(),
            line: Line::default(),
            outside: None,
            inside: None,
            ipv6: Ipv6::None,
            ipv4: Ipv4::Present,
            mtu: DEFAULT_MTU,
            carrier: None,
        }
    }

    /// A site that is one host, of the same name, with a public address.
    pub fn public(name: &str) -> Self {
        let nat = Nat::masquerade();
        Self { gateway: Gateway::Public, hosts: vec![name.to_owned()], ..Self::behind(name, nat) }
    }

    /// Adds a host behind the router.
    #[must_use]
    pub fn host(mut self, name: &str) -> Self {
        self.hosts.push(name.to_owned());
        self
    }

    /// Sets what the access line adds to a round trip; half of it goes to each direction.
    #[must_use]
    pub fn latency(mut self, round_trip: Duration) -> Self {
        self.line.up.delay = round_trip / 2;
        self.line.down.delay = round_trip / 2;
        self
    }

    /// Sets by how much each direction's delay varies up and down.
    #[must_use]
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.line.up.jitter = jitter;
        self.line.down.jitter = jitter;
        self
    }

    /// Sets the whole access line.
    #[must_use]
    pub fn line(self, line: Line) -> Self {
        Self { line, ..self }
    }

    /// Sets both directions of the access line.
    #[must_use]
    pub fn impaired(self, both: Impairment) -> Self {
        self.line(Line::symmetric(both))
    }

    /// Sets the public address.
    #[must_use]
    pub fn outside(self, address: Ipv4Addr) -> Self {
        Self { outside: Some(address), ..self }
    }

    /// Sets the network behind the router.
    #[must_use]
    pub fn inside(self, network: Ipv4Net) -> Self {
        Self { inside: Some(network), ..self }
    }

    /// Sets what it has of IPv6.
    #[must_use]
    pub fn ipv6(self, ipv6: Ipv6) -> Self {
        Self { ipv6, ..self }
    }

    /// Leaves its hosts without IPv4.
    #[must_use]
    pub fn without_ipv4(self) -> Self {
        Self { ipv4: Ipv4::Absent, ..self }
    }

    /// Has the access line end at the LAN of another site, which must be described before this one: double NAT. Delay
    /// and public address are the other site's then.
    #[must_use]
    pub fn customer_of(self, carrier: &str) -> Self {
        Self { carrier: Some(carrier.to_owned()), ..self }
    }

    /// Sets the MTU of the access line, as 1492 for PPPoE.
    #[must_use]
    pub fn mtu(self, mtu: u16) -> Self {
        Self { mtu, ..self }
    }
}
