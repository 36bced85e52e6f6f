//! What a node that starts without the coordinator knows: the last map, where its peers were, and where the
//! coordinator was.
//!
//! A cache that cannot be read is reported and left out: it is never taken for an empty one, and never a
//! reason not to start.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use mesh_proto::{
    candidate::{Candidate, CandidateKind, MAX_CANDIDATES},
    control::PeerState,
    key::KeyPin,
    netmap::{NetworkMap, NodeId, RelayId},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tracing::warn;

use crate::identity::{Membership, StateDir, StateFile};

/// File of the last map.
const MAP_FILE: &str = "map.json";
/// File of the peers' last good addresses.
const PEERS_FILE: &str = "peers.json";
/// File of the coordinator's last good addresses.
const COORDINATOR_FILE: &str = "coordinator.json";
/// Addresses of the coordinator that are remembered; the oldest is forgotten.
const MAX_KNOWN: usize = 8;

/// The last map, and whose it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CachedMap {
    /// The coordinator that made it.
    pub pin: KeyPin,
    /// The map.
    pub map: NetworkMap,
}

/// Where a peer was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedPeer {
    /// The peer.
    pub id: NodeId,
    /// What it said of itself.
    pub candidates: Vec<Candidate>,
    /// The relays at which it had a channel.
    #[serde(default)]
    pub relays: Vec<RelayId>,
    /// Of them, the one that was nearest to it.
    #[serde(default)]
    pub home: Option<RelayId>,
    /// Where it answered last.
    #[serde(default)]
    pub worked: Option<SocketAddr>,
}

/// Where all peers were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CachedPeers(BTreeMap<NodeId, CachedPeer>);

/// Where the coordinator was, the last place first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownAddresses(Vec<SocketAddr>);

/// Everything that is cached.
#[derive(Debug, Default)]
pub struct Caches {
    /// The last map.
    pub map: Option<Arc<NetworkMap>>,
    /// Where the peers of that map were.
    pub peers: CachedPeers,
    /// Where the coordinator was.
    pub coordinator: KnownAddresses,
}

impl Caches {
    /// Reads what is there and belongs to this membership.
    #[must_use]
    pub fn load(dir: &StateDir, membership: &Membership) -> Self {
        let ours = |cached: &CachedMap| {
            let this = &cached.map.this;
            cached.pin == membership.pin
                && (this.id, this.node_key) == (membership.node.id, membership.node.node_key)
        };
        let map = load(&map_file(dir)).filter(ours).map(|cached| Arc::new(cached.map));
        let peers = match &map {
            Some(map) => load(&peers_file(dir)).map(|peers| CachedPeers::of(peers, map)).unwrap_or_default(),
            None => CachedPeers::default(),
        };
        Self { map, peers, coordinator: load(&coordinator_file(dir)).unwrap_or_default() }
    }
}

impl CachedPeers {
    /// Takes news of peers, and returns whether anything is new.
    pub fn apply(&mut self, states: &[PeerState]) -> bool {
        let mut changed = false;
        for state in states {
            let worked = self.0.get(&state.id).and_then(|peer| peer.worked);
            let cached = CachedPeer {
                id: state.id,
                candidates: state.candidates.clone(),
                relays: state.relays.clone(),
                home: state.home,
                worked,
            };
            // A peer that is not connected has said nothing new.
            let empty = cached.candidates.is_empty() && cached.relays.is_empty();
            if !empty && self.0.get(&state.id) != Some(&cached) {
                self.0.insert(state.id, cached);
                changed = true;
            }
        }
        changed
    }

    /// Remembers where a peer answered, and returns whether that is new.
    pub fn set_worked(&mut self, id: NodeId, address: SocketAddr) -> bool {
        let new = || CachedPeer { id, candidates: Vec::new(), relays: Vec::new(), home: None, worked: None };
        let peer = self.0.entry(id).or_insert_with(new);
        peer.worked.replace(address) != Some(address)
    }

    /// Forgets the peers that are not in the map.
    pub fn retain(&mut self, map: &NetworkMap) {
        self.0.retain(|id, _| map.peers.iter().any(|peer| peer.id == *id));
    }

    /// Returns the peers as states: nobody is said to be online, and where one answered comes first.
    #[must_use]
    pub fn to_states(&self) -> Vec<PeerState> {
        self.0.values().map(CachedPeer::to_state).collect()
    }

    /// Returns the peers as they are written.
    #[must_use]
    pub fn to_list(&self) -> Vec<CachedPeer> {
        self.0.values().cloned().collect()
    }

    fn of(peers: Vec<CachedPeer>, map: &NetworkMap) -> Self {
        let mut cached = Self(peers.into_iter().map(|peer| (peer.id, peer)).collect());
        cached.retain(map);
        cached
    }
}

impl CachedPeer {
    fn to_state(&self) -> PeerState {
        let worked = self.worked.map(|address| Candidate { address, kind: CandidateKind::Reflexive });
        let others = self.candidates.iter().filter(|candidate| Some(candidate.address) != self.worked);
        let candidates = worked.into_iter().chain(others.copied()).take(MAX_CANDIDATES).collect();
        PeerState {
            id: self.id,
            online: false,
            candidates,
            relays: self.relays.clone(),
            home: self.home,
            observed: None,
        }
    }
}

impl KnownAddresses {
    /// Returns the addresses, the last good one first.
    #[must_use]
    pub fn as_slice(&self) -> &[SocketAddr] {
        &self.0
    }

    /// Remembers where the coordinator answered, and returns whether that is new.
    pub fn set_worked(&mut self, address: SocketAddr) -> bool {
        if self.0.first() == Some(&address) {
            return false;
        }
        self.0.retain(|known| *known != address);
        self.0.insert(0, address);
        self.0.truncate(MAX_KNOWN);
        true
    }
}

pub(crate) fn map_file(dir: &StateDir) -> StateFile<CachedMap> {
    StateFile::new(dir.clone(), MAP_FILE)
}

pub(crate) fn peers_file(dir: &StateDir) -> StateFile<Vec<CachedPeer>> {
    StateFile::new(dir.clone(), PEERS_FILE)
}

pub(crate) fn coordinator_file(dir: &StateDir) -> StateFile<KnownAddresses> {
    StateFile::new(dir.clone(), COORDINATOR_FILE)
}

fn load<T: Serialize + DeserializeOwned>(file: &StateFile<T>) -> Option<T> {
    match file.load() {
        Ok(Some(loaded)) => {
            if let Some(error) = loaded.fallback {
                warn!(%error, "the generation before is used");
            }
            Some(loaded.value)
        }
        Ok(None) => None,
        Err(error) => {
            warn!(%error, "the cache is not used");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::netmap::fixtures::{map, node};

    fn membership() -> Membership {
        Membership { coordinators: vec![], pin: KeyPin([3; 32]), node: node(1), websocket_url: None }
    }

    fn state_dir() -> (tempfile::TempDir, StateDir) {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::create(&parent.path().join("state")).unwrap();
        (parent, dir)
    }

    fn state(id: u32, address: &str) -> PeerState {
        let candidate = Candidate { address: address.parse().unwrap(), kind: CandidateKind::Host };
        PeerState {
            id: NodeId(id),
            online: true,
            candidates: vec![candidate],
            relays: vec![RelayId(0)],
            home: None,
            observed: None,
        }
    }

    #[test]
    fn caches_survive_the_disk_and_belong_to_one_membership() {
        let (_parent, dir) = state_dir();
        let cached = CachedMap { pin: KeyPin([3; 32]), map: map(5, [2, 3]) };
        map_file(&dir).store(&cached).unwrap();
        let mut peers = CachedPeers::default();
        assert!(peers.apply(&[state(2, "192.0.2.2:1"), state(9, "192.0.2.9:1")]));
        assert!(!peers.apply(&[state(2, "192.0.2.2:1")]));
        assert!(peers.set_worked(NodeId(2), "198.51.100.2:7".parse().unwrap()));
        peers_file(&dir).store(&peers.to_list()).unwrap();
        let mut known = KnownAddresses::default();
        assert!(known.set_worked("192.0.2.1:7443".parse().unwrap()));
        coordinator_file(&dir).store(&known).unwrap();

        let caches = Caches::load(&dir, &membership());
        assert_eq!(caches.map.unwrap().peers.len(), 2);
        assert_eq!(caches.coordinator, known);
        let states = caches.peers.to_states();
        // Node 9 is not in the map.
        let [state] = &states[..] else { panic!("{states:?}") };
        assert!(!state.online);
        assert_eq!(state.candidates[0].address, "198.51.100.2:7".parse().unwrap());
        assert_eq!(state.candidates.len(), 2);

        let elsewhere = Membership { pin: KeyPin([4; 32]), ..membership() };
        assert!(Caches::load(&dir, &elsewhere).map.is_none());
    }

    #[test]
    fn a_map_cut_at_any_byte_gives_the_generation_before_and_never_an_empty_map() {
        let (_parent, dir) = state_dir();
        let file = map_file(&dir);
        let path = dir.path().join(MAP_FILE);
        for serial in [5, 6] {
            file.store(&CachedMap { pin: KeyPin([3; 32]), map: map(serial, [2]) }).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let found = Caches::load(&dir, &membership()).map.unwrap();
            assert_eq!((found.version.serial, found.peers.len()), (5, 1), "cut at {cut}");
        }
        fs::remove_file(dir.path().join("map.json.previous")).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(Caches::load(&dir, &membership()).map.is_none(), "cut at {cut}");
        }
    }

    #[test]
    fn news_without_addresses_do_not_forget_where_a_peer_was() {
        let mut peers = CachedPeers::default();
        peers.apply(&[state(2, "192.0.2.2:1")]);
        let gone = PeerState {
            id: NodeId(2),
            online: false,
            candidates: vec![],
            relays: vec![],
            home: None,
            observed: None,
        };
        assert!(!peers.apply(&[gone]));
        assert_eq!(peers.to_states()[0].candidates.len(), 1);
    }

    #[test]
    fn the_last_good_address_comes_first_and_the_list_is_bounded() {
        let mut known = KnownAddresses::default();
        for port in 1..=20 {
            known.set_worked(([192, 0, 2, 1], port).into());
        }
        known.set_worked(([192, 0, 2, 1], 15).into());
        let ports: Vec<_> = known.as_slice().iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [15, 20, 19, 18, 17, 16, 14, 13]);
    }
}
