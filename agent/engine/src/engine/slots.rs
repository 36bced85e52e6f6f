//! The peers: by slot on the hot path, by id and key elsewhere.
//!
//! A slot's number is the upper part of the peer's session indices, so a data message names its peer. Of the peers of
//! other shards there is only what the coordinator says of them; what stands for their slots is the shard.

use std::collections::BTreeMap;

use mesh_proto::{key::PublicKey, netmap::NodeId};

use crate::{config::PeerConfig, peer::Peer, shard::Shard};

/// All peers.
pub(crate) struct Slots {
    shard: Shard,
    slots: Vec<Option<Box<Peer>>>,
    by_id: BTreeMap<NodeId, u32>,
    by_key: BTreeMap<PublicKey, u32>,
    foreign: BTreeMap<NodeId, PeerConfig>,
}

impl Slots {
    pub(crate) fn new(shard: Shard) -> Self {
        Self {
            shard,
            slots: Vec::new(),
            by_id: BTreeMap::new(),
            by_key: BTreeMap::new(),
            foreign: BTreeMap::new(),
        }
    }

    /// Adds a peer, whose id and key are new.
    pub(crate) fn insert(&mut self, config: PeerConfig) {
        let (id, key) = (config.id, config.public_key);
        let slot = if self.shard.owns(id) {
            let is_free = |slot: &usize| {
                self.shard.has_slot(*slot) && self.slots.get(*slot).is_none_or(Option::is_none)
            };
            let free = (0..).find(is_free).expect("a slot beyond the last one is free");
            let slot = u32::try_from(free).expect("there are far fewer peers than session indices");
            if free >= self.slots.len() {
                self.slots.resize_with(free + 1, || None);
            }
            self.slots[free] = Some(Box::new(Peer::new(config, slot)));
            slot
        } else {
            self.foreign.insert(id, config);
            self.shard.foreign_slot(id)
        };
        self.by_id.insert(id, slot);
        self.by_key.insert(key, slot);
    }

    /// Removes a peer; returns it if it is of this shard.
    pub(crate) fn remove(&mut self, id: NodeId) -> Option<Box<Peer>> {
        let slot = self.by_id.remove(&id)?;
        if let Some(config) = self.foreign.remove(&id) {
            self.by_key.remove(&config.public_key);
            return None;
        }
        let peer = self.slots.get_mut(slot as usize)?.take()?;
        self.by_key.remove(&peer.public_key());
        Some(peer)
    }

    /// Takes over a configuration with the same id and key as before.
    pub(crate) fn set_config(&mut self, config: PeerConfig) {
        if let Some(foreign) = self.foreign.get_mut(&config.id) {
            *foreign = config;
        } else if let Some(peer) = self.by_id_mut(config.id) {
            peer.set_config(config);
        }
    }

    /// Whether a peer is known, of whatever shard.
    pub(crate) fn contains(&self, id: NodeId) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Returns the slot of the peer with this key, or what stands for it.
    pub(crate) fn slot_of_key(&self, key: &PublicKey) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// Returns what the coordinator says of all peers, of whatever shard, with their slots, by ascending id.
    pub(crate) fn configs(&self) -> impl Iterator<Item = (u32, &PeerConfig)> {
        self.by_id.iter().filter_map(|(id, slot)| {
            let own = self.slots.get(*slot as usize).and_then(Option::as_deref).map(Peer::config);
            Some((*slot, own.or_else(|| self.foreign.get(id))?))
        })
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Peer> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    pub(crate) fn by_id_mut(&mut self, id: NodeId) -> Option<&mut Peer> {
        let slot = *self.by_id.get(&id)?;
        self.get_mut(slot)
    }

    /// Returns the peers of this shard by ascending id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.by_id.values().filter_map(|slot| self.slots.get(*slot as usize)?.as_deref())
    }

    /// Calls `visit` with every peer of this shard, by ascending id.
    pub(crate) fn for_each(&mut self, mut visit: impl FnMut(&mut Peer)) {
        for slot in self.by_id.values() {
            if let Some(peer) = self.slots.get_mut(*slot as usize).and_then(Option::as_deref_mut) {
                visit(peer);
            }
        }
    }
}
