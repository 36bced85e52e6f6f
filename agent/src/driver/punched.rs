//! Sockets beside the main ones, each with a port of its own, as the engine wants them.
//!
//! One is opened when something is sent through it for the first time, so that a few hundred cost nothing at once, and
//! closed when the engine does not name it any more.

use std::collections::{BTreeMap, BTreeSet};

use mesh_engine::batch::SocketId;

use super::{
    poller::{Source, Watcher},
    sending::Outlet,
};
use crate::io::{offload::Offloads, udp::Socket};

/// The sockets.
pub(super) struct PunchedSockets {
    offloads: Offloads,
    wanted: BTreeSet<SocketId>,
    open: BTreeMap<SocketId, Socket>,
}

impl PunchedSockets {
    pub(super) fn new(offloads: Offloads) -> Self {
        Self { offloads, wanted: BTreeSet::new(), open: BTreeMap::new() }
    }

    /// These are to be open, all of them; others are closed.
    pub(super) fn set(&mut self, wanted: &BTreeSet<SocketId>) {
        self.wanted.clone_from(wanted);
        self.open.retain(|id, _| wanted.contains(id));
    }

    /// Returns a socket that is open.
    pub(super) fn get(&self, id: SocketId) -> Option<&Socket> {
        self.open.get(&id)
    }

    /// Returns a socket that is wanted, and opens it if it is not open. The system may have no more of them.
    pub(super) fn get_or_open(&mut self, id: SocketId, watcher: &Watcher) -> Option<&mut Socket> {
        if !self.open.contains_key(&id) && self.wanted.contains(&id) {
            let opened = Socket::bind_any_v4(self.offloads).and_then(|socket| {
                watcher.watch(&socket, Source::Udp(Outlet::Punched(id)))?;
                Ok(socket)
            });
            match opened {
                Ok(socket) => drop(self.open.insert(id, socket)),
                Err(error) => tracing::debug!(%error, "no further socket"),
            }
        }
        self.open.get_mut(&id)
    }
}
