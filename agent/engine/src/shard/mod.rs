//! Several engines for one node: shards, each with a part of the peers and a thread of its own.
//!
//! A peer belongs to the shard that its number says, for ever ([`Shard::of`]). Every shard is told of all peers and keeps
//! the whole router, but state only of its own: of the others it knows whose they are. What reaches a shard and belongs
//! to another one is handed over:
//!
//! ```text
//! packet from the TUN              by the peer that owns its destination
//! data, response, cookie           by the receiver index: slot numbers are dealt out so that slot % shards = shard
//! initiation                       by the static key in it, after it was admitted: it is not admitted twice
//! disco                            by the sender's key in its header
//! a relay's Data                   by what is in it, as above
//! a relay's other frames, STUN     to the home shard
//! ```
//!
//! What one peer carries for another (`pass`) is handed over once more, opened, where the two are of different
//! shards; and what this node wants carried is told to every shard, since each knows only its own who could.
//!
//! So the system may give anything to any shard, and its steering is a matter of speed only.
//!
//! Shard 0, the *home shard*, does alone what a node does once: it binds relay channels, asks observers, finds
//! candidates, and decides whose turn it is to punch. The others follow (`handover::Mirror`): they have a copy of its relays
//! and of its address discovery, made anew at every change, which never acts by itself. They tell it (`handover::Report`) what
//! their peers see of this node, when relays are to be checked, and that there is traffic.
//!
//! Nothing goes back and forth: what was handed over is not handed over again. While shards do not agree, because
//! one has been told of new peers and another has not, it is dropped and counted.

use std::{num::NonZeroU32, time::Instant};

use mesh_proto::netmap::NodeId;

pub(crate) mod handover;
mod turn;

pub use handover::Handover;
pub(crate) use turn::{Turn, TurnNews};

use crate::netcheck::ACTIVE_INTERVAL;
use handover::{Handovers, Report};

/// The shard that does what a node does once.
pub const HOME: u32 = 0;
/// Slots from here on are no slots: what is added to it is the shard of a peer that another engine has. Session
/// indices have 24 bits for the slot, so no real one is as large.
const FOREIGN: u32 = 1 << 31;

/// Which of a node's shards an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: u32,
    count: u32,
}

impl Shard {
    /// The only one.
    pub const ONLY: Self = Self { index: HOME, count: 1 };

    /// Returns all shards of a node that has so many.
    pub fn all(count: NonZeroU32) -> impl Iterator<Item = Self> {
        (0..count.get()).map(move |index| Self { index, count: count.get() })
    }

    /// Returns its number, below [`Shard::count`].
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }

    /// Returns how many there are.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// Returns the number of the shard that a peer belongs to.
    #[must_use]
    pub fn of(self, peer: NodeId) -> u32 {
        peer.0 % self.count
    }

    pub(crate) fn owns(self, peer: NodeId) -> bool {
        self.of(peer) == self.index
    }

    pub(crate) fn is_home(self) -> bool {
        self.index == HOME
    }

    /// Returns the number of the shard in which a slot is, wherever that is.
    pub(crate) fn of_slot(self, slot: u32) -> u32 {
        match foreign_shard(slot) {
            Some(shard) => shard,
            None => slot % self.count,
        }
    }

    /// Whether a slot may be given to a peer of this shard.
    pub(crate) fn has_slot(self, slot: usize) -> bool {
        slot % (self.count as usize) == self.index as usize
    }

    /// Returns what stands for the slot of a peer of another shard.
    pub(crate) fn foreign_slot(self, peer: NodeId) -> u32 {
        FOREIGN | self.of(peer)
    }
}

/// Returns the shard of a peer that another engine has.
pub(crate) fn foreign_shard(slot: u32) -> Option<u32> {
    (slot & FOREIGN != 0).then_some(slot & !FOREIGN)
}

/// What an engine shares with the others of its node.
#[derive(Debug)]
pub(crate) struct Sharing {
    pub(crate) shard: Shard,
    pub(crate) handovers: Handovers,
    pub(crate) turn: Turn,
    /// What the home shard is to be told.
    pub(crate) report: Report,
    /// When this shard tells the home shard again that there is traffic, if there still is.
    pub(crate) next_report: Option<Instant>,
    /// When another shard last told of traffic.
    active_elsewhere: Option<Instant>,
    /// Whether this engine is being given what another handed over.
    pub(crate) is_taking: bool,
    /// Whether relays have changed since the others were told.
    pub(crate) relays_changed: bool,
}

impl Sharing {
    pub(crate) fn new(shard: Shard) -> Self {
        Self {
            shard,
            handovers: Handovers::default(),
            turn: Turn::default(),
            report: Report::new(shard.index()),
            next_report: None,
            active_elsewhere: None,
            is_taking: false,
            relays_changed: false,
        }
    }

    /// Whether what belongs to another shard may be handed over to it.
    pub(crate) fn may_hand_over(&self) -> bool {
        self.is_several() && !self.is_taking
    }

    /// Whether there are other shards.
    pub(crate) fn is_several(&self) -> bool {
        self.shard.count > 1
    }

    pub(crate) fn is_home(&self) -> bool {
        self.shard.is_home()
    }

    /// There is traffic with a peer: the home shard is told, now and while it lasts.
    pub(crate) fn report_active(&mut self, now: Instant) {
        self.report.active = true;
        self.next_report.get_or_insert(now + ACTIVE_INTERVAL.0);
    }

    /// Another shard has traffic.
    pub(crate) fn on_active_elsewhere(&mut self, now: Instant) {
        self.active_elsewhere = Some(now);
    }

    /// Whether another shard has had traffic lately.
    pub(crate) fn is_active_elsewhere(&self, now: Instant) -> bool {
        self.active_elsewhere.is_some_and(|at| now.saturating_duration_since(at) <= ACTIVE_INTERVAL.1)
    }

    /// The others are to be told what has changed.
    pub(crate) fn mirror(&mut self) {
        self.handovers.mirror_to((0..self.shard.count).filter(|index| *index != self.shard.index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_has_one_shard_and_every_slot_tells_it() {
        for count in 1..=5 {
            let shards: Vec<_> = Shard::all(NonZeroU32::new(count).unwrap()).collect();
            for peer in (0..50).map(NodeId) {
                let owners: Vec<_> = shards.iter().filter(|shard| shard.owns(peer)).collect();
                assert_eq!(owners.len(), 1);
                for shard in &shards {
                    assert_eq!(shard.of_slot(shard.foreign_slot(peer)), owners[0].index());
                }
            }
            for slot in 0..50_u32 {
                let owners: Vec<_> = shards.iter().filter(|shard| shard.has_slot(slot as usize)).collect();
                assert_eq!(owners.len(), 1);
                assert!(shards.iter().all(|shard| shard.of_slot(slot) == owners[0].index()));
                assert_eq!(foreign_shard(slot), None);
            }
        }
    }
}
