//! One pair of hosts, asked every few milliseconds, and when the first reply came after something had happened.
//!
//! Sockets are bound to no address, so they outlive the interface of an agent and the network that a host leaves. One
//! thread asks and answers; it sleeps between its rounds.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::wire::{Datagram, Kind, LENGTH};
use crate::topology::Host;

/// Questions between one host and another; they end when this is dropped.
#[derive(Debug)]
pub struct Probe {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    epoch: Instant,
    stop: AtomicBool,
    silent: AtomicBool,
    seen: Mutex<Seen>,
    news: Condvar,
}

/// What replies have told.
#[derive(Debug, Default)]
struct Seen {
    /// From when on a question counts.
    since: Option<Instant>,
    /// When the first reply to one that counts came.
    first: Option<Instant>,
    sent: u64,
    received: u64,
}

/// The two ends.
#[derive(Debug)]
struct Ends {
    asks: UdpSocket,
    answers: UdpSocket,
    to: SocketAddr,
}

impl Probe {
    /// Has one host ask an address of another, once per `interval`.
    ///
    /// # Errors
    ///
    /// If a socket cannot be made.
    pub fn start(from: &Host, to: (&Host, IpAddr), interval: Duration) -> anyhow::Result<Self> {
        let socket = |host: &Host| -> anyhow::Result<UdpSocket> {
            let socket = host.netns().enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
            let socket = socket.with_context(|| format!("a socket of {}", host.name()))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let (asks, answers) = (socket(from)?, socket(to.0)?);
        let to = SocketAddr::new(to.1, answers.local_addr()?.port());
        let shared = Arc::new(Shared {
            epoch: Instant::now(),
            stop: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            seen: Mutex::default(),
            news: Condvar::new(),
        });
        let thread = {
            let (shared, ends) = (Arc::clone(&shared), Ends { asks, answers, to });
            std::thread::Builder::new().name("probe".into()).spawn(move || run(&shared, &ends, interval))?
        };
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Stops asking for a while, or goes on.
    pub fn set_silent(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::Relaxed);
    }

    /// Waits for the first reply to a question that is sent from `since` on, and returns how long after `since` it came.
    ///
    /// # Errors
    ///
    /// If none comes within `patience` of `since`.
    pub fn wait_reply(&self, since: Instant, patience: Duration) -> anyhow::Result<Duration> {
        let mut seen = self.shared.seen();
        (seen.since, seen.first) = (Some(since), None);
        loop {
            if let Some(first) = seen.first {
                return Ok(first - since);
            }
            let left = (since + patience).saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no reply within {patience:?}");
            }
            seen = match self.shared.news.wait_timeout(seen, left) {
                Ok((seen, _)) => seen,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// How many questions were sent, and how many replies came.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let seen = self.shared.seen();
        (seen.sent, seen.received)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(shared: &Shared, ends: &Ends, interval: Duration) {
    let mut due = Instant::now();
    let mut sequence = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now >= due {
            due = now + interval;
            if !shared.silent.load(Ordering::Relaxed) {
                let nanos = u64::try_from((now - shared.epoch).as_nanos()).unwrap_or(u64::MAX);
                let request = Datagram { kind: Kind::Request, from: 0, to: 1, sequence, nanos };
                // Without a route there is nothing to be sent: a question that is lost like any other.
                let _ = ends.asks.send_to(&request.to_bytes(), ends.to);
                sequence += 1;
                shared.seen().sent += 1;
            }
        }
        let mut fds = [&ends.asks, &ends.answers].map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        let left = due.saturating_duration_since(Instant::now());
        // Rounded up: a poll of 0 ms would spin until the next question is due.
        let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        if poll(&mut fds, PollTimeout::from(millis)).is_ok() {
            answer(&ends.answers);
            take_replies(shared, &ends.asks);
        }
    }
}

fn answer(socket: &UdpSocket) {
    while let Some((datagram, from)) = receive(socket) {
        if datagram.kind == Kind::Request {
            let _ = socket.send_to(&Datagram { kind: Kind::Reply, ..datagram }.to_bytes(), from);
        }
    }
}

fn take_replies(shared: &Shared, socket: &UdpSocket) {
    while let Some((datagram, _)) = receive(socket) {
        let now = Instant::now();
        let mut seen = shared.seen();
        seen.received += 1;
        let sent = shared.epoch + Duration::from_nanos(datagram.nanos);
        if seen.first.is_none() && seen.since.is_some_and(|since| sent >= since) {
            seen.first = Some(now);
            shared.news.notify_all();
        }
    }
}

fn receive(socket: &UdpSocket) -> Option<(Datagram, SocketAddr)> {
    let mut buffer = [0; LENGTH + 1];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => match Datagram::from_bytes(&buffer[..length]) {
                Some(datagram) => return Some((datagram, from)),
                None => continue,
            },
            // Nothing more, or what ICMP says of an earlier question; then the socket is readable again at once.
            Err(_) => return None,
        }
    }
}
