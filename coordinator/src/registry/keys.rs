//! The names of the store's keys.

use std::net::Ipv4Addr;

use mesh_proto::{
    key::{NodeKey, PublicKey},
    name::NodeName,
    netmap::{NodeId, RelayId},
};

/// Address ranges and the coordinator's names: [`mesh_proto::netmap::Mesh`].
pub(super) const MESH: &str = "meta/mesh";

/// The epoch of all maps: a number.
pub(super) const EPOCH: &str = "meta/epoch";

/// The id of the next node: a number.
pub(super) const NEXT_NODE: &str = "meta/next-node";

/// Where nodes are.
pub(super) const NODES: &str = "nodes/";

/// Where relays are.
pub(super) const RELAYS: &str = "relays/";

/// How often routes were changed: a number.
pub(super) const ROUTE_CHANGES: &str = "meta/route-changes";

/// Where the routes of nodes are.
pub(super) const ROUTES: &str = "routes/";

/// Where join tokens are.
pub(super) const TOKENS: &str = "tokens/";

/// Where IPv4 addresses in use are.
pub(super) const ADDRESSES: &str = "addresses/";

/// Ids are padded, so that the order of keys is that of ids.
pub(super) fn node(id: NodeId) -> String {
    format!("{NODES}{:010}", id.0)
}

/// The inverse of [`node`].
pub(super) fn parse_node(key: &str) -> Option<NodeId> {
    key.strip_prefix(NODES)?.parse().ok().map(NodeId)
}

pub(super) fn relay(id: RelayId) -> String {
    format!("{RELAYS}{:010}", id.0)
}

/// The inverse of [`relay`].
pub(super) fn parse_relay(key: &str) -> Option<RelayId> {
    key.strip_prefix(RELAYS)?.parse().ok().map(RelayId)
}

pub(super) fn routes(node: NodeId) -> String {
    format!("{ROUTES}{:010}", node.0)
}

/// The inverse of [`routes`].
pub(super) fn parse_routes(key: &str) -> Option<NodeId> {
    key.strip_prefix(ROUTES)?.parse().ok().map(NodeId)
}

pub(super) fn node_key(key: &NodeKey) -> String {
    format!("node-keys/{key}")
}

pub(super) fn removed_key(key: &NodeKey) -> String {
    format!("{REMOVED_KEYS}{key}")
}

/// Where the nodes are that were removed, by their ids.
pub(super) const REMOVED_NODES: &str = "removed-nodes/";

/// Where they are by their node keys, until those join again.
pub(super) const REMOVED_KEYS: &str = "removed-keys/";

pub(super) fn removed_node(id: NodeId) -> String {
    format!("{REMOVED_NODES}{:010}", id.0)
}

/// The inverse of [`removed_node`].
pub(super) fn parse_removed_node(key: &str) -> Option<NodeId> {
    key.strip_prefix(REMOVED_NODES)?.parse().ok().map(NodeId)
}

/// In hexadecimal: base64 has slashes.
pub(super) fn public_key(key: &PublicKey) -> String {
    format!("public-keys/{}", hex::encode(key.0))
}

pub(super) fn name(name: &NodeName) -> String {
    format!("names/{name}")
}

pub(super) fn address(address: Ipv4Addr) -> String {
    format!("{ADDRESSES}{address}")
}

pub(super) fn token(id: &str) -> String {
    format!("{TOKENS}{id}")
}
