//! Looks at every packet that comes in through an interface, as a sniffer at the far end does, and judges its checksums.
//!
//! A packet that the kernel has not finished (a superpacket, or one whose checksum is left to the hardware that a
//! virtual device does not have) carries the sum of its pseudo-header only. The kernel says so of each packet
//! (`PACKET_VNET_HDR`), and then that sum is what has to be right: the rest is added by whoever cuts it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, anyhow};

mod check;
mod socket;

pub use check::Kind;

use self::check::Unfinished;
use self::socket::Socket;
use crate::netns::Netns;

/// Most wrong packets that are described; all are counted.
const DESCRIBED: usize = 5;

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    thread: JoinHandle<anyhow::Result<Seen>>,
    done: Arc<AtomicBool>,
}

/// What a capture has seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// How many packets of each kind came in.
    pub packets: BTreeMap<Kind, u64>,
    /// How many of them were superpackets.
    pub merged: u64,
    /// How many had a wrong checksum.
    pub wrong: u64,
    /// Some of those, for people.
    pub described: Vec<String>,
    /// The packets that were to be kept, from their IP headers on, in order.
    pub kept: Vec<Vec<u8>>,
    /// How many the kernel dropped before they could be looked at.
    pub missed: u64,
}

impl Capture {
    /// Starts to look at what comes in through an interface, and keeps the packets that `keeps` wants.
    ///
    /// # Errors
    ///
    /// If there is no such interface, or the kernel does not allow it.
    pub fn start(
        netns: &Netns,
        interface: &str,
        keeps: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> anyhow::Result<Self> {
        let socket = netns.enter(|| Socket::open(interface))?;
        let socket = socket.with_context(|| format!("{interface} in {} cannot be captured", netns.name()))?;
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let thread = std::thread::spawn(move || look(&socket, keeps, &is_done));
        Ok(Self { thread, done })
    }

    /// Ends it and returns what it has seen.
    ///
    /// # Errors
    ///
    /// If it broke off.
    pub fn finish(self) -> anyhow::Result<Seen> {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the capture panicked"))?
    }
}

impl Seen {
    /// Returns how many packets of a kind came in.
    #[must_use]
    pub fn count(&self, kind: Kind) -> u64 {
        self.packets.get(&kind).copied().unwrap_or_default()
    }

    fn add(&mut self, packet: &[u8], unfinished: Option<Unfinished>) {
        match check::check(packet, unfinished) {
            Ok(kind) => *self.packets.entry(kind).or_default() += 1,
            Err(what) => {
                self.wrong += 1;
                if self.described.len() < DESCRIBED {
                    self.described.push(what);
                }
            }
        }
        self.merged += u64::from(unfinished.is_some_and(|unfinished| unfinished.is_merged));
    }
}

fn look(socket: &Socket, keeps: impl Fn(&[u8]) -> bool, is_done: &AtomicBool) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    let mut buffer = socket::buffer();
    loop {
        // What is there already when the end is called for belongs to it.
        let ending = is_done.load(Ordering::Relaxed);
        while let Some((packet, unfinished)) = socket.receive(&mut buffer)? {
            seen.add(packet, unfinished);
            if keeps(packet) {
                seen.kept.push(packet.to_vec());
            }
        }
        if ending {
            seen.missed = socket.missed()?;
            return Ok(seen);
        }
    }
}
