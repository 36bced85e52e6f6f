//! A peer's part in punching (see [`crate::punch`]): when it is attempted, what is said and sent, and how it ends.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use mesh_proto::{
    disco::{Message, TxId},
    punch::{Punch, PunchStage},
    status::{Mapping, PathReason},
};

use super::Peer;
use crate::{
    batch::{SocketId, Via},
    disco::PING_PADDING,
    drops::DropReason,
    event::PathAddress,
    local::Local,
    path::{Health, guess::is_public},
    punch::{
        PunchLimits, Sends,
        attempt::{Attempt, OBSERVED_MAPPINGS, Observing, Run, Shot, Stage},
        plan::{Plan, Refusal, plan},
    },
};

/// While this node is at it with many other peers, or not able to, it looks again after this long, and up to twice that.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// What is missing for an attempt is waited for this long: an observer, a relay, news from the coordinator.
const MISSING_WAIT: Duration = Duration::from_secs(5);
/// So often predicted ports are tried in a row, each time with what was seen anew.
const PREDICTED_TRIES: u32 = 3;
/// Failures after which the back-off grows no more; far beyond its longest.
const MAX_FAILURES: u32 = 16;

/// What is remembered of attempts with a peer.
#[derive(Debug, Default)]
pub(super) struct Punched {
    /// Where the coordinator sees the peer.
    observed: Option<IpAddr>,
    attempt: Option<Attempt>,
    /// When an attempt is to begin.
    due: Option<Instant>,
    /// None begins before.
    not_before: Option<Instant>,
    failures: u32,
    /// How the peer's NAT maps, as it said the last time.
    pub(super) peer_mapping: Option<Mapping>,
    pub(super) outcome: Option<PunchOutcome>,
}

/// How the last attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PunchOutcome {
    /// A direct path was found.
    Direct,
    /// Both NATs choose a new port at random for each destination.
    BothVary,
    /// Nothing answered.
    NoAnswer,
    /// The peer did not agree, or does not know how.
    NotAgreed,
}

impl Peer {
    /// The coordinator sees the peer there.
    pub(crate) fn set_observed(&mut self, observed: Option<IpAddr>) {
        if observed.is_some() && self.punched.observed != observed {
            // Another network, another NAT: what failed before says nothing.
            self.punched = Punched { attempt: self.punched.attempt.take(), observed, ..Punched::default() };
        }
    }

    /// This node's network is another: what failed before says nothing.
    pub(super) fn forget_punch_failures(&mut self) {
        self.punched.failures = 0;
        self.punched.not_before = None;
    }

    /// Returns when something is due.
    pub(super) fn punch_timeout(&self) -> Option<Instant> {
        self.punched.attempt.as_ref().map(Attempt::poll_timeout).or(self.punched.due)
    }

    /// Returns the sockets that this peer's paths and its attempt need.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = SocketId> {
        let attempt = self.punched.attempt.iter().flat_map(|attempt| attempt.sockets.iter().copied());
        let of_path = |address| match address {
            PathAddress::Punched { socket, .. } => Some(socket),
            PathAddress::Direct(_) | PathAddress::Relay(_) => None,
        };
        attempt.chain(self.paths.iter().filter_map(move |path| of_path(path.address)))
    }

    /// Returns what attempts have to do with the path that the peer is on.
    pub(super) fn punch_reason(&self) -> Option<PathReason> {
        let primary = self.paths.primary()?;
        let has_answered = primary.is_direct() && primary.health == Health::Alive;
        match (primary.is_direct(), self.punched.outcome) {
            (true, Some(PunchOutcome::Direct)) if has_answered => Some(PathReason::AnsweredPunched),
            (false, _) if self.punched.attempt.is_some() => Some(PathReason::Punching),
            (false, Some(PunchOutcome::BothVary)) => Some(PathReason::NatsVary),
            (false, Some(PunchOutcome::NoAnswer)) => Some(PathReason::PunchFailed),
            (true, _) | (false, Some(PunchOutcome::Direct | PunchOutcome::NotAgreed) | None) => None,
        }
    }

    /// Gives up an attempt because the peer is removed.
    pub(super) fn abandon_punch(&mut self, local: &mut Local) {
        if self.punched.attempt.take().is_some() {
            local.punching.end(self.config.id);
            local.unsettled = true;
        }
    }

    /// Notes whether the pair needs an attempt, and ends one that has found a path.
    pub(super) fn judge_punch(&mut self, local: &mut Local, now: Instant) {
        let is_direct = self.paths.is_direct(now);
        if is_direct && self.punched.attempt.is_some() {
            self.end_punch(PunchOutcome::Direct, local, now);
        }
        let is_relayed = self.paths.primary().is_some_and(|path| !path.is_direct());
        if !is_relayed || !self.is_active(now) || local.punching.limits.rate == 0 {
            self.punched.due = None;
        } else if self.punched.due.is_none() && self.punched.attempt.is_none() {
            let wait = now + local.punching.limits.wait;
            self.punched.due = Some(self.punched.not_before.map_or(wait, |at| at.max(wait)));
        }
    }

    /// Does what is due.
    pub(super) fn handle_punch_timeout(&mut self, local: &mut Local, now: Instant) {
        if self.punched.attempt.is_none() {
            self.paths.forget_punched(now);
            if self.punched.due.is_some_and(|at| at <= now) {
                self.punched.due = None;
                self.begin_punch(None, local, now);
            }
            return;
        }
        if self.punch_timeout().is_none_or(|at| at > now) {
            return;
        }
        let Some(attempt) = &mut self.punched.attempt else { return };
        match &mut attempt.stage {
            Stage::Observing(observing) => {
                let (offer, sequence) = (observing.offer.take(), observing.sequence());
                self.agree(offer, sequence, local, now);
            }
            Stage::Offered { offers, .. } if Stage::is_given_up(*offers) => {
                self.end_punch(PunchOutcome::NotAgreed, local, now);
            }
            Stage::Offered { own, offers, .. } => {
                let own = *own;
                attempt.stage = Stage::offered(own, *offers + 1, now);
                self.tell_punch(&own, local);
            }
            Stage::Running(run) if run.is_over(now) => {
                // Had either side's port stayed, one of its probes would have hit a socket of the other's.
                let both = run.plan.spread.is_some() && run.plan.ports.is_some();
                let outcome = if both { PunchOutcome::BothVary } else { PunchOutcome::NoAnswer };
                self.end_punch(outcome, local, now);
            }
            Stage::Running(run) => {
                let share = local.punching.share(self.config.id);
                let shots = run.poll_shots(now, share, |wanted| local.punching.take_probes(wanted, now));
                let sends = if run.is_sending() { Sends::Probes } else { Sends::Nothing };
                local.punching.set_sends(self.config.id, sends);
                self.shoot(&shots, local);
            }
        }
    }

    /// Takes what the peer says.
    pub(super) fn handle_punch(&mut self, punch: &Punch, from: PathAddress, local: &mut Local, now: Instant) {
        if from.is_direct() {
            // Meant for relays: what comes directly needs no punching.
            return self.drops.count(DropReason::MalformedDatagram);
        }
        self.punched.peer_mapping = Some(punch.mapping);
        match punch.stage {
            PunchStage::Offer => self.handle_offer(punch, local, now),
            PunchStage::Answer | PunchStage::Refused | PunchStage::Busy => {
                let Some(Attempt { stage: Stage::Offered { own, .. }, .. }) = &self.punched.attempt else {
                    return;
                };
                let own = *own;
                if own.id != punch.id {
                    return;
                }
                match punch.stage {
                    PunchStage::Answer => {
                        self.run_punch(&own, punch, local, now);
                    }
                    PunchStage::Refused => {
                        let outcome = match self.plan_punch(&own, punch, local) {
                            Err(Refusal::BothVary) => PunchOutcome::BothVary,
                            Ok(_) | Err(_) => PunchOutcome::NotAgreed,
                        };
                        self.end_punch(outcome, local, now);
                    }
                    PunchStage::Busy | PunchStage::Offer => {
                        self.abandon_punch(local);
                        self.look_again(local, now);
                    }
                }
            }
        }
    }

    /// Takes an observer's answer at a socket of the attempt's; whether it was asked for.
    pub(crate) fn handle_observation(
        &mut self,
        at: SocketId,
        from: SocketAddr,
        datagram: &[u8],
        local: &mut Local,
        now: Instant,
    ) -> bool {
        let Some(Attempt { stage: Stage::Observing(observing), .. }) = &mut self.punched.attempt else {
            return false;
        };
        let taken = observing.handle_answer(at, from, datagram, now);
        self.handle_punch_timeout(local, now);
        taken
    }

    /// Whether a Ping that came this way is to be answered.
    pub(super) fn admits_ping(&mut self, from: PathAddress, now: Instant) -> bool {
        self.punched.attempt.as_mut().is_none_or(|attempt| attempt.admits(from, now))
    }

    /// Takes a Pong that belongs to no path: a port that was probed has answered, perhaps.
    pub(super) fn handle_hit(&mut self, from: PathAddress, txid: &TxId, now: Instant) {
        let Some(attempt) = self.punched.attempt.as_mut().filter(|attempt| attempt.id == *txid) else {
            return;
        };
        let is_first = attempt.admits(from, now);
        if let Stage::Running(run) = &mut attempt.stage
            && is_first
        {
            run.pause(now);
            self.paths.on_hit(from, now);
        }
    }

    fn handle_offer(&mut self, offer: &Punch, local: &mut Local, now: Instant) {
        self.paths.on_traffic(now);
        match &mut self.punched.attempt {
            Some(Attempt { stage: Stage::Observing(observing), .. }) => observing.offer = Some(*offer),
            Some(Attempt { stage: Stage::Offered { own, .. }, .. }) => {
                // Both have offered: each offer is as good as an answer, should the answer be lost.
                let own = *own;
                self.tell_punch(&Punch { stage: PunchStage::Answer, id: offer.id, ..own }, local);
                self.run_punch(&own, offer, local, now);
            }
            // The answer was lost.
            Some(Attempt { stage: Stage::Running(_), .. }) => {
                if let Some(own) = self.own_side(None, local) {
                    self.tell_punch(&Punch { stage: PunchStage::Answer, id: offer.id, ..own }, local);
                }
            }
            None if self.punched.not_before.is_some_and(|at| now < at) => {
                self.refuse(offer, PunchStage::Refused, local);
            }
            None => self.begin_punch(Some(*offer), local, now),
        }
    }

    /// Begins an attempt, on this side's own account or to answer an offer.
    fn begin_punch(&mut self, offer: Option<Punch>, local: &mut Local, now: Instant) {
        if !local.punching.has_room_for(self.config.id) || !local.take_punch_turn(now) {
            if let Some(offer) = offer {
                self.refuse(&offer, PunchStage::Busy, local);
            }
            return self.look_again(local, now);
        }
        let ready = self.punched.observed.is_some() && local.punching.limits.rate > 0;
        let (Some(own), true, Some(_)) = (self.own_side(None, local), ready, self.paths.best_relay()) else {
            if let Some(offer) = offer {
                self.refuse(&offer, PunchStage::Refused, local);
            }
            self.punched.due = Some(now + MISSING_WAIT);
            return;
        };
        local.punching.begin(self.config.id, now);
        self.punched.due = None;
        let observer = local.netcheck.observer_v4().filter(|_| match own.mapping {
            Mapping::None | Mapping::Eim => false,
            Mapping::Adm | Mapping::Apdm | Mapping::Unknown => true,
        });
        let Some(observer) = observer else {
            self.punched.attempt = Some(Attempt::new(own.id, Stage::offered(own, 0, now)));
            return self.agree(offer, None, local, now);
        };
        let mut observing = Observing::new(observer, offer, now);
        let mut sockets = Vec::new();
        for _ in 0..OBSERVED_MAPPINGS {
            let socket = local.punching.open_socket();
            let (remote, request) = observing.ask(socket, local.random());
            local.outbox.push_datagram(Via::Punched { socket, remote }, request);
            sockets.push(socket);
        }
        let mut attempt = Attempt::new(own.id, Stage::Observing(observing));
        attempt.sockets = sockets;
        self.punched.attempt = Some(attempt);
    }

    /// This side knows what it can say: answers the peer's offer, or makes one.
    fn agree(
        &mut self,
        offer: Option<Punch>,
        sequence: Option<mesh_proto::punch::Sequence>,
        local: &mut Local,
        now: Instant,
    ) {
        let Some(own) = self.own_side(sequence, local) else {
            return self.end_punch(PunchOutcome::NotAgreed, local, now);
        };
        let Some(offer) = offer else {
            if let Some(attempt) = &mut self.punched.attempt {
                attempt.stage = Stage::offered(own, 1, now);
            }
            return self.tell_punch(&own, local);
        };
        let stage = match self.plan_punch(&own, &offer, local) {
            Ok(_) => PunchStage::Answer,
            Err(_) => PunchStage::Refused,
        };
        self.tell_punch(&Punch { stage, id: offer.id, ..own }, local);
        self.run_punch(&own, &offer, local, now);
    }

    /// Both sides are known: sends what this side is to send.
    fn run_punch(&mut self, own: &Punch, peer: &Punch, local: &mut Local, now: Instant) {
        let plan = match self.plan_punch(own, peer, local) {
            Ok(plan) => plan,
            Err(Refusal::BothVary) => return self.end_punch(PunchOutcome::BothVary, local, now),
            Err(Refusal::BothStable | Refusal::WrongAddress) => {
                return self.end_punch(PunchOutcome::NotAgreed, local, now);
            }
        };
        tracing::debug!(peer = self.config.id.0, ?plan, "punching");
        let share = local.punching.share(self.config.id);
        let limits = PunchLimits { rate: share, ..local.punching.limits };
        let mut run = Run::new(plan, &limits, peer, || u32::from_le_bytes(local.random()), now);
        let shots = run.poll_shots(now, share, |wanted| local.punching.take_probes(wanted, now));
        local.punching.set_sends(self.config.id, Sends::Probes);
        if let Some(attempt) = &mut self.punched.attempt {
            attempt.stage = Stage::Running(run);
        }
        self.shoot(&shots, local);
    }

    fn shoot(&mut self, shots: &[Shot], local: &mut Local) {
        let Some(id) = self.punched.attempt.as_ref().map(|attempt| attempt.id) else { return };
        for shot in shots {
            let path = match *shot {
                Shot::Main(remote) => PathAddress::Direct(local.translation.reach(remote)),
                Shot::Socket(number, remote) => match self.attempt_socket(number, local) {
                    Some(socket) => PathAddress::Punched { socket, remote },
                    None => continue,
                },
            };
            self.say(&Message::Ping { txid: id, padding: PING_PADDING }, path, local);
        }
    }

    /// Returns the attempt's socket with this number; they are opened one after the other.
    fn attempt_socket(&mut self, number: usize, local: &mut Local) -> Option<SocketId> {
        let attempt = self.punched.attempt.as_mut()?;
        if number >= attempt.sockets.len() {
            attempt.sockets.push(local.punching.open_socket());
        }
        attempt.sockets.get(number).copied()
    }

    /// Plans this side's part. The only address of the peer's that is sent to is where the coordinator sees it; if that is
    /// on the coordinator's own network, it is where this node reaches the coordinator or a relay.
    fn plan_punch(&self, own: &Punch, peer: &Punch, local: &Local) -> Result<Plan, Refusal> {
        let observed = self.punched.observed.ok_or(Refusal::WrongAddress)?;
        if is_public(observed) {
            return plan(own, peer, observed);
        }
        let mut servers = local.netcheck.observers().map(|observer| observer.ip());
        let beside = servers.find(|ip| *ip == peer.mapped.ip() && is_public(*ip));
        plan(own, peer, beside.ok_or(Refusal::WrongAddress)?)
    }

    /// Says what this side is; `None` while it does not know itself.
    fn own_side(&self, sequence: Option<mesh_proto::punch::Sequence>, local: &mut Local) -> Option<Punch> {
        let id = self.punched.attempt.as_ref().map_or_else(|| local.random(), |attempt| attempt.id);
        let limits = local.punching.limits;
        let mapping = local.netcheck.mapping();
        if local.translation.is_on() && matches!(mapping, Mapping::Adm | Mapping::Apdm) {
            // Sockets of their own are for IPv4.
            return None;
        }
        Some(Punch {
            stage: PunchStage::Offer,
            id,
            mapping,
            mapped: local.netcheck.mapped_v4()?,
            sequence,
            rate: local.punching.share(self.config.id),
            budget: limits.budget,
        })
    }

    fn refuse(&mut self, offer: &Punch, stage: PunchStage, local: &mut Local) {
        if let Some(own) = self.own_side(None, local) {
            self.tell_punch(&Punch { stage, id: offer.id, ..own }, local);
        }
    }

    /// Says something of punching through the relay.
    fn tell_punch(&mut self, punch: &Punch, local: &mut Local) {
        if let Some(relay) = self.paths.best_relay().map(|path| path.address) {
            self.say(&Message::Punch(*punch), relay, local);
        }
    }

    fn look_again(&mut self, local: &mut Local, now: Instant) {
        self.punched.due = Some(now + LOOK_AGAIN.mul_f64(1.0 + local.random_fraction()));
    }

    fn end_punch(&mut self, outcome: PunchOutcome, local: &mut Local, now: Instant) {
        let Some(attempt) = self.punched.attempt.take() else { return };
        local.punching.end(self.config.id);
        local.unsettled = true;
        self.punched.outcome = Some(outcome);
        self.punched.due = None;
        tracing::debug!(peer = self.config.id.0, ?outcome, "punching has ended");
        if outcome == PunchOutcome::Direct {
            self.punched.failures = 0;
            self.punched.not_before = None;
            return self.paths.forget_punched(now);
        }
        self.paths.forget_punched(now);
        self.punched.failures = (self.punched.failures + 1).min(MAX_FAILURES);
        let predicted = matches!(&attempt.stage, Stage::Running(run) if run.plan.is_predicted());
        let limits = local.punching.limits;
        let backoff = if predicted && self.punched.failures < PREDICTED_TRIES {
            Duration::ZERO
        } else {
            limits.min_backoff.saturating_mul(1 << (self.punched.failures - 1)).min(limits.max_backoff)
        };
        self.punched.not_before = Some(now + backoff);
        if self.is_active(now) {
            self.punched.due = self.punched.not_before;
        }
    }
}
