//! A peer that is looked for through others, or that carries for others (see [`crate::pass`]).

use std::time::{Duration, Instant};

use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    disco::{self, Message},
    netmap::{NodeId, RelayId},
    pass::{PassOn, Passed, Whereabouts},
};

use super::Peer;
use crate::{
    drops::DropReason,
    engine::relay_id,
    event::PathAddress,
    local::Local,
    pass::{Ask, COPIES, SEEK_AFTER, SOUGHT, Wish},
    path::Targets,
};

/// A peer that was called through a relay has this long to answer before others are asked.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same where there is no relay that could lead to it: only the peer itself can answer, at once.
const PATIENCE_ALONE: Duration = Duration::from_millis(250);

impl Peer {
    /// The peer was called: if that is of no use, others are asked.
    pub(super) fn plan_passing(&mut self, now: Instant) {
        if self.has_traffic(now) && !self.paths.is_reached(now) {
            let patience = if self.paths.best_relay().is_some() { PATIENCE } else { PATIENCE_ALONE };
            self.passed.plan(now + patience);
        }
    }

    /// Has this node's whereabouts passed on, if that is due.
    ///
    /// A peer that is only looked for, or that only called, is answered once, by who is there: if nodes looked for others
    /// on behalf of those who look for them, they would keep each other at it for ever.
    pub(super) fn handle_passing_timeout(&mut self, local: &mut Local, now: Instant) {
        if !self.is_active(now) || self.paths.is_reached(now) {
            return self.passed.stop();
        }
        let Some(round) = self.passed.take_due(now) else { return };
        let whereabouts = self.whereabouts(local, now);
        let Some(sealed) = self.seal(&Message::Whereabouts(whereabouts), local) else { return };
        let has_traffic = self.has_traffic(now);
        let sought = match self.paths.best_relay() {
            _ if !has_traffic => 0,
            None => SOUGHT,
            Some(_) => usize::from(round >= SEEK_AFTER),
        };
        if !has_traffic {
            self.passed.stop();
        }
        let ask = Ask { to: self.config.id, sealed, round, copies: COPIES, sought, by: self.passed.by };
        local.wish(Wish::Ask(ask));
    }

    /// Whether it can be asked to carry something.
    pub(crate) fn can_carry(&self, now: Instant) -> bool {
        self.paths.primary().is_some_and(|path| path.is_trusted(now)) || self.passed.way_back(now).is_some()
    }

    /// Returns when it last answered directly.
    pub(crate) fn last_direct_answer(&self) -> Option<Instant> {
        let direct = self.paths.iter().filter(|path| path.is_direct());
        direct.filter_map(|path| path.last_answer).max()
    }

    /// The peer answers, which was looked for.
    pub(super) fn on_found(&self, local: &mut Local, now: Instant) {
        local.unsettled |= !self.has_traffic(now) && local.passing.on_found(self.config.id, now);
    }

    /// Whether it could be looked for, in order to be asked.
    pub(crate) fn can_be_sought(&self, now: Instant) -> bool {
        !self.is_active(now) && self.paths.iter().next().is_some()
    }

    /// Asks the peer to carry something, or brings it what it is to have.
    pub(crate) fn tell_by_carrier(&mut self, message: &Message, local: &mut Local, now: Instant) {
        let targets = match self.paths.targets(now) {
            Targets::None => [None, None],
            Targets::One(path) => [Some(path), None],
            Targets::Two(path, second) => [Some(path), Some(second)],
        };
        let way_back = self.passed.way_back(now).filter(|path| !targets.contains(&Some(*path)));
        let ways: Vec<_> = targets.into_iter().flatten().chain(way_back).collect();
        if ways.is_empty() {
            self.drops.count(DropReason::NoPath);
        }
        for path in ways {
            self.say(message, path, local);
        }
    }

    /// The peer asks this node to carry something.
    pub(super) fn handle_pass_on(
        &mut self,
        asked: PassOn,
        from: PathAddress,
        local: &mut Local,
        now: Instant,
    ) {
        let is_own = disco::Header::decode(&asked.sealed)
            .is_ok_and(|(header, _)| header.sender == self.config.public_key);
        if !is_own {
            return self.drops.count(DropReason::RelayRefused);
        }
        if !self.passed.may_carry(&mut local.passing, now) {
            return self.drops.count(DropReason::RelayRate);
        }
        self.passed.note_way_back(from, now);
        let (from, observed) = (self.config.id, from.remote());
        local.wish(Wish::Carry { from, observed, to: asked.to, sealed: asked.sealed });
    }

    /// The peer brings something of another peer's.
    pub(super) fn handle_passed(
        &mut self,
        passed: Passed,
        from: PathAddress,
        local: &mut Local,
        now: Instant,
    ) {
        if !self.passed.may_carry(&mut local.passing, now) {
            return self.drops.count(DropReason::RelayRate);
        }
        self.passed.note_way_back(from, now);
        let Passed { observed, sealed } = passed;
        local.wish(Wish::Open { by: self.config.id, observed, sealed });
    }

    /// Somebody has brought something of this peer's.
    pub(crate) fn open_passed(&mut self, by: NodeId, passed: &Passed, local: &mut Local, now: Instant) {
        let Ok((header, sealed)) = disco::Header::decode(&passed.sealed) else {
            return self.drops.count(DropReason::MalformedDatagram);
        };
        match self.disco(local).open(&header, sealed) {
            Ok(Message::Whereabouts(mut whereabouts)) => {
                let seen =
                    passed.observed.map(|address| Candidate { address, kind: CandidateKind::Reflexive });
                if whereabouts.number == self.passed.newest {
                    // Another carrier was faster, and sees the peer elsewhere, perhaps.
                    let seen = local.filter_candidates(seen.as_slice());
                    if self.paths.add_candidates(&seen) {
                        self.paths.hunt_new(now);
                    }
                    return;
                }
                // The first of them: if there are too many, another one goes.
                whereabouts.candidates.splice(0..0, seen);
                self.handle_whereabouts(&whereabouts, Some(by), local, now);
            }
            // Nothing else is for others to carry.
            Ok(_) => self.drops.count(DropReason::MalformedDatagram),
            Err(reason) => self.drops.count(reason),
        }
    }

    /// The peer says where it is.
    pub(super) fn handle_whereabouts(
        &mut self,
        at: &Whereabouts,
        by: Option<NodeId>,
        local: &mut Local,
        now: Instant,
    ) {
        self.passed.on_seen(at.seen);
        if by.is_some() {
            self.passed.by = by;
        }
        if self.passed.admit(at.number) {
            tracing::debug!(peer = self.config.id.0, by = by.map(|by| by.0), "the peer says where it is");
            if !at.relays.is_empty() {
                self.home = at.home();
                self.relays.clone_from(&at.relays);
                self.update_relays(local, now);
            }
            self.handle_call(&at.candidates, local, now);
        } else {
            self.drops.count(DropReason::Replayed);
        }
        // A recording is answered as well: if it is none, the peer's clock went back, and it learns of that.
        if by.is_some() && self.is_active(now) && !self.paths.is_reached(now) {
            self.passed.plan_answer(now);
        }
    }

    fn whereabouts(&mut self, local: &Local, now: Instant) -> Whereabouts {
        let home = local.home;
        let is_at =
            |id: &RelayId| local.relays.get(id).is_some_and(|relay| relay.is_up() && !relay.is_lent());
        let others = local.relays.keys().copied().filter(|id| is_at(id) && Some(*id) != home);
        let own = local.lending.lender.is_open().then(|| relay_id(local.id));
        Whereabouts {
            number: self.passed.next_number(&local.passing, now),
            seen: self.passed.newest,
            relays: home.into_iter().chain(others).chain(own).collect(),
            has_home: home.is_some(),
            candidates: local.netcheck.candidates(),
        }
    }
}
