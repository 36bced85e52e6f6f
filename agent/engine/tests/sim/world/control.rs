//! The control plane: connections between nodes and the coordinator, and what goes over them.
//!
//! A connection is a reliable, ordered pipe with the underlay's delay. It breaks when the coordinator is killed, when a
//! partition comes between, or when the node moves; the node dials again with backoff. What was on its way is lost.

use std::time::Duration;

use mesh_engine::{command::Command, config::RelayConfig};
use mesh_proto::{
    candidate::Candidate,
    control::PeerState,
    netmap::{NodeId, RelayId},
};

use super::{Event, World};
use crate::{
    coordinator::{News, Request},
    net::HostId,
};

/// First wait between two attempts to connect.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// Longest wait between two attempts to connect.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// For how long relays remember a Bind.
const BIND_LIFETIME: Duration = Duration::from_secs(900);
/// Wait before a relay that could not be opened is tried again.
const RELAY_RETRY: Duration = Duration::from_secs(5);

/// Something of the control plane that happens later.
pub(super) enum Message {
    Dial { node: usize, connection: u64 },
    Connected { node: usize, connection: u64 },
    Request { node: usize, connection: u64, request: Request },
    News { node: usize, connection: u64, news: News },
    OpenRelay { node: usize, connection: u64, relay: RelayId },
    OpenAlone { node: usize, life: u64, relay: RelayId },
    Opened { node: usize, life: u64, config: RelayConfig },
}

impl World {
    /// Has a node connect to the coordinator after a while.
    pub(super) fn dial_soon(&mut self, node: usize, wait: Duration) {
        let connection = self.nodes[node].control.connection;
        self.queue.push(self.now + wait, Event::Control(Message::Dial { node, connection }));
    }

    /// Breaks a node's connection.
    pub(super) fn drop_control(&mut self, node: usize) {
        let control = &mut self.nodes[node].control;
        control.connection += 1;
        control.backoff = FIRST_BACKOFF;
        if std::mem::take(&mut control.connected) && self.coordinator.up {
            let id = self.nodes[node].id;
            let state = self.coordinator.set_online(id, false);
            self.tell_others(node, &state);
        }
    }

    /// Breaks every connection that can no longer be, after a kill or a partition.
    pub(crate) fn check_control(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].control.connected && !self.reaches_coordinator(node) {
                self.drop_control(node);
                self.dial_soon(node, FIRST_BACKOFF);
            }
        }
    }

    /// Whether a node could talk to the coordinator now.
    pub(crate) fn reaches_coordinator(&self, node: usize) -> bool {
        self.coordinator.up && self.reaches(node, self.coordinator.host)
    }

    /// Whether a node could talk to a server's host now.
    pub(crate) fn reaches(&self, node: usize, server: HostId) -> bool {
        match (self.net.uplink_of(self.nodes[node].host), self.net.uplink_of(server)) {
            (Some(from), Some(to)) => !self.net.is_cut(from, to),
            (None, _) | (_, None) => false,
        }
    }

    /// Takes a node's new candidates to the coordinator, now or when it is connected.
    pub(super) fn publish(&mut self, node: usize, candidates: Vec<Candidate>) {
        self.nodes[node].candidates = candidates;
        self.publish_state(node);
    }

    /// Takes to the coordinator which relay is a node's home.
    pub(super) fn publish_home(&mut self, node: usize, home: Option<RelayId>) {
        self.nodes[node].home = home;
        self.publish_state(node);
    }

    /// Takes a call-me-maybe to the coordinator.
    pub(super) fn forward_call(&mut self, node: usize, to: NodeId, candidates: Vec<Candidate>) {
        self.request(node, Request::CallMeMaybe { to, candidates });
    }

    /// Asks for a new channel at a relay that lost the old one.
    pub(super) fn reopen_relay(&mut self, node: usize, relay: RelayId) {
        self.nodes[node].relays.remove(&relay);
        self.tell_relays(node);
        if self.is_coordinators(relay) {
            self.request(node, Request::RelayOpen(relay));
        } else {
            self.open_alone_soon(node, relay, Duration::ZERO);
        }
    }

    /// Tells an engine what its host's interfaces are.
    pub(super) fn set_host_candidates(&mut self, node: usize) {
        let host = self.nodes[node].host;
        let place = self.net.place(host).map(|(_, ip)| ip);
        let addresses = place.into_iter().chain(self.net.address_v6(host));
        let candidates = self.nodes[node].host_candidates(addresses);
        self.command(node, Command::SetCandidates(candidates));
    }

    /// Tells an engine about a peer.
    pub(super) fn tell_state(&mut self, node: usize, state: PeerState) {
        let PeerState { id, online, candidates, relays, home, observed } = state;
        self.command(node, Command::PeerState { id, online, candidates, relays, home, observed });
    }

    pub(super) fn handle_control(&mut self, message: Message) {
        match message {
            Message::Dial { node, connection } if self.is_current(node, connection) => self.dial(node),
            Message::Connected { node, connection } if self.is_current(node, connection) => {
                self.connect(node)
            }
            Message::Request { node, connection, request } if self.is_current(node, connection) => {
                self.handle_request(node, request);
            }
            Message::News { node, connection, news } if self.is_current(node, connection) => {
                self.handle_news(node, news);
            }
            Message::OpenRelay { node, connection, relay } if self.is_current(node, connection) => {
                self.request(node, Request::RelayOpen(relay));
            }
            Message::OpenAlone { node, life, relay } if self.is_alive(node, life) => {
                self.open_alone(node, relay)
            }
            Message::Opened { node, life, config } if self.is_alive(node, life) => {
                self.take_relay(node, config)
            }
            Message::Dial { .. }
            | Message::Connected { .. }
            | Message::Request { .. }
            | Message::News { .. }
            | Message::OpenRelay { .. }
            | Message::OpenAlone { .. }
            | Message::Opened { .. } => {}
        }
    }

    fn is_current(&self, node: usize, connection: u64) -> bool {
        self.nodes[node].control.connection == connection && self.nodes[node].engine.is_some()
    }

    fn dial(&mut self, node: usize) {
        let connection = self.nodes[node].control.connection;
        if self.reaches_coordinator(node) {
            // Two round trips: transport and handshake, then the first message.
            let at = self.now + 4 * self.latency(node);
            self.queue.push(at, Event::Control(Message::Connected { node, connection }));
        } else {
            let backoff = self.nodes[node].control.backoff.clamp(FIRST_BACKOFF, MAX_BACKOFF);
            self.nodes[node].control.backoff = 2 * backoff;
            let wait = self.rng.duration(backoff / 2..backoff);
            self.dial_soon(node, wait);
        }
    }

    fn connect(&mut self, node: usize) {
        if !self.reaches_coordinator(node) {
            return self.dial_soon(node, FIRST_BACKOFF);
        }
        self.note(format!("node {node} is connected to the coordinator"));
        self.nodes[node].control.connected = true;
        let id = self.nodes[node].id;
        let states = self.coordinator.states_for(id);
        self.tell(node, News::PeerStates(states));
        self.coordinator.set_observed(id, self.net.outside_of(self.nodes[node].host));
        let state = self.coordinator.set_online(id, true);
        self.tell_others(node, &state);
        self.publish_state(node);
        let relay = self.relays[0].id;
        if !self.nodes[node].relays.contains_key(&relay) {
            self.request(node, Request::RelayOpen(relay));
        }
    }

    fn publish_state(&mut self, node: usize) {
        let candidates = self.nodes[node].candidates.clone();
        let own = self.nodes[node].lends.then_some(RelayId(self.nodes[node].id.0));
        let relays = self.nodes[node].relays.keys().copied().chain(own).collect();
        let home = self.nodes[node].home;
        self.request(node, Request::Candidates { candidates, relays, home });
    }

    fn request(&mut self, node: usize, request: Request) {
        if self.nodes[node].control.connected {
            let (at, connection) = (self.now + self.latency(node), self.nodes[node].control.connection);
            self.queue.push(at, Event::Control(Message::Request { node, connection, request }));
        }
    }

    fn tell(&mut self, node: usize, news: News) {
        if self.nodes[node].control.connected {
            let (at, connection) = (self.now + self.latency(node), self.nodes[node].control.connection);
            self.queue.push(at, Event::Control(Message::News { node, connection, news }));
        }
    }

    fn tell_others(&mut self, about: usize, state: &PeerState) {
        for node in (0..self.nodes.len()).filter(|node| *node != about) {
            self.tell(node, News::PeerStates(vec![state.clone()]));
        }
    }

    fn handle_request(&mut self, node: usize, request: Request) {
        let id = self.nodes[node].id;
        match request {
            Request::Candidates { candidates, relays, home } => {
                let state = self.coordinator.set_candidates(id, candidates, relays, home);
                self.tell_others(node, &state);
            }
            Request::CallMeMaybe { to, candidates } => {
                if let Some(to) = self.nodes.iter().position(|node| node.id == to) {
                    self.tell(to, News::CallMeMaybe { from: id, candidates });
                }
            }
            Request::RelayOpen(relay) => self.open_relay(node, relay),
        }
    }

    fn open_relay(&mut self, node: usize, relay: RelayId) {
        let index = self.relays.iter().position(|known| known.id == relay).expect("a relay of this world");
        if !self.relays[index].up || !self.reaches(node, self.relays[index].host) {
            let connection = self.nodes[node].control.connection;
            let again = Message::OpenRelay { node, connection, relay };
            return self.queue.push(self.now + RELAY_RETRY, Event::Control(again));
        }
        let (channel, key) = self.relays[index].open(self.nodes[node].id);
        let carrier = self.carrier(node, index);
        let bind_lifetime = BIND_LIFETIME;
        self.tell(node, News::RelayOpened(RelayConfig { id: relay, carrier, channel, key, bind_lifetime }));
    }

    fn handle_news(&mut self, node: usize, news: News) {
        match news {
            News::PeerStates(states) => {
                for state in states {
                    self.nodes[node].disk.apply(&state);
                    self.nodes[node].states.insert(state.id, state.clone());
                    self.tell_state(node, state);
                }
            }
            News::CallMeMaybe { from, candidates } => {
                self.command(node, Command::CallMeMaybe { from, candidates });
            }
            News::RelayOpened(config) => self.take_relay(node, config),
        }
    }

    /// Opens a node's channels at the relays that stand alone: it asks each itself, with or without the coordinator.
    pub(super) fn open_relays_alone(&mut self, node: usize) {
        for index in 1..self.relays.len() {
            self.open_alone_soon(node, self.relays[index].id, Duration::ZERO);
        }
    }

    fn open_alone_soon(&mut self, node: usize, relay: RelayId, wait: Duration) {
        let life = self.nodes[node].life;
        self.queue.push(self.now + wait, Event::Control(Message::OpenAlone { node, life, relay }));
    }

    fn open_alone(&mut self, node: usize, relay: RelayId) {
        if self.nodes[node].relays.contains_key(&relay) {
            return;
        }
        let index = self.relay_index(relay);
        if !self.relays[index].up || !self.reaches(node, self.relays[index].host) {
            return self.open_alone_soon(node, relay, RELAY_RETRY);
        }
        let (channel, key) = self.relays[index].open(self.nodes[node].id);
        let carrier = self.carrier(node, index);
        let config = RelayConfig { id: relay, carrier, channel, key, bind_lifetime: BIND_LIFETIME };
        let (at, life) = (self.now + 4 * self.latency(node), self.nodes[node].life);
        self.queue.push(at, Event::Control(Message::Opened { node, life, config }));
    }

    fn take_relay(&mut self, node: usize, config: RelayConfig) {
        self.nodes[node].relays.insert(config.id, config);
        self.tell_relays(node);
        self.publish_state(node);
    }

    fn is_coordinators(&self, relay: RelayId) -> bool {
        self.relays.first().is_some_and(|first| first.id == relay)
    }

    fn is_alive(&self, node: usize, life: u64) -> bool {
        self.nodes[node].life == life && self.nodes[node].engine.is_some()
    }

    pub(super) fn tell_relays(&mut self, node: usize) {
        let relays = self.nodes[node].relays.values().cloned().collect();
        self.command(node, Command::SetRelays(relays));
    }

    /// One-way delay between a node and the coordinator.
    fn latency(&self, node: usize) -> Duration {
        let delay =
            |host| self.net.uplink_of(host).map_or(Duration::ZERO, |up| self.net.link_profile(up).delay);
        delay(self.nodes[node].host) + delay(self.coordinator.host)
    }
}
