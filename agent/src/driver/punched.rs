//! Sockets beside the main ones, each with a port of its own, as the engine wants them.
//!
//! One is opened when something is sent through it for the first time, so that a few hundred cost nothing at once, and
//! closed when the engine does not name it any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    task::Context,
};

use mesh_engine::batch::SocketId;
use tokio::io::{Interest, unix::AsyncFd};

use crate::io::{offload::Offloads, registered::register, udp::Socket};

/// The sockets. Must be used within the driver's runtime.
pub(super) struct PunchedSockets {
    offloads: Offloads,
    wanted: BTreeSet<SocketId>,
    open: BTreeMap<SocketId, AsyncFd<Socket>>,
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
    pub(super) fn get(&self, id: SocketId) -> Option<&AsyncFd<Socket>> {
        self.open.get(&id)
    }

    /// Returns a socket that is wanted, and opens it if it is not open. The system may have no more of them.
    pub(super) fn get_or_open(&mut self, id: SocketId) -> Option<&mut AsyncFd<Socket>> {
        if !self.open.contains_key(&id) && self.wanted.contains(&id) {
            let opened =
                Socket::bind_any_v4(self.offloads).and_then(|socket| register(socket, Interest::READABLE));
            match opened {
                Ok(socket) => drop(self.open.insert(id, socket)),
                Err(error) => tracing::debug!(%error, "no further socket"),
            }
        }
        self.open.get_mut(&id)
    }

    /// Returns those that have received something.
    pub(super) fn poll_ready(&self, context: &mut Context<'_>) -> Vec<SocketId> {
        let is_ready =
            |socket: &AsyncFd<Socket>, context: &mut Context<'_>| socket.poll_read_ready(context).is_ready();
        self.open.iter().filter(|(_, socket)| is_ready(socket, context)).map(|(id, _)| *id).collect()
    }
}
