//! What of the registry goes into one node's map. Pure: every decision of who sees what is made here.
//!
//! At present every node may talk to every other. A relay that stands alone is nobody's peer, though it knows
//! all nodes: it is in their maps as a relay.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::{
    control::frame::FrameError,
    netmap::{MapDelta, Mesh, NetworkMap, Node, NodeId, Version},
};
use serde::Serialize;

use super::{Change, ChangeKind, view::View};
use crate::shared::{SharedList, SharedMessage};

/// What a map begins with.
#[derive(Serialize)]
struct Head<'a> {
    version: Version,
    mesh: &'a Mesh,
    this: &'a Node,
}

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

/// Makes the message that has the whole map of one node. The peers, nearly all of it, are shared between receivers.
pub(super) fn message(view: &View, receiver: NodeId) -> Option<Result<SharedMessage, FrameError>> {
    let this = view.node(receiver)?;
    let head = Head { version: view.version(), mesh: view.mesh(), this };
    let join = || {
        let head = serde_json::to_string(&head)?;
        // More fields follow.
        let open = head.strip_suffix('}').unwrap_or(&head);
        let head = format!(r#"{{"type":"map","map":{open},"peers":["#);
        let tail = format!(r#"],"relays":{}}}}}"#, serde_json::to_string(view.relays())?);
        SharedMessage::new(head.as_bytes(), view.peers(), receiver, tail.as_bytes())
    };
    Some(join())
}

/// Writes what may be anybody's peers.
pub(super) fn peers<'a>(nodes: impl Iterator<Item = &'a Node>) -> SharedList {
    SharedList::new(nodes.filter(|node| !node.is_relay()).map(|node| {
        (node.id, serde_json::to_vec(node).expect("a node has no map with keys other than text"))
    }))
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
            ChangeKind::RoutesSet(_) => {}
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
        // It is not in maps.
        ChangeKind::RoutesSet(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        control::{ServerMessage, frame},
        key::{NodeKey, PublicKey},
        netmap::{Relay, RelayId},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::{
        registry::keys,
        store::{Event, Revision},
    };

    /// Who looks on. It changes as the others do, but is not removed.
    const RECEIVER: u32 = 3;

    /// Ids are below this.
    const NODES: u32 = 8;

    #[derive(Debug, Clone)]
    enum Step {
        Set { id: u32, key: u8 },
        Remove { id: u32 },
        Relay { id: u32, name: u8 },
        NotInMaps,
    }

    fn step() -> impl Strategy<Value = Step> {
        let removable = (1..NODES).prop_filter("the receiver stays", |id| *id != RECEIVER);
        prop_oneof![
            4 => (1..NODES, any::<u8>()).prop_map(|(id, key)| Step::Set { id, key }),
            2 => removable.prop_map(|id| Step::Remove { id }),
            1 => (0..2_u32, any::<u8>()).prop_map(|(id, name)| Step::Relay { id, name }),
            1 => Just(Step::NotInMaps),
        ]
    }

    fn node(id: u32, key: u8) -> Node {
        let last = u8::try_from(id).unwrap();
        let address = std::net::IpAddr::from([10, 90, 0, last]);
        Node {
            id: NodeId(id),
            name: format!("n{id}").parse().unwrap(),
            node_key: NodeKey([last; 32]),
            public_key: PublicKey([key; 32]),
            addresses: vec![address],
            allowed_ips: vec![address.into()],
            tags: vec![],
        }
    }

    fn event(revision: Revision, step: &Step) -> Event {
        let (key, value) = match *step {
            Step::Set { id, key } => {
                (keys::node(NodeId(id)), Some(serde_json::to_vec(&node(id, key)).unwrap()))
            }
            Step::Remove { id } => (keys::node(NodeId(id)), None),
            Step::Relay { id, name } => {
                let relay = Relay { id: RelayId(id), name: name.to_string(), key: None, addresses: vec![] };
                (keys::relay(relay.id), Some(serde_json::to_vec(&relay).unwrap()))
            }
            Step::NotInMaps => (keys::token("1"), Some(vec![])),
        };
        Event { revision, key, value }
    }

    fn relay(id: u32) -> Event {
        let relay = Node { tags: vec![mesh_proto::netmap::RELAY_TAG.to_owned()], ..node(id, 7) };
        let value = Some(serde_json::to_vec(&relay).unwrap());
        Event { revision: Revision(2), key: keys::node(relay.id), value }
    }

    /// A view with the receiver alone.
    fn view() -> View {
        let (ipv4, ipv6) = ("10.90.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap());
        let mut view = View::new(1, Mesh { ipv4, ipv6, coordinators: vec![] }, Revision(0));
        let receiver = Step::Set { id: RECEIVER, key: 0 };
        view.apply(Revision(1), &[event(Revision(1), &receiver)]).unwrap();
        view
    }

    fn ids<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> BTreeSet<NodeId> {
        nodes.into_iter().map(|node| node.id).collect()
    }

    proptest! {
        /// However the changes are cut into deltas, they lead to the whole map, and nobody but those who
        /// were removed is lost on the way.
        #[test]
        fn deltas_lead_to_the_whole_map(steps in prop::collection::vec((step(), any::<bool>()), 0..40)) {
            let receiver = NodeId(RECEIVER);
            let mut view = view();
            let first = map(&view, receiver).unwrap();
            let mut known = first.clone();
            let mut pending = Vec::new();
            let mut removed = BTreeSet::new();
            for (revision, (step, send)) in (2..).map(Revision).zip(&steps) {
                if let Step::Remove { id } = step {
                    removed.insert(NodeId(*id));
                }
                pending.extend(view.apply(revision, &[event(revision, step)]).unwrap());
                if *send {
                    let before = ids(&known.peers);
                    known.apply(delta(receiver, known.version, &pending)).unwrap();
                    let whole = map(&view, receiver).unwrap();
                    prop_assert_eq!(&known, &NetworkMap { version: known.version, ..whole });
                    prop_assert!(before.difference(&ids(&known.peers)).all(|lost| removed.contains(lost)));
                    pending.clear();
                    removed.clear();
                }
            }
            let missed = view.changes_since(first.version).unwrap();
            let mut late = first;
            late.apply(delta(receiver, late.version, &missed)).unwrap();
            let whole = map(&view, receiver).unwrap();
            prop_assert_eq!(&late, &NetworkMap { version: late.version, ..whole });
        }

        /// A view that is read anew announces what a delta needs to lead to the same map.
        #[test]
        fn a_jump_announces_every_difference(
            before in prop::collection::vec(step(), 0..20),
            after in prop::collection::vec(step(), 0..20),
        ) {
            let receiver = NodeId(RECEIVER);
            let follow = |steps: &[Step], to: Revision| {
                let mut view = view();
                for (revision, step) in (2..).map(Revision).zip(steps) {
                    view.apply(revision, &[event(revision, step)]).unwrap();
                }
                view.apply(to, &[]).unwrap();
                view
            };
            let (mut old, new) = (follow(&before, Revision(30)), follow(&after, Revision(60)));
            let mut known = map(&old, receiver).unwrap();
            let whole = map(&new, receiver).unwrap();
            let changes = old.replace(new);
            known.apply(delta(receiver, known.version, &changes)).unwrap();
            prop_assert_eq!(&known, &NetworkMap { version: known.version, ..whole });
        }
    }

    proptest! {
        /// What is put together of shared pieces are the bytes of the map.
        #[test]
        fn a_map_that_is_sent_is_the_map(steps in prop::collection::vec(step(), 0..20)) {
            let mut view = view();
            for (revision, step) in (2..).map(Revision).zip(&steps) {
                view.apply(revision, &[event(revision, step)]).unwrap();
                if revision.0 == 5 {
                    view.apply(revision, &[relay(NODES)]).unwrap();
                }
                for receiver in (1..=NODES).map(NodeId) {
                    let map = map(&view, receiver).map(Box::new);
                    let whole = map.map(|map| frame::encode(&ServerMessage::Map { map }).unwrap());
                    let sent = message(&view, receiver);
                    prop_assert_eq!(sent.map(|sent| sent.unwrap().into_pieces().concat()), whole);
                }
            }
        }
    }

    #[test]
    fn a_removal_concerns_everybody_else() {
        let version = Version { epoch: 1, serial: 7 };
        let removal = Change { version, kind: ChangeKind::NodeRemoved(NodeId(RECEIVER)) };
        assert!(!concerns(NodeId(RECEIVER), &removal));
        assert!(concerns(NodeId(1), &removal));
        assert!(delta(NodeId(RECEIVER), version, &[removal]).removed.is_empty());
    }
}
