//! What of the registry goes into one node's map. Pure: every decision of who sees what is made here.
//!
//! At present every node may talk to every other. A relay that stands alone is nobody's peer, though it knows
//! all nodes: it is in their maps as a relay.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::netmap::{MapDelta, NetworkMap, Node, NodeId, Version};

use super::{Change, ChangeKind, view::View};

/// Makes the whole map of one node; `None` if there is no such node.
pub(super) fn map(view: &View, receiver: NodeId) -> Option<NetworkMap> {
    let this = view.node(receiver)?.clone();
    Some(NetworkMap {
        version: view.version(),
        mesh: view.mesh().clone(),
        this,
        peers: view.nodes().filter(|node| node.id != receiver && !node.is_relay()).cloned().collect(),
        relays: view.relays().to_vec(),
    })
}

/// Folds changes, oldest first, into the delta that brings one node's map from the version `from` to that of
/// the last change. The removal of the receiver itself is left out: it ends the connection instead.
#[must_use]
pub fn delta(receiver: NodeId, from: Version, changes: &[Change]) -> MapDelta {
    let mut this = None;
    let mut changed: BTreeMap<NodeId, Node> = BTreeMap::new();
    let mut removed = BTreeSet::new();
    let mut relays = None;
    for change in changes {
        match &change.kind {
            ChangeKind::NodeSet(node) if node.id == receiver => this = Some(node.clone()),
            ChangeKind::NodeSet(node) if node.is_relay() => {}
            ChangeKind::NodeSet(node) => {
                removed.remove(&node.id);
                changed.insert(node.id, node.clone());
            }
            ChangeKind::NodeRemoved(id) if *id == receiver => {}
            ChangeKind::NodeRemoved(id) => {
                changed.remove(id);
                removed.insert(*id);
            }
            ChangeKind::RelaysSet(all) => relays = Some(all.clone()),
        }
    }
    MapDelta {
        from,
        to: changes.last().map_or(from, |change| change.version),
        this,
        changed: changed.into_values().collect(),
        removed: removed.into_iter().collect(),
        relays,
    }
}

/// Says whether a change is to be sent to a node.
#[must_use]
pub fn concerns(receiver: NodeId, change: &Change) -> bool {
    match &change.kind {
        ChangeKind::NodeSet(node) => node.id == receiver || !node.is_relay(),
        ChangeKind::RelaysSet(_) => true,
        ChangeKind::NodeRemoved(id) => *id != receiver,
    }
}
