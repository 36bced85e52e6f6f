//! Who is in the mesh: joining, connecting, removing, renaming.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use mesh_proto::{
    key::{NodeKey, PublicKey},
    name::NodeName,
    netmap::{Mesh, Node, NodeId, Relay, RelayId},
    token::JoinToken,
};
use time::OffsetDateTime;

use super::{
    MeshOptions, RegistryError, addresses,
    draft::{Decision, Draft},
    keys, relays, routes, tokens,
};
use crate::store::Revision;

/// The epoch of a mesh that was never restored from a backup.
const FIRST_EPOCH: u64 = 1;

/// The id of the first node.
const FIRST_NODE: NodeId = NodeId(1);

/// The relay inside the coordinator.
const OWN_RELAY: RelayId = RelayId(0);

/// Stores what the settings say of the mesh, and at the first start what the mesh is.
pub(super) struct SetOptions(pub(super) MeshOptions);

/// Admits a node with a token, or returns the node that it already is.
pub(super) struct Join {
    pub(super) node_key: NodeKey,
    pub(super) public_key: PublicKey,
    pub(super) name: NodeName,
    pub(super) admission: Admission,
    pub(super) now: OffsetDateTime,
}

/// By what right a node joins.
pub(super) enum Admission {
    /// A join token, which is used once by it.
    Token(JoinToken),
    /// Somebody else has said that it may, under this very name.
    Vouched,
}

/// Finds the node of a node key, and gives it another WireGuard key where that has changed.
pub(super) struct Connect {
    pub(super) node_key: NodeKey,
    pub(super) public_key: PublicKey,
}

/// Removes a node and everything that points to it.
pub(super) struct Remove(pub(super) NodeName);

/// Gives a node another name.
pub(super) struct Rename {
    pub(super) from: NodeName,
    pub(super) to: NodeName,
}

impl Decision for SetOptions {
    type Output = ();

    async fn decide(&self, draft: &mut Draft<'_>) -> Result<(), RegistryError> {
        let Self(options) = self;
        let ipv4 = options.ipv4.trunc();
        if !addresses::usable(ipv4) {
            return Err(RegistryError::Ipv4RangeSize(ipv4));
        }
        let stored: Option<Mesh> = draft.get(keys::MESH).await?;
        let ipv6 = match &stored {
            Some(mesh) if mesh.ipv4 != ipv4 => {
                return Err(RegistryError::Ipv4RangeChanged { stored: mesh.ipv4, configured: ipv4 });
            }
            Some(mesh) => mesh.ipv6,
            None => {
                let mut random = [0; 5];
                getrandom::fill(&mut random).map_err(RegistryError::Randomness)?;
                draft.put(keys::EPOCH.to_owned(), &FIRST_EPOCH)?;
                addresses::ula(random)
            }
        };
        let mesh = Mesh { ipv4, ipv6, coordinators: options.coordinators.clone() };
        if stored.as_ref() != Some(&mesh) {
            draft.put(keys::MESH.to_owned(), &mesh)?;
        }
        let relay = Relay {
            id: OWN_RELAY,
            name: options.relay_name.clone(),
            key: None,
            addresses: options.coordinators.clone(),
        };
        let key = keys::relay(OWN_RELAY);
        if draft.get::<Relay>(&key).await?.as_ref() != Some(&relay) {
            draft.put(key, &relay)?;
        }
        Ok(())
    }
}

impl Decision for Join {
    type Output = Node;

    async fn decide(&self, draft: &mut Draft<'_>) -> Result<Node, RegistryError> {
        let Self { node_key, public_key, name, admission, now } = self;
        if let Some(id) = draft.get::<NodeId>(&keys::node_key(node_key)).await? {
            return draft.expect(&keys::node(id)).await;
        }
        let removed = draft.find::<NodeId>(&keys::removed_key(node_key)).await?;
        let tags = match admission {
            Admission::Token(token) => {
                let not_before = removed.map_or(Revision(0), |found| found.mod_revision);
                tokens::consume(draft, token, not_before, *now).await?
            }
            // Whether it was vouched for before it was removed or after is not known.
            Admission::Vouched if removed.is_some() => return Err(RegistryError::Removed),
            Admission::Vouched => Vec::new(),
        };
        if draft.get::<NodeId>(&keys::name(name)).await?.is_some() {
            return Err(RegistryError::NameTaken(name.clone()));
        }
        if draft.get::<NodeId>(&keys::public_key(public_key)).await?.is_some() {
            return Err(RegistryError::PublicKeyTaken);
        }
        let id = draft.get(keys::NEXT_NODE).await?.unwrap_or(FIRST_NODE);
        draft.put(keys::NEXT_NODE.to_owned(), &NodeId(id.0 + 1))?;
        let mesh: Mesh = draft.expect(keys::MESH).await?;
        let ipv4 = take_ipv4(draft, mesh.ipv4, id).await?;
        let addresses = vec![ipv4.into(), addresses::ipv6(mesh.ipv6, id).into()];
        let node = Node {
            id,
            name: name.clone(),
            node_key: *node_key,
            public_key: *public_key,
            allowed_ips: addresses.iter().copied().map(IpNet::from).collect(),
            addresses,
            tags,
        };
        draft.delete(keys::removed_key(node_key));
        draft.put(keys::node_key(node_key), &id)?;
        draft.put(keys::public_key(public_key), &id)?;
        draft.put(keys::name(name), &id)?;
        draft.put(keys::node(id), &node)?;
        Ok(node)
    }
}

impl Decision for Connect {
    type Output = NodeId;

    async fn decide(&self, draft: &mut Draft<'_>) -> Result<NodeId, RegistryError> {
        let Self { node_key, public_key } = self;
        let id = draft.get(&keys::node_key(node_key)).await?.ok_or(RegistryError::NotRegistered)?;
        let node: Node = draft.expect(&keys::node(id)).await?;
        if node.public_key == *public_key {
            return Ok(id);
        }
        if draft.get::<NodeId>(&keys::public_key(public_key)).await?.is_some() {
            return Err(RegistryError::PublicKeyTaken);
        }
        draft.delete(keys::public_key(&node.public_key));
        draft.put(keys::public_key(public_key), &id)?;
        draft.put(keys::node(id), &Node { public_key: *public_key, ..node })?;
        Ok(id)
    }
}

impl Decision for Remove {
    type Output = NodeId;

    async fn decide(&self, draft: &mut Draft<'_>) -> Result<NodeId, RegistryError> {
        let node = find(draft, &self.0).await?;
        for address in &node.addresses {
            if let IpAddr::V4(address) = address {
                draft.delete(keys::address(*address));
            }
        }
        draft.delete(keys::name(&node.name));
        draft.delete(keys::public_key(&node.public_key));
        draft.delete(keys::node_key(&node.node_key));
        routes::forget(draft, node.id).await?;
        draft.delete(keys::node(node.id));
        draft.delete(keys::relay(relays::relay_id(node.id)));
        draft.put(keys::removed_key(&node.node_key), &node.id)?;
        draft.put(keys::removed_node(node.id), &node.node_key)?;
        Ok(node.id)
    }
}

impl Decision for Rename {
    type Output = Node;

    async fn decide(&self, draft: &mut Draft<'_>) -> Result<Node, RegistryError> {
        let Self { from, to } = self;
        let node = find(draft, from).await?;
        if from == to {
            return Ok(node);
        }
        if draft.get::<NodeId>(&keys::name(to)).await?.is_some() {
            return Err(RegistryError::NameTaken(to.clone()));
        }
        let node = Node { name: to.clone(), ..node };
        draft.delete(keys::name(from));
        draft.put(keys::name(to), &node.id)?;
        draft.put(keys::node(node.id), &node)?;
        Ok(node)
    }
}

async fn find(draft: &mut Draft<'_>, name: &NodeName) -> Result<Node, RegistryError> {
    let id = draft.get(&keys::name(name)).await?.ok_or_else(|| RegistryError::UnknownNode(name.clone()))?;
    draft.expect(&keys::node(id)).await
}

/// Gives a node its IPv4 address: the one that follows from its id, or the next that is free.
async fn take_ipv4(draft: &mut Draft<'_>, range: Ipv4Net, id: NodeId) -> Result<Ipv4Addr, RegistryError> {
    let own = addresses::ipv4(range, id);
    let mut address = own;
    if draft.get::<NodeId>(&keys::address(own)).await?.is_some() {
        let entries = draft.peek_range(keys::ADDRESSES).await?.entries;
        let in_use: BTreeSet<Ipv4Addr> = entries
            .iter()
            .filter_map(|entry| entry.key.strip_prefix(keys::ADDRESSES)?.parse().ok())
            .collect();
        address = addresses::free_ipv4(range, id, &in_use).ok_or(RegistryError::AddressesExhausted(range))?;
        draft.get::<NodeId>(&keys::address(address)).await?;
    }
    draft.put(keys::address(address), &id)?;
    Ok(address)
}
