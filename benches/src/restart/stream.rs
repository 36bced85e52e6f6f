//! Datagrams one way, and the longest time without one.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mesh_lab::{Host, Node};

/// How long the receiver waits before it looks whether it is to end.
const NAP: Duration = Duration::from_millis(100);
const DATAGRAM: [u8; 64] = [0x5a; 64];

/// A datagram every so often from one host to the mesh address of another; it ends when this is dropped.
pub(super) struct Stream {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    last: Option<Instant>,
    /// Since [`Stream::forget`], without the gap that is open.
    longest: Duration,
}

impl Stream {
    /// Starts it. Sockets are bound to no address, so that they outlive the agent and its interface.
    pub(super) fn start(from: &Host, to: &Node, interval: Duration) -> anyhow::Result<Self> {
        let socket = |host: &Host| -> anyhow::Result<UdpSocket> {
            let socket = host.netns().enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
            socket.with_context(|| format!("a socket of {}", host.name()))
        };
        let (sends, receives) = (socket(from)?, socket(to.host())?);
        receives.set_read_timeout(Some(NAP))?;
        let to = SocketAddr::new(to.address()?.into(), receives.local_addr()?.port());
        let shared = Arc::new(Shared::default());
        let spawn = |run: Box<dyn FnOnce(&Shared) + Send>| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("stream".into()).spawn(move || run(&shared))
        };
        let threads = vec![
            spawn(Box::new(move |shared| send(shared, &sends, to, interval)))?,
            spawn(Box::new(move |shared| receive(shared, &receives)))?,
        ];
        Ok(Self { shared, threads })
    }

    /// Begins to measure anew.
    pub(super) fn forget(&self) {
        self.shared.seen().longest = Duration::ZERO;
    }

    /// The longest time without a datagram since [`Stream::forget`], if one has come after it.
    pub(super) fn longest_gap(&self) -> Option<Duration> {
        let seen = self.shared.seen();
        Some(seen.longest.max(seen.last?.elapsed()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(shared: &Shared, socket: &UdpSocket, to: SocketAddr, interval: Duration) {
    let mut due = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        // Without an interface there is nothing to be sent: that is a part of the gap.
        let _ = socket.send_to(&DATAGRAM, to);
        due = (due + interval).max(Instant::now());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn receive(shared: &Shared, socket: &UdpSocket) {
    let mut buffer = [0; DATAGRAM.len()];
    while !shared.stop.load(Ordering::Relaxed) {
        if socket.recv_from(&mut buffer).is_err() {
            continue;
        }
        let now = Instant::now();
        let mut seen = shared.seen();
        if let Some(last) = seen.last.replace(now) {
            seen.longest = seen.longest.max(now - last);
        }
    }
}
