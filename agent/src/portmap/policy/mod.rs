//! What to ask the router next: a state machine without IO.
//!
//! ```text
//!            router known                found                 granted
//!   Idle ------------------> Probing ------------> Mapping ------------> Held --+ renewed at half life, at once when the
//!    ^                       ^     |                  |  ^                |  ^--+ router has lost its mappings or on wake
//!    | no router     time is up    | none answers     |  | the next best  |
//!    +--- any            |         v                  |  +--- refused     | life is over
//!                        +----- Resting <-------------+                   |
//!                            ^      every one refused                     |
//!                            +--------------------------------------------+
//! ```
//!
//! All protocols are probed at once, with questions that change nothing in the router; a mapping is asked for by the best
//! that answered alone, so that none is left double. After the first answer a better protocol has [`GRACE`] to answer too.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    Counts, Mapped, Protocol,
    epoch::{Continuity, Epoch},
    router::Router,
};

/// The lifetime that is asked for: RFC 6887 and RFC 6886 (section 3.3) recommend two hours at most, or exactly.
pub(super) const LIFETIME: Duration = Duration::from_secs(7200);
/// Longest lifetime that is believed: a day (RFC 6887, section 15).
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Least time to a renewal, whatever a router grants (RFC 6887, section 11.2.1).
const MIN_RENEWAL: Duration = Duration::from_secs(4);
/// How long better protocols may answer after the first: more than one retransmission.
const GRACE: Duration = Duration::from_millis(300);
/// How often the router is asked whether it still has the mapping. Announcements of a reboot are multicast, which Wi-Fi loses
/// and many routers do not send; a datagram of 60 bytes is little for not being relayed any longer than this.
const CHECK_INTERVAL: Duration = Duration::from_secs(20);
/// The same over UPnP, which takes a TCP connection.
const CHECK_INTERVAL_UPNP: Duration = Duration::from_secs(300);
/// Least time between renewals for announcements, which anybody on the LAN can forge (RFC 6887, section 8.5).
const ANNOUNCED_INTERVAL: Duration = Duration::from_secs(5);
/// First and longest pause when no router answers: routers reboot, but most that do not answer never will.
const REST: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3600));
/// External ports that are tried when others have them.
const MAX_CONFLICTS: u16 = 8;
/// The least external port that is asked for after a conflict.
const MIN_PORT: u16 = 1024;

/// A mapping that a router has, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) protocol: Protocol,
    pub(super) router: Ipv4Addr,
    pub(super) internal_port: u16,
    pub(super) external: SocketAddrV4,
}

/// Something to ask the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Whether it speaks a protocol.
    Probe(Protocol),
    /// A mapping, new or again.
    Map {
        protocol: Protocol,
        /// The external port that is liked best.
        port: u16,
        /// What the run before has left, to be removed first.
        leftover: Option<Held>,
    },
    /// Whether a mapping is still there.
    Check(Held),
}

/// What a router has granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) external: SocketAddrV4,
    pub(super) lifetime: Duration,
    /// Seconds since the router lost its mappings, by its own account.
    pub(super) epoch: Option<u32>,
}

/// What a router says of a mapping that it still has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) epoch: Option<u32>,
    /// Its address outside, if it tells.
    pub(super) address: Option<Ipv4Addr>,
}

/// Why a router did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// Nothing answers.
    #[error("nothing answers")]
    Silent,
    /// It says no.
    #[error("the router refuses")]
    Refused,
    /// Somebody else has the port.
    #[error("the port is taken")]
    Conflict,
    /// It does not have the mapping.
    #[error("the mapping is gone")]
    Gone,
    /// What answers makes no sense.
    #[error("what answers makes no sense")]
    Garbage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    Waiting,
    Found,
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Resting { until: Instant },
    Probing { decide_at: Option<Instant> },
    Mapping { protocol: Protocol, port: u16, conflicts: u16 },
    Held(Lease),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lease {
    held: Held,
    expires_at: Instant,
    renew_at: Instant,
    check_at: Instant,
    /// What is being asked; there is never more than one.
    asking: Option<Asking>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    Renewal,
    Check,
}

/// The state machine. [`Self::set_router`] and the `handle_*` methods are told what happened; after each of them
/// [`Self::poll_ask`] gives what to ask now, until it gives nothing, and [`Self::poll_timeout`] when to call
/// [`Self::handle_timeout`]. Every ask is answered by exactly one `handle_*`, except that those that were on their way
/// when [`Self::set_router`] says [`Restart::Yes`] must be forgotten.
#[derive(Debug)]
pub(super) struct Policy {
    port: u16,
    router: Option<Router>,
    leftover: Option<Held>,
    findings: BTreeMap<Protocol, Finding>,
    phase: Phase,
    epoch: Option<Epoch>,
    announced_at: Option<Instant>,
    rests: u32,
    asks: VecDeque<Ask>,
    counts: Counts,
}

/// Whether answers that are on their way belong to a router that is not asked any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restart {
    Yes,
    No,
}

impl Policy {
    /// Wants a mapping of `port`; `leftover` is what an earlier run may have left in a router.
    pub(super) fn new(port: u16, leftover: Option<Held>) -> Self {
        Self {
            port,
            router: None,
            leftover,
            findings: BTreeMap::new(),
            phase: Phase::Idle,
            epoch: None,
            announced_at: None,
            rests: 0,
            asks: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Takes which router there is now; the network has changed, or may have.
    pub(super) fn set_router(&mut self, router: Option<Router>, now: Instant) -> Restart {
        if router.is_some() && router == self.router {
            // Another network may look the same: the mapping is asked for again, which changes nothing if it is there.
            match self.phase {
                Phase::Held(_) => {
                    self.renew(now);
                    return Restart::No;
                }
                Phase::Probing { .. } | Phase::Mapping { .. } => return Restart::No,
                Phase::Idle | Phase::Resting { .. } => {}
            }
        }
        self.leftover = self.held().or(self.leftover);
        self.router = router;
        self.rests = 0;
        self.start(now);
        Restart::Yes
    }

    pub(super) fn router(&self) -> Option<Router> {
        self.router
    }

    /// Takes whether a protocol answers.
    pub(super) fn handle_probed(&mut self, protocol: Protocol, answer: Result<(), Failure>, now: Instant) {
        let finding = if answer.is_ok() { Finding::Found } else { Finding::Absent };
        // That nothing answers is how it is in most networks.
        if let Err(failure) = answer {
            self.count(failure);
        }
        self.findings.insert(protocol, finding);
        self.decide(now);
    }

    /// Takes the answer to a question for a mapping, new or again.
    pub(super) fn handle_mapped(&mut self, answer: Result<Grant, Failure>, now: Instant) {
        let Some(router) = self.router else { return };
        let answer = answer.and_then(Grant::checked).inspect_err(|failure| self.count(*failure));
        match (self.phase, answer) {
            (Phase::Mapping { protocol, .. }, Ok(grant)) => self.hold(protocol, router, grant, now),
            (Phase::Held(lease), Ok(grant)) => self.hold(lease.held.protocol, router, grant, now),
            (Phase::Mapping { protocol, port, conflicts }, Err(Failure::Conflict))
                if conflicts < MAX_CONFLICTS =>
            {
                self.map(protocol, port.checked_add(1).unwrap_or(MIN_PORT), conflicts + 1);
            }
            (Phase::Mapping { protocol, .. }, Err(_)) => {
                self.findings.insert(protocol, Finding::Absent);
                self.phase = Phase::Probing { decide_at: Some(now) };
                self.decide(now);
            }
            (Phase::Held(mut lease), Err(Failure::Conflict)) => {
                // Somebody has taken the port while the router had forgotten the mapping: any other will do.
                lease.asking = None;
                self.leftover = None;
                self.phase = Phase::Held(lease);
                self.start(now);
            }
            (Phase::Held(mut lease), Err(_)) => {
                // As long as it lives, at half of what is left.
                let left = lease.expires_at.saturating_duration_since(now);
                lease.renew_at = now + (left / 2).max(MIN_RENEWAL);
                lease.asking = None;
                self.phase = Phase::Held(lease);
            }
            (Phase::Idle | Phase::Resting { .. } | Phase::Probing { .. }, _) => {}
        }
    }

    /// Takes what the router says of the mapping that is held.
    pub(super) fn handle_checked(&mut self, answer: Result<Standing, Failure>, now: Instant) {
        let Phase::Held(lease) = &mut self.phase else { return };
        if lease.asking != Some(Asking::Check) {
            return;
        }
        lease.asking = None;
        lease.check_at = now + check_interval(lease.held.protocol);
        let external = *lease.held.external.ip();
        match answer {
            Ok(standing) => {
                let moved = standing.address.is_some_and(|address| address != external);
                let kept = self.observe(standing.epoch, now);
                if moved || kept == Continuity::Lost {
                    self.renew(now);
                }
            }
            Err(Failure::Gone) => self.renew(now),
            // It may be starting over: that is seen when it answers again.
            Err(failure @ (Failure::Silent | Failure::Refused | Failure::Conflict | Failure::Garbage)) => {
                self.count(failure);
            }
        }
    }

    /// Takes that the router announced itself, as it does when it has lost its mappings or has another address.
    ///
    /// Anybody on the LAN can have said so: it is the router's own answer that counts.
    pub(super) fn handle_announced(&mut self, now: Instant) {
        if self.announced_at.is_some_and(|at| now < at + ANNOUNCED_INTERVAL) {
            return;
        }
        match self.phase {
            Phase::Held(_) => self.renew(now),
            Phase::Resting { .. } => self.start(now),
            Phase::Idle | Phase::Probing { .. } | Phase::Mapping { .. } => return,
        }
        self.announced_at = Some(now);
    }

    /// The host has slept for as long as its clock has not seen: the mapping is older than it seems, and nobody has looked
    /// after it. It is asked for again at once; where its life is over, peers are not sent there until it is granted.
    pub(super) fn handle_woke(&mut self, unseen: Duration, now: Instant) {
        // The router's clock has gone on: that it differs from this one's says nothing of a reboot.
        self.epoch = None;
        match &mut self.phase {
            Phase::Held(lease) => {
                lease.expires_at = lease.expires_at.checked_sub(unseen).unwrap_or(now);
                if lease.expires_at <= now {
                    self.leftover = Some(lease.held);
                    self.start(now);
                } else {
                    self.renew(now);
                }
            }
            Phase::Resting { .. } => {
                self.rests = 0;
                self.start(now);
            }
            Phase::Idle | Phase::Probing { .. } | Phase::Mapping { .. } => {}
        }
    }

    /// Notes something that came from the router's address and makes no sense.
    pub(super) fn count(&mut self, failure: Failure) {
        match failure {
            Failure::Garbage => self.counts.garbage += 1,
            Failure::Refused => self.counts.refused += 1,
            Failure::Silent | Failure::Conflict | Failure::Gone => {}
        }
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        match self.phase {
            Phase::Idle | Phase::Mapping { .. } => {}
            Phase::Resting { until } => {
                if until <= now {
                    self.start(now);
                }
            }
            Phase::Probing { .. } => self.decide(now),
            Phase::Held(mut lease) => {
                if lease.expires_at <= now {
                    self.leftover = Some(lease.held);
                    self.start(now);
                } else if lease.asking.is_none() && lease.renew_at <= now {
                    self.renew(now);
                } else if lease.asking.is_none() && lease.check_at <= now {
                    lease.asking = Some(Asking::Check);
                    self.phase = Phase::Held(lease);
                    self.asks.push_back(Ask::Check(lease.held));
                }
            }
        }
    }

    /// Returns when [`Self::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Idle | Phase::Mapping { .. } => None,
            Phase::Resting { until } => Some(until),
            Phase::Probing { decide_at } => decide_at,
            Phase::Held(lease) if lease.asking.is_some() => Some(lease.expires_at),
            Phase::Held(lease) => Some(lease.renew_at.min(lease.check_at).min(lease.expires_at)),
        }
    }

    /// Returns what to ask now.
    pub(super) fn poll_ask(&mut self) -> Option<Ask> {
        self.asks.pop_front()
    }

    /// Returns the mapping that a router has.
    pub(super) fn held(&self) -> Option<Held> {
        match self.phase {
            Phase::Held(lease) => Some(lease.held),
            Phase::Idle | Phase::Resting { .. } | Phase::Probing { .. } | Phase::Mapping { .. } => None,
        }
    }

    /// Returns where peers reach this node through the router.
    pub(super) fn mapped(&self) -> Option<Mapped> {
        self.held().map(|held| Mapped { protocol: held.protocol, external: held.external })
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Begins with all protocols, if there is a router.
    fn start(&mut self, now: Instant) {
        self.asks.clear();
        self.findings.clear();
        self.epoch = None;
        if self.router.is_none() {
            self.phase = Phase::Idle;
            return;
        }
        self.phase = Phase::Probing { decide_at: None };
        for protocol in Protocol::ALL {
            self.findings.insert(protocol, Finding::Waiting);
            self.asks.push_back(Ask::Probe(protocol));
        }
        self.decide(now);
    }

    /// Chooses, once enough is known.
    fn decide(&mut self, now: Instant) {
        let Phase::Probing { decide_at } = self.phase else { return };
        let best = self.findings.iter().find(|(_, finding)| **finding == Finding::Found);
        let Some((&protocol, _)) = best else {
            if self.findings.values().all(|finding| *finding == Finding::Absent) {
                self.rest(now);
            } else {
                self.phase = Phase::Probing { decide_at: None };
            }
            return;
        };
        let is_waited_for =
            |(better, finding): (&Protocol, &Finding)| *better < protocol && *finding == Finding::Waiting;
        let decide_at = decide_at.unwrap_or(now + GRACE);
        if decide_at > now && self.findings.iter().any(is_waited_for) {
            self.phase = Phase::Probing { decide_at: Some(decide_at) };
            return;
        }
        let port = match self.leftover {
            Some(left) if Some(left.router) == self.router.map(|router| router.gateway) => {
                left.external.port()
            }
            Some(_) | None => self.port,
        };
        self.map(protocol, port, 0);
    }

    fn map(&mut self, protocol: Protocol, port: u16, conflicts: u16) {
        let here = self.router.map(|router| router.gateway);
        // What another protocol or an earlier port has left would be there twice.
        let is_other = |held: &Held| {
            Some(held.router) == here && (held.protocol != protocol || held.internal_port != self.port)
        };
        let leftover = self.leftover.filter(is_other);
        self.phase = Phase::Mapping { protocol, port, conflicts };
        self.asks.push_back(Ask::Map { protocol, port, leftover });
    }

    fn renew(&mut self, now: Instant) {
        let Phase::Held(lease) = &mut self.phase else { return };
        if lease.asking == Some(Asking::Renewal) {
            return;
        }
        lease.asking = Some(Asking::Renewal);
        lease.renew_at = now;
        let Held { protocol, external, .. } = lease.held;
        self.asks.push_back(Ask::Map { protocol, port: external.port(), leftover: None });
    }

    fn hold(&mut self, protocol: Protocol, router: Router, grant: Grant, now: Instant) {
        let lifetime = grant.lifetime.min(MAX_LIFETIME);
        let held =
            Held { protocol, router: router.gateway, internal_port: self.port, external: grant.external };
        self.observe(grant.epoch, now);
        self.leftover = None;
        self.rests = 0;
        let renew_at = now + (lifetime / 2).max(MIN_RENEWAL);
        self.phase = Phase::Held(Lease {
            held,
            expires_at: (now + lifetime).max(renew_at + MIN_RENEWAL),
            renew_at,
            check_at: now + check_interval(protocol),
            asking: None,
        });
    }

    fn observe(&mut self, epoch: Option<u32>, now: Instant) -> Continuity {
        epoch.map_or(Continuity::Kept, |seen| Epoch::observe(&mut self.epoch, seen, now))
    }

    fn rest(&mut self, now: Instant) {
        let (first, longest) = REST;
        let pause = (first * 2_u32.saturating_pow(self.rests.min(16))).min(longest);
        self.rests += 1;
        self.phase = Phase::Resting { until: now + pause };
    }
}

impl Grant {
    /// Refuses what cannot be.
    fn checked(self) -> Result<Self, Failure> {
        let ip = self.external.ip();
        let is_nowhere = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast();
        if is_nowhere || ip.is_link_local() || self.external.port() == 0 || self.lifetime.is_zero() {
            return Err(Failure::Garbage);
        }
        Ok(self)
    }
}

fn check_interval(protocol: Protocol) -> Duration {
    match protocol {
        Protocol::Pcp | Protocol::NatPmp => CHECK_INTERVAL,
        Protocol::Upnp => CHECK_INTERVAL_UPNP,
    }
}

#[cfg(test)]
mod tests;
