//! The link simulator: the lab's internet.
//!
//! Every site has a TUN device `wan` whose other end is held by one thread. The thread reads a packet, finds the
//! site that owns its destination, decides when (and whether) the packet arrives there, and writes it to that site's
//! device at that time. So the internet is a star: a packet crosses the sender's access line upwards and the
//! receiver's downwards, and each line has its own delay, jitter, loss, rate and queue per direction.
//!
//! NAT stays in the kernel of the site's router and impairment stays here. The thread acts as a router does: it
//! decrements TTL and hop limit (without the ICMP answer) and drops what has no route. It sleeps in `ppoll` until
//! the next due time with nanosecond timeouts and a timer slack of 1 ns, and goes before other threads if it may. One packet costs one read and one write.
//! Randomness comes from one seed; with the same arrivals the same packets are lost.
//!
//! - [`model`]: the pure part, one direction of one line.
//! - [`packet`]: destination and TTL of a packet.
//! - `worker`: the thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use anyhow::Context as _;
use ipnet::IpNet;
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};

pub mod model;
pub mod packet;
mod tun;
mod worker;

pub use model::{Impairment, Loss, Order, Rate};

use crate::netns::Netns;

/// The largest packet that a line carries, with room for an odd MTU above Ethernet's.
pub const MAX_MTU: u16 = 2000;

/// Packets that may wait in a device for the simulator, which shares two cores with the programs under test: some
/// 50 ms of a fast stream, so that what is lost is lost by the line and not by the scheduler.
pub(crate) const QUEUE: u32 = 5000;

/// The two directions of an access line.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Line {
    /// From the site into the internet.
    pub up: Impairment,
    /// From the internet to the site.
    pub down: Impairment,
}

impl Line {
    /// The same in both directions.
    pub fn symmetric(both: Impairment) -> Self {
        Self { up: both, down: both }
    }
}

/// Names a line of a [`LinkSim`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LineId(usize);

/// What a line has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineStats {
    /// Packets that the site sent.
    pub sent: u64,
    /// Packets that arrived at the site.
    pub received: u64,
    /// Bytes that arrived at the site.
    pub received_bytes: u64,
    /// Packets lost on this line by chance.
    pub lost: u64,
    /// Packets lost because a queue of this line was full.
    pub queue_full: u64,
    /// Packets dropped because this line, or the pair of sites, was cut.
    pub cut: u64,
    /// Packets from this site with no way to go: no route, or TTL used up.
    pub unroutable: u64,
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
    lost: AtomicU64,
    queue_full: AtomicU64,
    cut: AtomicU64,
    unroutable: AtomicU64,
}

enum Command {
    Attach { tun: OwnedFd, line: Line, counters: Arc<Counters> },
    SetLine { id: usize, line: Line },
    SetRoutes { id: usize, routes: Vec<IpNet> },
    SetConnected { id: usize, connected: bool },
    SetPair { a: usize, b: usize, connected: bool },
    Stop,
}

/// The running simulator; dropping it stops the thread and removes the TUN devices.
#[derive(Debug)]
pub struct LinkSim {
    commands: Sender<(Command, SyncSender<()>)>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    counters: std::sync::Mutex<Vec<Arc<Counters>>>,
}

impl LinkSim {
    /// Starts the thread, with no lines.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a descriptor or a thread.
    pub fn start(seed: u64) -> anyhow::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let (commands, inbox) = channel();
        let worker = worker::Worker::new(seed, Arc::clone(&wake), inbox);
        let thread = std::thread::Builder::new().name("linksim".into()).spawn(move || worker.run())?;
        Ok(Self { commands, wake, thread: Some(thread), counters: std::sync::Mutex::default() })
    }

    /// Makes the TUN device `interface` in `netns` and joins it to the star. Addresses and routes inside are the caller's.
    ///
    /// # Errors
    ///
    /// If the device cannot be made.
    pub fn attach(&self, netns: &Netns, interface: &str, line: Line) -> anyhow::Result<LineId> {
        let tun = netns.enter(|| tun::open(interface))?;
        let tun = tun.with_context(|| format!("TUN device {interface} in {}", netns.name()))?;
        let counters = Arc::new(Counters::default());
        // Held across the command, so that the order here is the order there.
        let mut all = self.counters.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.tell(Command::Attach { tun, line, counters: Arc::clone(&counters) })?;
        all.push(counters);
        Ok(LineId(all.len() - 1))
    }

    /// Sets which destinations are reached through this line; they replace the former ones.
    ///
    /// # Errors
    ///
    /// If the simulator has stopped.
    pub fn set_routes(&self, line: LineId, routes: Vec<IpNet>) -> anyhow::Result<()> {
        self.tell(Command::SetRoutes { id: line.0, routes })
    }

    /// Sets the impairments of a line from now on; packets under way are not touched.
    ///
    /// # Errors
    ///
    /// If the simulator has stopped.
    pub fn set_line(&self, id: LineId, line: Line) -> anyhow::Result<()> {
        self.tell(Command::SetLine { id: id.0, line })
    }

    /// Cuts a line or mends it.
    ///
    /// # Errors
    ///
    /// If the simulator has stopped.
    pub fn set_connected(&self, line: LineId, connected: bool) -> anyhow::Result<()> {
        self.tell(Command::SetConnected { id: line.0, connected })
    }

    /// Cuts two sites off from each other, or mends that, while both still reach all others.
    ///
    /// # Errors
    ///
    /// If the simulator has stopped.
    pub fn set_pair_connected(&self, a: LineId, b: LineId, connected: bool) -> anyhow::Result<()> {
        self.tell(Command::SetPair { a: a.0, b: b.0, connected })
    }

    /// What a line has done so far.
    pub fn stats(&self, line: LineId) -> LineStats {
        let all = self.counters.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let counters = &all[line.0];
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LineStats {
            sent: read(&counters.sent),
            received: read(&counters.received),
            received_bytes: read(&counters.received_bytes),
            lost: read(&counters.lost),
            queue_full: read(&counters.queue_full),
            cut: read(&counters.cut),
            unroutable: read(&counters.unroutable),
        }
    }

    /// Hands a command to the thread and waits until it is in force.
    fn tell(&self, command: Command) -> anyhow::Result<()> {
        let (done, wait) = sync_channel(1);
        self.commands.send((command, done)).ok().context("the link simulator has stopped")?;
        self.wake.write(1)?;
        wait.recv().context("the link simulator has stopped")
    }
}

impl Drop for LinkSim {
    fn drop(&mut self) {
        let _ = self.tell(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
