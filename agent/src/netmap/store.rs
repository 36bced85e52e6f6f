//! The version check: pure, and the only way to a new map.

use std::{collections::BTreeSet, sync::Arc};

use mesh_proto::{
    key::NodeKey,
    netmap::{MapDelta, NetworkMap, NodeId, Version, VersionError},
};

/// A whole map that loses more than this share of the known peers has to be said twice: one in ...
const DOUBTFUL_SHARE: usize = 2;
/// A mesh with fewer peers may lose all of them at once.
const DOUBTFUL_FROM: usize = 4;

/// The latest map.
///
/// [`Self::handle_map`] and [`Self::handle_delta`] take what the coordinator says. A rejected message changes
/// nothing; the [`Rejection`] says what to do.
#[derive(Debug)]
pub struct Store {
    node_key: NodeKey,
    map: Option<Arc<NetworkMap>>,
    removals: Removals,
    /// The peers of a whole map that was not believed.
    doubted: Option<BTreeSet<NodeId>>,
}

/// How the coordinator says that a peer is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Removals {
    /// By a delta, always; by a whole map only in a new epoch.
    Explicit,
    /// By a whole map that lacks it, too, as older coordinators do.
    #[default]
    Implied,
}

/// What became of a map or a delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// The map is another one now.
    Changed(Arc<NetworkMap>),
    /// It is what was known.
    Unchanged,
}

/// Why a map or a delta was not taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The coordinator went back in time: what is known is kept.
    #[error("{0}")]
    Older(VersionError),
    /// The delta does not fit: ask for a whole map.
    #[error("{0}")]
    Gap(VersionError),
    /// There is no map that a delta could change: ask for a whole map.
    #[error("a delta came before the first map")]
    NoMap,
    /// Most peers are gone: ask again.
    #[error("a whole map lacks {lost} of {known} peers")]
    Doubtful {
        /// Peers that are gone.
        lost: usize,
        /// Peers that were known.
        known: usize,
    },
    /// Peers are gone that were not removed: what is known is kept.
    #[error("a whole map lacks {lost} peers that were not removed")]
    Shrunk {
        /// Peers that are gone.
        lost: usize,
    },
    /// The map is for another node.
    #[error("the map is not for this node")]
    NotOurs,
}

impl Store {
    /// Makes the store of the node with this key.
    #[must_use]
    pub fn new(node_key: NodeKey, cached: Option<Arc<NetworkMap>>) -> Self {
        let map = cached.filter(|map| map.this.node_key == node_key);
        Self { node_key, map, removals: Removals::default(), doubted: None }
    }

    /// Returns the latest map.
    #[must_use]
    pub fn map(&self) -> Option<&Arc<NetworkMap>> {
        self.map.as_ref()
    }

    /// Returns the latest map's version.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.map.as_ref().map(|map| map.version)
    }

    /// Sets how the coordinator that is spoken to says that peers are gone.
    pub fn set_removals(&mut self, removals: Removals) {
        self.removals = removals;
    }

    /// Takes a whole map.
    ///
    /// # Errors
    /// When it is not taken over.
    pub fn handle_map(&mut self, mut map: NetworkMap) -> Result<Update, Rejection> {
        if map.this.node_key != self.node_key {
            return Err(Rejection::NotOurs);
        }
        map.peers.sort_by_key(|peer| peer.id);
        if let Some(known) = &self.map {
            known.check_successor(&map).map_err(Rejection::Older)?;
            if **known == map {
                return Ok(Update::Unchanged);
            }
            let peers: BTreeSet<_> = map.peers.iter().map(|peer| peer.id).collect();
            let lost = known.peers.iter().filter(|peer| !peers.contains(&peer.id)).count();
            let may_lose = match self.removals {
                Removals::Explicit => map.version.epoch > known.version.epoch,
                Removals::Implied => map.version > known.version,
            };
            if lost > 0 && !may_lose {
                return Err(Rejection::Shrunk { lost });
            }
            let total = known.peers.len();
            let doubtful = total >= DOUBTFUL_FROM && lost > total / DOUBTFUL_SHARE;
            if doubtful && self.doubted.as_ref() != Some(&peers) {
                self.doubted = Some(peers);
                return Err(Rejection::Doubtful { lost, known: total });
            }
        }
        self.doubted = None;
        Ok(self.replace(map))
    }

    /// Takes a change of the map.
    ///
    /// # Errors
    /// When it is not taken over.
    pub fn handle_delta(&mut self, delta: MapDelta) -> Result<Update, Rejection> {
        let Some(known) = &self.map else { return Err(Rejection::NoMap) };
        if delta.this.as_ref().is_some_and(|this| this.node_key != self.node_key || this.id != known.this.id)
        {
            return Err(Rejection::NotOurs);
        }
        let mut map = NetworkMap::clone(known);
        map.apply(delta).map_err(|error| match error {
            VersionError::Gap { .. } => Rejection::Gap(error),
            VersionError::Older { .. } => Rejection::Older(error),
        })?;
        Ok(self.replace(map))
    }

    fn replace(&mut self, map: NetworkMap) -> Update {
        let map = Arc::new(map);
        self.map = Some(map.clone());
        Update::Changed(map)
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::netmap::Mesh;

    use super::*;
    use crate::netmap::fixtures::{delta, map, node};

    fn store() -> Store {
        Store::new(NodeKey([1; 32]), Some(Arc::new(map(5, 2..=7))))
    }

    fn ids(store: &Store) -> Vec<u32> {
        store.map().unwrap().peers.iter().map(|peer| peer.id.0).collect()
    }

    #[test]
    fn the_latest_wins_and_an_older_one_is_refused() {
        let mut store = store();
        assert!(matches!(store.handle_map(map(6, 2..=8)), Ok(Update::Changed(_))));
        assert_eq!(store.handle_map(map(6, 2..=8)), Ok(Update::Unchanged));
        assert!(matches!(store.handle_map(map(5, 2..=9)), Err(Rejection::Older(_))));
        let older_epoch = NetworkMap { version: Version { epoch: 0, serial: 99 }, ..map(0, 2..=9) };
        assert!(matches!(store.handle_map(older_epoch), Err(Rejection::Older(_))));
        assert_eq!(ids(&store), [2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_delta_applies_to_its_version_alone() {
        let mut store = store();
        let change = MapDelta { changed: vec![node(9)], removed: vec![NodeId(2)], ..delta(5, 6) };
        assert!(matches!(store.handle_delta(change), Ok(Update::Changed(_))));
        assert_eq!(ids(&store), [3, 4, 5, 6, 7, 9]);
        assert!(matches!(store.handle_delta(delta(5, 7)), Err(Rejection::Gap(_))));
        assert!(matches!(store.handle_delta(delta(6, 5)), Err(Rejection::Older(_))));
        assert_eq!(Store::new(NodeKey([1; 32]), None).handle_delta(delta(0, 1)), Err(Rejection::NoMap));
    }

    #[test]
    fn a_map_that_lost_most_peers_has_to_come_twice() {
        let mut store = store();
        let lost_all = Err(Rejection::Doubtful { lost: 6, known: 6 });
        assert_eq!(store.handle_map(map(6, [])), lost_all);
        // Another one than the first time: doubtful again.
        assert!(matches!(store.handle_map(map(6, [2])), Err(Rejection::Doubtful { lost: 5, .. })));
        assert_eq!(ids(&store).len(), 6);
        assert!(matches!(store.handle_map(map(7, [2])), Ok(Update::Changed(_))));
        assert_eq!(ids(&store), [2]);
    }

    #[test]
    fn removals_one_by_one_are_believed() {
        let mut store = store();
        for id in 2..=7 {
            let serial = u64::from(id);
            let change = MapDelta { removed: vec![NodeId(id)], ..delta(serial + 3, serial + 4) };
            assert!(matches!(store.handle_delta(change), Ok(Update::Changed(_))));
        }
        assert!(ids(&store).is_empty());
    }

    #[test]
    fn a_map_of_the_same_version_may_not_shrink() {
        let mut store = store();
        assert_eq!(store.handle_map(map(5, 2..=6)), Err(Rejection::Shrunk { lost: 1 }));
        let moved = NetworkMap {
            mesh: Mesh { coordinators: vec!["new.example:1".to_owned()], ..map(5, []).mesh },
            ..map(5, 2..=7)
        };
        assert!(matches!(store.handle_map(moved), Ok(Update::Changed(_))));
    }

    #[test]
    fn where_removals_are_said_no_whole_map_of_the_epoch_may_shrink() {
        let mut store = store();
        store.set_removals(Removals::Explicit);
        // However often it is said.
        for serial in [6, 6, 7] {
            assert_eq!(store.handle_map(map(serial, 2..=6)), Err(Rejection::Shrunk { lost: 1 }));
        }
        let removal = MapDelta { removed: vec![NodeId(7)], ..delta(5, 5) };
        assert!(matches!(store.handle_delta(removal), Ok(Update::Changed(_))));
        assert!(matches!(store.handle_map(map(7, 2..=6)), Ok(Update::Changed(_))));
        // A restore is deliberate; but one that loses most is to be said twice still.
        let restored = |peers| NetworkMap { version: Version { epoch: 2, serial: 1 }, ..map(0, peers) };
        assert!(matches!(store.handle_map(restored(2..=2)), Err(Rejection::Doubtful { lost: 4, .. })));
        assert!(matches!(store.handle_map(restored(2..=5)), Ok(Update::Changed(_))));
        assert_eq!(ids(&store), [2, 3, 4, 5]);
    }

    #[test]
    fn a_map_for_another_node_is_refused() {
        let mut store = store();
        let theirs = NetworkMap { this: node(2), ..map(9, [1]) };
        assert_eq!(store.handle_map(theirs.clone()), Err(Rejection::NotOurs));
        let change = MapDelta { this: Some(node(3)), ..delta(5, 6) };
        assert_eq!(store.handle_delta(change), Err(Rejection::NotOurs));
        assert!(Store::new(NodeKey([1; 32]), Some(Arc::new(theirs))).map().is_none());
    }
}
