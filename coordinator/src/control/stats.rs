//! What the control side counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mesh_proto::control::RefusalCode;

/// A counter that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// The control side's counters since it started.
#[derive(Debug, Default)]
pub struct ControlStats {
    /// Connections whose TLS handshake was completed.
    pub connections: Counter,
    /// Connections that failed before a first message: handshake, deadline, no stream.
    pub handshake_failures: Counter,
    /// Connections that were turned away because too many were at the door.
    pub turned_away: Counter,
    /// Connections that had to prove their address first.
    pub retries: Counter,
    /// Joins that were answered with a node.
    pub joins: Counter,
    /// Sessions of nodes that were opened.
    pub sessions: Counter,
    /// Whole maps that were sent.
    pub maps: Counter,
    /// Deltas that were sent.
    pub deltas: Counter,
    /// CallMeMaybes that were forwarded.
    pub calls: Counter,
    /// CallMeMaybes that were not: the peer is not there, or the pair is over its rate.
    pub calls_dropped: Counter,
    /// Connections of which the other side speaks another version of the protocol.
    pub version_mismatches: Counter,
    refusals: [Counter; REFUSALS.len()],
}

/// Every code that is sent, as metrics show it.
const REFUSALS: [(RefusalCode, &str); 9] = [
    (RefusalCode::Token, "token"),
    (RefusalCode::ServiceAccount, "service_account"),
    (RefusalCode::NameTaken, "name_taken"),
    (RefusalCode::NotRegistered, "not_registered"),
    (RefusalCode::Busy, "busy"),
    (RefusalCode::Replaced, "replaced"),
    (RefusalCode::Duplicate, "duplicate"),
    (RefusalCode::ShuttingDown, "shutting_down"),
    (RefusalCode::Protocol, "protocol"),
];

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Returns the count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl ControlStats {
    /// Counts a connection of which the other side speaks another version of the protocol. Anybody can make such a
    /// connection, so only the first is worth a line.
    pub fn count_version_mismatch(&self) {
        self.version_mismatches.increment();
        if self.version_mismatches.get() == 1 {
            tracing::warn!(
                version = super::VERSION,
                "an agent speaks another version of the control protocol: upgrade the older of the two"
            );
        }
    }

    /// Counts a refusal that was sent.
    pub fn count_refusal(&self, code: RefusalCode) {
        for ((known, _), counter) in REFUSALS.iter().zip(&self.refusals) {
            if *known == code {
                counter.increment();
            }
        }
    }

    /// Returns how many refusals of each code were sent.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        REFUSALS.iter().zip(&self.refusals).map(|((_, name), counter)| (*name, counter.get()))
    }
}
