//! A peer that relays for this node, or for which this node relays.

use std::{net::SocketAddr, time::Instant};

use mesh_proto::{
    disco::Message,
    lend::{LendMe, Lent},
};

use super::Peer;
use crate::{
    drops::DropReason,
    engine::{channel_at, relay_id},
    event::PathAddress,
    local::Local,
};

impl Peer {
    /// Whether it says that it relays for others: by its own number it is among the relays at which it is.
    pub(crate) fn lends(&self) -> bool {
        self.relays.contains(&relay_id(self.config.id))
    }

    /// Whether there is traffic with it, and no direct path that answers.
    pub(crate) fn is_relayed(&self, now: Instant) -> bool {
        self.has_traffic(now) && !self.paths.is_direct(now)
    }

    /// Returns where it answers on this node's main socket, if it has lately.
    pub(crate) fn direct_address(&self, now: Instant) -> Option<SocketAddr> {
        match self.paths.primary().filter(|path| path.is_trusted(now))?.address {
            PathAddress::Direct(remote) => Some(remote),
            PathAddress::Punched { .. } | PathAddress::Relay(_) => None,
        }
    }

    /// The peer asks this node to relay for it.
    pub(super) fn handle_lend_me(
        &mut self,
        asked: LendMe,
        from: PathAddress,
        local: &mut Local,
        now: Instant,
    ) {
        // Of several shards none has all channels: such a node relays for nobody.
        if !matches!(from, PathAddress::Direct(_)) || local.sharing.is_several() {
            return self.drops.count(DropReason::RelayRefused);
        }
        let Local { lending, rng, .. } = local;
        match lending.lender.lend(self.config.id, asked, rng, now) {
            Ok(lent) => self.say(&Message::Lent(lent), from, local),
            Err(reason) => self.drops.count(reason),
        }
    }

    /// The peer relays for this node.
    pub(super) fn handle_lent(&mut self, lent: &Lent, from: PathAddress, local: &mut Local, now: Instant) {
        let id = self.config.id;
        let (PathAddress::Direct(direct), true) = (from, local.lending.borrower.on_lent(id, lent)) else {
            return self.drops.count(DropReason::Replayed);
        };
        local.relays.insert(relay_id(id), channel_at(id, direct, lent, now));
        // It is bound when that is settled.
        local.sharing.relays_changed = true;
        local.unsettled = true;
    }
}
