//! Who may be at the door at once: connections that have not yet shown to be a node's.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::limit::prefix_of;

/// Connections at the door at once. Each may hold some 100 KiB for up to ten seconds.
const MAX_WAITING: usize = 256;
/// Connections at the door from one source: a house full of agents that all start, and no more.
const MAX_WAITING_PER_SOURCE: usize = 64;
/// From this many on a client has to prove its address first (QUIC Retry, RFC 9000 section 8.1.2), so that
/// forged sources cost no handshake.
const RETRY_FROM: usize = 32;

/// Counts the connections at the door. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate(Arc<Mutex<Waiting>>);

/// A place at the door, given back when dropped.
#[derive(Debug)]
pub struct Place {
    gate: Gate,
    source: IpAddr,
}

/// What to do with a connection that wants to come in.
#[derive(Debug)]
pub(super) enum Admission {
    /// It may.
    Enter(Place),
    /// It has to prove its address first.
    ProveAddress,
    /// It is turned away.
    Full,
}

/// Whether a source address was proved by its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressProof {
    Proved,
    Claimed,
}

#[derive(Debug, Default)]
struct Waiting {
    total: usize,
    /// Sources with at least one connection: never more than [`MAX_WAITING`].
    by_source: BTreeMap<IpAddr, usize>,
}

impl Gate {
    /// Decides on a connection from a source.
    pub(super) fn try_enter(&self, source: IpAddr, proof: AddressProof) -> Admission {
        let source = prefix_of(source);
        let mut waiting = self.lock();
        if proof == AddressProof::Claimed && waiting.total >= RETRY_FROM {
            return Admission::ProveAddress;
        }
        let from_source = waiting.by_source.get(&source).copied().unwrap_or(0);
        if waiting.total >= MAX_WAITING || from_source >= MAX_WAITING_PER_SOURCE {
            return Admission::Full;
        }
        waiting.total += 1;
        waiting.by_source.insert(source, from_source + 1);
        Admission::Enter(Place { gate: self.clone(), source })
    }

    /// Returns how many are at the door.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().total
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.gate.lock();
        waiting.total -= 1;
        let from_source = waiting.by_source.get(&self.source).copied().unwrap_or(1);
        if from_source > 1 {
            waiting.by_source.insert(self.source, from_source - 1);
        } else {
            waiting.by_source.remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(index: usize) -> IpAddr {
        IpAddr::from([10, 0, index.to_le_bytes()[1], index.to_le_bytes()[0]])
    }

    #[test]
    fn one_source_cannot_take_every_place_and_places_come_back() {
        let gate = Gate::default();
        let mut places = Vec::new();
        for _ in 0..MAX_WAITING_PER_SOURCE {
            match gate.try_enter(source(1), AddressProof::Proved) {
                Admission::Enter(place) => places.push(place),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(gate.try_enter(source(1), AddressProof::Proved), Admission::Full));
        assert!(matches!(gate.try_enter(source(2), AddressProof::Claimed), Admission::ProveAddress));
        assert!(matches!(gate.try_enter(source(2), AddressProof::Proved), Admission::Enter(_)));
        places.clear();
        assert_eq!(gate.waiting(), 0);
        assert!(gate.lock().by_source.is_empty());
        assert!(matches!(gate.try_enter(source(1), AddressProof::Claimed), Admission::Enter(_)));
    }

    #[test]
    fn the_door_is_full_at_some_point() {
        let gate = Gate::default();
        let places: Vec<Admission> =
            (0..MAX_WAITING).map(|index| gate.try_enter(source(index), AddressProof::Proved)).collect();
        assert!(places.iter().all(|admission| matches!(admission, Admission::Enter(_))));
        assert!(matches!(gate.try_enter(source(999), AddressProof::Proved), Admission::Full));
    }
}
