//! The paths to one peer: which are known, which are probed when, and which is used.
//!
//! ```text
//!            traffic, after none for ACTIVE_WINDOW: hunt
//!   idle  -------------------------------------------------->  active
//!    ^  no probes, no wakeups                                    |  primary probed every second, the others by the hunt
//!    +-----------------------------------------------------------+
//!                    no traffic for ACTIVE_WINDOW
//! ```
//!
//! A *hunt* probes every path that has not answered at [`HUNT_STEPS`] after its start, then once a minute while
//! there is traffic. It starts with traffic, and again with new candidates, a CallMeMaybe, or a change of network.
//!
//! After an idle time the NAT's mapping of a direct path may be gone. The primary path is kept, but it is not
//! *trusted*: packets go on it and through the relay until it answers, see [`PathSet::targets`]. The same holds
//! for a path with traffic that has not answered for [`TRUST`]. If it stays silent and the relay answers, it is
//! given up; the hunt goes on probing it.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_proto::{
    candidate::{Candidate, MAX_CANDIDATES},
    disco::TxId,
    netmap::RelayId,
};

pub(crate) mod guess;
pub(crate) mod select;
mod state;

pub(crate) use state::{Health, Origin, Path, TRUST};
use state::{PROBE_INTERVAL, SUSPECT_GRACE, SUSPECT_LIMIT};

use self::select::{Class, Standing, View, select};
use crate::{event::PathAddress, snapshot::Decision};

/// Without traffic for this long, a peer is idle: below the 30 s after which common NATs forget a mapping, so that
/// one that was in use is still there for the first packets after a pause.
pub(crate) const ACTIVE_WINDOW: Duration = Duration::from_secs(20);

/// When a hunt's probes are sent, from its start. The first repetitions come quickly, since a first probe is often
/// lost to the other side's filter, and the second one passes.
const HUNT_STEPS: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
    Duration::from_millis(5000),
];
/// After its hunt a path is probed this often while there is traffic (Tailscale's upgrade interval).
const HUNT_INTERVAL: Duration = Duration::from_secs(60);
/// A Ping provokes one in return at most this often per path.
const ECHO_INTERVAL: Duration = Duration::from_millis(50);
/// A path on which messages keep coming is looked at again after this long.
const HEARD_INTERVAL: Duration = Duration::from_secs(1);
/// Most peer-reflexive paths: each answers a NAT's mapping towards one of this node's addresses.
const MAX_PEER_REFLEXIVE: usize = 8;
/// Decisions that are remembered.
const MAX_DECISIONS: usize = 16;

/// The paths to one peer.
#[derive(Debug, Default)]
pub(crate) struct PathSet {
    paths: Vec<Path>,
    primary: Option<PathAddress>,
    since: Option<Instant>,
    last_traffic: Option<Instant>,
    decisions: VecDeque<Decision>,
    /// Whether the peer has sent a disco message: if it never has, its silence means nothing.
    speaks_disco: bool,
    /// Where the last authentic WireGuard message came from, if not long ago.
    last_heard: Option<(PathAddress, Instant)>,
}

/// What judging led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The primary path is another one now.
    pub(crate) changed: bool,
    /// A path begins to be doubted.
    pub(crate) suspicion: bool,
}

/// Where a packet is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Targets {
    /// Nowhere.
    None,
    /// On the primary path.
    One(PathAddress),
    /// On the primary path, which may be dead, and on this one.
    Two(PathAddress, PathAddress),
}

impl PathSet {
    /// Returns the primary path.
    pub(crate) fn primary(&self) -> Option<&Path> {
        self.primary.and_then(|address| self.get(address))
    }

    /// Returns since when the primary path is the primary path.
    pub(crate) fn primary_since(&self) -> Option<Instant> {
        self.since
    }

    /// Returns all paths.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Path> {
        self.paths.iter()
    }

    /// Returns the latest decisions, oldest first.
    pub(crate) fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter()
    }

    /// Whether there was traffic lately.
    pub(crate) fn is_active(&self, now: Instant) -> bool {
        self.last_traffic.is_some_and(|at| now.saturating_duration_since(at) < ACTIVE_WINDOW)
    }

    /// Whether the primary path is direct and answers.
    pub(crate) fn is_direct(&self, now: Instant) -> bool {
        self.primary().is_some_and(|path| path.is_direct() && path.is_trusted(now))
    }

    /// These are the peer's candidates, all that are known; they were filtered. Returns whether there are new ones.
    pub(crate) fn set_candidates(&mut self, candidates: &[Candidate]) -> bool {
        let is_listed = |path: &Path| match path.address {
            PathAddress::Direct(address) => candidates.iter().any(|candidate| candidate.address == address),
            PathAddress::Relay(_) => true,
        };
        // What answers or was heard stays, whoever named it.
        self.paths.retain(|path| {
            is_listed(path) || path.origin == Origin::PeerReflexive || path.standing().is_some()
        });
        self.add_candidates(candidates)
    }

    /// These are candidates of the peer's, among others. Returns whether there are new ones.
    pub(crate) fn add_candidates(&mut self, candidates: &[Candidate]) -> bool {
        let mut added = false;
        for candidate in candidates.iter().take(MAX_CANDIDATES) {
            let address = PathAddress::Direct(candidate.address);
            match self.get_mut(address) {
                Some(path) => path.origin = Origin::Candidate(candidate.kind),
                None => {
                    self.paths.push(Path::new(address, Origin::Candidate(candidate.kind)));
                    added = true;
                }
            }
        }
        self.evict(MAX_CANDIDATES, |origin| matches!(origin, Origin::Candidate(_)));
        added
    }

    /// These relays can be used, all of them; `true` where the peer is said to be.
    pub(crate) fn set_relays(&mut self, relays: &[(RelayId, bool)]) {
        self.paths.retain(|path| match path.address {
            PathAddress::Relay(id) => relays.iter().any(|(relay, _)| *relay == id),
            PathAddress::Direct(_) => true,
        });
        for &(id, listed) in relays {
            let origin = if listed { Origin::ListedRelay } else { Origin::OwnRelay };
            match self.get_mut(PathAddress::Relay(id)) {
                Some(path) => path.origin = origin,
                None => self.paths.push(Path::new(PathAddress::Relay(id), origin)),
            }
        }
    }

    /// A Ping of the peer's came on this path: it is probed back at once, unless it answers already or the peer is
    /// idle. (A Ping may be a recording, sent by anyone from anywhere; the Pong is all that it gets then.)
    pub(crate) fn on_ping(&mut self, from: PathAddress, now: Instant) {
        self.speaks_disco = true;
        if !self.is_active(now) {
            return;
        }
        self.adopt(from, now);
        if let Some(path) = self.get_mut(from)
            && path.health != Health::Alive
            && path.last_probe.is_none_or(|at| now.saturating_duration_since(at) >= ECHO_INTERVAL)
        {
            path.next_probe = Some(now);
        }
    }

    /// An authentic WireGuard message came on this path. Returns whether that is news, which calls for judging.
    ///
    /// It does not move the primary path, which might be someone's who forwards a message; it calls for a probe.
    pub(crate) fn on_wireguard(&mut self, from: PathAddress, now: Instant) -> bool {
        let lately = |at: Instant| now.saturating_duration_since(at) < HEARD_INTERVAL;
        if self.last_heard.is_some_and(|(path, at)| path == from && lately(at)) {
            return false;
        }
        self.last_heard = Some((from, now));
        self.adopt(from, now);
        let is_primary = self.primary == Some(from);
        let is_new =
            |path: &Path| path.is_direct() && path.last_heard.is_none() && path.health != Health::Alive;
        if !is_primary && self.get(from).is_some_and(is_new) {
            // The peer may have moved there: until the primary path answers again, packets go elsewhere, too.
            self.suspect_primary(now);
        }
        let Some(path) = self.get_mut(from) else { return false };
        path.last_heard = Some(now);
        match path.health {
            // That a relay brings something proves that the peer is there.
            Health::Untried | Health::Dead if !path.is_direct() => path.health = Health::Alive,
            Health::Untried | Health::Alive | Health::Suspect { .. } | Health::Dead => {}
        }
        if !is_primary && path.is_direct() && path.health != Health::Alive {
            path.next_probe = Some(now);
        }
        true
    }

    /// Notes traffic. Returns whether the peer was idle until now.
    pub(crate) fn on_traffic(&mut self, now: Instant) -> bool {
        let was_idle = !self.is_active(now);
        self.last_traffic = Some(now);
        if was_idle {
            for path in &mut self.paths {
                // Nothing was asked of it while the peer was idle.
                if let Health::Suspect { since } = &mut path.health {
                    *since = now;
                }
            }
        }
        was_idle
    }

    /// Starts a hunt: paths in the local network are probed at once, others after `delay`.
    pub(crate) fn hunt(&mut self, now: Instant, delay: Duration) {
        for path in &mut self.paths {
            path.step = 0;
            let at = match path.class() {
                Class::Lan => now,
                Class::Internet if path.health != Health::Untried || !path.is_direct() => now,
                Class::Internet => now + delay,
            };
            path.next_probe = Some(path.next_probe.map_or(at, |next| next.min(at)));
        }
    }

    /// Probes what was never probed, without starting over with the others.
    pub(crate) fn hunt_new(&mut self, now: Instant) {
        for path in &mut self.paths {
            if path.health == Health::Untried && path.step == 0 && path.next_probe.is_none() {
                path.next_probe = Some(now);
            }
        }
    }

    /// Every direct path is doubted: the network changed, or the peer does not answer.
    pub(crate) fn suspect_all(&mut self, now: Instant) {
        for path in &mut self.paths {
            path.suspect(now);
        }
    }

    fn suspect_primary(&mut self, now: Instant) {
        if let Some(path) =
            self.primary.and_then(|address| self.get_mut(address)).filter(|path| path.is_direct())
        {
            path.suspect(now);
            path.next_probe = Some(now);
        }
    }

    /// Returns the paths to probe now; the caller makes the probes and tells by [`PathSet::on_probe_sent`].
    pub(crate) fn poll_probes(&mut self, now: Instant) -> Vec<PathAddress> {
        let active = self.is_active(now);
        let primary = self.primary;
        let primary_is_trusted = self.primary().is_some_and(|path| path.is_trusted(now));
        let mut due = Vec::new();
        for path in &mut self.paths {
            path.expire_probes(now);
            if path.next_probe.is_none_or(|at| at > now) {
                continue;
            }
            let is_primary = primary == Some(path.address);
            path.step += 1;
            path.next_probe = if !active {
                // Someone asked for this probe, or the traffic has ended since it was planned.
                None
            } else if is_primary || (!primary_is_trusted && path.health == Health::Alive) {
                Some(now + PROBE_INTERVAL)
            } else if path.health == Health::Alive {
                Some(now + HUNT_INTERVAL)
            } else {
                let gap =
                    HUNT_STEPS.get(path.step).map_or(HUNT_INTERVAL, |step| *step - HUNT_STEPS[path.step - 1]);
                Some(now + gap)
            };
            due.push(path.address);
        }
        due
    }

    /// Notes a probe that is sent.
    pub(crate) fn on_probe_sent(&mut self, to: PathAddress, txid: TxId, now: Instant) {
        if let Some(path) = self.get_mut(to) {
            path.on_probe_sent(txid, now);
        }
    }

    /// Takes the answer to a probe, which came from `from`. Returns the path that was probed and its round-trip time.
    pub(crate) fn on_pong(
        &mut self,
        from: PathAddress,
        txid: &TxId,
        now: Instant,
    ) -> Option<(PathAddress, Duration)> {
        self.speaks_disco = true;
        let path = self.paths.iter_mut().find(|path| path.awaits(txid))?;
        if path.address != from {
            // Answered from elsewhere: that the probed address works both ways is not shown.
            self.adopt(from, now);
            return None;
        }
        let rtt = path.on_pong(txid, now)?;
        Some((from, rtt))
    }

    /// Doubts and gives up paths by their silence, and chooses the primary path.
    ///
    /// A path that begins to be doubted is a sign that relays should be checked, too.
    pub(crate) fn judge(&mut self, now: Instant) -> Verdict {
        let suspicion = self.is_active(now) && self.speaks_disco && self.doubt(now);
        Verdict { changed: self.choose(now), suspicion }
    }

    /// Chooses the primary path; whether it is another one now.
    fn choose(&mut self, now: Instant) -> bool {
        let views: Vec<View> = self.paths.iter().filter_map(Self::view).collect();
        let views = match views.iter().map(|view| view.standing).min() {
            // Of the places a peer without disco was heard from, the latest counts.
            Some(Standing::Heard) => self.latest_heard().into_iter().collect(),
            _ => views,
        };
        let chosen = select(&views, self.primary).map(|view| view.address);
        if chosen == self.primary {
            return false;
        }
        let left = self.primary;
        self.primary = chosen;
        self.since = chosen.map(|_| now);
        let probed = chosen.filter(|_| self.is_active(now));
        if let Some(path) = probed.and_then(|address| self.get_mut(address)) {
            // From now on it is probed as the primary path.
            let soon = now + PROBE_INTERVAL;
            path.next_probe = Some(path.next_probe.map_or(soon, |next| next.min(soon)));
        }
        let reason = match left.and_then(|address| self.get(address)) {
            Some(old) if old.is_direct() && old.health == Health::Dead => {
                format!("{}; {} stopped answering", self.reason(), kind_name(old))
            }
            Some(_) | None => self.reason(),
        };
        if self.decisions.len() >= MAX_DECISIONS {
            self.decisions.pop_front();
        }
        self.decisions.push_back(Decision { at: now, path: chosen, reason });
        true
    }

    /// Says where to send a packet.
    pub(crate) fn targets(&self, now: Instant) -> Targets {
        let Some(primary) = self.primary() else { return Targets::None };
        if primary.is_trusted(now) || !self.speaks_disco {
            return Targets::One(primary.address);
        }
        let second = self
            .paths
            .iter()
            .filter(|path| path.address != primary.address)
            .filter(|path| !path.is_direct() || path.is_trusted(now))
            .filter_map(Self::view)
            .min_by_key(|view| (view.standing, view.rtt));
        match second {
            Some(second) => Targets::Two(primary.address, second.address),
            None => Targets::One(primary.address),
        }
    }

    /// Returns when something is to be done: a probe, or doubt.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let probes = self.paths.iter().filter_map(|path| path.next_probe);
        let verdicts = self.paths.iter().filter_map(|path| match path.health {
            Health::Suspect { since } if self.is_active(now) => {
                let grace = since + SUSPECT_GRACE;
                Some(if grace > now { grace } else { since + SUSPECT_LIMIT })
            }
            Health::Alive if self.is_active(now) && Some(path.address) == self.primary => {
                path.last_answer.map(|at| at + TRUST)
            }
            Health::Untried | Health::Alive | Health::Suspect { .. } | Health::Dead => None,
        });
        probes.chain(verdicts.filter(|at| *at > now)).min()
    }

    /// Says in a clause why the primary path is what it is.
    pub(crate) fn reason(&self) -> String {
        let Some(primary) = self.primary() else {
            return "no path: no relay is up and no address of the peer is known".into();
        };
        let rtt = primary.rtt.map_or_else(String::new, |rtt| format!(" in {}", format_rtt(rtt)));
        if primary.is_direct() {
            return match (primary.health, primary.class()) {
                (Health::Alive, Class::Lan) => format!("direct: answered on the local network{rtt}"),
                (Health::Alive, Class::Internet) => format!("direct: answered{rtt}"),
                (Health::Suspect { .. }, _) => "direct: answered before, is being asked again".into(),
                (Health::Untried | Health::Dead, _) => "direct: the peer was heard from there".into(),
            };
        }
        let probed = self.paths.iter().filter(|path| path.is_direct() && path.step > 0).count();
        let had_direct = self.paths.iter().any(|path| path.is_direct() && path.last_answer.is_some());
        let known = self.paths.iter().filter(|path| path.is_direct()).count();
        match (had_direct, probed, known) {
            (true, ..) => "relayed: the direct path stopped answering".into(),
            (false, 0, 0) => "relayed: peer has sent no candidates".into(),
            (false, 0, _) => "relayed: no direct path has been probed yet".into(),
            (false, 1, _) => "relayed: no direct path has answered (1 candidate probed)".into(),
            (false, n, _) => format!("relayed: no direct path has answered ({n} candidates probed)"),
        }
    }

    /// Returns where a handshake initiation is to be sent, which was sent `retries` times already: on the primary path
    /// alone if it can be trusted; else through a relay and wherever the peer once was; at last to every address.
    pub(crate) fn handshake_targets(&self, retries: usize, now: Instant) -> Vec<PathAddress> {
        if let Some(primary) = self.primary().filter(|path| retries == 0 && path.is_trusted(now)) {
            return vec![primary.address];
        }
        let relays = self.paths.iter().filter(|path| !path.is_direct());
        let best_relay = relays.clone().filter_map(Self::view).min_by_key(|view| (view.standing, view.rtt));
        let is_chosen = |path: &&Path| {
            let worked = path.last_answer.is_some() || path.last_heard.is_some();
            let is_best = best_relay.is_some_and(|best| best.address == path.address);
            let everywhere = retries > 0 || (best_relay.is_none() && path.is_direct());
            Some(path.address) == self.primary || is_best || (worked && path.is_direct()) || everywhere
        };
        self.paths.iter().filter(is_chosen).map(|path| path.address).collect()
    }

    /// Returns the relay through which the peer is told things.
    pub(crate) fn best_relay(&self) -> Option<&Path> {
        let relays = self.paths.iter().filter(|path| !path.is_direct());
        relays.filter(|path| path.standing().is_some()).min_by_key(|path| (path.standing(), path.rtt))
    }

    /// Returns a path.
    pub(crate) fn get(&self, address: PathAddress) -> Option<&Path> {
        self.paths.iter().find(|path| path.address == address)
    }

    fn get_mut(&mut self, address: PathAddress) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.address == address)
    }

    fn view(path: &Path) -> Option<View> {
        let standing = path.standing()?;
        Some(View { address: path.address, standing, class: path.class(), rtt: path.rtt })
    }

    fn latest_heard(&self) -> Option<View> {
        let heard = self.paths.iter().filter(|path| path.standing() == Some(Standing::Heard));
        heard.max_by_key(|path| path.last_heard).and_then(Self::view)
    }

    fn adopt(&mut self, from: PathAddress, now: Instant) {
        if self.get(from).is_some() {
            return;
        }
        let origin = match from {
            PathAddress::Direct(_) => Origin::PeerReflexive,
            PathAddress::Relay(_) => Origin::OwnRelay,
        };
        let mut path = Path::new(from, origin);
        path.next_probe = Some(now);
        self.paths.push(path);
        self.evict(MAX_PEER_REFLEXIVE, |origin| origin == Origin::PeerReflexive);
    }

    /// Removes the oldest paths of an origin that don't answer, above a number.
    fn evict(&mut self, keep: usize, is_origin: impl Fn(Origin) -> bool) {
        while self.paths.iter().filter(|path| is_origin(path.origin)).count() > keep {
            let primary = self.primary;
            let expendable = |path: &Path| is_origin(path.origin) && Some(path.address) != primary;
            let oldest = self
                .paths
                .iter()
                .position(|path| expendable(path) && path.standing().is_none())
                .or_else(|| self.paths.iter().position(expendable));
            match oldest {
                Some(index) => drop(self.paths.remove(index)),
                None => break,
            }
        }
    }

    /// Moves silent paths on towards being given up; whether one begins to be doubted.
    fn doubt(&mut self, now: Instant) -> bool {
        let primary = self.primary;
        let another_answers =
            |address| self.paths.iter().any(|path| path.address != address && path.is_trusted(now));
        let doubted: Vec<_> = self
            .paths
            .iter()
            .filter_map(|path| {
                let health = match path.health {
                    Health::Alive
                        if Some(path.address) == primary && path.unanswered > 0 && !path.is_trusted(now) =>
                    {
                        Health::Suspect { since: now }
                    }
                    Health::Suspect { since } => {
                        let silent = now.saturating_duration_since(since);
                        let limit = if another_answers(path.address) { SUSPECT_GRACE } else { SUSPECT_LIMIT };
                        if silent < limit {
                            return None;
                        }
                        Health::Dead
                    }
                    Health::Untried | Health::Alive | Health::Dead => return None,
                };
                Some((path.address, health))
            })
            .collect();
        let suspicion = doubted.iter().any(|(_, health)| matches!(health, Health::Suspect { .. }));
        for (address, health) in doubted {
            if let Some(path) = self.get_mut(address) {
                path.health = health;
                path.step = 0;
            }
        }
        if suspicion {
            // Whatever may take over is asked at once.
            self.hunt(now, Duration::ZERO);
        }
        suspicion
    }
}

/// Whether an address may be probed at all: a place where one other host can be.
pub(crate) fn is_probable(address: SocketAddr) -> bool {
    if address.port() == 0 {
        return false;
    }
    match address {
        SocketAddr::V4(v4) => {
            let ip = v4.ip();
            !(ip.is_loopback()
                || ip.is_multicast()
                || ip.is_unspecified()
                || ip.is_broadcast()
                || ip.octets()[0] == 0
                || ip.octets()[0] >= 240)
        }
        SocketAddr::V6(v6) => {
            let ip = v6.ip();
            !(ip.is_loopback()
                || ip.is_multicast()
                || ip.is_unspecified()
                || ip.to_ipv4_mapped().is_some()
                || (ip.is_unicast_link_local() && v6.scope_id() == 0))
        }
    }
}

fn kind_name(path: &Path) -> &'static str {
    match path.class() {
        Class::Lan => "the path on the local network",
        Class::Internet => "the direct path",
    }
}

fn format_rtt(rtt: Duration) -> String {
    let ms = rtt.as_secs_f64() * 1000.0;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}
