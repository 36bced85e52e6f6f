//! What the driver counts: trouble with single packets that ends nothing.

use std::{collections::BTreeMap, io};

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// The TUN gave something that is no packet.
    TunRead,
    /// The kernel refused an inner packet (`EIO`: interface down; `EINVAL`: not IP).
    TunWrite,
    /// An inner packet came while there was no TUN.
    TunAway,
    /// The network is not reachable from here.
    UdpUnreachable,
    /// Larger than the path's or the interface's MTU.
    UdpTooBig,
    /// A packet filter, or the system, forbids the destination.
    UdpForbidden,
    /// The system has no socket of that address family.
    UdpNoSocket,
    /// Any other error of a send.
    UdpSend,
    /// An error of a receive.
    UdpReceive,
    /// A datagram came to a mesh address: the underlay led through the tunnel itself.
    UdpLoop,
    /// A relay's byte stream was meant, and there is none.
    NoStream,
    /// A relay's byte stream was full: the oldest went.
    StreamFull,
    /// What belongs to another engine found its inbox full.
    InboxFull,
}

impl Counter {
    /// Returns its name, for people and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TunRead => "tun-read",
            Self::TunWrite => "tun-write",
            Self::TunAway => "tun-away",
            Self::UdpUnreachable => "udp-unreachable",
            Self::UdpTooBig => "udp-too-big",
            Self::UdpForbidden => "udp-forbidden",
            Self::UdpNoSocket => "udp-no-socket",
            Self::UdpSend => "udp-send",
            Self::UdpReceive => "udp-receive",
            Self::UdpLoop => "udp-loop",
            Self::NoStream => "no-stream",
            Self::StreamFull => "stream-full",
            Self::InboxFull => "inbox-full",
        }
    }

    /// Sorts an error of a send.
    pub(super) fn of_send(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL) => {
                Self::UdpUnreachable
            }
            Some(libc::EMSGSIZE) => Self::UdpTooBig,
            Some(libc::EPERM | libc::EACCES) => Self::UdpForbidden,
            _ => Self::UdpSend,
        }
    }
}

/// How often each kind of trouble was met.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    counts: BTreeMap<Counter, u64>,
    /// What came to each of several drivers.
    pub arrivals: Arrivals,
}

/// What came to drivers that have others beside them: it says how much of that had to be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Arrivals {
    /// Packets and superpackets that were read from the TUN.
    pub frames: u64,
    /// Datagrams of the main sockets.
    pub datagrams: u64,
}

impl Counters {
    /// Counts trouble; the first of its kind is logged.
    pub(crate) fn count(&mut self, counter: Counter, times: u64) {
        if times == 0 {
            return;
        }
        let count = self.counts.entry(counter).or_default();
        if *count == 0 {
            tracing::debug!(kind = counter.name(), "first packet of its kind is lost");
        }
        *count += times;
    }

    /// Adds what another driver has counted.
    pub(super) fn merge(&mut self, other: &Self) {
        for (counter, count) in other.iter() {
            *self.counts.entry(counter).or_default() += count;
        }
        self.arrivals.frames += other.arrivals.frames;
        self.arrivals.datagrams += other.arrivals.datagrams;
    }

    /// Returns the kinds that were met, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> {
        self.counts.iter().map(|(counter, count)| (*counter, *count))
    }

    /// Returns how often one kind was met.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.counts.get(&counter).copied().unwrap_or_default()
    }
}
