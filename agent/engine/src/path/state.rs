//! One path: its probes, what they measured, and whether it answers.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use mesh_proto::{candidate::CandidateKind, disco::TxId};

use super::{
    mtu::PathMtu,
    select::{Class, Standing},
};
use crate::event::PathAddress;

/// A path that carries traffic is probed this often.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// A path is trusted for this long after its last answer: two probes may be lost, the third may not be late.
pub(crate) const TRUST: Duration = Duration::from_millis(2500);
/// The same through a relay, which must be left within 2 s: whenever an answer is late by [`RETRY_INTERVAL`] it is asked
/// again, so that two of three probes may be lost.
pub(crate) const RELAY_TRUST: Duration = Duration::from_millis(1800);
/// A path through a peer that relays counts as slower by this, and by this part of its round-trip time.
const LENT_MARGIN: Duration = Duration::from_millis(10);
const LENT_MARGIN_PART: u32 = 4;
/// A relayed path with traffic that does not answer is probed again after this, or after two round trips if that is
/// longer.
const RETRY_INTERVAL: Duration = Duration::from_millis(350);
/// A suspect path is given up after this long, if another one answers.
pub(crate) const SUSPECT_GRACE: Duration = Duration::from_secs(1);
/// A suspect path is given up after this long in any case.
pub(crate) const SUSPECT_LIMIT: Duration = Duration::from_secs(5);

/// Probes whose answers are still waited for; older ones count as lost.
const MAX_OUTSTANDING: usize = 8;
/// A probe without an answer for this long counts as lost. Satellite round trips with queues stay below it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Probes over which loss is measured.
const LOSS_WINDOW: u32 = 16;
/// A measurement ends with a silence as long as this. What came before it says nothing of now: an idle pair's last probes
/// are often those that its peer was no longer there to answer.
const LOSS_LATELY: Duration = Duration::from_secs(30);
/// Weight of a new measurement in the smoothed round-trip time (RFC 6298: 1/8).
const RTT_WEIGHT: u32 = 8;
/// Weight of a new measurement in the round-trip time's variation (RFC 6298: 1/4).
const VARIATION_WEIGHT: u32 = 4;

/// How a path came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The peer or the coordinator named it.
    Candidate(CandidateKind),
    /// Something authentic came from there.
    PeerReflexive,
    /// The relay that the peer calls its home: the nearest one to it.
    HomeRelay,
    /// A relay at which the peer is said to be.
    ListedRelay,
    /// A relay of this node's, where nothing is known of the peer's.
    OwnRelay,
    /// A peer that relays for others; whether it does for the one that is meant is not known.
    LentRelay,
}

/// Whether a path answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// Nothing is known yet.
    Untried,
    /// It has answered, and nothing speaks against it.
    Alive,
    /// It answered once and should have answered again.
    Suspect {
        /// Since when.
        since: Instant,
    },
    /// It has stopped answering.
    Dead,
}

/// How long NATs remember whom this node has sent to (RFC 4787, REQ-5: two minutes at least).
const NAT_MEMORY: Duration = Duration::from_secs(120);

/// One path to a peer.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) address: PathAddress,
    pub(crate) origin: Origin,
    pub(crate) health: Health,
    pub(crate) rtt: Option<Duration>,
    /// By how much measurements differ from the smoothed round-trip time.
    pub(crate) variation: Duration,
    /// When a probe was last answered.
    pub(crate) last_answer: Option<Instant>,
    /// When an authentic WireGuard message last came from there.
    pub(crate) last_heard: Option<Instant>,
    /// Whether the peer has sent here before this node has: then it sees this node where it has sent to, whatever
    /// this node's NAT makes of what this node sends.
    pub(crate) is_called: bool,
    /// Whether it is where the peer is by the last word of the peer's or the coordinator's.
    pub(crate) is_named: bool,
    /// When a probe was last sent.
    pub(crate) last_probe: Option<Instant>,
    /// When the next probe is due.
    pub(crate) next_probe: Option<Instant>,
    /// Which of a hunt's probes is next.
    pub(crate) step: usize,
    /// Probes sent since the last answer.
    pub(crate) unanswered: u32,
    /// How large packets it carries.
    pub(crate) mtu: PathMtu,
    outstanding: VecDeque<(TxId, Instant)>,
    /// Bit 0 is the last probe whose fate is known; 1 means lost.
    losses: u32,
    fates: u32,
}

impl Path {
    pub(crate) fn new(address: PathAddress, origin: Origin) -> Self {
        Self {
            address,
            origin,
            health: Health::Untried,
            rtt: None,
            variation: Duration::ZERO,
            last_answer: None,
            last_heard: None,
            is_called: origin == Origin::PeerReflexive,
            is_named: matches!(origin, Origin::Candidate(_)),
            last_probe: None,
            next_probe: None,
            step: 0,
            unanswered: 0,
            mtu: PathMtu::default(),
            outstanding: VecDeque::new(),
            losses: 0,
            fates: 0,
        }
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.address.is_direct()
    }

    /// Whether it leads to a private address.
    pub(crate) fn is_lan(&self) -> bool {
        self.class() == Class::Lan
    }

    pub(crate) fn class(&self) -> Class {
        self.address.remote().map_or(Class::Internet, Class::of)
    }

    /// Returns what the path can be chosen for, if anything.
    pub(crate) fn standing(&self) -> Option<Standing> {
        match (self.address, self.health) {
            (
                PathAddress::Direct(_) | PathAddress::Punched { .. },
                Health::Alive | Health::Suspect { .. },
            ) => Some(Standing::Direct),
            (PathAddress::Direct(_) | PathAddress::Punched { .. }, Health::Untried | Health::Dead) => {
                self.last_heard.is_some().then_some(Standing::Heard)
            }
            (PathAddress::Relay(_), Health::Alive | Health::Suspect { .. }) => Some(Standing::Relayed),
            (PathAddress::Relay(_), Health::Dead) => Some(Standing::Silent),
            (PathAddress::Relay(_), Health::Untried) => Some(match self.origin {
                Origin::HomeRelay => Standing::Home,
                Origin::ListedRelay => Standing::Listed,
                Origin::OwnRelay | Origin::LentRelay | Origin::Candidate(_) | Origin::PeerReflexive => {
                    Standing::Hoped
                }
            }),
        }
    }

    /// Whether its last answer is recent enough to send on it alone.
    pub(crate) fn is_trusted(&self, now: Instant) -> bool {
        self.health == Health::Alive
            && self.last_answer.is_some_and(|at| now.saturating_duration_since(at) < self.trust())
    }

    /// Returns the round-trip time by which it is chosen. One through a peer that relays counts for more than it is: it is
    /// to be clearly better before somebody else's line is used.
    pub(crate) fn rank_rtt(&self) -> Option<Duration> {
        match self.origin {
            Origin::LentRelay => self.rtt.map(|rtt| rtt + LENT_MARGIN.max(rtt / LENT_MARGIN_PART)),
            Origin::Candidate(_)
            | Origin::PeerReflexive
            | Origin::HomeRelay
            | Origin::ListedRelay
            | Origin::OwnRelay => self.rtt,
        }
    }

    /// Returns how long the path is trusted after an answer.
    pub(crate) fn trust(&self) -> Duration {
        if self.is_direct() { TRUST } else { RELAY_TRUST }
    }

    /// Returns when the primary path is to be probed again, after a probe that is being sent now.
    pub(crate) fn primary_interval(&self) -> Duration {
        match self.is_direct() {
            true => PROBE_INTERVAL,
            false => RETRY_INTERVAL.max(self.rtt.unwrap_or_default() * 2).min(PROBE_INTERVAL),
        }
    }

    /// Whether the peer has left it: it is named no longer, nothing came from there for long, and so many probes were in
    /// vain.
    pub(crate) fn is_abandoned(&self, probes: u32, now: Instant) -> bool {
        let lately = |at: Instant| now.saturating_duration_since(at) < NAT_MEMORY;
        let is_silent = match self.health {
            Health::Untried | Health::Dead => !self.last_heard.is_some_and(lately),
            Health::Alive | Health::Suspect { .. } => false,
        };
        self.is_direct() && !self.is_named && is_silent && self.unanswered >= probes
    }

    /// Whether it has answered, and should have answered again.
    pub(crate) fn is_doubted(&self) -> bool {
        matches!(self.health, Health::Suspect { .. })
    }

    /// Whether it leads through a relay and more than one probe was sent since the last answer.
    pub(crate) fn is_silent_relay(&self) -> bool {
        !self.is_direct() && self.unanswered > 1
    }

    /// Notes a probe that is being sent.
    pub(crate) fn on_probe_sent(&mut self, txid: TxId, now: Instant) {
        if !self.is_measured(now) {
            self.outstanding.clear();
            self.fates = 0;
        }
        if self.outstanding.len() >= MAX_OUTSTANDING {
            self.outstanding.pop_front();
            self.note_fate(true);
        }
        self.outstanding.push_back((txid, now));
        self.last_probe = Some(now);
        self.unanswered = self.unanswered.saturating_add(1);
    }

    /// The peer has sent something here of its own accord.
    pub(crate) fn on_called(&mut self, now: Instant) {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= NAT_MEMORY;
        self.is_called |= self.last_probe.is_none_or(is_old);
    }

    /// Takes an answer; `None` when no probe of this path has this id.
    pub(crate) fn on_pong(&mut self, txid: &TxId, now: Instant) -> Option<Duration> {
        let index = self.outstanding.iter().position(|(id, _)| id == txid)?;
        let (_, sent) = self.outstanding.remove(index)?;
        let rtt = now.saturating_duration_since(sent);
        self.measure(rtt);
        self.last_answer = Some(now);
        self.unanswered = 0;
        self.health = Health::Alive;
        self.note_fate(false);
        Some(rtt)
    }

    /// Whether a probe with this id was sent here and not answered yet.
    pub(crate) fn awaits(&self, txid: &TxId) -> bool {
        self.outstanding.iter().any(|(id, _)| id == txid)
    }

    /// Counts probes as lost whose answer is overdue.
    pub(crate) fn expire_probes(&mut self, now: Instant) {
        while self
            .outstanding
            .front()
            .is_some_and(|(_, sent)| now.saturating_duration_since(*sent) >= PROBE_TIMEOUT)
        {
            self.outstanding.pop_front();
            self.note_fate(true);
        }
    }

    /// Doubts the path, unless it is doubted already.
    pub(crate) fn suspect(&mut self, now: Instant) {
        if self.health == Health::Alive {
            self.health = Health::Suspect { since: now };
            // It is asked as what is hunted for: soon, and soon again.
            self.step = 0;
        }
        self.mtu.check(now);
    }

    /// Returns the share of the last probes that stayed unanswered; `None` if nothing was measured lately.
    pub(crate) fn loss(&self, now: Instant) -> Option<f64> {
        let known = self.fates.min(LOSS_WINDOW);
        if known == 0 || !self.is_measured(now) {
            return None;
        }
        let lost = (self.losses & ((1 << known) - 1)).count_ones();
        Some(f64::from(lost) / f64::from(known))
    }

    /// Whether it was probed lately.
    fn is_measured(&self, now: Instant) -> bool {
        self.last_probe.is_some_and(|at| now.saturating_duration_since(at) < LOSS_LATELY)
    }

    /// Smooths a measured round-trip time into what is known (RFC 6298, section 2).
    fn measure(&mut self, rtt: Duration) {
        let Some(smoothed) = self.rtt else {
            self.rtt = Some(rtt);
            self.variation = rtt / 2;
            return;
        };
        let difference = smoothed.abs_diff(rtt);
        self.variation = (self.variation * (VARIATION_WEIGHT - 1) + difference) / VARIATION_WEIGHT;
        self.rtt = Some((smoothed * (RTT_WEIGHT - 1) + rtt) / RTT_WEIGHT);
    }

    fn note_fate(&mut self, lost: bool) {
        self.losses = (self.losses << 1) | u32::from(lost);
        self.fates = self.fates.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> Path {
        let address = PathAddress::Direct("192.0.2.1:7".parse().unwrap());
        Path::new(address, Origin::PeerReflexive)
    }

    #[test]
    fn answers_are_measured_and_smoothed() {
        let now = Instant::now();
        let mut path = path();
        let ms = Duration::from_millis;
        path.on_probe_sent([1; 12], now);
        assert_eq!(path.on_pong(&[2; 12], now + ms(40)), None);
        assert_eq!(path.on_pong(&[1; 12], now + ms(40)), Some(ms(40)));
        assert_eq!(path.on_pong(&[1; 12], now + ms(50)), None);
        path.on_probe_sent([3; 12], now + ms(1000));
        assert_eq!(path.on_pong(&[3; 12], now + ms(1120)), Some(ms(120)));
        assert_eq!(path.rtt, Some(ms(50)));
        assert_eq!(path.variation, ms(35));
        assert!(path.is_trusted(now + ms(3600)));
        assert!(!path.is_trusted(now + ms(3620)));
    }

    #[test]
    fn loss_is_that_of_the_last_probes() {
        let now = Instant::now();
        let mut path = path();
        for number in 0..16u8 {
            path.on_probe_sent([number; 12], now);
            if number % 4 != 0 {
                path.on_pong(&[number; 12], now);
            }
        }
        path.expire_probes(now + PROBE_TIMEOUT);
        assert_eq!(path.loss(now + PROBE_TIMEOUT), Some(0.25));
    }

    #[test]
    fn loss_of_long_ago_is_none() {
        let now = Instant::now();
        let mut path = path();
        assert_eq!(path.loss(now), None);
        // The peer is switched off, and the pair falls silent.
        for number in 0..4u8 {
            path.on_probe_sent([number; 12], now);
        }
        path.expire_probes(now + PROBE_TIMEOUT);
        assert_eq!(path.loss(now + PROBE_TIMEOUT), Some(1.0));
        let later = now + LOSS_LATELY;
        assert_eq!(path.loss(later), None);
        // It is back: what was lost before is no part of the new measurement.
        path.on_probe_sent([9; 12], later);
        assert_eq!(path.loss(later), None, "nothing is known of this one yet");
        path.on_pong(&[9; 12], later);
        assert_eq!(path.loss(later), Some(0.0));
    }
}
