//! The JSON of `meshctl netcheck --json`: what a node finds out about the network around it when it is asked to. Fields
//! are added, never renamed.
//!
//! ```json
//! {"nat":{"mapping":"eim","port_mapping":"none","udp_blocked":false,"mapped_address":null,
//!    "filtering":"eif|adf|apdf|eif-or-adf|adf-or-apdf|none|unknown","hairpin":true},
//!  "candidates":[{"address":"203.0.113.1:51820","kind":"reflexive"}],
//!  "coordinator":{"state":"connected","address":"…","transport":"quic","rtt_ms":8.5,"error":null,"outer_certificate":null},
//!  "relay":{"name":"pi","transport":"udp","rtt_ms":8.5},
//!  "relays":[{"name":"pi","udp":{"reachable":true,"address":"203.0.113.9:7443","rtt_ms":8.2},
//!    "tcp":{"reachable":true,"address":"203.0.113.9:7443","rtt_ms":8.3}}],
//!  "observers":[{"address":"203.0.113.9:7443","mapped":"203.0.113.1:40000","rtt_ms":8.2}],
//!  "ipv6":{"address":"2001:db8::1","reachable":null},
//!  "captive_portal":false,"proxy":null,"clock_offset_ms":-3.1,"uplink_mtu":1500}
//! ```
//!
//! What could not be measured is `null`, or `unknown`: never a guess.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    candidate::Candidate,
    status::{CoordinatorStatus, NatStatus, RelayStatus},
};

/// The whole document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetReport {
    /// The NAT before this node.
    pub nat: NatReport,
    /// Where the node may be reached.
    pub candidates: Vec<Candidate>,
    /// The control connection.
    pub coordinator: CoordinatorStatus,
    /// The relay in use, if any.
    pub relay: Option<RelayStatus>,
    /// Every relay, by name.
    #[serde(default)]
    pub relays: Vec<RelayReport>,
    /// Who told where a socket of this node's is seen: for each that answered.
    #[serde(default)]
    pub observers: Vec<ObserverReport>,
    /// The network's IPv6.
    #[serde(default)]
    pub ipv6: Ipv6Report,
    /// Whether somebody on the way answers in the coordinator's place, as the sign-in pages of public networks do.
    #[serde(default)]
    pub captive_portal: Option<bool>,
    /// The HTTP proxy that byte pipes lead through.
    #[serde(default)]
    pub proxy: Option<ProxyReport>,
    /// The coordinator's clock less this host's, in milliseconds.
    #[serde(default)]
    pub clock_offset_ms: Option<f64>,
    /// Largest IP packet that reaches the coordinator over UDP in one piece, in bytes.
    #[serde(default)]
    pub uplink_mtu: Option<u16>,
}

/// The NAT before this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatReport {
    /// What the status document has, too.
    #[serde(flatten)]
    pub status: NatStatus,
    /// From whom packets are let in.
    #[serde(default)]
    pub filtering: Filtering,
    /// Whether the NAT leads packets for its outside back in, from this node to itself; nothing where there is no NAT.
    #[serde(default)]
    pub hairpin: Option<bool>,
}

/// RFC 4787's filtering behaviours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filtering {
    /// Endpoint-independent: from anyone.
    Eif,
    /// Address-dependent: from addresses that were sent to.
    Adf,
    /// Address- and port-dependent: from endpoints that were sent to.
    Apdf,
    /// Another port of an address that was sent to is let in; nobody at another address could be asked.
    EifOrAdf,
    /// Other addresses are not let in; nobody at another port of one that was sent to could be asked.
    AdfOrApdf,
    /// Neither a NAT nor a firewall.
    None,
    /// Not measured, or a behaviour that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// One relay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RelayReport {
    /// Its name.
    pub name: String,
    /// Its UDP port.
    pub udp: Reach,
    /// Its TCP port.
    pub tcp: Reach,
}

/// Whether something is reached.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Reach {
    /// Whether it answers; nothing if no address of it is known.
    pub reachable: Option<bool>,
    /// The address that answered, or the first one that was tried.
    pub address: Option<SocketAddr>,
    /// How long the answer took, in milliseconds.
    pub rtt_ms: Option<f64>,
}

/// What one observer saw.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ObserverReport {
    /// The observer.
    pub address: SocketAddr,
    /// Where it saw the socket that asked.
    pub mapped: SocketAddr,
    /// How long the answer took, in milliseconds.
    pub rtt_ms: f64,
}

/// The network's IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ipv6Report {
    /// A global address of this host.
    pub address: Option<IpAddr>,
    /// Whether an observer answers over it; nothing where none has an address.
    pub reachable: Option<bool>,
}

/// An HTTP proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyReport {
    /// Where it is, without credentials.
    pub url: String,
    /// Whether the control connection leads through it.
    pub in_use: bool,
}
