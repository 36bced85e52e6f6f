//! The way out: the arena in which the engine lays out datagrams, and how far its trains have been sent.

use std::{collections::BTreeMap, io, os::fd::OwnedFd};

use mesh_engine::{
    Engine,
    batch::{SocketId, Transmit, TxArena, Via},
};
use mesh_pipe::TrainSender;
use mesh_proto::netmap::RelayId;
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    counters::{Counter, Counters},
    punched::PunchedSockets,
};
use crate::io::{
    registered::register,
    udp::{Sent, Socket, UdpSockets},
};

/// The arena's size: half a megabyte of trains, beyond which measurements found no gain, and the room that the engine
/// wants to find free for one more superpacket.
const ARENA_LEN: usize = 512 * 1024 + Engine::MAX_TUN_ROOM;

/// The sockets, registered with the driver's runtime, and what is to be sent through them.
pub(super) struct Sending {
    pub(super) v4: Option<AsyncFd<Socket>>,
    pub(super) v6: Option<AsyncFd<Socket>>,
    /// Sockets beside them.
    pub(super) punched: PunchedSockets,
    pub(super) arena: TxArena,
    /// Trains of the arena that are out already, and bytes of the one after them.
    done: (usize, usize),
    /// Tells when the socket that is full has room again.
    blocked: Option<AsyncFd<OwnedFd>>,
    /// The byte streams of relays; each drops what it has no room for, the oldest first.
    pub(super) streams: BTreeMap<RelayId, TrainSender>,
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
    /// Registers the sockets. Must be called within the driver's runtime.
    pub(super) fn new(udp: UdpSockets) -> io::Result<Self> {
        let arena = TxArena::new(ARENA_LEN);
        // Not for writing: every datagram that leaves the send buffer would wake the driver for nothing.
        let watch = |socket| register(socket, Interest::READABLE);
        let punched = PunchedSockets::new(udp.offloads);
        let v4 = udp.v4.map(watch).transpose()?;
        let v6 = udp.v6.map(watch).transpose()?;
        Ok(Self { v4, v6, punched, arena, done: (0, 0), blocked: None, streams: BTreeMap::new() })
    }

    /// Returns what to wait on for room, if a socket is full.
    pub(super) fn blocked(&self) -> Option<&AsyncFd<OwnedFd>> {
        self.blocked.as_ref()
    }

    /// Sends all that is laid out; what the sockets do not take stays for when they do. Errors are counted.
    pub(super) fn flush(&mut self, counters: &mut Counters) {
        self.blocked = None;
        let (trains, mut bytes) = self.done;
        let mut sent = trains;
        for train in self.arena.transmits().skip(trains) {
            let socket = match train.via {
                Via::Udp { remote, .. } if remote.is_ipv4() => self.v4.as_mut(),
                Via::Udp { .. } => self.v6.as_mut(),
                Via::Punched { socket, .. } => self.punched.get_or_open(socket),
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
            match socket.get_mut().try_send(&train, bytes) {
                Sent::All => {}
                Sent::Refused(error) => {
                    counters.count(Counter::of_send(&error), segments(&train, bytes));
                }
                Sent::Blocked(at) => match watch_for_room(socket.get_ref()) {
                    Ok(watch) => {
                        self.blocked = Some(watch);
                        self.done = (sent, at);
                        return;
                    }
                    // The system has no descriptor left: nothing would tell when to go on.
                    Err(_) => counters.count(Counter::UdpSend, segments(&train, at)),
                },
            }
            (sent, bytes) = (sent + 1, 0);
        }
        self.done = (0, 0);
        self.arena.clear();
    }
}

/// Watches a socket that is full, through a descriptor of its own.
fn watch_for_room(socket: &Socket) -> io::Result<AsyncFd<OwnedFd>> {
    register(socket.duplicate()?, Interest::WRITABLE)
}

fn segments(train: &Transmit<'_>, from: usize) -> u64 {
    (train.bytes.len() - from).div_ceil(train.stride) as u64
}
