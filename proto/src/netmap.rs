//! The network map: what a node knows of the mesh, and how it changes.
//!
//! The coordinator sends a whole [`NetworkMap`] at connect and a [`MapDelta`] per change after that. Each
//! carries a [`Version`]: the *epoch* rises when the coordinator's state was restored from a backup, the
//! *serial* with every change. A delta applies to exactly the version it names as `from`; on any mismatch
//! the agent keeps what it has and asks for a whole map. A map of an older epoch, or of the same epoch and
//! a lower serial, is refused: a coordinator rolled back to an old backup cannot undo what agents know.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{
    key::{NodeKey, PublicKey},
    name::NodeName,
};

/// The tag of a node that is a relay standing alone: it is in the map as a relay, and nobody's peer.
pub const RELAY_TAG: &str = "relay";

/// The coordinator's number for a node: stable, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

/// The coordinator's number for a relay; 0 is the relay inside the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RelayId(pub u32);

/// Orders maps: by epoch, then by serial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    /// Rises when the coordinator's state is restored from a backup.
    pub epoch: u64,
    /// Rises with every change.
    pub serial: u64,
}

/// A node of the mesh, as the coordinator describes it to itself and to others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The coordinator's number for it.
    pub id: NodeId,
    /// Its name, unique in the mesh.
    pub name: NodeName,
    /// Who it is to the coordinator.
    pub node_key: NodeKey,
    /// Who it is to peers.
    pub public_key: PublicKey,
    /// Its mesh addresses: IPv4 first, then IPv6.
    pub addresses: Vec<IpAddr>,
    /// What it may send from and is sent to: its addresses and approved routes.
    pub allowed_ips: Vec<IpNet>,
    /// Tags given by its join token.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// A relay that nodes may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// The coordinator's number for it.
    pub id: RelayId,
    /// Its name, for people.
    pub name: String,
    /// Its key, pinned by agents that open a control connection to it; `None` for the coordinator's own relay,
    /// whose channels are opened over the coordinator's control connection.
    #[serde(default)]
    pub key: Option<NodeKey>,
    /// Where its UDP port is: `host:port`, names or addresses, tried in order.
    pub addresses: Vec<String>,
}

impl Node {
    /// Says whether the node is a relay standing alone, which is nobody's peer.
    #[must_use]
    pub fn is_relay(&self) -> bool {
        self.tags.iter().any(|tag| tag == RELAY_TAG)
    }
}

/// What all nodes share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// The range of IPv4 mesh addresses.
    pub ipv4: Ipv4Net,
    /// The mesh's own unique local /48.
    pub ipv6: Ipv6Net,
    /// Names and addresses of the coordinator: `host:port`, tried in order.
    pub coordinators: Vec<String>,
}

/// Everything one node may know of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkMap {
    /// Which state this is.
    pub version: Version,
    /// What all nodes share.
    pub mesh: Mesh,
    /// The node that this map is for.
    pub this: Node,
    /// The other nodes that it may talk to, by ascending id.
    pub peers: Vec<Node>,
    /// The relays that it may use, by ascending id.
    pub relays: Vec<Relay>,
}

/// A change of a [`NetworkMap`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapDelta {
    /// The version that it changes.
    pub from: Version,
    /// The version that it makes.
    pub to: Version,
    /// The receiving node, if it changed.
    #[serde(default)]
    pub this: Option<Node>,
    /// Nodes that are new or changed.
    #[serde(default)]
    pub changed: Vec<Node>,
    /// Nodes that are gone: the only way in which a map gets smaller.
    #[serde(default)]
    pub removed: Vec<NodeId>,
    /// All relays, if any of them changed.
    #[serde(default)]
    pub relays: Option<Vec<Relay>>,
}

/// Why a map or a delta was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// The delta does not start from the map's version: ask for a whole map.
    #[error("the delta starts from {from:?}, the map is at {have:?}")]
    Gap {
        /// The map's version.
        have: Version,
        /// The delta's `from`.
        from: Version,
    },
    /// The coordinator went back in time.
    #[error("the coordinator offers {offered:?}, older than {have:?} that is known already")]
    Older {
        /// The map's version.
        have: Version,
        /// What was offered.
        offered: Version,
    },
}

impl NetworkMap {
    /// Applies a delta: `changed` first, then `removed`. Peers stay in order of their ids, and this node is never
    /// one of them, whatever the delta says.
    ///
    /// # Errors
    /// When the delta does not start from this map's version, or would go back in time; the map is unchanged then.
    pub fn apply(&mut self, delta: MapDelta) -> Result<(), VersionError> {
        if delta.from != self.version {
            return Err(VersionError::Gap { have: self.version, from: delta.from });
        }
        check_not_older(self.version, delta.to)?;
        if let Some(this) = delta.this {
            self.this = this;
        }
        let mut peers: BTreeMap<NodeId, Node> = self.peers.drain(..).map(|node| (node.id, node)).collect();
        peers.extend(delta.changed.into_iter().map(|node| (node.id, node)));
        for id in &delta.removed {
            peers.remove(id);
        }
        peers.remove(&self.this.id);
        self.peers = peers.into_values().collect();
        if let Some(relays) = delta.relays {
            self.relays = relays;
        }
        self.version = delta.to;
        Ok(())
    }

    /// Checks that a whole map may replace this one.
    ///
    /// # Errors
    /// When the other map is older.
    pub fn check_successor(&self, next: &Self) -> Result<(), VersionError> {
        check_not_older(self.version, next.version)
    }
}

fn check_not_older(have: Version, offered: Version) -> Result<(), VersionError> {
    if offered < have { Err(VersionError::Older { have, offered }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32) -> Node {
        let address: IpAddr = [10, 90, 0, u8::try_from(id).unwrap()].into();
        Node {
            id: NodeId(id),
            name: format!("n{id}").parse().unwrap(),
            node_key: NodeKey([1; 32]),
            public_key: PublicKey([2; 32]),
            addresses: vec![address],
            allowed_ips: vec![address.into()],
            tags: vec![],
        }
    }

    fn map() -> NetworkMap {
        NetworkMap {
            version: Version { epoch: 1, serial: 5 },
            mesh: Mesh {
                ipv4: "10.90.0.0/16".parse().unwrap(),
                ipv6: "fd00::/48".parse().unwrap(),
                coordinators: vec![],
            },
            this: node(1),
            peers: vec![node(2), node(3)],
            relays: vec![],
        }
    }

    fn delta(from: u64, to: u64) -> MapDelta {
        MapDelta {
            from: Version { epoch: 1, serial: from },
            to: Version { epoch: 1, serial: to },
            this: None,
            changed: vec![],
            removed: vec![],
            relays: None,
        }
    }

    #[test]
    fn a_delta_changes_adds_and_removes() {
        let mut map = map();
        let renamed = Node { name: "new".parse().unwrap(), ..node(2) };
        let change = MapDelta { changed: vec![renamed, node(4)], removed: vec![NodeId(3)], ..delta(5, 7) };
        map.apply(change).unwrap();
        let names: Vec<_> = map.peers.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["new", "n4"]);
        assert_eq!(map.version.serial, 7);
    }

    #[test]
    fn no_node_becomes_its_own_peer() {
        let mut changed = map();
        let change = MapDelta { this: Some(node(2)), changed: vec![node(1), node(2)], ..delta(5, 6) };
        changed.apply(change).unwrap();
        assert_eq!(changed.this.id, NodeId(2));
        assert!(changed.peers.iter().all(|peer| peer.id != NodeId(2)));
    }

    #[test]
    fn a_delta_from_elsewhere_changes_nothing() {
        let mut changed = map();
        assert!(matches!(changed.apply(delta(4, 8)), Err(VersionError::Gap { .. })));
        assert!(matches!(changed.apply(delta(5, 4)), Err(VersionError::Older { .. })));
        assert_eq!(changed, map());
    }

    #[test]
    fn a_restored_coordinator_must_have_a_higher_epoch() {
        let old = NetworkMap { version: Version { epoch: 1, serial: 4 }, ..map() };
        assert!(map().check_successor(&old).is_err());
        let restored = NetworkMap { version: Version { epoch: 2, serial: 0 }, ..map() };
        assert!(map().check_successor(&restored).is_ok());
    }
}
