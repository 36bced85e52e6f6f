//! What waits to be said to the coordinator, and to the tasks of this module.
//!
//! Only the latest state is kept: candidates replace candidates, a call to a peer replaces the one before. So
//! the outbox is bounded by the number of peers and relays however long the coordinator is away. What was
//! said last on a connection may never have arrived, so everything that still matters is said again on the
//! next one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_proto::{
    candidate::{Candidate, MAX_CANDIDATES},
    control::{ClientMessage, Knock},
    netmap::{NodeId, RelayId},
    route::RouteOffer,
};

/// Peers with a call waiting; a call beyond is dropped, the engine asks again.
const MAX_CALLS: usize = 256;
/// An older call is not sent (again): what it says of the network may be wrong by now.
const CALL_TTL: Duration = Duration::from_secs(10);
/// Knocks that wait to be asked for: those of one check of the network.
const MAX_KNOCKS: usize = 8;
/// Peers whose last good address waits to be written.
const MAX_WORKED: usize = 1024;

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    candidates: Vec<Candidate>,
    /// The relays at which a channel is open, and where they are over UDP.
    relays: BTreeMap<RelayId, Option<SocketAddr>>,
    /// The nearest of them.
    home: Option<RelayId>,
    /// Whether the coordinator has to hear of candidates and relays.
    unsent: bool,
    /// The routes that this node offers, once that is known.
    routes: Option<Vec<RouteOffer>>,
    /// Whether the coordinator has to hear of them: at each connection, also that there are none (any more).
    routes_unsent: bool,
    calls: BTreeMap<NodeId, Call>,
    knocks: VecDeque<Knock>,
    reopen: BTreeSet<RelayId>,
    network_changed: bool,
    unanswered: bool,
    /// For how long the host was away.
    woke: Option<Duration>,
    worked: BTreeMap<NodeId, SocketAddr>,
}

/// A call to a peer.
#[derive(Debug)]
struct Call {
    since: Instant,
    candidates: Vec<Candidate>,
    /// Whether the connection that is up now has taken it.
    said: bool,
}

impl Outbox {
    /// Replaces this node's candidates.
    pub(super) fn set_candidates(&mut self, mut candidates: Vec<Candidate>) {
        candidates.truncate(MAX_CANDIDATES);
        if self.candidates != candidates {
            self.candidates = candidates;
            self.unsent = true;
        }
    }

    /// Says where a relay is at which a channel is open now.
    pub(super) fn set_relay(&mut self, relay: RelayId, address: SocketAddr) {
        self.unsent |= self.relays.insert(relay, Some(address)).is_none();
    }

    /// Says that a channel is open at a relay that is reached in a byte pipe.
    pub(super) fn set_pipe_relay(&mut self, relay: RelayId) {
        self.unsent |= self.relays.insert(relay, None).is_none();
    }

    /// Says that there is no channel at a relay any more.
    pub(super) fn remove_relay(&mut self, relay: RelayId) {
        self.unsent |= self.relays.remove(&relay).is_some();
    }

    /// Says which relay is the nearest.
    pub(super) fn set_home(&mut self, home: Option<RelayId>) {
        self.unsent |= self.home != home;
        self.home = home;
    }

    /// Replaces the routes that this node offers.
    pub(super) fn set_routes(&mut self, routes: Vec<RouteOffer>) {
        let routes = Some(routes);
        self.routes_unsent |= self.routes != routes;
        self.routes = routes;
    }

    /// Adds a call to a peer.
    pub(super) fn call_me_maybe(&mut self, to: NodeId, mut candidates: Vec<Candidate>, now: Instant) {
        candidates.truncate(MAX_CANDIDATES);
        self.calls.retain(|_, call| call.is_fresh(now));
        if self.calls.len() >= MAX_CALLS && !self.calls.contains_key(&to) {
            self.calls.retain(|_, call| !call.said);
        }
        if self.calls.len() < MAX_CALLS || self.calls.contains_key(&to) {
            self.calls.insert(to, Call { since: now, candidates, said: false });
        }
    }

    /// Asks for knocks, on the connection that is up now.
    pub(super) fn knock(&mut self, knock: Knock) {
        if self.knocks.len() < MAX_KNOCKS {
            self.knocks.push_back(knock);
        }
    }

    /// Asks for a new channel at a relay.
    pub(super) fn reopen_relay(&mut self, relay: RelayId) {
        self.reopen.insert(relay);
    }

    /// Says that the host's network is another one.
    pub(super) fn network_changed(&mut self) {
        self.network_changed = true;
    }

    /// Says that what this host sends gets no answers.
    pub(super) fn unanswered(&mut self) {
        self.unanswered = true;
    }

    /// Says that the host has slept.
    pub(super) fn woke(&mut self, away: Duration) {
        self.woke = Some(self.woke.unwrap_or_default() + away);
    }

    /// Says where a peer answered.
    pub(super) fn path_worked(&mut self, peer: NodeId, address: SocketAddr) {
        if self.worked.len() < MAX_WORKED || self.worked.contains_key(&peer) {
            self.worked.insert(peer, address);
        }
    }

    /// Starts over with a new connection: it has not heard anything yet.
    pub(super) fn handle_connected(&mut self) {
        self.unsent = !(self.candidates.is_empty() && self.relays.is_empty());
        self.routes_unsent = self.routes.is_some();
        for call in self.calls.values_mut() {
            call.said = false;
        }
        // Whoever asked has given up, or asks again.
        self.knocks.clear();
    }

    /// Returns the next message to the coordinator.
    pub(super) fn poll_message(&mut self, now: Instant) -> Option<ClientMessage> {
        if mem::take(&mut self.unsent) {
            let candidates = self.candidates.clone();
            let relays = self.relays.keys().copied().collect();
            let home = self.home.filter(|home| self.relays.contains_key(home));
            return Some(ClientMessage::Candidates { candidates, relays, home });
        }
        if let Some(routes) = self.routes.as_ref().filter(|_| self.routes_unsent) {
            self.routes_unsent = false;
            return Some(ClientMessage::Advertise { routes: routes.clone() });
        }
        if let Some(knock) = self.knocks.pop_front() {
            return Some(ClientMessage::Knock(knock));
        }
        self.calls.retain(|_, call| call.is_fresh(now));
        let (to, call) = self.calls.iter_mut().find(|(_, call)| !call.said)?;
        call.said = true;
        Some(ClientMessage::CallMeMaybe { to: *to, candidates: call.candidates.clone() })
    }

    /// Returns where the relays are at which a channel is open and that are reached over UDP.
    pub(super) fn relay_addresses(&self) -> Vec<SocketAddr> {
        self.relays.values().copied().flatten().collect()
    }

    /// Takes the relays at which a new channel is to be opened.
    pub(super) fn take_reopened(&mut self) -> BTreeSet<RelayId> {
        mem::take(&mut self.reopen)
    }

    /// Takes whether the network changed.
    pub(super) fn take_network_changed(&mut self) -> bool {
        mem::take(&mut self.network_changed)
    }

    /// Takes whether what this host sends gets no answers.
    pub(super) fn take_unanswered(&mut self) -> bool {
        mem::take(&mut self.unanswered)
    }

    /// Takes for how long the host has slept.
    pub(super) fn take_woke(&mut self) -> Option<Duration> {
        self.woke.take()
    }

    /// Takes where peers answered.
    pub(super) fn take_worked(&mut self) -> BTreeMap<NodeId, SocketAddr> {
        mem::take(&mut self.worked)
    }
}

impl Call {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < CALL_TTL
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::{candidate::CandidateKind, route::RouteKind};

    use super::*;

    fn candidates(port: u16) -> Vec<Candidate> {
        vec![Candidate { address: ([192, 0, 2, 1], port).into(), kind: CandidateKind::Host }]
    }

    fn drain(outbox: &mut Outbox, now: Instant) -> Vec<ClientMessage> {
        std::iter::from_fn(|| outbox.poll_message(now)).collect()
    }

    #[test]
    fn only_the_latest_candidates_are_sent_and_again_after_a_reconnect() {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        outbox.handle_connected();
        assert!(drain(&mut outbox, now).is_empty(), "nothing is known yet");
        outbox.set_candidates(candidates(1));
        outbox.set_candidates(candidates(2));
        outbox.set_relay(RelayId(0), ([192, 0, 2, 9], 7443).into());
        let sent = drain(&mut outbox, now);
        let [ClientMessage::Candidates { candidates: sent, relays, home: None }] = &sent[..] else {
            panic!("{sent:?}")
        };
        assert_eq!((sent, &relays[..]), (&candidates(2), &[RelayId(0)][..]));
        outbox.set_candidates(candidates(2));
        outbox.set_relay(RelayId(0), ([192, 0, 2, 9], 7443).into());
        assert!(drain(&mut outbox, now).is_empty(), "the coordinator knows");
        outbox.handle_connected();
        assert_eq!(drain(&mut outbox, now).len(), 1);
    }

    #[test]
    fn a_home_is_told_while_there_is_a_channel_at_it() {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        let home = |sent: Vec<ClientMessage>| match &sent[..] {
            [ClientMessage::Candidates { home, .. }] => *home,
            _ => panic!("{sent:?}"),
        };
        outbox.set_relay(RelayId(4), ([192, 0, 2, 9], 7443).into());
        outbox.set_home(Some(RelayId(4)));
        assert_eq!(home(drain(&mut outbox, now)), Some(RelayId(4)));
        outbox.set_home(Some(RelayId(4)));
        assert!(drain(&mut outbox, now).is_empty(), "it is known");
        outbox.remove_relay(RelayId(4));
        assert_eq!(home(drain(&mut outbox, now)), None);
        outbox.set_relay(RelayId(4), ([192, 0, 2, 9], 7443).into());
        assert_eq!(home(drain(&mut outbox, now)), Some(RelayId(4)));
    }

    #[test]
    fn routes_are_said_at_each_connect_also_that_there_are_none() {
        let now = Instant::now();
        let offer = RouteOffer { prefix: "192.168.7.0/24".parse().unwrap(), kind: RouteKind::Subnet };
        let said = |outbox: &mut Outbox| match &drain(outbox, now)[..] {
            [] => None,
            [ClientMessage::Advertise { routes }] => Some(routes.clone()),
            other => panic!("{other:?}"),
        };
        let mut outbox = Outbox::default();
        outbox.handle_connected();
        assert_eq!(said(&mut outbox), None, "nothing is known yet");
        outbox.set_routes(vec![offer]);
        assert_eq!(said(&mut outbox), Some(vec![offer]));
        outbox.set_routes(vec![offer]);
        assert_eq!(said(&mut outbox), None);
        outbox.set_routes(vec![]);
        outbox.handle_connected();
        assert_eq!(said(&mut outbox), Some(vec![]), "it may have offered some in an earlier life");
    }

    #[test]
    fn calls_are_replaced_bounded_and_grow_stale() {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        outbox.call_me_maybe(NodeId(1), candidates(1), now);
        outbox.call_me_maybe(NodeId(1), candidates(2), now);
        let sent = drain(&mut outbox, now);
        let [ClientMessage::CallMeMaybe { candidates: sent, .. }] = &sent[..] else { panic!("{sent:?}") };
        assert_eq!(sent, &candidates(2));
        assert!(drain(&mut outbox, now).is_empty());
        outbox.handle_connected();
        assert_eq!(drain(&mut outbox, now).len(), 1, "the old connection may have lost it");
        for id in 0..10_000 {
            outbox.call_me_maybe(NodeId(id), candidates(1), now);
        }
        assert_eq!(drain(&mut outbox, now).len(), MAX_CALLS);
        outbox.call_me_maybe(NodeId(10_001), candidates(1), now);
        assert_eq!(drain(&mut outbox, now).len(), 1, "what was said makes room");
        assert!(drain(&mut outbox, now + CALL_TTL).is_empty());
        assert!(outbox.calls.is_empty());
    }
}
