//! Nodes that relay for others: this one for its peers, and they for it.

use std::{net::SocketAddr, time::Instant};

use mesh_proto::{
    disco::Message,
    lend::{LendMe, Lent},
    netmap::{NodeId, RelayId},
};

use super::Engine;
use crate::{
    batch::Via,
    config::{RelayCarrier, RelayConfig},
    drops::DropReason,
    event::{PathAddress, WakeupReason},
    lend::{
        BIND_LIFETIME, Onward,
        borrower::{ChannelView, MAX_LENDERS, Need, Step, View},
    },
    local::Local,
    peer::Peer,
    relay::RelayClient,
};

impl Engine {
    /// Takes a frame that is of no channel of this node's own: it may be one that is to be relayed.
    pub(super) fn relay_for_others(&mut self, via: Via, datagram: &mut [u8], now: Instant) {
        let Local { lending, outbox, drops, .. } = &mut self.local;
        if !lending.lender.is_open() {
            return drops.count(DropReason::UnknownSession);
        }
        match lending.lender.handle_frame(via, datagram, now) {
            Ok(Onward::Answer(answer)) => outbox.push_datagram(via, answer),
            // What is sent on comes after what the engine itself has to say.
            Ok(Onward::Forward(_)) if outbox.is_half_full() => drops.count(DropReason::ArenaFull),
            Ok(Onward::Forward(remote)) => {
                outbox.push_datagram(Via::Udp { remote, local: None }, datagram.to_vec());
            }
            Err(reason) => drops.count(reason),
        }
    }

    /// Sees to the channels at peers that relay for this node: at those of the home shard, for all shards.
    pub(super) fn borrow_relays(&mut self, now: Instant) {
        if !self.local.sharing.is_home() {
            return;
        }
        let views = self.lenders(now);
        if views.is_empty() && self.local.lending.borrower.poll_timeout().is_none() {
            return;
        }
        let need = self.need_of_lenders(now);
        for step in self.local.lending.borrower.plan(&views, need, now) {
            match step {
                Step::Hunt(id) => {
                    self.with_peer(id, now, |peer, local| peer.look_for(local, now));
                }
                Step::Ask(id, direct) => {
                    self.with_peer(id, now, |peer, local| {
                        let asked = LendMe { id: local.random() };
                        local.lending.borrower.on_asked(id, asked.id, now);
                        peer.say(&Message::LendMe(asked), PathAddress::Direct(direct), local);
                    });
                }
                Step::Follow(id, direct) => {
                    let relay = relay_id(id);
                    if let Some(client) = self.local.relays.get_mut(&relay) {
                        client.follow(direct, now);
                    }
                    self.local.sharing.relays_changed = true;
                    self.bind_relay(relay, now);
                    self.with_all_peers(now, |peer, local| peer.update_relays(local, now));
                }
                Step::Return(id) => {
                    let relay = relay_id(id);
                    self.local.relays.remove(&relay);
                    self.local.sharing.relays_changed = true;
                    self.wakeups.set(WakeupReason::Relay(relay), None);
                    self.with_all_peers(now, |peer, local| peer.update_relays(local, now));
                }
            }
        }
        self.wakeups.set_after(WakeupReason::Lending, self.local.lending.borrower.poll_timeout(), now);
    }

    /// Returns the peers that relay for others.
    fn lenders(&self, now: Instant) -> Vec<View> {
        let lenders = self.peers.iter().filter(|peer| peer.lends());
        let view = |peer: &Peer| {
            let channel = self.local.relays.get(&relay_id(peer.id()));
            let channel = channel.map(|client| ChannelView { address: client.target(), up: client.is_up() });
            View { id: peer.id(), direct: peer.direct_address(now), channel }
        };
        lenders.map(view).take(MAX_LENDERS).collect()
    }

    fn need_of_lenders(&self, now: Instant) -> Need {
        let has_other = self.local.relays.values().any(|relay| relay.is_up() && !relay.is_lent());
        match (self.peers.iter().any(|peer| peer.is_relayed(now)), has_other) {
            (true, _) => Need::Relayed,
            (false, false) => Need::Alone,
            (false, true) => Need::None,
        }
    }
}

/// What a node is called as a relay: by its own number.
pub(crate) fn relay_id(lender: NodeId) -> RelayId {
    RelayId(lender.0)
}

/// Makes the channel that a peer has given.
pub(crate) fn channel_at(lender: NodeId, direct: SocketAddr, lent: &Lent, now: Instant) -> RelayClient {
    let carrier = RelayCarrier::Udp(vec![direct]);
    let (channel, key, bind_lifetime) = (lent.channel, lent.key, BIND_LIFETIME);
    let config = RelayConfig { id: relay_id(lender), carrier, channel, key, bind_lifetime };
    RelayClient::new_lent(config, now)
}
