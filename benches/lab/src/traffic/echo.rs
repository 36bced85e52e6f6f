//! Requests and replies between many pairs of nodes.
//!
//! Every node has one UDP socket that asks and answers. One thread serves them all: it sends the requests, a little
//! apart from one another, and notes the replies. Sockets are bound to no address, so they outlive an agent that is
//! killed and the interface that goes with it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::wire::{Datagram, Kind, LENGTH};
use crate::mesh::{Mesh, wait_until};

/// The port that asks and answers on every node.
const PORT: u16 = 7777;
/// How long the thread sleeps at most, so that it notices its end.
const NAP: Duration = Duration::from_millis(50);

/// Traffic between pairs of nodes; it ends when this is dropped.
#[derive(Debug)]
pub struct Echo {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What was seen of one ordered pair.
#[derive(Debug, Clone)]
pub struct Flow {
    /// Who asks.
    pub from: String,
    /// Who is asked.
    pub to: String,
    /// Requests sent.
    pub sent: u32,
    /// Replies received.
    pub received: u32,
    /// When the first request was sent.
    pub first_sent: Option<SystemTime>,
    /// How long after it the first reply came, whichever request it answers.
    pub first_reply: Option<Duration>,
    /// Whether the very first request was answered.
    pub first_answered: bool,
    /// The longest time without a reply so far, since the first one or since [`Echo::forget`].
    pub longest_gap: Duration,
    /// When the last request was sent that has been answered.
    last_answered: Option<Instant>,
    last_reply: Option<Instant>,
    began: Option<Instant>,
}

#[derive(Debug)]
struct Shared {
    epoch: Instant,
    stop: AtomicBool,
    flows: Mutex<BTreeMap<(u8, u8), Flow>>,
}

/// A node as the thread sees it.
#[derive(Debug)]
struct Place {
    socket: UdpSocket,
    address: SocketAddr,
}

impl Echo {
    /// Starts traffic between all ordered pairs, each of which sends one request per `interval`.
    ///
    /// # Errors
    ///
    /// If a node has no mesh address yet, or its socket cannot be made.
    pub fn all(mesh: &Mesh, interval: Duration) -> anyhow::Result<Self> {
        Self::start(mesh, interval, |_, _| true)
    }

    /// Starts traffic between those ordered pairs that `is_wanted` picks by their names.
    ///
    /// # Errors
    ///
    /// As [`Echo::all`].
    pub fn start(
        mesh: &Mesh,
        interval: Duration,
        is_wanted: impl Fn(&str, &str) -> bool,
    ) -> anyhow::Result<Self> {
        let mut places = Vec::new();
        for node in mesh.nodes() {
            let socket = node.host().netns().enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))?;
            let socket = socket.with_context(|| format!("port {PORT} of {}", node.name()))?;
            socket.set_nonblocking(true)?;
            places.push(Place { socket, address: SocketAddr::new(node.address()?.into(), PORT) });
        }
        let mut flows = BTreeMap::new();
        for (from, asker) in (0u8..).zip(mesh.nodes()) {
            for (to, asked) in (0u8..).zip(mesh.nodes()) {
                if from != to && is_wanted(asker.name(), asked.name()) {
                    flows.insert((from, to), Flow::new(asker.name(), asked.name()));
                }
            }
        }
        ensure!(!flows.is_empty(), "no pair is wanted");
        let shared = Shared { epoch: Instant::now(), stop: AtomicBool::new(false), flows: Mutex::new(flows) };
        let shared = Arc::new(shared);
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("echo".into()).spawn(move || run(&shared, &places, interval))?
        };
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What was seen of every pair, by names.
    #[must_use]
    pub fn flows(&self) -> Vec<Flow> {
        let now = Instant::now();
        self.shared.flows().values().map(|flow| flow.at(now)).collect()
    }

    /// Begins to measure gaps and to count anew; the first request and reply stay known.
    pub fn forget(&self) {
        let now = Instant::now();
        for flow in self.shared.flows().values_mut() {
            flow.longest_gap = Duration::ZERO;
            (flow.sent, flow.received) = (0, 0);
            flow.last_reply = flow.last_reply.map(|_| now);
        }
    }

    /// Waits until every pair among those picked has an answer to a request that was sent after `since`, and returns
    /// how long after `since` that was so.
    ///
    /// # Errors
    ///
    /// With the pairs that are silent, after `patience`.
    pub fn wait_for(
        &self,
        since: Instant,
        patience: Duration,
        is_wanted: impl Fn(&str, &str) -> bool,
    ) -> anyhow::Result<Duration> {
        wait_until(patience, "every pair answers", || {
            let silent: Vec<String> = self
                .shared
                .flows()
                .values()
                .filter(|flow| is_wanted(&flow.from, &flow.to))
                .filter(|flow| flow.last_answered.is_none_or(|at| at < since))
                .map(|flow| format!("{} to {}", flow.from, flow.to))
                .collect();
            if silent.is_empty() { Ok(true) } else { bail!("silent: {}", silent.join(", ")) }
        })?;
        Ok(since.elapsed())
    }

    /// Waits until the very first request of every pair is answered. It may go a longer way than those after it, and be
    /// answered later than they are.
    ///
    /// # Errors
    ///
    /// With the pairs whose first request is lost, after `patience`.
    pub fn wait_first(&self, patience: Duration) -> anyhow::Result<()> {
        wait_until(patience, "first packets are answered", || {
            let flows = self.shared.flows();
            let lost: Vec<String> = flows
                .values()
                .filter(|flow| !flow.first_answered)
                .map(|flow| format!("{} to {}", flow.from, flow.to))
                .collect();
            ensure!(lost.is_empty(), "lost: {}", lost.join(", "));
            Ok(true)
        })
    }

    /// As [`Echo::wait_for`], for all pairs.
    ///
    /// # Errors
    ///
    /// With the pairs that are silent, after `patience`.
    pub fn wait_all(&self, since: Instant, patience: Duration) -> anyhow::Result<Duration> {
        self.wait_for(since, patience, |_, _| true)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Flow {
    fn new(from: &str, to: &str) -> Self {
        Self {
            from: from.to_owned(),
            to: to.to_owned(),
            sent: 0,
            received: 0,
            first_sent: None,
            first_reply: None,
            first_answered: false,
            longest_gap: Duration::ZERO,
            last_answered: None,
            last_reply: None,
            began: None,
        }
    }

    /// Whether a request that was sent after a moment has been answered.
    #[must_use]
    pub fn has_answered_since(&self, since: Instant) -> bool {
        self.last_answered.is_some_and(|sent| sent >= since)
    }

    /// The flow with the gap that is still open.
    fn at(&self, now: Instant) -> Self {
        let open = self.last_reply.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        Self { longest_gap: self.longest_gap.max(open), ..self.clone() }
    }

    fn handle_sent(&mut self, now: Instant) {
        self.sent += 1;
        if self.began.is_none() {
            self.began = Some(now);
            self.first_sent = Some(SystemTime::now());
        }
    }

    fn handle_reply(&mut self, datagram: Datagram, sent: Instant, now: Instant) {
        self.received += 1;
        self.first_answered |= datagram.sequence == 0;
        if let (None, Some(began)) = (self.first_reply, self.began) {
            self.first_reply = Some(now.saturating_duration_since(began));
        }
        if let Some(last) = self.last_reply {
            self.longest_gap = self.longest_gap.max(now.saturating_duration_since(last));
        }
        self.last_reply = Some(now);
        self.last_answered = self.last_answered.max(Some(sent));
    }
}

impl Shared {
    fn flows(&self) -> MutexGuard<'_, BTreeMap<(u8, u8), Flow>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread: one round per interval, in which every pair has its turn.
fn run(shared: &Shared, places: &[Place], interval: Duration) {
    let pairs: Vec<(u8, u8)> = shared.flows().keys().copied().collect();
    let apart = interval / u32::try_from(pairs.len()).unwrap_or(u32::MAX);
    let mut turns = (0u32..).flat_map(|sequence| pairs.iter().map(move |&pair| (sequence, pair)));
    let mut due = shared.epoch;
    while !shared.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now >= due {
            if let Some((sequence, (from, to))) = turns.next() {
                ask(shared, places, Datagram { kind: Kind::Request, from, to, sequence, nanos: 0 });
            }
            due += apart;
            continue;
        }
        if wait(places, (due - now).min(NAP)).is_ok() {
            for place in places {
                drain(shared, place);
            }
        }
    }
}

fn ask(shared: &Shared, places: &[Place], request: Datagram) {
    let now = Instant::now();
    let nanos = u64::try_from((now - shared.epoch).as_nanos()).unwrap_or(u64::MAX);
    let [from, to] = [request.from, request.to].map(|place| &places[usize::from(place)]);
    // An agent that is dead has no interface; that is a lost request like any other.
    let _ = from.socket.send_to(&Datagram { nanos, ..request }.to_bytes(), to.address);
    if let Some(flow) = shared.flows().get_mut(&(request.from, request.to)) {
        flow.handle_sent(now);
    }
}

/// Reads all that has come: answers requests and notes replies.
fn drain(shared: &Shared, place: &Place) {
    let mut buffer = [0; LENGTH + 1];
    loop {
        let (length, sender) = match place.socket.recv_from(&mut buffer) {
            Ok(received) => received,
            // Nothing more, or what ICMP says of an earlier request; then the socket is readable again at once.
            Err(_) => return,
        };
        let Some(datagram) = Datagram::from_bytes(&buffer[..length]) else { continue };
        match datagram.kind {
            Kind::Request => {
                let reply = Datagram { kind: Kind::Reply, ..datagram };
                let _ = place.socket.send_to(&reply.to_bytes(), sender);
            }
            Kind::Reply => {
                let sent = shared.epoch + Duration::from_nanos(datagram.nanos);
                if let Some(flow) = shared.flows().get_mut(&(datagram.from, datagram.to)) {
                    flow.handle_reply(datagram, sent, Instant::now());
                }
            }
        }
    }
}

/// Waits until a socket has something, at most `patience`.
fn wait(places: &[Place], patience: Duration) -> nix::Result<()> {
    let mut fds: Vec<_> =
        places.iter().map(|place| PollFd::new(place.socket.as_fd(), PollFlags::POLLIN)).collect();
    // Rounded up: a poll of 0 ms would spin until the next request is due.
    let millis = u16::try_from(patience.as_millis() + 1).unwrap_or(u16::MAX);
    poll(&mut fds, PollTimeout::from(millis)).map(drop)
}
