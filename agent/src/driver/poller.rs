//! What the driver's thread waits on: its descriptors, its timer, and a doorbell that other threads ring.
//!
//! The system tells of a descriptor once, when something comes that was not there before. So what it has told stays
//! in [`Ready`] until whoever uses the descriptor finds it empty. Closing a descriptor ends its being watched.
//!
//! A task's [`Waker`] rings the doorbell: what tasks hand over (requests, trains of byte streams, cancellation) is polled
//! like any future, but only when it rang, so it costs nothing where packets pass.

use std::{
    collections::BTreeSet,
    io,
    os::fd::AsRawFd,
    sync::Arc,
    task::{Wake, Waker},
    time::Duration,
};

use mesh_engine::batch::SocketId;
use mio::{Events, Interest, Poll, Registry, Token, event::Event, unix::SourceFd};

use super::sending::Outlet;

/// Descriptors that one system call may tell of; the rest is told by the next.
const EVENTS: usize = 64;

const DOORBELL: Token = Token(0);
const TUN: Token = Token(1);
const V4: Token = Token(2);
const V6: Token = Token(3);
const FIRST_PUNCHED: usize = 4;

/// Something that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Tun,
    Udp(Outlet),
}

/// What may have something; it is for certain only that the rest has nothing.
#[derive(Debug, Default)]
pub(super) struct Ready {
    pub(super) tun: bool,
    pub(super) v4: bool,
    pub(super) v6: bool,
    pub(super) punched: BTreeSet<SocketId>,
    /// The socket that was full has room.
    pub(super) writable: bool,
    /// Other threads may have handed something over.
    pub(super) rung: bool,
}

/// Waits.
pub(super) struct Poller {
    poll: Poll,
    events: Events,
    doorbell: Waker,
}

/// Rings from any thread.
struct Doorbell(mio::Waker);

impl Ready {
    /// Whether a socket may have something.
    pub(super) fn udp(&self) -> bool {
        self.v4 || self.v6 || !self.punched.is_empty()
    }

    /// The source has nothing more.
    pub(super) fn clear(&mut self, source: Source) {
        match source {
            Source::Tun => self.tun = false,
            Source::Udp(Outlet::V4) => self.v4 = false,
            Source::Udp(Outlet::V6) => self.v6 = false,
            Source::Udp(Outlet::Punched(socket)) => drop(self.punched.remove(&socket)),
        }
    }

    fn set(&mut self, event: &Event) {
        // An error is told by reading, too.
        let readable = event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() && event.token() != DOORBELL;
        match event.token() {
            DOORBELL => self.rung = true,
            TUN => self.tun |= readable,
            V4 => self.v4 |= readable,
            V6 => self.v6 |= readable,
            Token(token) if readable => {
                let socket = u32::try_from(token - FIRST_PUNCHED).expect("it was made of one");
                self.punched.insert(SocketId(socket));
            }
            Token(_) => {}
        }
    }
}

impl Poller {
    /// Makes one that watches nothing but the doorbell.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub(super) fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        let doorbell = Arc::new(Doorbell(mio::Waker::new(poll.registry(), DOORBELL)?)).into();
        Ok(Self { poll, events: Events::with_capacity(EVENTS), doorbell })
    }

    /// Returns what watches descriptors for it.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub(super) fn watcher(&self) -> io::Result<Watcher> {
        Ok(Watcher(self.poll.registry().try_clone()?))
    }

    /// Returns what rings the doorbell.
    pub(super) fn doorbell(&self) -> &Waker {
        &self.doorbell
    }

    /// Adds what has become ready; waits for it, for this long at most.
    ///
    /// # Errors
    /// When the system refuses, which it does not.
    pub(super) fn wait(&mut self, timeout: Option<Duration>, ready: &mut Ready) -> io::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(()) | Err(_) => {}
        }
        for event in &self.events {
            ready.set(event);
        }
        Ok(())
    }
}

/// Has descriptors watched.
pub(super) struct Watcher(Registry);

impl Watcher {
    /// Watches for something to read. Not for writing: every datagram that leaves a send buffer would wake the driver
    /// for nothing.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn watch(&self, descriptor: &impl AsRawFd, source: Source) -> io::Result<()> {
        self.0.register(&mut SourceFd(&descriptor.as_raw_fd()), token(source), Interest::READABLE)
    }

    /// Watches for room to write as well, or no longer.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn watch_for_room(
        &self,
        descriptor: &impl AsRawFd,
        outlet: Outlet,
        wanted: bool,
    ) -> io::Result<()> {
        let interest = if wanted { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.0.reregister(&mut SourceFd(&descriptor.as_raw_fd()), token(Source::Udp(outlet)), interest)
    }
}

impl Wake for Doorbell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Err(error) = self.0.wake() {
            tracing::error!(%error, "the driver cannot be woken");
        }
    }
}

fn token(source: Source) -> Token {
    match source {
        Source::Tun => TUN,
        Source::Udp(Outlet::V4) => V4,
        Source::Udp(Outlet::V6) => V6,
        Source::Udp(Outlet::Punched(SocketId(socket))) => Token(FIRST_PUNCHED + socket as usize),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn what_came_is_told_once_and_stays_ready_until_it_is_cleared() {
        let mut poller = Poller::new().unwrap();
        let (mut ready, watcher) = (Ready::default(), poller.watcher().unwrap());
        let (tun, host) = UnixDatagram::pair().unwrap();
        let socket = Source::Udp(Outlet::Punched(SocketId(7)));
        let (punched, stranger) = UnixDatagram::pair().unwrap();
        watcher.watch(&tun, Source::Tun).unwrap();
        watcher.watch(&punched, socket).unwrap();
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(!ready.tun && !ready.udp() && !ready.rung && !ready.writable);
        host.send(b"packet").unwrap();
        stranger.send(b"datagram").unwrap();
        poller.doorbell().wake_by_ref();
        poller.wait(None, &mut ready).unwrap();
        assert!(ready.tun && ready.rung && !ready.writable && ready.punched.contains(&SocketId(7)));
        ready = Ready::default();
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(!ready.tun && !ready.rung && !ready.udp(), "told once");
        ready.tun = true;
        ready.clear(Source::Tun);
        assert!(!ready.tun);
    }

    #[test]
    fn room_is_told_only_while_it_is_waited_for() {
        let mut poller = Poller::new().unwrap();
        let (mut ready, watcher) = (Ready::default(), poller.watcher().unwrap());
        let (socket, _other) = UnixDatagram::pair().unwrap();
        watcher.watch(&socket, Source::Udp(Outlet::V4)).unwrap();
        watcher.watch_for_room(&socket, Outlet::V4, true).unwrap();
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.writable && !ready.v4);
        ready = Ready::default();
        watcher.watch_for_room(&socket, Outlet::V4, false).unwrap();
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(!ready.writable);
    }
}
