//! A model coordinator: what it knows of the nodes, and whom it tells.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use mesh_engine::config::RelayConfig;
use mesh_proto::{
    candidate::Candidate,
    control::PeerState,
    netmap::{NodeId, RelayId},
    stun,
};

use crate::net::HostId;

/// What a node says to the coordinator.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Candidates { candidates: Vec<Candidate>, relays: Vec<RelayId>, home: Option<RelayId> },
    CallMeMaybe { to: NodeId, candidates: Vec<Candidate> },
    RelayOpen(RelayId),
}

/// What the coordinator says to a node.
#[derive(Debug, Clone)]
pub(crate) enum News {
    PeerStates(Vec<PeerState>),
    CallMeMaybe { from: NodeId, candidates: Vec<Candidate> },
    RelayOpened(RelayConfig),
}

/// The coordinator. What nodes told it is lost when it is killed: they say it again when they connect.
pub(crate) struct Coordinator {
    pub(crate) host: HostId,
    pub(crate) address: SocketAddr,
    pub(crate) up: bool,
    states: BTreeMap<NodeId, PeerState>,
}

impl Coordinator {
    /// Makes a coordinator that knows nothing.
    pub(crate) fn new(host: HostId, address: SocketAddr) -> Self {
        Self { host, address, up: true, states: BTreeMap::new() }
    }

    /// Stops it.
    pub(crate) fn kill(&mut self) {
        self.up = false;
        self.states.clear();
    }

    /// Returns what a node that connects is told.
    pub(crate) fn states_for(&self, node: NodeId) -> Vec<PeerState> {
        self.states.values().filter(|state| state.id != node).cloned().collect()
    }

    /// Notes where a node's connection comes from.
    pub(crate) fn set_observed(&mut self, node: NodeId, observed: Option<IpAddr>) {
        self.state(node).observed = observed;
    }

    /// Notes that a node is connected or not; returns what the others are told.
    pub(crate) fn set_online(&mut self, node: NodeId, online: bool) -> PeerState {
        let state = self.state(node);
        state.online = online;
        state.clone()
    }

    /// Notes where a node may be reached; returns what the others are told.
    pub(crate) fn set_candidates(
        &mut self,
        node: NodeId,
        candidates: Vec<Candidate>,
        relays: Vec<RelayId>,
        home: Option<RelayId>,
    ) -> PeerState {
        let state = self.state(node);
        (state.candidates, state.relays, state.home) = (candidates, relays, home);
        state.clone()
    }

    fn state(&mut self, id: NodeId) -> &mut PeerState {
        let unknown = PeerState {
            id,
            online: false,
            candidates: Vec::new(),
            relays: Vec::new(),
            home: None,
            observed: None,
        };
        self.states.entry(id).or_insert(unknown)
    }
}

/// Answers a STUN request; returns where the answer goes.
pub(crate) fn answer_stun(source: SocketAddr, datagram: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
    let (transaction, port) = match stun::Message::decode(datagram).ok()? {
        stun::Message::BindingRequest { transaction } => (transaction, source.port()),
        stun::Message::BindingRequestFor { transaction, port } => (transaction, port.get()),
        stun::Message::BindingSuccess { .. } => return None,
    };
    let answer = stun::Message::BindingSuccess { transaction, mapped: source }.encode();
    Some((SocketAddr::new(source.ip(), port), answer))
}
