//! Doubt, and the choice of the primary path with its reason.

use std::time::{Duration, Instant};

use mesh_proto::{candidate::Candidate, status::PathReason};

use super::{
    Health, Path, PathSet,
    select::{Class, Standing, View, select},
    state::{PROBE_INTERVAL, SUSPECT_GRACE, SUSPECT_LIMIT},
};
use crate::snapshot::Decision;

/// Decisions that are remembered.
const MAX_DECISIONS: usize = 16;

/// What judging led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The primary path is another one now.
    pub(crate) changed: bool,
    /// A path begins to be doubted.
    pub(crate) suspicion: bool,
}

impl PathSet {
    /// Every direct path is doubted: the network changed, or the peer does not answer. Perhaps it is only large packets
    /// that get lost.
    pub(crate) fn suspect_all(&mut self, now: Instant) {
        for path in &mut self.paths {
            path.suspect(now);
            path.mtu.forget();
        }
        // What came before says nothing of now.
        self.last_heard = None;
    }

    /// The peer says where it is: a primary path to elsewhere is doubted, since the peer may have moved.
    pub(crate) fn on_call(&mut self, candidates: &[Candidate], now: Instant) {
        self.note_named(candidates);
        if self.primary().is_some_and(|path| path.is_direct() && !path.is_named) {
            self.suspect_primary(now);
        }
        self.check_relay_mtus(now);
    }

    pub(super) fn suspect_primary(&mut self, now: Instant) {
        if let Some(path) =
            self.primary.and_then(|address| self.get_mut(address)).filter(|path| path.is_direct())
        {
            path.suspect(now);
            path.next_probe = Some(now);
        }
    }

    /// Doubts and gives up paths by their silence, and chooses the primary path.
    ///
    /// A path that begins to be doubted is a sign that relays should be checked, too.
    pub(crate) fn judge(&mut self, now: Instant) -> Verdict {
        let suspicion = self.is_active(now) && self.speaks_disco && self.doubt(now);
        Verdict { changed: self.choose(now), suspicion }
    }

    /// Chooses the primary path; whether it is another one now.
    pub(super) fn choose(&mut self, now: Instant) -> bool {
        let views: Vec<View> = self.paths.iter().filter_map(|path| Self::view(path, now)).collect();
        let views = match views.iter().map(|view| view.standing).min() {
            // Of the places a peer without disco was heard from, the latest counts.
            Some(Standing::Heard) => self.latest_heard(now).into_iter().collect(),
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

    /// Moves silent paths on towards being given up; whether one begins to be doubted.
    pub(super) fn doubt(&mut self, now: Instant) -> bool {
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
                match health {
                    Health::Dead => path.mtu.forget(),
                    Health::Untried | Health::Alive | Health::Suspect { .. } => path.mtu.check(now),
                }
            }
        }
        if suspicion {
            // What has not answered for as long is no better. It is doubted together with the primary path, or each would
            // be tried and given up in its turn, while the relay answers.
            for path in self.paths.iter_mut().filter(|path| path.is_direct() && !path.is_trusted(now)) {
                path.suspect(now);
            }
            // Whatever may take over is asked at once.
            self.hunt(now, Duration::ZERO);
        }
        suspicion
    }

    pub(super) fn latest_heard(&self, now: Instant) -> Option<View> {
        let heard = self.paths.iter().filter(|path| path.standing() == Some(Standing::Heard));
        heard.max_by_key(|path| path.last_heard).and_then(|path| Self::view(path, now))
    }

    /// Tells why the primary path is what it is.
    pub(crate) fn code(&self) -> PathReason {
        let Some(primary) = self.primary() else { return PathReason::NothingKnown };
        if primary.is_direct() {
            return match (primary.health, primary.class()) {
                (Health::Alive, Class::Lan) => PathReason::AnsweredOnLan,
                (Health::Alive, Class::Internet) => PathReason::Answered,
                (Health::Suspect { .. }, _) => PathReason::Doubted,
                (Health::Untried | Health::Dead, _) => PathReason::Heard,
            };
        }
        let mut direct = self.paths.iter().filter(|path| path.is_direct());
        if direct.clone().any(|path| path.last_answer.is_some()) {
            PathReason::StoppedAnswering
        } else if direct.clone().any(|path| path.step > 0) {
            PathReason::NoAnswer
        } else if direct.next().is_some() {
            PathReason::NotProbed
        } else {
            PathReason::NoCandidates
        }
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
