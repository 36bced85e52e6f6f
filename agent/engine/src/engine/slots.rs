//! The peers: by slot on the hot path, by id and key elsewhere.
//!
//! A slot's number is the upper part of the peer's session indices, so a data message names its peer.

use std::collections::BTreeMap;

use mesh_proto::{key::PublicKey, netmap::NodeId};

use crate::peer::Peer;

/// All peers.
#[derive(Default)]
pub(crate) struct Slots {
    slots: Vec<Option<Box<Peer>>>,
    by_id: BTreeMap<NodeId, u32>,
    by_key: BTreeMap<PublicKey, u32>,
}

impl Slots {
    /// Adds a peer, which `make` makes for the slot that it gets.
    pub(crate) fn insert(&mut self, id: NodeId, key: PublicKey, make: impl FnOnce(u32) -> Peer) {
        let free = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        let slot = u32::try_from(free).expect("there are far fewer peers than session indices");
        if free == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[free] = Some(Box::new(make(slot)));
        self.by_id.insert(id, slot);
        self.by_key.insert(key, slot);
    }

    /// Removes a peer.
    pub(crate) fn remove(&mut self, id: NodeId) -> Option<Box<Peer>> {
        let slot = self.by_id.remove(&id)?;
        let peer = self.slots.get_mut(slot as usize)?.take()?;
        self.by_key.remove(&peer.public_key());
        Some(peer)
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Peer> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    pub(crate) fn by_id_mut(&mut self, id: NodeId) -> Option<&mut Peer> {
        let slot = *self.by_id.get(&id)?;
        self.get_mut(slot)
    }

    pub(crate) fn by_key_mut(&mut self, key: &PublicKey) -> Option<&mut Peer> {
        let slot = *self.by_key.get(key)?;
        self.get_mut(slot)
    }

    /// Returns the peers by ascending id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.by_id.values().filter_map(|slot| self.slots.get(*slot as usize)?.as_deref())
    }

    /// Calls `visit` with every peer, by ascending id.
    pub(crate) fn for_each(&mut self, mut visit: impl FnMut(&mut Peer)) {
        for slot in self.by_id.values() {
            if let Some(peer) = self.slots.get_mut(*slot as usize).and_then(Option::as_deref_mut) {
                visit(peer);
            }
        }
    }
}
