//! Who may be at the door at once, and how often: connections that have not yet shown to be a node's.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::limit::{Rate, SourceLimiter, TokenBucket, prefix_of};

/// Connections at the door at once. Each may hold some 100 KiB for up to ten seconds.
const MAX_WAITING: usize = 256;
/// Connections at the door from one source: a house full of agents that all start, and no more.
const MAX_WAITING_PER_SOURCE: usize = 64;
/// From this many on a client has to prove its address first (QUIC Retry, RFC 9000 section 8.1.2), so that
/// forged sources cost no handshake.
const RETRY_FROM: usize = 32;

/// Connections from one source that proved its address: one that reconnects in a loop leaves room for
/// others. A handshake takes about a millisecond.
const SOURCE_RATE: Rate = Rate { per_second: 100, burst: 1000 };
/// Connections in all that did not prove their address. Beyond it they have to, which costs them a round
/// trip; it is not counted per source, as a forged flood could then shut out whom it names.
const CLAIMED_RATE: Rate = Rate { per_second: 200, burst: 400 };

/// Counts the connections at the door. Cheap to clone.
#[derive(Debug, Clone)]
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

#[derive(Debug)]
struct Waiting {
    claimed: TokenBucket,
    proved: SourceLimiter,
    total: usize,
    /// Sources with at least one connection: never more than [`MAX_WAITING`].
    by_source: BTreeMap<IpAddr, usize>,
}

impl Gate {
    pub(super) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Waiting {
            claimed: TokenBucket::new(now),
            proved: SourceLimiter::new(now, SOURCE_RATE),
            total: 0,
            by_source: BTreeMap::new(),
        })))
    }

    /// Decides on a connection from a source.
    pub(super) fn try_enter(&self, now: Instant, source: IpAddr, proof: AddressProof) -> Admission {
        // A proxy on this host stands for everybody behind it.
        let is_shared = source.is_loopback();
        let source = prefix_of(source);
        let mut waiting = self.lock();
        match proof {
            AddressProof::Claimed => {
                if waiting.total >= RETRY_FROM || waiting.claimed.try_take(now, CLAIMED_RATE, 1).is_err() {
                    return Admission::ProveAddress;
                }
            }
            AddressProof::Proved => {
                if !is_shared && waiting.proved.try_take(now, source).is_err() {
                    return Admission::Full;
                }
            }
        }
        let from_source = waiting.by_source.get(&source).copied().unwrap_or(0);
        let is_crowded = !is_shared && from_source >= MAX_WAITING_PER_SOURCE;
        if waiting.total >= MAX_WAITING || is_crowded {
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
        let now = Instant::now();
        let gate = Gate::new(now);
        let mut places = Vec::new();
        for _ in 0..MAX_WAITING_PER_SOURCE {
            match gate.try_enter(now, source(1), AddressProof::Proved) {
                Admission::Enter(place) => places.push(place),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(gate.try_enter(now, source(1), AddressProof::Proved), Admission::Full));
        assert!(matches!(gate.try_enter(now, source(2), AddressProof::Claimed), Admission::ProveAddress));
        assert!(matches!(gate.try_enter(now, source(2), AddressProof::Proved), Admission::Enter(_)));
        places.clear();
        assert_eq!(gate.waiting(), 0);
        assert!(gate.lock().by_source.is_empty());
        assert!(matches!(gate.try_enter(now, source(1), AddressProof::Claimed), Admission::Enter(_)));
    }

    #[test]
    fn one_that_reconnects_in_a_loop_is_slowed_down_and_others_are_not() {
        let now = Instant::now();
        let gate = Gate::new(now);
        let entered = (0..2000)
            .filter(|_| matches!(gate.try_enter(now, source(1), AddressProof::Proved), Admission::Enter(_)))
            .count();
        assert_eq!(entered, 1000);
        assert!(matches!(gate.try_enter(now, source(2), AddressProof::Proved), Admission::Enter(_)));
        let claimed = (0..2000)
            .filter(|_| matches!(gate.try_enter(now, source(3), AddressProof::Claimed), Admission::Enter(_)))
            .count();
        assert_eq!(claimed, 400, "then the address has to be proved");
        assert!(matches!(gate.try_enter(now, source(3), AddressProof::Proved), Admission::Enter(_)));
    }

    #[test]
    fn a_proxy_on_this_host_may_bring_as_many_as_there_are_places() {
        let now = Instant::now();
        let gate = Gate::new(now);
        let loopback = IpAddr::from([127, 0, 0, 1]);
        for _ in 0..20 {
            let places: Vec<Admission> =
                (0..MAX_WAITING).map(|_| gate.try_enter(now, loopback, AddressProof::Proved)).collect();
            assert!(places.iter().all(|admission| matches!(admission, Admission::Enter(_))));
            assert!(matches!(gate.try_enter(now, loopback, AddressProof::Proved), Admission::Full));
        }
    }

    #[test]
    fn the_door_is_full_at_some_point() {
        let now = Instant::now();
        let gate = Gate::new(now);
        let places: Vec<Admission> =
            (0..MAX_WAITING).map(|index| gate.try_enter(now, source(index), AddressProof::Proved)).collect();
        assert!(places.iter().all(|admission| matches!(admission, Admission::Enter(_))));
        assert!(matches!(gate.try_enter(now, source(999), AddressProof::Proved), Admission::Full));
    }
}
