//! The way out: the arena in which the engine lays out datagrams, and how far its trains have been sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use mesh_engine::{
    Engine,
    batch::{SocketId, Transmit, TxArena, Via},
};
use mesh_pipe::TrainSender;
use mesh_proto::netmap::RelayId;

use super::{
    counters::{Counter, Counters},
    poller::{Source, Watcher},
    punched::PunchedSockets,
};
use crate::io::udp::{Sent, Socket, UdpSockets};

/// The arena's size: half a megabyte of trains, beyond which measurements found no gain, and the room that the engine
/// wants to find free for one more superpacket.
const ARENA_LEN: usize = 512 * 1024 + Engine::MAX_TUN_ROOM;

/// The sockets, and what is to be sent through them.
pub(super) struct Sending {
    v4: Option<Socket>,
    v6: Option<Socket>,
    /// Sockets beside them.
    punched: PunchedSockets,
    pub(super) arena: TxArena,
    /// Trains of the arena that are out already, and bytes of the one after them.
    done: (usize, usize),
    /// The socket that is full.
    blocked: Option<Outlet>,
    /// The byte streams of relays; each drops what it has no room for, the oldest first.
    pub(super) streams: BTreeMap<RelayId, TrainSender>,
    pub(super) watcher: Watcher,
}

/// Which socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outlet {
    /// The main one for IPv4.
    V4,
    /// The main one for IPv6.
    V6,
    /// One beside them.
    Punched(SocketId),
}

impl Sending {
    /// Takes the sockets; nothing is read yet.
    pub(super) fn new(udp: UdpSockets, watcher: Watcher) -> Self {
        Self {
            v4: udp.v4,
            v6: udp.v6,
            punched: PunchedSockets::new(udp.offloads),
            arena: TxArena::new(ARENA_LEN),
            done: (0, 0),
            blocked: None,
            streams: BTreeMap::new(),
            watcher,
        }
    }

    /// Has the sockets watched.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn watch(&self) -> io::Result<()> {
        for (socket, outlet) in [(&self.v4, Outlet::V4), (&self.v6, Outlet::V6)] {
            if let Some(socket) = socket {
                self.watcher.watch(socket, Source::Udp(outlet))?;
            }
        }
        Ok(())
    }

    /// Returns a socket that is open.
    pub(super) fn socket(&self, outlet: Outlet) -> Option<&Socket> {
        match outlet {
            Outlet::V4 => self.v4.as_ref(),
            Outlet::V6 => self.v6.as_ref(),
            Outlet::Punched(id) => self.punched.get(id),
        }
    }

    /// These sockets are to be open beside the main ones, all of them; others are closed.
    pub(super) fn set_punched(&mut self, wanted: &BTreeSet<SocketId>) {
        self.punched.set(wanted);
        if self.blocked.is_some_and(|outlet| self.socket(outlet).is_none()) {
            self.blocked = None;
        }
    }

    /// Whether a socket is full; the poller tells when it has room.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Sends all that is laid out; what the sockets do not take stays for when they do. Errors are counted.
    pub(super) fn flush(&mut self, counters: &mut Counters) {
        if let Some(outlet) = self.blocked.take() {
            // Should it fail, the poller tells of room that nobody waits for.
            let _ = self.watch_for_room(outlet, false);
        }
        let (trains, mut bytes) = self.done;
        let mut sent = trains;
        for train in self.arena.transmits().skip(trains) {
            let (socket, outlet) = match train.via {
                Via::Udp { remote, .. } if remote.is_ipv4() => (self.v4.as_mut(), Outlet::V4),
                Via::Udp { .. } => (self.v6.as_mut(), Outlet::V6),
                Via::Punched { socket, .. } => {
                    (self.punched.get_or_open(socket, &self.watcher), Outlet::Punched(socket))
                }
                Via::Stream(relay) => {
                    match self.streams.get(&relay).filter(|stream| stream.is_open()) {
                        Some(stream) => {
                            let dropped = stream.push(train.bytes, train.stride);
                            counters.count(Counter::StreamFull, dropped);
                        }
                        None => counters.count(Counter::NoStream, segments(&train, bytes)),
                    }
                    (sent, bytes) = (sent + 1, 0);
                    continue;
                }
            };
            let Some(socket) = socket else {
                counters.count(Counter::UdpNoSocket, segments(&train, bytes));
                (sent, bytes) = (sent + 1, 0);
                continue;
            };
            match socket.try_send(&train, bytes) {
                Sent::All => {}
                Sent::Refused(error) => {
                    counters.count(Counter::of_send(&error), segments(&train, bytes));
                }
                Sent::Blocked(at) => match self.watcher.watch_for_room(socket, outlet, true) {
                    Ok(()) => {
                        self.blocked = Some(outlet);
                        self.done = (sent, at);
                        return;
                    }
                    // Nothing would tell when to go on.
                    Err(_) => counters.count(Counter::UdpSend, segments(&train, at)),
                },
            }
            (sent, bytes) = (sent + 1, 0);
        }
        self.done = (0, 0);
        self.arena.clear();
    }

    fn watch_for_room(&self, outlet: Outlet, wanted: bool) -> io::Result<()> {
        self.socket(outlet).map_or(Ok(()), |socket| self.watcher.watch_for_room(socket, outlet, wanted))
    }
}

fn segments(train: &Transmit<'_>, from: usize) -> u64 {
    (train.bytes.len() - from).div_ceil(train.stride) as u64
}
