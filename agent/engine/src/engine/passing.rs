//! What concerns two peers at once: one carries something from, or to, the other (see [`crate::pass`]).

use std::time::Instant;

use mesh_proto::{
    disco::{self, Message},
    netmap::NodeId,
    pass::{PassOn, Passed},
};

use super::Engine;
use crate::{
    drops::DropReason,
    pass::{Ask, Wish},
    peer::Peer,
    shard::{foreign_shard, handover::Item},
};

impl Engine {
    /// Sees to what came up, here or in the shards that it concerns.
    pub(super) fn pass_on(&mut self, now: Instant) {
        while let Some(wish) = self.local.passing.take() {
            match self.owner_of_wish(&wish) {
                Some(shard) => {
                    self.count_refused(shard, |engine| {
                        engine.local.sharing.handovers.push(shard, Item::Wish(wish))
                    });
                }
                None => {
                    if let Some(rest) = self.fulfil(wish, now) {
                        self.ask_elsewhere(&rest);
                    }
                }
            }
        }
    }

    /// Does what is wished, as far as it can be done in this shard; returns what other shards could do.
    pub(super) fn fulfil(&mut self, wish: Wish, now: Instant) -> Option<Ask> {
        match wish {
            Wish::Ask(ask) => return self.ask(ask, now),
            Wish::Carry { from, observed, to, sealed } => {
                let message = Message::Passed(Passed { observed, sealed });
                let is_known = from != to
                    && self.with_peer(to, now, |peer, local| {
                        peer.tell_by_carrier(&message, local, now);
                    });
                if !is_known {
                    self.local.drops.count(DropReason::RelayAbsent);
                }
            }
            Wish::Open { by, observed, sealed } => {
                let slot = sender(&sealed).and_then(|key| self.peers.slot_of_key(&key));
                let id = slot.and_then(|slot| self.peers.get_mut(slot)).map(|peer| peer.id());
                match id.filter(|id| *id != by) {
                    Some(id) => {
                        let passed = Passed { observed, sealed };
                        self.with_peer(id, now, |peer, local| peer.open_passed(by, &passed, local, now));
                    }
                    None => self.local.drops.count(DropReason::UnknownSession),
                }
            }
        }
        None
    }

    /// Hands a message to peers that carry it, and has others looked for.
    fn ask(&mut self, mut ask: Ask, now: Instant) -> Option<Ask> {
        // Both sides of a pair begin at the same place of the list.
        let turn = (self.local.id.0 as usize).wrapping_add(ask.to.0 as usize).wrapping_add(ask.round);
        let chosen = |wanted: usize, first: Option<NodeId>, is_fit: &dyn Fn(&Peer) -> bool| -> Vec<NodeId> {
            let fit = self.peers.iter().filter(|peer| peer.id() != ask.to && is_fit(peer));
            let mut ids: Vec<_> = fit.map(Peer::id).collect();
            let start = turn % ids.len().max(1);
            ids.rotate_left(start);
            // Stable: only the first one moves.
            ids.sort_by_key(|id| Some(*id) != first);
            ids.truncate(wanted);
            ids
        };
        let carriers = chosen(ask.copies, ask.by, &|peer| peer.can_carry(now));
        let can_be_sought = |peer: &Peer| peer.can_be_sought(now) && !peer.can_carry(now);
        let latest = self.peers.iter().filter(|peer| peer.id() != ask.to && can_be_sought(peer));
        let latest = latest.max_by_key(|peer| peer.last_direct_answer()).map(Peer::id);
        let sought = chosen(ask.sought, latest.filter(|_| ask.round.is_multiple_of(2)), &can_be_sought);
        for id in &carriers {
            if !self.local.passing.may_ask(now) {
                return None;
            }
            let message = Message::PassOn(PassOn { to: ask.to, sealed: ask.sealed.clone() });
            self.with_peer(*id, now, |peer, local| peer.tell_by_carrier(&message, local, now));
        }
        // Those who answer may know no more of the peer than this node: after the first try, others are looked for too.
        ask.copies = (ask.copies - carriers.len()).max(usize::from(ask.round > 0));
        if ask.copies > 0 && !sought.is_empty() {
            self.local.passing.keep(ask.clone(), now);
            for id in sought {
                self.with_peer(id, now, |peer, local| peer.look_for(local, now));
            }
        }
        (ask.copies > 0).then_some(ask)
    }

    /// Has the other shards ask their peers.
    fn ask_elsewhere(&mut self, ask: &Ask) {
        let shard = self.local.sharing.shard;
        for other in (0..shard.count()).filter(|other| *other != shard.index()) {
            let item = Item::Wish(Wish::Ask(Ask { sought: ask.sought.min(1), ..ask.clone() }));
            self.count_refused(other, |engine| engine.local.sharing.handovers.push(other, item));
        }
    }

    /// Returns the other shard that a wish concerns.
    fn owner_of_wish(&self, wish: &Wish) -> Option<u32> {
        let shard = self.local.sharing.shard;
        match wish {
            Wish::Ask(_) => None,
            Wish::Carry { to, .. } => Some(shard.of(*to)).filter(|of| *of != shard.index()),
            Wish::Open { sealed, .. } => {
                sender(sealed).and_then(|key| self.peers.slot_of_key(&key)).and_then(foreign_shard)
            }
        }
    }
}

fn sender(sealed: &[u8]) -> Option<mesh_proto::key::PublicKey> {
    disco::Header::decode(sealed).ok().map(|(header, _)| header.sender)
}
