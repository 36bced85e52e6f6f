//! Which paths are known: candidates, relays, and where the peer was heard from. All are bounded.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_proto::{
    candidate::{Candidate, MAX_CANDIDATES},
    netmap::RelayId,
};

use super::{Health, Origin, Path, PathSet, hunt::HUNT_PROBES};
use crate::event::PathAddress;

/// Most peer-reflexive paths: each answers a NAT's mapping towards one of this node's addresses.
const MAX_PEER_REFLEXIVE: usize = 8;
/// A hole that was punched with much effort is tried again for this long after it stopped answering.
const PUNCHED_MEMORY: Duration = Duration::from_secs(60);

impl PathSet {
    /// Returns the peer's candidates.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let candidates = self.paths.iter().filter_map(|path| match (path.address, path.origin) {
            (PathAddress::Direct(address), Origin::Candidate(kind)) => Some(Candidate { address, kind }),
            (PathAddress::Direct(_) | PathAddress::Punched { .. } | PathAddress::Relay(_), _) => None,
        });
        candidates.collect()
    }

    /// These are the peer's candidates, all that are known; they were filtered. Returns whether there are new ones.
    pub(crate) fn set_candidates(&mut self, candidates: &[Candidate]) -> bool {
        let is_listed = |path: &Path| match path.address {
            PathAddress::Direct(address) => candidates.iter().any(|candidate| candidate.address == address),
            PathAddress::Punched { .. } | PathAddress::Relay(_) => true,
        };
        // What answers or was heard stays, whoever named it.
        self.paths.retain(|path| {
            is_listed(path) || path.origin == Origin::PeerReflexive || path.standing().is_some()
        });
        let added = self.add_candidates(candidates);
        self.note_named(candidates);
        added
    }

    /// The peer is at these addresses, and at no others that are known.
    pub(super) fn note_named(&mut self, candidates: &[Candidate]) {
        for path in &mut self.paths {
            let named = |address| candidates.iter().any(|candidate| candidate.address == address);
            path.is_named = path.address.remote().is_some_and(named);
        }
    }

    /// Forgets where the peer was and has not answered a whole hunt. Somebody else may have the address by now, and probes
    /// keep a mapping of its NAT's from ending, whose port the next host behind it would otherwise be given.
    pub(super) fn forget_abandoned(&mut self, now: Instant) {
        let primary = self.primary;
        self.paths.retain(|path| Some(path.address) == primary || !path.is_abandoned(HUNT_PROBES, now));
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

    /// These relays can be used, all of them, with what is known of each as a way to the peer.
    pub(crate) fn set_relays(&mut self, relays: &[(RelayId, Origin)]) {
        self.paths.retain(|path| match path.address {
            PathAddress::Relay(id) => relays.iter().any(|(relay, _)| *relay == id),
            PathAddress::Direct(_) | PathAddress::Punched { .. } => true,
        });
        for &(id, origin) in relays {
            match self.get_mut(PathAddress::Relay(id)) {
                Some(path) => path.origin = origin,
                None => self.paths.push(Path::new(PathAddress::Relay(id), origin)),
            }
        }
    }

    /// Forgets paths through sockets of their own that never answered, or have not for long; their sockets can go.
    pub(crate) fn forget_punched(&mut self, now: Instant) {
        let primary = self.primary;
        self.paths.retain(|path| {
            let is_old =
                path.last_answer.is_none_or(|at| now.saturating_duration_since(at) >= PUNCHED_MEMORY);
            let is_silent = matches!(path.health, Health::Untried | Health::Dead);
            let is_punched = matches!(path.address, PathAddress::Punched { .. });
            Some(path.address) == primary || !(is_punched && is_silent && is_old)
        });
    }

    pub(super) fn adopt(&mut self, from: PathAddress, now: Instant) {
        if self.get(from).is_some() {
            return;
        }
        let origin = match from {
            PathAddress::Direct(_) | PathAddress::Punched { .. } => Origin::PeerReflexive,
            PathAddress::Relay(_) => Origin::OwnRelay,
        };
        let mut path = Path::new(from, origin);
        path.next_probe = Some(now);
        self.paths.push(path);
        self.evict(MAX_PEER_REFLEXIVE, |origin| origin == Origin::PeerReflexive);
    }

    /// Removes paths of an origin above a number: what has stopped answering first, then what never has, and of those
    /// what was silent for longest. The path that came last stays.
    pub(super) fn evict(&mut self, keep: usize, is_origin: impl Fn(Origin) -> bool) {
        while self.paths.iter().filter(|path| is_origin(path.origin)).count() > keep {
            let older = self.paths.len().saturating_sub(1);
            let expendable = self.paths[..older]
                .iter()
                .enumerate()
                .filter(|(_, path)| is_origin(path.origin) && Some(path.address) != self.primary);
            let worth = |path: &Path| {
                let health = match path.health {
                    Health::Dead => 0,
                    Health::Untried => 1,
                    Health::Suspect { .. } => 2,
                    Health::Alive => 3,
                };
                (health, path.last_answer.max(path.last_heard))
            };
            match expendable.min_by_key(|(_, path)| worth(path)).map(|(index, _)| index) {
                Some(index) => drop(self.paths.remove(index)),
                None => break,
            }
        }
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
