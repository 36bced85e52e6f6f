//! What this node looks like from outside: its reflexive addresses and the kind of NAT before it.
//!
//! Observers are asked by STUN (RFC 8489) from the engine's own socket, so that what they see is what peers see.
//! A relay's Bound and a peer's Pong are observations, too. Every mapping counts until the same observer sees
//! another one or the network changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_proto::{
    candidate::{Candidate, CandidateKind, MAX_CANDIDATES},
    status::{FamilyState, Mapping},
    stun::{Message, TransactionId},
};
use rand_core::RngCore;

pub(crate) mod lifetime;
mod mapping;

pub use mapping::mapping_of;

use self::lifetime::Lifetime;
use crate::path::{guess::is_public, is_probable};

/// Most observers that are asked.
const MAX_OBSERVERS: usize = 8;
/// Most observations that are kept: observers, relays and peers.
const MAX_OBSERVATIONS: usize = 32;
/// Most reflexive candidates: beyond a handful, a NAT gives every observer another one, and none is of use.
const MAX_REFLEXIVE: usize = 4;
/// Waits between the requests of one round; after the last one, the observer does not answer.
const RETRY_WAITS: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(1000),
];
/// While a peer is active, observers are asked this often at least and at most: just below the 30 s after which
/// common NATs forget a mapping, scattered so that nodes don't ask in step (Tailscale's values).
pub(crate) const ACTIVE_INTERVAL: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(26));
/// While none is, the relay's Binds keep the mapping; this only notices a new NAT that nobody told of.
const IDLE_INTERVAL: Duration = Duration::from_secs(300);

/// Least time between two rounds, however often peers see this node somewhere else.
const ROUND_GAP: Duration = Duration::from_secs(2);

/// The state of address discovery.
#[derive(Debug, Clone, Default)]
pub(crate) struct NetCheck {
    observers: BTreeMap<SocketAddr, Query>,
    observations: BTreeMap<SocketAddr, Observation>,
    local: Vec<Candidate>,
    reported: Vec<Candidate>,
    /// Whether something was seen since `reported` that may change it. Working candidates out is dear, and most
    /// answers say what the ones before them said.
    changed: bool,
    /// Whether something was seen that other shards do not know yet.
    news: bool,
    next_round: Option<Instant>,
    last_round: Option<Instant>,
    pub(crate) lifetime: Lifetime,
}

#[derive(Debug, Clone, Default)]
struct Query {
    transaction: TransactionId,
    sent: usize,
    next: Option<Instant>,
    answered: bool,
    /// Whether the last round that has ended did so without an answer.
    silent: bool,
}

#[derive(Debug, Clone, Copy)]
struct Observation {
    mapped: SocketAddr,
    at: Instant,
    observer: Observer,
}

/// Who saw this node's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Observer {
    /// A STUN server or a relay.
    Dedicated,
    /// A peer: where it saw this node, another one may not, unless others agree.
    Peer,
    /// A peer that has sent first, or may have: it sees what it has sent to, which says that this node is reached there,
    /// and nothing of what its NAT does.
    Caller,
}

impl NetCheck {
    /// These are the observers, all of them; a new one is asked at once.
    pub(crate) fn set_observers(&mut self, observers: &[SocketAddr], now: Instant) {
        let before = std::mem::take(&mut self.observers);
        let mut before = before;
        for address in observers.iter().take(MAX_OBSERVERS) {
            let query =
                before.remove(address).unwrap_or_else(|| Query { next: Some(now), ..Query::default() });
            self.observers.insert(*address, query);
        }
        for gone in before.keys() {
            self.changed |= self.observations.remove(gone).is_some();
        }
        self.news = true;
    }

    /// Returns the observers.
    pub(crate) fn observers(&self) -> impl Iterator<Item = SocketAddr> {
        self.observers.keys().copied()
    }

    /// These are this node's own candidates, without reflexive ones.
    pub(crate) fn set_local(&mut self, candidates: Vec<Candidate>) {
        self.local = candidates;
        self.changed = true;
    }

    /// Everything that was seen is old: asks again.
    pub(crate) fn on_network_changed(&mut self, now: Instant) {
        self.observations.clear();
        self.changed = true;
        self.lifetime.begin_anew(now);
        self.observers.values_mut().for_each(|query| query.silent = false);
        self.start_round(now);
    }

    /// UDP may be blocked, or let through again: asks again; what was seen stays until it is disproved.
    pub(crate) fn on_carrier_changed(&mut self, now: Instant) {
        self.start_round(now);
    }

    /// Peers have become active: what is known must be fresh.
    pub(crate) fn on_active(&mut self, now: Instant) {
        let latest = now + ACTIVE_INTERVAL.1;
        if self.next_round.is_some_and(|at| at > latest) {
            let stale = self
                .observers
                .keys()
                .filter_map(|observer| self.observations.get(observer))
                .all(|seen| now.saturating_duration_since(seen.at) > ACTIVE_INTERVAL.1);
            self.next_round = Some(if stale { now } else { latest });
        }
    }

    /// Someone at `from` saw this node at `mapped`.
    pub(crate) fn on_observed(
        &mut self,
        observer: Observer,
        from: SocketAddr,
        mapped: SocketAddr,
        now: Instant,
    ) {
        if !is_probable(mapped) {
            return;
        }
        // What a caller has opened stays open, however often this node has sent there since.
        let is_called = |before: &Observation| before.observer == Observer::Caller && before.mapped == mapped;
        let observer = match observer {
            Observer::Peer if self.observations.get(&from).is_some_and(is_called) => Observer::Caller,
            Observer::Dedicated | Observer::Peer | Observer::Caller => observer,
        };
        let before = self.observations.insert(from, Observation { mapped, at: now, observer });
        self.changed |= before.is_none_or(|before| before.mapped != mapped || before.observer != observer);
        if observer == Observer::Dedicated && before.is_some_and(|before| before.mapped != mapped) {
            // The mapping has moved: what peers saw, and nobody asks them for again, is as old.
            self.observations.retain(|_, seen| seen.observer == Observer::Dedicated);
        }
        if observer != Observer::Dedicated && before.is_some_and(|before| before.mapped != mapped) {
            // The same peer sees this node elsewhere: perhaps the whole NAT has moved, and nobody tells.
            let soon = self.last_round.map_or(now, |last| now.max(last + ROUND_GAP));
            self.next_round = Some(self.next_round.map_or(soon, |at| at.min(soon)));
        }
        while self.observations.len() > MAX_OBSERVATIONS {
            let observers = &self.observers;
            let expendable = self.observations.iter().filter(|(address, _)| !observers.contains_key(address));
            let Some(oldest) = expendable.min_by_key(|(_, seen)| seen.at).map(|(address, _)| *address) else {
                break;
            };
            self.observations.remove(&oldest);
        }
    }

    /// Takes a STUN response; whether it answered a request of this node's.
    pub(crate) fn handle_stun(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        let Ok(Message::BindingSuccess { transaction, mapped }) = Message::decode(datagram) else {
            return false;
        };
        if self.lifetime.handle_stray(from, datagram, now) {
            return true;
        }
        let Some(query) = self.observers.get_mut(&from) else { return false };
        if query.sent == 0 || query.answered || query.transaction != transaction {
            return false;
        }
        query.answered = true;
        self.news |= std::mem::take(&mut query.silent);
        query.next = None;
        self.on_observed(Observer::Dedicated, from, mapped, now);
        true
    }

    /// Whether observers were asked, often enough, and none has answered.
    pub(crate) fn is_unanswered(&self) -> bool {
        let given_up =
            |query: &Query| !query.answered && query.sent == RETRY_WAITS.len() && query.next.is_none();
        !self.observers.is_empty() && self.observers.values().all(given_up)
    }

    /// Whether observers were asked over IPv4, and none of them answers.
    pub(crate) fn is_ipv4_silent(&self) -> bool {
        self.family(SocketAddr::is_ipv4) == FamilyState::Silent
    }

    /// Whether observers answer over an address family.
    pub(crate) fn family(&self, is_of: impl Fn(&SocketAddr) -> bool) -> FamilyState {
        let mut asked = self.observers.iter().filter(|(observer, _)| is_of(observer)).peekable();
        if asked.peek().is_none() {
            return FamilyState::Unknown;
        }
        let mut is_silent = true;
        for (observer, query) in asked {
            if query.answered || (self.observations.contains_key(observer) && !query.silent) {
                return FamilyState::Works;
            }
            is_silent &= query.silent;
        }
        if is_silent { FamilyState::Silent } else { FamilyState::Unknown }
    }

    /// Whether there is nobody to ask.
    pub(crate) fn has_no_observers(&self) -> bool {
        self.observers.is_empty()
    }

    /// Returns when [`NetCheck::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let queries = self.observers.values().filter_map(|query| query.next);
        queries.chain(self.next_round).chain(self.lifetime.poll_timeout()).min()
    }

    /// Sends the requests that are due. `active` tells whether there is traffic with a peer.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        active: bool,
        rng: &mut impl RngCore,
        mut send: impl FnMut(SocketAddr, Vec<u8>),
    ) {
        if self.next_round.is_some_and(|at| at <= now) {
            self.start_round(now);
        }
        for (address, query) in &mut self.observers {
            if query.next.is_none_or(|at| at > now) {
                continue;
            }
            let Some(wait) = RETRY_WAITS.get(query.sent) else {
                query.next = None;
                let is_new = !std::mem::replace(&mut query.silent, true);
                self.news |= is_new;
                self.changed |= is_new;
                continue;
            };
            if query.sent == 0 {
                rng.fill_bytes(&mut query.transaction);
            }
            query.sent += 1;
            query.next = Some(now + *wait);
            send(*address, Message::BindingRequest { transaction: query.transaction }.encode());
        }
        if self.next_round.is_none() && !self.observers.is_empty() {
            let (least, most) = ACTIVE_INTERVAL;
            let interval = if active {
                least + (most - least).mul_f64(f64::from(rng.next_u32()) / f64::from(u32::MAX))
            } else {
                IDLE_INTERVAL
            };
            self.next_round = Some(now + interval);
        }
    }

    /// Returns this node's candidates: local ones and reflexive ones.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        // Two peers behind one address agree also where the mapping depends on the address.
        let agreeing = |mapped| {
            let observers = self.observations.iter().filter(|(_, other)| other.mapped == mapped);
            observers.map(|(observer, _)| observer.ip()).collect::<BTreeSet<_>>().len()
        };
        let is_seen = self.is_seen_from_outside();
        let mut seen: Vec<_> = self
            .observations
            .values()
            .map(|seen| (seen.observer != Observer::Dedicated, agreeing(seen.mapped), seen.mapped))
            .filter(|(by_peer, agreeing, _)| !by_peer || !is_seen || *agreeing > 1)
            .collect();
        // In an order that does not change with every answer; what is asked for regularly comes first.
        seen.sort_by_key(|(by_peer, agreeing, mapped)| (*by_peer, std::cmp::Reverse(*agreeing), *mapped));
        let mut reflexive: Vec<SocketAddr> = Vec::new();
        for (.., mapped) in seen {
            let known =
                self.local.iter().any(|own| own.address == mapped && own.kind != CandidateKind::Guess);
            if !known && !reflexive.contains(&mapped) {
                reflexive.push(mapped);
            }
        }
        reflexive.truncate(MAX_REFLEXIVE);
        let reflexive =
            reflexive.into_iter().map(|address| Candidate { address, kind: CandidateKind::Reflexive });
        let own = self.local.iter().copied().chain(self.forwarded());
        let mut candidates: Vec<_> = own.chain(reflexive).collect();
        candidates.sort_by_key(|candidate| (candidate.kind, candidate.address));
        // A guess that an observer has confirmed is no guess.
        candidates.sort_by_key(|candidate| candidate.address);
        candidates.dedup_by_key(|candidate| candidate.address);
        candidates.sort_by_key(|candidate| (candidate.kind, candidate.address));
        candidates.truncate(MAX_CANDIDATES);
        candidates
    }

    /// Whether a server that answers sees this node where its NAT puts it. Otherwise, as beside a coordinator whose other
    /// relays are dead, what a single peer sees is all there is, and better than what was seen once.
    fn is_seen_from_outside(&self) -> bool {
        let is_own = |mapped| self.local.iter().any(|own| own.address == mapped);
        self.observations.iter().any(|(from, seen)| {
            let is_silent = self.observers.get(from).is_some_and(|query| query.silent);
            seen.observer == Observer::Dedicated && !is_silent && !is_own(seen.mapped)
        })
    }

    /// Where this node is reached if its router forwards its port to it: behind a NAT that gives every destination another
    /// port, no observer sees that. Probing decides (after Tailscale's `EndpointSTUN4LocalPort`).
    fn forwarded(&self) -> Option<Candidate> {
        let varies = match self.mapping() {
            Mapping::Adm | Mapping::Apdm | Mapping::Unknown => true,
            Mapping::Eim | Mapping::None => false,
        };
        let outside = self.mapped_v4().filter(|mapped| varies && is_public(mapped.ip()))?;
        let is_v4_host = |own: &&Candidate| own.kind == CandidateKind::Host && own.address.is_ipv4();
        let port = self.local.iter().find(is_v4_host)?.address.port();
        let address = SocketAddr::new(outside.ip(), port);
        let is_known = self.observations.values().any(|seen| seen.mapped == address);
        (!is_known).then_some(Candidate { address, kind: CandidateKind::Guess })
    }

    /// Returns the candidates if they are not what was returned the last time.
    pub(crate) fn take_changed(&mut self) -> Option<Vec<Candidate>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.news = true;
        let candidates = self.candidates();
        if candidates == self.reported {
            return None;
        }
        self.reported.clone_from(&candidates);
        Some(candidates)
    }

    /// Whether something was seen, since this was asked the last time, that other shards do not know yet.
    pub(crate) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// Returns a copy for another shard: it knows the same, and never asks by itself.
    pub(crate) fn mirror(&self) -> Self {
        let lifetime = self.lifetime.mirror();
        let mut copy = Self { next_round: None, changed: false, news: false, lifetime, ..self.clone() };
        copy.observers.values_mut().for_each(|query| query.next = None);
        copy
    }

    /// Whether it is known that `observer` at `from` sees this node at `mapped`.
    pub(crate) fn knows(&self, observer: Observer, from: SocketAddr, mapped: SocketAddr) -> bool {
        let is_known = |seen: &Observation| {
            seen.mapped == mapped && [observer, Observer::Caller].contains(&seen.observer)
        };
        self.observations.get(&from).is_some_and(is_known)
    }

    /// Returns an observer that answers over IPv4.
    pub(crate) fn observer_v4(&self) -> Option<SocketAddr> {
        let is_fit = |(observer, query): &(&SocketAddr, &Query)| {
            observer.is_ipv4() && (query.answered || self.observations.contains_key(observer))
        };
        self.observers.iter().find(is_fit).map(|(observer, _)| *observer)
    }

    /// Whether `from` sees this node's socket elsewhere than before.
    pub(crate) fn has_moved(&self, from: SocketAddr, mapped: SocketAddr) -> bool {
        self.observations.get(&from).is_some_and(|seen| seen.mapped != mapped)
    }

    /// Chooses whom to ask for how long mappings live: an observer that answers over IPv4, outside if there is one.
    pub(crate) fn choose_lifetime_target(&mut self, now: Instant) {
        let is_fit = |(observer, query): &(&SocketAddr, &Query)| {
            let answers = query.answered || self.observations.contains_key(observer);
            observer.is_ipv4() && answers && !query.silent
        };
        let fit = self.observers.iter().filter(is_fit).map(|(observer, _)| *observer);
        let target = fit.min_by_key(|observer| !is_public(observer.ip()));
        self.lifetime.set_target(target, now);
    }

    /// Returns where this node's IPv4 socket is seen from elsewhere, as far as that is known.
    ///
    /// Beside the coordinator, observers see a private address: then peers know better, or the guess that its name gives.
    pub(crate) fn mapped_v4(&self) -> Option<SocketAddr> {
        let seen = self.observations.values().map(|seen| (seen.observer != Observer::Dedicated, seen.mapped));
        let is_outside =
            |own: &&Candidate| matches!(own.kind, CandidateKind::PortMapped | CandidateKind::Guess);
        let named = self.local.iter().filter(is_outside).map(|own| (true, own.address));
        let v4 = seen.chain(named).filter(|(_, mapped)| mapped.is_ipv4());
        v4.min_by_key(|(is_hearsay, mapped)| (!is_public(mapped.ip()), *is_hearsay)).map(|(_, mapped)| mapped)
    }

    /// Tells the NAT's mapping behaviour from what different observers saw (RFC 4787, section 4.1). IPv4 only,
    /// if there is any: IPv6 is rarely translated.
    pub(crate) fn mapping(&self) -> Mapping {
        let all = self.observations.iter().map(|(by, seen)| (*by, seen.mapped, seen.observer));
        let (v4, v6): (Vec<_>, Vec<_>) = all.partition(|(_, mapped, _)| mapped.is_ipv4());
        let is_host = |candidate: &&Candidate| candidate.kind == CandidateKind::Host;
        let is_own =
            |address| self.local.iter().filter(is_host).any(|candidate| candidate.address == address);
        mapping::mapping(if v4.is_empty() { &v6 } else { &v4 }, is_own)
    }

    fn start_round(&mut self, now: Instant) {
        self.next_round = None;
        self.last_round = Some(now);
        for query in self.observers.values_mut() {
            *query = Query { next: Some(now), silent: query.silent, ..Query::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn seen(pairs: &[(&str, &str)]) -> NetCheck {
        let mut check = NetCheck::default();
        check.set_local(vec![Candidate { address: address("10.0.0.5:51820"), kind: CandidateKind::Host }]);
        for (observer, mapped) in pairs {
            check.on_observed(Observer::Dedicated, address(observer), address(mapped), Instant::now());
        }
        check
    }

    #[test]
    fn a_mapping_is_a_candidate_until_its_observer_sees_another() {
        let mut check = seen(&[("192.0.2.1:1", "203.0.113.1:5"), ("192.0.2.2:1", "203.0.113.1:6")]);
        let forwarded = Candidate { address: address("203.0.113.1:51820"), kind: CandidateKind::Guess };
        assert!(check.candidates().contains(&forwarded), "the port varies; a person may have forwarded it");
        assert_eq!(check.take_changed().map(|all| all.len()), Some(4));
        assert_eq!(check.take_changed(), None);
        check.on_observed(
            Observer::Dedicated,
            address("192.0.2.1:1"),
            address("203.0.113.1:6"),
            Instant::now(),
        );
        let addresses: Vec<_> = check.candidates().iter().map(|candidate| candidate.address).collect();
        assert_eq!(addresses, [address("10.0.0.5:51820"), address("203.0.113.1:6")]);
        assert_eq!(check.take_changed().map(|all| all.len()), Some(2));
        check.set_local(Vec::new());
        assert_eq!(check.take_changed().map(|all| all.len()), Some(1));
        check.on_network_changed(Instant::now());
        assert_eq!(check.take_changed().map(|all| all.len()), Some(0));
    }

    #[test]
    fn a_peer_that_has_sent_first_confirms_a_candidate_but_no_mapping() {
        let mut check = seen(&[("192.0.2.1:1", "203.0.113.1:5")]);
        let (peer, mapped) = (address("192.0.2.2:1"), address("203.0.113.1:5"));
        check.on_observed(Observer::Caller, peer, mapped, Instant::now());
        assert_eq!(check.mapping(), Mapping::Unknown);
        check.on_observed(Observer::Peer, peer, mapped, Instant::now());
        assert_eq!(check.mapping(), Mapping::Unknown, "what the peer has opened is still open");
        assert!(check.knows(Observer::Peer, peer, mapped));
        check.on_observed(Observer::Peer, address("192.0.2.3:1"), mapped, Instant::now());
        assert_eq!(check.mapping(), Mapping::Eim);
        assert!(check.candidates().iter().any(|candidate| candidate.address == mapped));
    }

    #[test]
    fn a_single_peer_is_believed_only_while_no_server_sees_this_node_from_outside() {
        let now = Instant::now();
        let mut rng = ChaCha8Rng::from_seed([1; 32]);
        let (server, peer) = (address("192.0.2.1:1"), address("192.0.2.7:1"));
        let (before, after) = (address("203.0.113.1:5"), address("203.0.113.2:5"));
        let mut check = NetCheck::default();
        // One server stands beside this node, as the coordinator on the same host does.
        check.set_observers(&[server, address("10.0.0.9:1")], now);
        check.on_observed(Observer::Dedicated, address("10.0.0.9:1"), address("10.0.0.5:51820"), now);
        check.set_local(vec![Candidate { address: address("10.0.0.5:51820"), kind: CandidateKind::Host }]);
        check.on_observed(Observer::Dedicated, server, before, now);
        check.on_observed(Observer::Peer, peer, before, now);
        let sees = |check: &NetCheck, mapped| check.candidates().iter().any(|own| own.address == mapped);
        check.handle_timeout(now, true, &mut rng, |_, _| ());
        check.start_round(now);

        let moved = now + Duration::from_secs(5);
        check.on_observed(Observer::Peer, peer, after, moved);
        assert!(!sees(&check, after), "the server has not been asked yet");
        assert_eq!(check.poll_timeout(), Some(now), "the round that runs goes on");
        let mut at = moved;
        for _ in 0..=RETRY_WAITS.len() {
            check.handle_timeout(at, true, &mut rng, |_, _| ());
            check.take_changed();
            at += RETRY_WAITS[RETRY_WAITS.len() - 1];
        }
        assert!(sees(&check, after), "no server answers, and a peer has seen it");
        check.on_observed(Observer::Dedicated, server, before, at);
        let answers = check.observers.get_mut(&server).unwrap();
        answers.silent = false;
        assert!(!sees(&check, after), "the server knows better");
    }

    #[test]
    fn servers_are_asked_at_once_but_not_for_ever_when_a_peer_sees_another_address() {
        let start = Instant::now();
        let mut rng = ChaCha8Rng::from_seed([1; 32]);
        let mut check = NetCheck::default();
        check.set_observers(&[address("192.0.2.1:1")], start);
        let mut sent = 0;
        // A peer that sees another port ten times a second makes no storm.
        for number in 0..600_u16 {
            let now = start + Duration::from_millis(100) * u32::from(number);
            let mapped = SocketAddr::new(address("203.0.113.1:0").ip(), 1000 + number);
            check.on_observed(Observer::Peer, address("192.0.2.7:1"), mapped, now);
            check.handle_timeout(now, true, &mut rng, |_, _| sent += 1);
        }
        assert!((60..=31 * RETRY_WAITS.len()).contains(&sent), "{sent} requests in a minute");
    }

    #[test]
    fn an_observer_is_asked_again_until_it_answers_and_forgeries_are_ignored() {
        let now = Instant::now();
        let mut rng = ChaCha8Rng::from_seed([1; 32]);
        let mut check = NetCheck::default();
        let observer = address("192.0.2.1:1");
        check.set_observers(&[observer], now);
        let mut requests = Vec::new();
        check.handle_timeout(now, false, &mut rng, |to, bytes| requests.push((to, bytes)));
        check.handle_timeout(now + RETRY_WAITS[0], false, &mut rng, |to, bytes| requests.push((to, bytes)));
        assert_eq!(requests.len(), 2);
        assert_eq!(requests[0], requests[1]);
        let Ok(Message::BindingRequest { transaction }) = Message::decode(&requests[0].1) else { panic!() };
        let mapped = address("203.0.113.1:5");
        let forged = Message::BindingSuccess { transaction: [0; 12], mapped }.encode();
        assert!(!check.handle_stun(observer, &forged, now));
        let answer = Message::BindingSuccess { transaction, mapped }.encode();
        assert!(!check.handle_stun(address("192.0.2.9:1"), &answer, now));
        assert!(check.handle_stun(observer, &answer, now));
        assert!(!check.handle_stun(observer, &answer, now));
        assert_eq!(check.poll_timeout(), Some(now + IDLE_INTERVAL));
    }

    #[test]
    fn silent_observers_cost_a_handful_of_datagrams_per_round() {
        let start = Instant::now();
        let mut rng = ChaCha8Rng::from_seed([1; 32]);
        let mut check = NetCheck::default();
        check.set_observers(&[address("192.0.2.1:1"), address("192.0.2.2:1")], start);
        let mut sent = 0;
        while let Some(at) = check.poll_timeout().filter(|at| *at < start + Duration::from_secs(3600)) {
            check.handle_timeout(at, false, &mut rng, |_, _| sent += 1);
        }
        assert_eq!(sent, 12 * 2 * RETRY_WAITS.len());
    }
}
