//! A small mesh for tests.

use std::net::IpAddr;

use mesh_proto::{
    key::{NodeKey, PublicKey},
    netmap::{MapDelta, Mesh, NetworkMap, Node, NodeId, Version},
};

/// A node with one address; its keys follow from its id.
pub(crate) fn node(id: u8) -> Node {
    let address = IpAddr::from([10, 90, 0, id]);
    Node {
        id: NodeId(id.into()),
        name: format!("n{id}").parse().unwrap(),
        node_key: NodeKey([id; 32]),
        public_key: PublicKey([id; 32]),
        addresses: vec![address],
        allowed_ips: vec![address.into()],
        tags: vec![],
    }
}

/// The map of node 1, with these peers.
pub(crate) fn map(serial: u64, peers: impl IntoIterator<Item = u8>) -> NetworkMap {
    NetworkMap {
        version: Version { epoch: 1, serial },
        mesh: Mesh {
            ipv4: "10.90.0.0/16".parse().unwrap(),
            ipv6: "fd12:3456:789a::/48".parse().unwrap(),
            coordinators: vec!["pi.example:7443".to_owned()],
        },
        this: node(1),
        peers: peers.into_iter().map(node).collect(),
        relays: vec![],
    }
}

/// A delta that changes nothing but the version.
pub(crate) fn delta(from: u64, to: u64) -> MapDelta {
    let version = |serial| Version { epoch: 1, serial };
    MapDelta {
        from: version(from),
        to: version(to),
        this: None,
        changed: vec![],
        removed: vec![],
        relays: None,
    }
}
