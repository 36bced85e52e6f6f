//! Relays that stand alone: nodes that joined with the tag for it, and said where they are.

use mesh_proto::netmap::{Node, NodeId, Relay, RelayId};

use super::{
    RegistryError,
    draft::{Decision, Draft},
    keys,
};

/// Addresses of one relay that are kept; what goes beyond is cut.
const MAX_ADDRESSES: usize = 8;

/// Says where a relay is.
pub(super) struct Set {
    pub(super) node: NodeId,
    pub(super) addresses: Vec<String>,
}

impl Decision for Set {
    type Output = ();

    async fn decide(&self, draft: &mut Draft<'_>) -> Result<(), RegistryError> {
        let node: Node = draft.get(&keys::node(self.node)).await?.ok_or(RegistryError::NotRegistered)?;
        if !node.is_relay() {
            return Err(RegistryError::NotRelay);
        }
        let relay = Relay {
            id: relay_id(node.id),
            name: node.name.to_string(),
            key: Some(node.node_key),
            addresses: self.addresses.iter().take(MAX_ADDRESSES).cloned().collect(),
        };
        let key = keys::relay(relay.id);
        if draft.get::<Relay>(&key).await?.as_ref() != Some(&relay) {
            draft.put(key, &relay)?;
        }
        Ok(())
    }
}

/// Returns the id of the relay that a node is. Node ids begin at 1: 0 stays the coordinator's own relay.
pub(super) fn relay_id(node: NodeId) -> RelayId {
    RelayId(node.0)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use mesh_proto::key::{NodeKey, PublicKey};

    use super::*;
    use crate::{
        registry::{MeshOptions, Registry, RoutePolicy, TokenSpec},
        store::memory::MemoryStore,
    };

    async fn join(registry: &Registry, number: u8, tags: &[&str]) -> Node {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let spec = TokenSpec { ttl: Duration::from_secs(60), uses: 1, tags };
        let token = registry.create_token(spec).await.unwrap();
        let name = format!("n{number}").parse().unwrap();
        registry.join(NodeKey([number; 32]), token, name, PublicKey([number; 32])).await.unwrap()
    }

    #[tokio::test]
    async fn a_relay_is_in_the_map_as_a_relay_alone_until_it_is_removed() {
        let options = MeshOptions {
            ipv4: "10.90.0.0/16".parse().unwrap(),
            coordinators: vec![],
            relay_name: "pi".to_owned(),
            routes: RoutePolicy::default(),
        };
        let registry = Registry::with_store(Arc::new(MemoryStore::default()), options).await.unwrap();
        let (node, relay) = (join(&registry, 1, &[]).await, join(&registry, 2, &["relay"]).await);
        let addresses = vec!["relay.example:7443".to_owned()];
        let refused = registry.set_relay(node.id, addresses.clone()).await;
        assert!(matches!(refused, Err(RegistryError::NotRelay)));
        let before = registry.version();
        registry.set_relay(relay.id, addresses.clone()).await.unwrap();

        let map = registry.map_for(node.id).await.unwrap();
        assert_eq!(map.peers, []);
        let key = Some(relay.node_key);
        let expected = Relay { id: RelayId(relay.id.0), name: "n2".to_owned(), key, addresses };
        assert_eq!(map.relays[1..], [expected]);
        assert_eq!(registry.map_for(relay.id).await.unwrap().peers, std::slice::from_ref(&node));

        registry.remove_node(&relay.name).await.unwrap();
        assert_eq!(registry.map_for(node.id).await.unwrap().relays.len(), 1);
        let changes = registry.changes_since(before).await.unwrap().unwrap();
        let mut followed = map.relays.len();
        for change in changes {
            if let crate::registry::ChangeKind::RelaysSet(relays) = change.kind {
                followed = relays.len();
            }
        }
        assert_eq!(followed, 1, "and those who follow the changes know it, too");
    }
}
