//! A peer's paths: candidates, probes, CallMeMaybe.

use std::time::{Duration, Instant};

use mesh_proto::{
    candidate::Candidate,
    disco::{Header, Message, TxId},
    netmap::RelayId,
};

use super::{AskedPing, Peer, PeerNews};
use crate::{
    disco::{DiscoKey, PING_PADDING},
    drops::DropReason,
    engine::relay_id,
    event::{Event, PathAddress},
    local::Local,
    netcheck::Observer,
    path::{ACTIVE_WINDOW, Origin, Path, Targets, mtu::padding},
};

/// Least time between CallMeMaybes to a peer: so they don't answer each other for ever.
const CALL_INTERVAL: Duration = Duration::from_secs(5);
/// Least time when there is news to tell.
const NEWS_INTERVAL: Duration = Duration::from_millis(250);
/// A peer that stays relayed is called again while there is traffic: after [`CALL_INTERVAL`], since the first call may
/// have been lost with a relay or a mapping that was gone, then after twice as long, and so on up to this.
const MAX_CALL_AGAIN_INTERVAL: Duration = Duration::from_secs(60);
/// Calls after which the interval between them grows no more.
const MAX_RECALLS: u32 = 4;
/// A CallMeMaybe of the peer's starts a hunt over at most this often.
const CALLED_INTERVAL: Duration = Duration::from_millis(500);
/// A peer that calls after a pause is told this node's news for so long: what is learned of the network now that there is
/// a reason to ask. Its own calls are what it is to be told later.
const CALLED_WINDOW: Duration = CALL_INTERVAL;
/// How long a CallMeMaybe is thought to take where nothing was measured.
const DEFAULT_ONE_WAY: Duration = Duration::from_millis(50);
/// The longest wait for a CallMeMaybe to arrive.
const MAX_ONE_WAY: Duration = Duration::from_millis(300);
/// Most pings asked for by a person that wait for their answers.
const MAX_ASKED_PINGS: usize = 16;

impl Peer {
    /// News from the coordinator.
    pub(crate) fn set_state(&mut self, news: PeerNews, local: &mut Local, now: Instant) {
        let PeerNews { online, candidates, relays, home } = news;
        self.online = online;
        self.relays = relays;
        self.home = home;
        let candidates = local.filter_candidates(&candidates);
        let news = self.paths.set_candidates(&candidates);
        self.update_relays(local, now);
        if news && self.is_active(now) {
            self.paths.hunt_new(now);
        }
        self.retry_unsent(local, now);
        self.judge(local, now);
    }

    /// The peer asks to be probed.
    pub(crate) fn handle_call(&mut self, candidates: &[Candidate], local: &mut Local, now: Instant) {
        let candidates = local.filter_candidates(candidates);
        tracing::trace!(peer = self.config.id.0, candidates = candidates.len(), "called");
        self.paths.add_candidates(&candidates);
        self.paths.on_call(&candidates, now);
        let rested = |at: Instant| now.saturating_duration_since(at) >= CALLED_INTERVAL;
        // The peer sent this one way ago and waits as long before it probes: both sides' first probes meet.
        if self.last_called.is_none_or(rested) {
            self.last_called = Some(now);
            // To be called is no reason to go on for longer, or two nodes that nobody talks to would keep each other at it.
            if !self.is_active(now) {
                self.paths.on_traffic(now);
                self.want(CALLED_WINDOW, now);
                // It may be that the peer gets nothing through, since a mapping is gone that is looked after every few minutes.
                local.check_relays(now);
            }
            self.paths.hunt(now, Duration::ZERO);
        } else {
            self.paths.hunt_new(now);
        }
        local.on_active(now);
        self.call(CALL_INTERVAL, local, now);
        self.retry_unsent(local, now);
        self.judge(local, now);
    }

    /// What leads to an address may be another way now.
    pub(crate) fn look_elsewhere(&mut self, local: &mut Local, now: Instant) {
        let candidates = local.filter_candidates(&self.paths.candidates());
        if self.paths.add_candidates(&candidates) && self.is_active(now) {
            self.paths.hunt_new(now);
        }
    }

    /// This node's candidates have changed.
    pub(crate) fn on_own_candidates_changed(&mut self, local: &mut Local, now: Instant) {
        if self.is_wanted(now) && self.tell_news(local, now) {
            let delay = self.one_way(local);
            self.paths.hunt(now, delay);
        }
    }

    /// Relays have come up or gone down.
    pub(crate) fn update_relays(&mut self, local: &mut Local, now: Instant) {
        let known = !self.relays.is_empty();
        let usable: Vec<_> = local
            .relays
            .iter()
            // A lender does not lead to itself.
            .filter(|(id, relay)| relay.is_up() && **id != relay_id(self.config.id))
            .map(|(id, relay)| (*id, self.relay_origin(*id, relay.is_lent())))
            .filter(|(id, origin)| {
                let answers = |path: &Path| path.standing().is_some() && path.last_heard.is_some();
                let path = self.paths.get(PathAddress::Relay(*id));
                *origin != Origin::OwnRelay || !known || path.is_some_and(answers)
            })
            .collect();
        let had_none = self.paths.best_relay().is_none();
        self.paths.set_relays(&usable);
        if had_none && self.paths.best_relay().is_some() {
            // What was sent until now, if anything, did not go through a relay.
            self.unsent = true;
            if self.is_active(now) {
                self.paths.hunt_new(now);
            }
            if self.is_wanted(now) {
                self.tell_news(local, now);
            }
        } else if self.is_active(now) {
            // A relay that has come (back) may be nearer than the one in use.
            self.paths.hunt_new(now);
        }
        self.retry_unsent(local, now);
        self.judge(local, now);
    }

    /// Tells what is known of a relay as a way to the peer.
    fn relay_origin(&self, relay: RelayId, is_lent: bool) -> Origin {
        if is_lent {
            return Origin::LentRelay;
        }
        match (self.home == Some(relay), self.relays.contains(&relay)) {
            (true, _) => Origin::HomeRelay,
            (false, true) => Origin::ListedRelay,
            (false, false) => Origin::OwnRelay,
        }
    }

    /// The host's network changed: no path is to be trusted.
    pub(crate) fn on_network_changed(&mut self, local: &mut Local, now: Instant) {
        self.paths.suspect_all(now);
        self.forget_punch_failures();
        if self.is_active(now) {
            self.paths.hunt(now, Duration::ZERO);
            // What was said just now was said on the network that is gone.
            self.last_call = None;
            self.tell_news(local, now);
        }
        self.judge(local, now);
    }

    /// Takes a disco message of the peer's, which came on this path.
    pub(crate) fn handle_disco(
        &mut self,
        from: PathAddress,
        header: &Header,
        sealed: &[u8],
        local: &mut Local,
        now: Instant,
    ) {
        let message = match self.disco(local).open(header, sealed) {
            Ok(message) => message,
            Err(reason) => return self.drops.count(reason),
        };
        match message {
            // A Ping shorter than its Pong would make this node an amplifier.
            Message::Ping { padding, .. } if padding < PING_PADDING => {
                self.drops.count(DropReason::MalformedDatagram);
            }
            // Another socket of the same attempt was hit before.
            Message::Ping { .. } if !self.admits_ping(from, now) => {}
            Message::Ping { txid, .. } => {
                let observed = from.remote();
                self.say(&Message::Pong { txid, observed }, from, local);
                self.paths.on_ping(from, now);
                self.note_held(from, local, now);
                self.revive_session(local, now);
                self.send_probes(local, now);
            }
            Message::Pong { txid, observed } => self.handle_pong(from, txid, observed, local, now),
            Message::CallMeMaybe { candidates } => self.handle_call(&candidates, local, now),
            Message::Punch(punch) => self.handle_punch(&punch, from, local, now),
            Message::LendMe(asked) => self.handle_lend_me(asked, from, local, now),
            Message::Lent(lent) => self.handle_lent(&lent, from, local, now),
            Message::PassOn(asked) => self.handle_pass_on(asked, from, local, now),
            Message::Passed(passed) => self.handle_passed(passed, from, local, now),
            Message::Whereabouts(at) => self.handle_whereabouts(&at, None, local, now),
            Message::Pause { session, stays } => {
                self.handle_pause(session, Duration::from_millis(stays.into()), now);
            }
        }
    }

    /// Sends the probes that are due and judges the paths.
    pub(crate) fn handle_paths_timeout(&mut self, local: &mut Local, now: Instant) {
        self.send_probes(local, now);
        self.judge(local, now);
        // Doubt may have called for more.
        self.send_probes(local, now);
        self.handle_punch_timeout(local, now);
        self.handle_passing_timeout(local, now);
        self.handle_hold_timeout(local, now);
        if self.news_at.is_some_and(|at| at <= now) {
            self.news_at = None;
            self.on_own_candidates_changed(local, now);
        }
        let interval = CALL_INTERVAL.saturating_mul(1 << self.recalls).min(MAX_CALL_AGAIN_INTERVAL);
        let is_old = |at: Instant| now.saturating_duration_since(at) >= interval;
        if self.is_wanted(now) && !self.paths.is_direct(now) && self.last_call.is_none_or(is_old) {
            self.call(CALL_INTERVAL, local, now);
            self.recalls = (self.recalls + 1).min(MAX_RECALLS);
            let delay = self.one_way(local);
            self.paths.hunt(now, delay);
        }
    }

    /// Pings on the primary path, for a person, and looks for a better one.
    pub(crate) fn ping(&mut self, token: u64, local: &mut Local, now: Instant) {
        if self.pings.len() >= MAX_ASKED_PINGS {
            self.pings.remove(0);
        }
        self.pings.push(AskedPing { token, txid: None });
        self.note_traffic(local, now);
        self.judge(local, now);
        self.send_asked_pings(local, now);
    }

    /// Looks for a direct path to the peer for a while, as if there were traffic.
    pub(crate) fn look_for(&mut self, local: &mut Local, now: Instant) {
        self.want(ACTIVE_WINDOW, now);
        self.note_activity(local, now);
    }

    /// Notes that something was sent to or came from the peer; after a pause, it is looked for.
    pub(super) fn note_traffic(&mut self, local: &mut Local, now: Instant) {
        self.last_traffic = Some(now);
        self.want(ACTIVE_WINDOW, now);
        self.note_activity(local, now);
    }

    fn note_activity(&mut self, local: &mut Local, now: Instant) {
        if !self.paths.on_traffic(now) {
            return;
        }
        local.on_active(now);
        self.recalls = 0;
        self.call(CALL_INTERVAL, local, now);
        let delay = self.one_way(local);
        self.paths.hunt(now, delay);
        self.send_probes(local, now);
        self.judge(local, now);
    }

    pub(super) fn send_asked_pings(&mut self, local: &mut Local, now: Instant) {
        let first = match self.paths.targets(now) {
            Targets::None => return,
            Targets::One(path) | Targets::Two(path, _) => path,
        };
        for index in 0..self.pings.len() {
            if self.pings[index].txid.is_none() {
                self.pings[index].txid = Some(self.probe(first, local, now));
            }
        }
    }

    fn send_probes(&mut self, local: &mut Local, now: Instant) {
        for path in self.paths.poll_probes(now) {
            if self.paths.is_late(path, now) {
                // It may be only this answer that was lost; if not, it is known by the time of doubt which relays there are.
                local.check_relays(now);
            }
            self.probe(path, local, now);
        }
        let id = self.config.id;
        for probe in self.paths.poll_mtu_probes(|path| local.mtu_bounds(id, path), now) {
            let txid = local.random();
            let ping = Message::Ping { txid, padding: padding(probe.size) };
            if let Some(datagram) = self.seal(&ping, local) {
                local.send_probe(id, probe.path, &datagram);
            }
            self.paths.on_mtu_probe_sent(probe, txid);
        }
    }

    pub(super) fn probe(&mut self, path: PathAddress, local: &mut Local, now: Instant) -> TxId {
        let txid = local.random();
        tracing::trace!(peer = self.config.id.0, ?path, "ping");
        self.say(&Message::Ping { txid, padding: PING_PADDING }, path, local);
        self.paths.on_probe_sent(path, txid, now);
        txid
    }

    fn handle_pong(
        &mut self,
        from: PathAddress,
        txid: TxId,
        observed: Option<std::net::SocketAddr>,
        local: &mut Local,
        now: Instant,
    ) {
        let Some((path, rtt)) = self.paths.on_pong(from, &txid, now) else {
            self.handle_hit(from, &txid, now);
            return self.send_probes(local, now);
        };
        tracing::trace!(peer = self.config.id.0, ?path, ?rtt, "pong");
        if let (PathAddress::Direct(peer), Some(mapped)) = (path, observed) {
            let is_called = self.paths.get(path).is_some_and(|path| path.is_called);
            let observer = if is_called { Observer::Caller } else { Observer::Peer };
            local.on_observed_by_peer(observer, peer, mapped, now);
        }
        self.on_found(local, now);
        if let Some(index) = self.pings.iter().position(|ping| ping.txid == Some(txid)) {
            let AskedPing { token, .. } = self.pings.remove(index);
            local.outbox.push_event(Event::Pong { token, peer: self.config.id, path, rtt });
        }
        self.judge(local, now);
    }

    /// Calls the peer because of news; where that was done just now, it is done again a little later.
    fn tell_news(&mut self, local: &mut Local, now: Instant) -> bool {
        self.recalls = 0;
        self.passed.begin_anew();
        let called = self.call(NEWS_INTERVAL, local, now);
        self.news_at = if called { None } else { self.last_call.map(|at| at + NEWS_INTERVAL) };
        called
    }

    /// Tells the peer this node's candidates, if it has any, by every way there is, unless that was done within
    /// `interval`.
    fn call(&mut self, interval: Duration, local: &mut Local, now: Instant) -> bool {
        if self.last_call.is_some_and(|at| now.saturating_duration_since(at) < interval) {
            return false;
        }
        self.last_call = Some(now);
        let candidates = local.netcheck.candidates();
        if candidates.is_empty() {
            return true;
        }
        // By every relay: the one that was best may be gone, which shows only later.
        let primary = self.paths.primary().map(|path| path.address);
        let is_way =
            |path: &&Path| !path.is_direct() || (Some(path.address) == primary && path.is_trusted(now));
        let ways: Vec<_> = self.paths.iter().filter(is_way).map(|path| path.address).collect();
        tracing::trace!(peer = self.config.id.0, candidates = candidates.len(), ?ways, "calling");
        let message = Message::CallMeMaybe { candidates: candidates.clone() };
        for path in ways {
            self.say(&message, path, local);
        }
        local.outbox.push_event(Event::CallMeMaybe { to: self.config.id, candidates });
        self.plan_passing(now);
        true
    }

    /// Estimates how long a CallMeMaybe takes to the peer.
    fn one_way(&self, local: &Local) -> Duration {
        let relay = self.paths.best_relay();
        let measured = relay.and_then(|path| path.rtt).map(|rtt| rtt / 2);
        // To the relay and from it to the peer, which is taken to be as far from it as this node is.
        let assumed = relay.and_then(|path| match path.address {
            PathAddress::Relay(id) => local.relays.get(&id)?.rtt(),
            PathAddress::Direct(_) | PathAddress::Punched { .. } => None,
        });
        measured.or(assumed).unwrap_or(DEFAULT_ONE_WAY).min(MAX_ONE_WAY)
    }

    pub(crate) fn say(&mut self, message: &Message, path: PathAddress, local: &mut Local) {
        if let Some(datagram) = self.seal(message, local) {
            local.send(self.config.id, path, &datagram);
        }
    }

    pub(super) fn seal(&mut self, message: &Message, local: &mut Local) -> Option<Vec<u8>> {
        self.disco(local);
        let key = self.disco.as_ref()?;
        Some(key.seal(local.keys.public(), message, &mut local.rng))
    }

    pub(super) fn disco(&mut self, local: &Local) -> &DiscoKey {
        let peer = self.config.public_key;
        self.disco.get_or_insert_with(|| DiscoKey::new(&local.keys, &peer))
    }
}
