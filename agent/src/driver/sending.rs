//! The way out: the arena in which the engine lays out datagrams, and how far its trains have been sent.

use std::io;

use mesh_engine::{
    Engine,
    batch::{Transmit, TxArena, Via},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::counters::{Counter, Counters};
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
    pub(super) arena: TxArena,
    /// Trains of the arena that are out already, and bytes of the one after them.
    done: (usize, usize),
    blocked: Option<Family>,
}

/// Which socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Sending {
    /// Registers the sockets. Must be called within the driver's runtime.
    pub(super) fn new(udp: UdpSockets) -> io::Result<Self> {
        let arena = TxArena::new(ARENA_LEN);
        let watch = |socket| register(socket, Interest::READABLE | Interest::WRITABLE);
        let v4 = udp.v4.map(watch).transpose()?;
        let v6 = udp.v6.map(watch).transpose()?;
        Ok(Self { v4, v6, arena, done: (0, 0), blocked: None })
    }

    /// Returns the socket that is full, if one is.
    pub(super) fn blocked(&self) -> Option<&AsyncFd<Socket>> {
        match self.blocked? {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// Sends all that is laid out; what the sockets do not take stays for when they do. Errors are counted.
    pub(super) fn flush(&mut self, counters: &mut Counters) {
        self.blocked = None;
        let (trains, mut bytes) = self.done;
        let mut sent = trains;
        for train in self.arena.transmits().skip(trains) {
            let family = match train.via {
                Via::Udp { remote, .. } if remote.is_ipv4() => Family::V4,
                Via::Udp { .. } => Family::V6,
                Via::Stream(_) => {
                    counters.count(Counter::NoStream, segments(&train, bytes));
                    (sent, bytes) = (sent + 1, 0);
                    continue;
                }
            };
            let socket = match family {
                Family::V4 => self.v4.as_mut(),
                Family::V6 => self.v6.as_mut(),
            };
            let Some(socket) = socket else {
                counters.count(Counter::UdpNoSocket, segments(&train, bytes));
                (sent, bytes) = (sent + 1, 0);
                continue;
            };
            match send(socket, &train, bytes) {
                Sent::All => {}
                Sent::Refused(error) => {
                    counters.count(Counter::of_send(&error), segments(&train, bytes));
                }
                Sent::Blocked(at) => {
                    self.blocked = Some(family);
                    self.done = (sent, at);
                    return;
                }
            }
            (sent, bytes) = (sent + 1, 0);
        }
        self.done = (0, 0);
        self.arena.clear();
    }
}

/// Sends a train; a socket that is full loses its readiness, so that the driver waits for it.
fn send(socket: &mut AsyncFd<Socket>, train: &Transmit<'_>, offset: usize) -> Sent {
    let mut outcome = socket.get_mut().try_send(train, offset);
    if matches!(outcome, Sent::Blocked(_)) {
        // Tells the runtime; by now there may be room again, then this goes on at once.
        let _ = socket.try_io_mut(Interest::WRITABLE, |socket| match outcome {
            Sent::Blocked(at) => {
                outcome = socket.try_send(train, at);
                match outcome {
                    Sent::Blocked(_) => Err(io::Error::from(io::ErrorKind::WouldBlock)),
                    Sent::All | Sent::Refused(_) => Ok(()),
                }
            }
            Sent::All | Sent::Refused(_) => Ok(()),
        });
    }
    outcome
}

fn segments(train: &Transmit<'_>, from: usize) -> u64 {
    (train.bytes.len() - from).div_ceil(train.stride) as u64
}
