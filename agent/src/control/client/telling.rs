//! What the client takes over and tells: the rest of the agent, its own links to relays, and the disk.

use std::{collections::BTreeMap, sync::Arc};

use mesh_proto::{
    control::{InstanceId, PeerState},
    netmap::{NetworkMap, RelayId},
};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{
    super::{ControlEvent, Duplicate, book::mesh_ranges, shared::Gone},
    Admission, Client, LocalNews,
};
use crate::netmap::CachedMap;

impl Client {
    /// Does what the outbox asks for and needs no connection, and returns the rest.
    pub(in crate::control) fn handle_outbox(&mut self) -> LocalNews {
        let (network_changed, woke) =
            self.shared.with_outbox(|outbox| (outbox.take_network_changed(), outbox.take_woke()));
        let (reopened, worked, unanswered) = self
            .shared
            .with_outbox(|outbox| (outbox.take_reopened(), outbox.take_worked(), outbox.take_unanswered()));
        if let Some(away) = woke {
            self.names.expire();
            self.relays.woke(away);
        }
        if network_changed {
            self.names.expire();
            self.relays.network_changed();
        }
        if unanswered {
            self.relays.unanswered();
        }
        let mut reopen_relay = false;
        for relay in reopened {
            reopen_relay |= !self.relays.reopen(relay);
        }
        let mut news = false;
        for (peer, address) in worked {
            news |= self.peers.set_worked(peer, address);
        }
        if news {
            self.savers.peers.save(Arc::new(self.peers.to_list()));
        }
        if reopen_relay {
            self.sign_at = Some(Instant::now());
        }
        LocalNews { network_changed, reopen_relay, unanswered, woke }
    }

    /// Returns which run of the agent this is.
    pub(in crate::control) fn instance(&self) -> InstanceId {
        self.config.instance
    }

    /// Passes on what the coordinator makes of this agent, if that is news. That it was copied stays true while it runs.
    pub(in crate::control) async fn set_duplicate(&mut self, admission: Admission) -> Result<(), Gone> {
        let duplicate = match (admission, self.duplicate) {
            (Admission::Taken, Some(Duplicate::Other)) | (Admission::Copied, _) => Duplicate::Other,
            (Admission::Taken, Some(Duplicate::None | Duplicate::This) | None) => Duplicate::None,
            (Admission::Refused, _) => Duplicate::This,
        };
        let before = self.duplicate.replace(duplicate);
        if before == Some(duplicate) {
            return Ok(());
        }
        match duplicate {
            Duplicate::None => {}
            Duplicate::Other => warn!(
                "another machine has a copy of this node's keys; it was refused, and this one is not disturbed: on the \
                 copy, remove the agent's state directory and join again"
            ),
            // Channels at relays belong to the one that was there first.
            Duplicate::This => self.relays.set(&[], &[]),
        }
        if before == Some(Duplicate::This)
            && let Some(map) = self.store.map().cloned()
        {
            self.set_relays(&map);
        }
        self.emit(ControlEvent::Admitted(duplicate)).await
    }

    /// Takes over a new map.
    pub(in crate::control) async fn handle_map(&mut self, map: Arc<NetworkMap>) -> Result<(), Gone> {
        debug!(epoch = map.version.epoch, serial = map.version.serial, peers = map.peers.len(), "a new map");
        let cached = CachedMap { pin: self.config.membership.pin, map: NetworkMap::clone(&map) };
        self.savers.map.save(Arc::new(cached));
        self.peers.retain(&map);
        self.set_relays(&map);
        self.emit(ControlEvent::Map(map)).await
    }

    /// Remembers where peers are.
    pub(in crate::control) fn handle_peer_states(&mut self, states: &[PeerState]) {
        if self.peers.apply(states) {
            self.savers.peers.save(Arc::new(self.peers.to_list()));
        }
    }

    pub(in crate::control) fn set_relays(&mut self, map: &NetworkMap) {
        let names: BTreeMap<_, _> = map.relays.iter().map(|relay| (relay.id, relay.name.clone())).collect();
        self.shared.set_relay_names(names);
        self.relays.set(&map.relays, &mesh_ranges(Some(map)));
        if self.config.lends {
            // By that peers know that it relays.
            let own = RelayId(map.this.id.0);
            self.shared.update(|outbox| outbox.set_pipe_relay(own));
        }
    }

    /// Says what is known from before.
    pub(in crate::control) async fn emit_cached(&mut self) -> Result<(), Gone> {
        if let Some(map) = self.store.map().cloned() {
            self.set_relays(&map);
            self.emit(ControlEvent::Map(map)).await?;
            let states = self.peers.to_states();
            if !states.is_empty() {
                self.emit(ControlEvent::PeerStates(states)).await?;
            }
        }
        self.emit_observers().await
    }

    /// Says who answers STUN, if that is news.
    pub(in crate::control) async fn emit_observers(&mut self) -> Result<(), Gone> {
        let relays = self.shared.with_outbox(|outbox| outbox.relay_addresses());
        let observers = self.book.observers(self.store.map().map(Arc::as_ref), relays);
        if observers == self.observers {
            return Ok(());
        }
        self.observers.clone_from(&observers);
        self.emit(ControlEvent::Observers(observers)).await
    }

    /// Says where this node may be reached if it stands beside the coordinator, if that is news.
    pub(in crate::control) async fn emit_guess(&mut self) -> Result<(), Gone> {
        let guess = self.book.guess(self.store.map().map(Arc::as_ref));
        if guess == self.guess {
            return Ok(());
        }
        self.guess = guess;
        self.emit(ControlEvent::Guess(guess)).await
    }

    /// Says something, and waits while the listener is behind.
    pub(in crate::control) async fn emit(&self, event: ControlEvent) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Gone),
            sent = self.events.send(event) => sent.map_err(|_closed| Gone),
        }
    }
}
