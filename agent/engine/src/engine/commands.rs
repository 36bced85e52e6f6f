//! What the driver asks for.

use std::{collections::BTreeSet, time::Instant};

use mesh_proto::netmap::{NodeId, RelayId};

use super::{Engine, Local};
use crate::{
    command::Command,
    config::{PeerConfig, RelayConfig},
    event::{Event, WakeupReason},
    netcheck::Observer,
    path::is_probable,
    peer::PeerNews,
    relay::{Outcome, RelayClient},
    router::{Claim, Own, Router},
};

impl Engine {
    /// Does what the driver asks for. Commands that want what is there already change nothing.
    pub fn handle_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::SetPeers(peers) => self.set_peers(peers, now),
            Command::SetAllowedIps(allowed_ips) => {
                self.own_allowed_ips = allowed_ips;
                self.rebuild_router();
            }
            // The other shards learn of these from the home shard.
            Command::SetRelays(_) | Command::SetCandidates(_) | Command::SetObservers(_)
                if !self.local.sharing.is_home() => {}
            Command::SetRelays(relays) => {
                self.servers.relays = relays;
                self.set_relays(now);
            }
            Command::SetCandidates(mut candidates) => {
                candidates.retain(|candidate| is_probable(candidate.address));
                self.local.netcheck.set_local(candidates);
            }
            Command::SetLending { allowed } => self.local.lending.lender.set_open(allowed),
            Command::SetObservers(observers) => {
                self.servers.observers = observers;
                self.set_observers(now);
            }
            Command::SetNat64(nat64) => {
                if self.local.translation.set_config(nat64) {
                    self.translate(now);
                }
            }
            Command::PeerState { id, online, candidates, relays, home, observed } => {
                let news = PeerNews { online, candidates, relays, home };
                self.with_peer(id, now, |peer, local| {
                    peer.set_observed(observed);
                    peer.set_state(news, local, now);
                });
            }
            Command::CallMeMaybe { from, candidates } => {
                self.with_peer(from, now, |peer, local| peer.handle_call(&candidates, local, now));
            }
            Command::Ping { peer, token } => {
                self.with_peer(peer, now, |peer, local| peer.ping(token, local, now));
            }
            Command::Resume(peers) => {
                for id in peers {
                    self.with_peer(id, now, |peer, local| peer.resume(local, now));
                }
            }
            Command::Pause { stays } => {
                self.local.parting.begin(now);
                self.with_all_peers(now, |peer, local| peer.announce_pause(stays, local, now));
            }
            Command::SetNatLifetime(known) if self.local.sharing.is_home() => {
                self.local.netcheck.lifetime.set_known(known, now);
            }
            // The home shard tells.
            Command::SetNatLifetime(_) => {}
            Command::NetworkChanged => self.doubt_everything(now),
            Command::Woke { unseen } => {
                self.doubt_everything(now);
                self.with_all_peers(now, |peer, local| peer.on_woke(unseen, local, now));
            }
        }
        self.settle(now);
    }

    /// Looks for everything as if nothing were known of where it is.
    fn doubt_everything(&mut self, now: Instant) {
        if self.local.sharing.is_home() {
            self.begin_anew(now);
        }
        self.with_all_peers(now, |peer, local| peer.on_network_changed(local, now));
        // Those that this node relays for have to find it again.
        for id in self.local.lending.lender.clients() {
            self.with_peer(id, now, |peer, local| peer.look_for(local, now));
        }
    }

    /// Asks observers and binds relays as if nothing were known of the network.
    fn begin_anew(&mut self, now: Instant) {
        self.local.netcheck.on_network_changed(now);
        for relay in self.local.relays.values_mut() {
            relay.on_network_changed(now);
        }
        let ids: Vec<_> = self.local.relays.keys().copied().collect();
        for id in ids {
            self.bind_relay(id, now);
        }
    }

    /// Sends what Binds of a relay are due.
    pub(super) fn bind_relay(&mut self, id: RelayId, now: Instant) {
        let Local { relays, outbox, .. } = &mut self.local;
        let Some(relay) = relays.get_mut(&id) else { return };
        let went_down = relay.handle_timeout(now, |via, datagram| outbox.push_datagram(via, datagram));
        if went_down {
            self.local.sharing.relays_changed = true;
            self.with_all_peers(now, |peer, local| peer.update_relays(local, now));
        }
    }

    /// Tells of what a relay has said.
    pub(super) fn apply_relay(&mut self, id: RelayId, outcome: Outcome, now: Instant) {
        self.local.sharing.relays_changed |= outcome != Outcome::Nothing;
        match outcome {
            Outcome::Nothing => return,
            Outcome::Bound { observer, observed, came_up } => {
                if let Some(from) = observer {
                    let is_lent = self.local.relays.get(&id).is_some_and(RelayClient::is_lent);
                    // A lender is a peer, which may have probed this node before it was asked for its relay.
                    let by = if is_lent { Observer::Caller } else { Observer::Dedicated };
                    if !is_lent && self.local.netcheck.has_moved(from, observed) {
                        self.local.netcheck.lifetime.doubt(now);
                    }
                    self.local.netcheck_mut().on_observed(by, from, observed, now);
                }
                if came_up {
                    self.local.outbox.push_event(Event::RelayUp(id));
                    self.with_all_peers(now, |peer, local| peer.update_relays(local, now));
                }
            }
            Outcome::Unknown(news) => {
                if self.local.relays.get(&id).is_some_and(RelayClient::is_lent) {
                    // It is asked for another one when that is planned next.
                    self.local.relays.remove(&id);
                    self.wakeups.set(WakeupReason::Relay(id), None);
                } else if news {
                    self.local.outbox.push_event(Event::RelayLost(id));
                }
                self.with_all_peers(now, |peer, local| peer.update_relays(local, now));
            }
        }
        self.settle(now);
    }

    /// Looks for everything where it is from here: in its place, and behind a translator's prefix if that is the way.
    pub(super) fn translate(&mut self, now: Instant) {
        if self.local.sharing.is_home() {
            self.set_observers(now);
            self.set_relays(now);
        }
        self.with_all_peers(now, |peer, local| peer.look_elsewhere(local, now));
    }

    fn set_observers(&mut self, now: Instant) {
        let observers = self.local.translation.endpoints(&self.servers.observers);
        self.local.netcheck.set_observers(&observers, now);
    }

    fn set_relays(&mut self, now: Instant) {
        self.local.sharing.relays_changed = true;
        let relays: Vec<RelayConfig> =
            self.servers.relays.iter().map(|relay| self.local.translation.relay(relay)).collect();
        let wanted: BTreeSet<_> = relays.iter().map(|relay| relay.id).collect();
        let is_gone = |(id, relay): &(&RelayId, &RelayClient)| !wanted.contains(id) && !relay.is_lent();
        let gone: Vec<_> = self.local.relays.iter().filter(is_gone).map(|(id, _)| *id).collect();
        for id in gone {
            self.local.relays.remove(&id);
            self.wakeups.set(WakeupReason::Relay(id), None);
        }
        let mut carrier_changed = false;
        for config in relays {
            match self.local.relays.get_mut(&config.id) {
                Some(relay) => {
                    carrier_changed |= relay.is_stream() != config.carrier.is_stream();
                    relay.set_config(config, now);
                }
                None => {
                    self.local.relays.insert(config.id, RelayClient::new(config, now));
                }
            }
        }
        if carrier_changed {
            self.local.netcheck.on_carrier_changed(now);
        }
        for id in wanted {
            self.bind_relay(id, now);
        }
        self.with_all_peers(now, |peer, local| peer.update_relays(local, now));
    }

    fn set_peers(&mut self, peers: Vec<PeerConfig>, now: Instant) {
        let keeps = |known: &PeerConfig| {
            peers.iter().any(|config| config.id == known.id && config.public_key == known.public_key)
        };
        let known = self.peers.configs().map(|(_, known)| known);
        let gone: Vec<NodeId> = known.filter(|known| !keeps(known)).map(|known| known.id).collect();
        // A peer with a new key is a new peer, at the same place.
        let mut moved = Vec::new();
        for id in gone {
            if let Some(mut peer) = self.peers.remove(id) {
                peer.close(&mut self.local);
                moved.push((id, peer.news()));
            }
            self.wakeups.set(WakeupReason::Session(id), None);
            self.wakeups.set(WakeupReason::Paths(id), None);
        }
        for config in peers {
            let (id, key) = (config.id, config.public_key);
            // A peer with this node's key would be this node.
            if id == self.local.id || key == self.local.keys.public() {
                continue;
            }
            if self.peers.contains(id) {
                self.peers.set_config(config);
            } else if self.peers.slot_of_key(&key).is_some() {
                tracing::warn!("two peers have the same key; the first one keeps it");
            } else {
                self.peers.insert(config);
            }
        }
        self.rebuild_router();
        let Self { local, peers, .. } = self;
        local.lending.lender.retain(|id| peers.iter().any(|peer| peer.id() == id));
        for (id, news) in moved {
            self.with_peer(id, now, |peer, local| peer.set_state(news, local, now));
        }
        self.with_all_peers(now, |peer, local| peer.update_relays(local, now));
    }

    fn rebuild_router(&mut self) {
        let claims: Vec<_> = self
            .peers
            .configs()
            .map(|(slot, peer)| Claim { id: peer.id, slot, allowed_ips: &peer.allowed_ips })
            .collect();
        let own = Own { id: self.local.id, allowed_ips: &self.own_allowed_ips };
        let (router, refusals) = Router::new(own, &claims);
        self.local.router = router;
        // All shards refuse the same; one tells.
        let told = self.local.sharing.is_home();
        for refusal in refusals.iter().filter(|refusal| told && !self.refusals.contains(refusal)) {
            self.local.outbox.push_event(Event::PrefixRefused {
                peer: refusal.peer,
                prefix: refusal.prefix,
                owner: refusal.owner,
            });
        }
        self.refusals = refusals;
    }
}
