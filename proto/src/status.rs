//! The JSON of `meshctl status --json`: fields are added, never renamed.
//!
//! ```json
//! {"self":{"name":"pi","node_key":"64 hex digits","public_key":"base64","addresses":["10.90.0.1","fd…"],
//!   "interface":"mesh0","mtu":1420,"candidates":[{"address":"203.0.113.1:51820","kind":"reflexive"}],
//!   "nat":{"mapping":"eim|adm|apdm|none|unknown","port_mapping":"pcp|nat-pmp|upnp|none","udp_blocked":false,
//!     "mapped_address":"203.0.113.1:51820"},
//!   "coordinator":{"state":"connected|connecting|offline","address":"…","transport":"quic|websocket",
//!     "rtt_ms":1.2,"error":null,"outer_certificate":null},
//!   "relay":{"name":"pi","transport":"udp|websocket","rtt_ms":1.2},"routes":["10.244.1.0/24"],
//!   "ready":true,"warnings":[],"drops":{"reason":1}},
//!  "peers":[{"name":"country","node_key":"…","public_key":"…","addresses":["10.90.0.2"],
//!   "allowed_ips":["10.90.0.2/32","10.244.2.0/24"],"online":true,
//!   "path":{"kind":"direct|relay|none","address":"198.51.100.7:51820","relay":null,"rtt_ms":18.2,"mtu":1420,
//!     "since":"RFC 3339","code":"answered|…|nats-vary","reason":"…"},
//!   "last_handshake":"RFC 3339","tx_bytes":0,"rx_bytes":0,"loss":0.0,"loss_measured":true,
//!   "drops":{"reason":1}}]}
//! ```
//!
//! Fields that are an `Option` here are always written, as `null` when there is nothing to say. A reader ignores
//! fields it does not know and reads a value that it does not know, of those with a closed list, as `Unknown`;
//! no writer of this version writes that, but for a mapping that was not measured.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    candidate::Candidate,
    key::{NodeKey, PublicKey},
    kubernetes::KubernetesStatus,
    nat64::Nat64Prefix,
    route::RouteAnswer,
};

/// A moment as RFC 3339 text, in UTC.
pub type Timestamp = String;

/// The whole document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// This node.
    #[serde(rename = "self")]
    pub this: SelfStatus,
    /// Its peers, by name.
    pub peers: Vec<PeerStatus>,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SelfStatus {
    /// Its name.
    pub name: String,
    /// Its node key.
    pub node_key: NodeKey,
    /// Its WireGuard key.
    pub public_key: PublicKey,
    /// Its mesh addresses.
    pub addresses: Vec<IpAddr>,
    /// Its TUN interface.
    pub interface: String,
    /// The interface's MTU, in bytes.
    pub mtu: u16,
    /// Where it may be reached.
    pub candidates: Vec<Candidate>,
    /// What is known of the NAT before it.
    pub nat: NatStatus,
    /// The control connection.
    pub coordinator: CoordinatorStatus,
    /// The relay in use, if any.
    pub relay: Option<RelayStatus>,
    /// The routes that this node has installed for peers, beyond their mesh addresses.
    pub routes: Vec<IpNet>,
    /// What became of the routes that this node offers to the mesh.
    #[serde(default)]
    pub advertised: Vec<RouteAnswer>,
    /// Whether interface, addresses and routes are up.
    #[serde(default)]
    pub ready: bool,
    /// The mesh's ranges of addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<IpNet>,
    /// What a person should know, worst first.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Packets that belong to no peer and were dropped, and trouble with the host's network, by reason; reasons that
    /// never occurred may be missing.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
    /// The engines that share the peers, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engines: Option<EnginesStatus>,
    /// The pod network, where this node is one of a Kubernetes cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesStatus>,
}

/// Several engines, and how well the system gives each what is its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnginesStatus {
    /// How many there are.
    pub count: u32,
    /// Packets and superpackets that were read from the TUN.
    pub tun_reads: u64,
    /// Of those, what belonged to another engine than the one that read it.
    pub tun_reads_handed_over: u64,
    /// Datagrams that came to the UDP port.
    pub datagrams: u64,
    /// Of those, and of what came through byte streams, what belonged to another engine.
    pub datagrams_handed_over: u64,
}

/// What is known of the NAT before this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatStatus {
    /// How external ports are chosen.
    pub mapping: Mapping,
    /// Which port mapping protocol the router has mapped this node's port by.
    pub port_mapping: PortMapping,
    /// Whether UDP does not get out.
    pub udp_blocked: bool,
    /// Where the router leads packets to this node, if it does; a private address says that there is another NAT before
    /// the router.
    #[serde(default)]
    pub mapped_address: Option<SocketAddr>,
    /// Whether IPv4 gets through.
    #[serde(default)]
    pub ipv4: FamilyState,
    /// Whether IPv6 gets through.
    #[serde(default)]
    pub ipv6: FamilyState,
    /// The prefixes behind which the network translates to IPv4.
    #[serde(default)]
    pub nat64: Vec<Nat64Prefix>,
    /// How long mappings live in this network.
    #[serde(default)]
    pub lifetime: NatLifetime,
}

/// How long NATs and filters remember a mapping that is silent, as far as that was measured, and what is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NatLifetime {
    /// The longest silence that a mapping has outlived, in seconds.
    #[serde(default)]
    pub outlived_s: Option<u64>,
    /// A longer one, which it has not.
    #[serde(default)]
    pub exceeded_s: Option<u64>,
    /// How often the mapping towards the relay is refreshed, in seconds; `None` where nothing depends on one.
    #[serde(default)]
    pub keepalive_s: Option<u64>,
}

/// What becomes of packets of an address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FamilyState {
    /// They are answered.
    Works,
    /// There is a route, but none is answered.
    Silent,
    /// There is no route.
    None,
    /// Nobody was asked, or not for long enough; or a state that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// RFC 4787's mapping behaviours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mapping {
    /// Endpoint-independent.
    Eim,
    /// Address-dependent.
    Adm,
    /// Address- and port-dependent.
    Apdm,
    /// No NAT.
    None,
    /// Not measured (yet), or a behaviour that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Port mapping protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortMapping {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
    /// None answers.
    #[default]
    None,
    /// A protocol that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The control connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoordinatorStatus {
    /// Whether it is up.
    pub state: ConnectionState,
    /// The coordinator's address in use, or the one tried last.
    pub address: Option<String>,
    /// What carries it.
    pub transport: Option<ControlTransport>,
    /// Its smoothed round-trip time, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Why it is not up.
    #[serde(default)]
    pub error: Option<String>,
    /// The SHA-256 of the certificate of who ended the outer TLS of the WebSocket. It is trusted for nothing; another one
    /// than the web server's is a sign that somebody stands in between.
    #[serde(default)]
    pub outer_certificate: Option<String>,
}

/// State of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionState {
    /// Up.
    Connected,
    /// Being made for the first time, or again.
    Connecting,
    /// Failed so often that it is only tried now and then.
    Offline,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

/// What carries the control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlTransport {
    /// QUIC.
    Quic,
    /// A WebSocket over TLS over TCP.
    Websocket,
    /// A carrier that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The relay in use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Its name.
    pub name: String,
    /// What carries its frames.
    pub transport: RelayTransport,
    /// Its smoothed round-trip time, in milliseconds.
    pub rtt_ms: Option<f64>,
}

/// What carries relay frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelayTransport {
    /// UDP.
    Udp,
    /// A WebSocket over TLS over TCP.
    Websocket,
    /// A carrier that this version does not know.
    #[serde(other)]
    Unknown,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its node key.
    pub node_key: NodeKey,
    /// Its WireGuard key.
    pub public_key: PublicKey,
    /// Its mesh addresses.
    pub addresses: Vec<IpAddr>,
    /// What it may send from and is sent to.
    pub allowed_ips: Vec<IpNet>,
    /// Whether the coordinator, or a live path, says that it is there.
    pub online: bool,
    /// The primary path.
    pub path: PathStatus,
    /// When the last handshake was completed.
    pub last_handshake: Option<Timestamp>,
    /// Bytes of inner packets sent to it.
    pub tx_bytes: u64,
    /// Bytes of inner packets received from it.
    pub rx_bytes: u64,
    /// Share of the last probes of the primary path that stayed unanswered, 0 to 1; 0 when there were none. JSON
    /// has no NaN: written as `null`, it would make the document unreadable.
    pub loss: f64,
    /// Whether `loss` was measured lately: a pair without traffic does not probe, and its `loss` is 0 then.
    #[serde(default = "measured")]
    pub loss_measured: bool,
    /// Packets dropped, by reason; reasons that never occurred may be missing.
    pub drops: BTreeMap<String, u64>,
}

/// Agents that say nothing of it show what they last measured.
fn measured() -> bool {
    true
}

/// The primary path to a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathStatus {
    /// What kind of path it is.
    pub kind: PathKind,
    /// The peer's endpoint on a direct path.
    pub address: Option<SocketAddr>,
    /// The relay's name on a relayed path.
    pub relay: Option<String>,
    /// Its smoothed round-trip time, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Largest inner packet that it carries, in bytes.
    pub mtu: Option<u16>,
    /// Since when it is the primary path.
    pub since: Option<Timestamp>,
    /// Why the peer is on it, for programs.
    #[serde(default)]
    pub code: PathReason,
    /// Why the peer is on it, for people: a clause, and what could be done for a direct path.
    pub reason: String,
}

/// Why a peer is on the path it is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathReason {
    /// Direct: it answered on the local network.
    AnsweredOnLan,
    /// Direct: it answered.
    Answered,
    /// Direct: it answered through a hole that was made by many sockets and ports, or by prediction.
    AnsweredPunched,
    /// Direct: it answered before, and is being asked again.
    Doubted,
    /// Direct: it never answered, but the peer was heard from there; it speaks WireGuard alone.
    Heard,
    /// None: no relay is up, and no address of the peer is known.
    NothingKnown,
    /// Relayed: the peer has sent no candidates.
    NoCandidates,
    /// Relayed: no direct path has been probed, for want of traffic.
    NotProbed,
    /// Relayed: no direct path has answered.
    NoAnswer,
    /// Relayed: the direct path stopped answering.
    StoppedAnswering,
    /// Relayed: many sockets and ports, or prediction, are being tried.
    Punching,
    /// Relayed: many sockets and ports, or prediction, found nothing.
    PunchFailed,
    /// Relayed: both NATs take a new port at random for each destination, and filter by port.
    NatsVary,
    /// Relayed: UDP does not get out of this node's network.
    UdpBlocked,
    /// A reason that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Kinds of path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathKind {
    /// Straight to the peer.
    Direct,
    /// Through a relay.
    Relay,
    /// None known.
    None,
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}
