//! NAT profiles: what a site's router does to the packets that cross it.
//!
//! The nine types are those of RFC 4787: three ways to map an inside endpoint to an outside port, times three ways
//! to filter what comes back. [`rules`] writes them as nftables; [`probe`] measures them from outside, as STUN does.

use std::fmt;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::bail;
use serde::{Deserialize, Serialize};

pub mod miniupnpd;
pub mod probe;
pub(crate) mod punching;
pub mod rules;
pub mod tayga;

/// How a NAT chooses the outside port of an inside endpoint (RFC 4787 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mapping {
    /// Endpoint-independent: one outside port for all destinations.
    Eim,
    /// Address-dependent: one outside port for each destination address.
    Adm,
    /// Address and port-dependent: one outside port for each destination; "symmetric".
    Apdm,
}

/// From whom a NAT lets packets in through a mapping (RFC 4787 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filtering {
    /// Endpoint-independent: from anyone.
    Eif,
    /// Address-dependent: from addresses that were sent to.
    Adf,
    /// Address and port-dependent: from the very endpoints that were sent to.
    Apdf,
}

/// One of the nine types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NatType {
    /// How outside ports are chosen.
    pub mapping: Mapping,
    /// From whom packets are let in.
    pub filtering: Filtering,
}

impl NatType {
    /// All nine, in the order of the matrix in every table.
    pub fn all() -> impl Iterator<Item = Self> {
        let mappings = [Mapping::Eim, Mapping::Adm, Mapping::Apdm];
        let filterings = [Filtering::Eif, Filtering::Adf, Filtering::Apdf];
        mappings.into_iter().flat_map(move |mapping| filterings.map(|filtering| Self { mapping, filtering }))
    }
}

impl fmt::Display for NatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mapping = match self.mapping {
            Mapping::Eim => "EIM",
            Mapping::Adm => "ADM",
            Mapping::Apdm => "APDM",
        };
        let filtering = match self.filtering {
            Filtering::Eif => "EIF",
            Filtering::Adf => "ADF",
            Filtering::Apdf => "APDF",
        };
        write!(f, "{mapping}x{filtering}")
    }
}

/// How the router chooses ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allocator {
    /// As its [`NatType`] asks.
    Typed,
    /// Linux' plain `masquerade`, which keeps the port until there is a conflict; EIM x APDF as long as there is none.
    Masquerade,
    /// Symmetric with ports at a constant distance from one another.
    Sequential(Step),
    /// Nothing is translated: the hosts have public addresses of their own, and the router only routes.
    Routed,
}

/// How far each port of a sequential allocator is from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// 1, upwards.
    Up1,
    /// 2, upwards.
    Up2,
    /// 256, upwards.
    Up256,
    /// 1, downwards.
    Down1,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Up1, Self::Up2, Self::Up256, Self::Down1];

    /// The distance itself.
    #[must_use]
    pub fn distance(self) -> i16 {
        match self {
            Self::Up1 => 1,
            Self::Up2 => 2,
            Self::Up256 => 256,
            Self::Down1 => -1,
        }
    }
}

impl Allocator {
    /// How ports count on, if they do.
    #[must_use]
    pub fn step(self) -> Option<Step> {
        match self {
            Self::Sequential(step) => Some(step),
            Self::Typed | Self::Masquerade | Self::Routed => None,
        }
    }
}

/// Whether hosts behind the router reach one another by its outside address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hairpin {
    /// They do, and see the outside address as the source (RFC 4787 REQ-9).
    On,
    /// Such packets are lost.
    Off,
}

/// What the site lets out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Egress {
    /// Everything.
    Open,
    /// No UDP but name resolution.
    NoUdp,
    /// Name resolution and TCP to port 443, nothing else.
    OnlyTcp443,
    /// TCP to an HTTP proxy, nothing else: no name resolution.
    OnlyProxy(SocketAddrV4),
    /// Name resolution; every TCP connection is led to this page, as long as nobody has signed in there.
    Portal(SocketAddrV4),
}

/// What a packet does that comes to the router before the inside host has sent one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EarlyProbe {
    /// It is dropped without a trace.
    Dropped,
    /// It takes the port: the inside host's mapping moves to another when it sends (a Linux router without INPUT rules).
    MovesMapping,
}

/// What makes a mapping live longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refresh {
    /// Packets in either direction.
    Any,
    /// Packets from inside alone (RFC 4787 section 4.3 allows it): who only listens is not heard for long.
    Outbound,
}

/// The protocol of a forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// A port of the router that is forwarded to a host behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// UDP or TCP.
    pub protocol: Protocol,
    /// The port outside; 0 for every one.
    pub port: u16,
    /// The name of the host inside.
    pub host: String,
    /// The port inside.
    pub to: u16,
}

/// A router's NAT profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nat {
    /// The RFC 4787 type.
    pub kind: NatType,
    /// How ports are chosen.
    pub allocator: Allocator,
    /// Whether inside hosts reach one another by the outside address.
    pub hairpin: Hairpin,
    /// What is let out.
    pub egress: Egress,
    /// What packets do that come too early.
    pub early_probe: EarlyProbe,
    /// Static port forwards.
    pub forwards: Vec<Forward>,
    /// How long an unused UDP mapping lives.
    pub udp_timeout: Duration,
    /// What counts as use.
    pub refresh: Refresh,
}

/// Stands for all of them in a [`Forward`].
pub(crate) const EVERY_PORT: u16 = 0;

/// The time that RFC 4787 REQ-5 recommends, and many routers keep.
const UDP_TIMEOUT: Duration = Duration::from_secs(300);

impl Nat {
    /// A router of this type: no hairpin, all let out, early probes dropped, no forwards, mappings of 300 s.
    pub fn new(mapping: Mapping, filtering: Filtering) -> Self {
        Self {
            kind: NatType { mapping, filtering },
            allocator: Allocator::Typed,
            hairpin: Hairpin::Off,
            egress: Egress::Open,
            early_probe: EarlyProbe::Dropped,
            forwards: Vec::new(),
            udp_timeout: UDP_TIMEOUT,
            refresh: Refresh::Any,
        }
    }

    /// A router of this type, as [`Nat::new`].
    pub fn of(kind: NatType) -> Self {
        Self::new(kind.mapping, kind.filtering)
    }

    /// A home router with Linux' plain `masquerade`.
    pub fn masquerade() -> Self {
        Self { allocator: Allocator::Masquerade, ..Self::new(Mapping::Eim, Filtering::Apdf) }
    }

    /// A symmetric router whose ports can be predicted.
    pub fn sequential(step: Step) -> Self {
        Self { allocator: Allocator::Sequential(step), ..Self::new(Mapping::Apdm, Filtering::Apdf) }
    }

    /// No NAT: a router whose hosts have public addresses, and that lets everything in.
    pub fn none() -> Self {
        Self { allocator: Allocator::Routed, ..Self::new(Mapping::Eim, Filtering::Eif) }
    }

    /// Sets whether inside hosts reach one another by the outside address.
    #[must_use]
    pub fn hairpin(self, hairpin: Hairpin) -> Self {
        Self { hairpin, ..self }
    }

    /// Sets what is let out.
    #[must_use]
    pub fn egress(self, egress: Egress) -> Self {
        Self { egress, ..self }
    }

    /// Sets what packets do that come too early.
    #[must_use]
    pub fn early_probe(self, early_probe: EarlyProbe) -> Self {
        Self { early_probe, ..self }
    }

    /// Sets how long an unused UDP mapping lives; whole seconds.
    #[must_use]
    pub fn udp_timeout(self, udp_timeout: Duration) -> Self {
        Self { udp_timeout, ..self }
    }

    /// A cloud's 1:1 NAT: everything that is sent to the outside address is for this host, and it keeps its ports.
    pub fn one_to_one(host: &str) -> Self {
        let open = Self::new(Mapping::Eim, Filtering::Eif);
        open.forward(Protocol::Udp, EVERY_PORT, host).forward(Protocol::Tcp, EVERY_PORT, host)
    }

    /// Sets what makes a UDP mapping live longer.
    #[must_use]
    pub fn refresh(self, refresh: Refresh) -> Self {
        Self { refresh, ..self }
    }

    /// Forwards a port to the same port of a host.
    #[must_use]
    pub fn forward(mut self, protocol: Protocol, port: u16, host: &str) -> Self {
        self.forwards.push(Forward { protocol, port, host: host.to_owned(), to: port });
        self
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    ///
    /// If a timeout is not whole seconds, or an allocator does not go with the type.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.udp_timeout.subsec_nanos() != 0 || self.udp_timeout.is_zero() {
            bail!("a mapping's lifetime must be whole seconds, not {:?}", self.udp_timeout);
        }
        let wanted = match self.allocator {
            Allocator::Typed => self.kind.mapping,
            Allocator::Masquerade | Allocator::Routed => Mapping::Eim,
            Allocator::Sequential(_) => Mapping::Apdm,
        };
        if wanted != self.kind.mapping {
            bail!("{:?} ports cannot be {:?}", self.allocator, self.kind.mapping);
        }
        Ok(())
    }
}
