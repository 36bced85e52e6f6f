//! Where messages are sent.

use std::time::Instant;

use super::{Path, PathSet};
use crate::event::PathAddress;

/// A first initiation goes through so many relays: one may be dead without anybody having noticed.
const MAX_FIRST_RELAYS: usize = 2;

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
            .filter_map(|path| Self::view(path, now))
            .min_by_key(|view| (view.standing, !view.fresh, view.rtt));
        match second {
            Some(second) => Targets::Two(primary.address, second.address),
            None => Targets::One(primary.address),
        }
    }

    /// Returns where a handshake initiation is to be sent, which was sent `retries` times already: on the primary path
    /// alone if it can be trusted; else through a relay and wherever the peer once was; at last to every address.
    pub(crate) fn handshake_targets(&self, retries: usize, now: Instant) -> Vec<PathAddress> {
        if let Some(primary) = self.primary().filter(|path| retries == 0 && path.is_trusted(now)) {
            return vec![primary.address];
        }
        let relays = self.paths.iter().filter(|path| !path.is_direct());
        let mut relays: Vec<_> = relays.filter_map(|path| Self::view(path, now)).collect();
        relays.sort_by_key(|view| (view.standing, !view.fresh, view.rtt));
        // One that has just answered is enough; another one may have died unnoticed.
        relays.truncate(if relays.first().is_some_and(|best| best.fresh) { 1 } else { MAX_FIRST_RELAYS });
        let is_chosen = |path: &&Path| {
            let worked = path.last_answer.is_some() || path.last_heard.is_some();
            let is_best = relays.iter().any(|best| best.address == path.address);
            let everywhere = retries > 0 || (relays.is_empty() && path.is_direct());
            Some(path.address) == self.primary || is_best || (worked && path.is_direct()) || everywhere
        };
        self.paths.iter().filter(is_chosen).map(|path| path.address).collect()
    }

    /// Returns the relay through which the answer to a handshake goes as well: UDP may be blocked in one direction alone,
    /// and of an initiation that came both ways the copy by the relay is a replay that nobody answers.
    pub(crate) fn second_way(&self, from: PathAddress, now: Instant) -> Option<PathAddress> {
        let is_doubtful = self.get(from).is_none_or(|path| path.is_direct() && !path.is_trusted(now));
        let relay = self.best_relay().filter(|_| is_doubtful && self.speaks_disco)?;
        (relay.address != from).then_some(relay.address)
    }

    /// Returns the relay through which the peer is told things.
    pub(crate) fn best_relay(&self) -> Option<&Path> {
        let relays = self.paths.iter().filter(|path| !path.is_direct());
        relays.filter(|path| path.standing().is_some()).min_by_key(|path| (path.standing(), path.rtt))
    }
}
