//! What waits to be said.

use std::{collections::BTreeMap, net::SocketAddr, sync::Mutex};

use mesh_proto::{
    candidate::Candidate,
    netmap::{NodeId, RelayId},
    status::{ConnectionState, CoordinatorStatus},
};

#[derive(Debug, Default)]
pub(super) struct Outbox {
    candidates: Vec<Candidate>,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    outbox: Mutex<Outbox>,
}

impl Outbox {
    pub(super) fn set_candidates(&mut self, candidates: Vec<Candidate>) {
        self.candidates = candidates;
    }
    pub(super) fn call_me_maybe(&mut self, _to: NodeId, _candidates: Vec<Candidate>) {}
    pub(super) fn reopen_relay(&mut self, _relay: RelayId) {}
    pub(super) fn network_changed(&mut self) {}
    pub(super) fn path_worked(&mut self, _peer: NodeId, _address: SocketAddr) {}
}

impl Shared {
    pub(super) fn update(&self, change: impl FnOnce(&mut Outbox)) {
        change(&mut self.outbox.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    pub(super) fn status(&self) -> CoordinatorStatus {
        CoordinatorStatus {
            state: ConnectionState::Connecting,
            address: None,
            transport: None,
            rtt_ms: None,
            error: None,
        }
    }

    pub(super) fn relay_names(&self) -> BTreeMap<RelayId, String> {
        BTreeMap::new()
    }
}
