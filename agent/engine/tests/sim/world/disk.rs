//! What a node keeps on disk, as the agent's `netmap::CachedPeers` does: it is all that a process begins with while the
//! coordinator is away.

use std::{collections::BTreeMap, net::SocketAddr};

use mesh_proto::{
    candidate::{Candidate, CandidateKind, MAX_CANDIDATES},
    control::PeerState,
    netmap::NodeId,
};

/// Where a node's peers were.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    states: BTreeMap<NodeId, PeerState>,
    worked: BTreeMap<NodeId, SocketAddr>,
}

impl Disk {
    /// Takes what the coordinator says of a peer; one that is not connected has said nothing new.
    pub(crate) fn apply(&mut self, state: &PeerState) {
        if !(state.candidates.is_empty() && state.relays.is_empty()) {
            self.states.insert(state.id, state.clone());
        }
    }

    /// Remembers where a peer answered.
    pub(crate) fn set_worked(&mut self, peer: NodeId, address: SocketAddr) {
        self.worked.insert(peer, address);
    }

    /// Returns the peers as a process that starts is told of them: nobody is online, and where one answered comes first.
    pub(crate) fn to_states(&self) -> Vec<PeerState> {
        let ids = self.states.keys().chain(self.worked.keys().filter(|id| !self.states.contains_key(id)));
        ids.map(|id| self.to_state(*id)).collect()
    }

    fn to_state(&self, id: NodeId) -> PeerState {
        let (said, worked) = (self.states.get(&id), self.worked.get(&id).copied());
        let first = worked.map(|address| Candidate { address, kind: CandidateKind::Reflexive });
        let others = said.into_iter().flat_map(|state| state.candidates.iter().copied());
        let others = others.filter(|candidate| Some(candidate.address) != worked);
        PeerState {
            id,
            online: false,
            candidates: first.into_iter().chain(others).take(MAX_CANDIDATES).collect(),
            relays: said.map(|state| state.relays.clone()).unwrap_or_default(),
            home: said.and_then(|state| state.home),
            observed: None,
        }
    }
}
