//! From the network map to what this host should look like: a pure decision.
//!
//! - This node's mesh addresses are set as host prefixes (/32, /128).
//! - The two mesh ranges are routed to the interface as a whole, so that a new peer needs no new route and a
//!   packet to an address that nobody has never leaves on the default route. A peer's prefix outside these
//!   ranges gets a route of its own.
//! - Inside the mesh ranges a peer has its own addresses and nothing else.
//! - What is refused is refused for routes and for AllowedIps alike: what is not sent to a peer is not
//!   accepted from it either.
//!
//! A directly connected network of this host always wins: a prefix inside it is refused. A prefix around it
//! stays, as the longest prefix wins in the kernel, too; both are reported. Among peers the one with the lowest
//! id has a disputed prefix or key, so every node decides alike.

mod prefixes;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use mesh_engine::config::PeerConfig;
use mesh_proto::{
    name::NodeName,
    netmap::{NetworkMap, Node},
    route::Unroutable,
};
use prefixes::Claims;

/// The networks that this host stands in by itself, without the mesh interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalNetworks {
    /// Prefixes of its interfaces' addresses.
    pub connected: Vec<IpNet>,
}

/// What else the plan depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlanOptions {
    /// Addresses that must stay reachable outside the mesh: of the coordinator and of relays.
    pub underlay: BTreeSet<IpAddr>,
}

/// What the host should look like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Addresses of the interface, as host prefixes.
    pub addresses: Vec<IpNet>,
    /// The mesh's ranges: the interface has no other addresses in them.
    pub ranges: Vec<IpNet>,
    /// The engine's peers, by ascending id.
    pub peers: Vec<PeerConfig>,
    /// Routes to the interface.
    pub routes: BTreeSet<IpNet>,
    /// What a person should know.
    pub warnings: Vec<Warning>,
}

/// Something in the map that is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// This node has no address in the mesh.
    NoAddress,
    /// A prefix is not taken over.
    Refused {
        /// The peer; `None` for a range of the mesh itself.
        peer: Option<NodeName>,
        /// The prefix.
        prefix: IpNet,
        /// Why not.
        reason: Refusal,
    },
    /// A part of a routed prefix belongs to a network of this host, which wins.
    Shadowed {
        /// The peer; `None` for a range of the mesh itself.
        peer: Option<NodeName>,
        /// The prefix.
        prefix: IpNet,
        /// The host's network.
        local: IpNet,
    },
    /// A peer is left out.
    PeerLeftOut {
        /// The peer.
        peer: NodeName,
        /// Why.
        reason: PeerFault,
    },
}

/// Why a prefix is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It can be nobody's.
    Unroutable(Unroutable),
    /// It lies in a network of this host.
    Local(IpNet),
    /// It covers an address of the coordinator or of a relay.
    Underlay(IpAddr),
    /// It lies in a range of the mesh and is not an address of the peer.
    MeshRange,
    /// It is, or covers, an address of this node, or what this node announces.
    Own(IpNet),
    /// Another peer has it, or a part of it.
    Taken {
        /// The other peer.
        owner: NodeName,
        /// What it has.
        prefix: IpNet,
    },
}

/// Why a peer is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerFault {
    /// It has this node's id or one of its keys.
    IsThisNode,
    /// It has another peer's id or one of its keys.
    Duplicate(NodeName),
}

/// Decides what the host should look like.
#[must_use]
pub fn plan(map: &NetworkMap, local: &LocalNetworks, options: &PlanOptions) -> Desired {
    let mut desired = Desired {
        addresses: map.this.addresses.iter().copied().map(IpNet::from).collect(),
        ranges: vec![map.mesh.ipv4.into(), map.mesh.ipv6.into()],
        ..Desired::default()
    };
    if desired.addresses.is_empty() {
        desired.warnings.push(Warning::NoAddress);
    }
    let mut claims = Claims::new(map, local, options);
    desired.routes.extend(claims.route_mesh_ranges(&mut desired.warnings));
    let peers = distinct_peers(map, &mut desired.warnings);
    // Addresses before routes: no route of one peer takes another's address, whatever their ids are.
    let mut allowed_ips: BTreeMap<_, _> =
        peers.iter().map(|peer| (peer.id, claims.claim_addresses(peer, &mut desired.warnings))).collect();
    for peer in peers {
        let mut prefixes = allowed_ips.remove(&peer.id).unwrap_or_default();
        let routed = claims.claim_routes(peer, &mut desired.warnings);
        desired.routes.extend(&routed);
        prefixes.extend(routed);
        desired.peers.push(PeerConfig { id: peer.id, public_key: peer.public_key, allowed_ips: prefixes });
    }
    desired
}

/// Leaves out peers that are this node or each other, and sorts by id.
fn distinct_peers<'a>(map: &'a NetworkMap, warnings: &mut Vec<Warning>) -> Vec<&'a Node> {
    let mut sorted: Vec<_> = map.peers.iter().collect();
    sorted.sort_by_key(|peer| peer.id);
    let same = |a: &Node, b: &Node| a.id == b.id || a.public_key == b.public_key || a.node_key == b.node_key;
    let mut by_public_key = BTreeMap::new();
    let mut by_node_key = BTreeMap::new();
    let mut kept: Vec<&Node> = Vec::new();
    for peer in sorted {
        let twin = kept
            .last()
            .filter(|last| last.id == peer.id)
            .or_else(|| by_public_key.get(&peer.public_key))
            .or_else(|| by_node_key.get(&peer.node_key))
            .copied();
        let reason = match twin {
            _ if same(peer, &map.this) => PeerFault::IsThisNode,
            Some(twin) => PeerFault::Duplicate(twin.name.clone()),
            None => {
                by_public_key.insert(peer.public_key, peer);
                by_node_key.insert(peer.node_key, peer);
                kept.push(peer);
                continue;
            }
        };
        warnings.push(Warning::PeerLeftOut { peer: peer.name.clone(), reason });
    }
    kept
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = |peer: &Option<NodeName>| match peer {
            Some(name) => format!("of {name}"),
            None => "of the mesh".to_owned(),
        };
        match self {
            Self::NoAddress => f.write_str("this node has no address in the mesh"),
            Self::Refused { peer, prefix, reason } => {
                write!(f, "{prefix} {} is not routed: {reason}", whose(peer))
            }
            Self::Shadowed { peer, prefix, local } => {
                write!(f, "a part of {prefix} {} is not reached: this host stands in {local}", whose(peer))
            }
            Self::PeerLeftOut { peer, reason } => write!(f, "{peer} is left out: {reason}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unroutable(why) => why.fmt(f),
            Self::Local(local) => write!(f, "this host stands in {local}"),
            Self::Underlay(address) => write!(f, "the mesh itself needs {address}"),
            Self::MeshRange => f.write_str("it is not an address of that node"),
            Self::Own(own) => write!(f, "{own} is this node's own"),
            Self::Taken { owner, prefix } => write!(f, "{owner} has {prefix}"),
        }
    }
}

impl fmt::Display for PeerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IsThisNode => f.write_str("it has this node's id or key"),
            Self::Duplicate(twin) => write!(f, "it has the id or key of {twin}"),
        }
    }
}
