//! What the front counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mesh_proto::demux::DatagramKind;

/// The front's counters since it started. Written by its task, read by metrics.
#[derive(Debug, Default)]
pub struct FrontStats {
    datagrams: [AtomicU64; KINDS.len()],
    stun_answers: AtomicU64,
    stun_drops: AtomicU64,
    quic_drops: AtomicU64,
    socket_errors: AtomicU64,
}

/// Every kind of datagram, as metrics show it.
const KINDS: [(DatagramKind, &str); 6] = [
    (DatagramKind::WireGuard, "wireguard"),
    (DatagramKind::Disco, "disco"),
    (DatagramKind::Stun, "stun"),
    (DatagramKind::Relay, "relay"),
    (DatagramKind::Quic, "quic"),
    (DatagramKind::Unknown, "unknown"),
];

impl FrontStats {
    /// Returns how many datagrams of each kind arrived.
    pub fn datagrams(&self) -> impl Iterator<Item = (&'static str, u64)> {
        KINDS.iter().zip(&self.datagrams).map(|((_, name), count)| (*name, count.load(Relaxed)))
    }

    /// Returns how many STUN requests were answered.
    #[must_use]
    pub fn stun_answers(&self) -> u64 {
        self.stun_answers.load(Relaxed)
    }

    /// Returns how many STUN messages were not answered: malformed, or too many from one source.
    #[must_use]
    pub fn stun_drops(&self) -> u64 {
        self.stun_drops.load(Relaxed)
    }

    /// Returns how many QUIC datagrams were dropped: too long, or too many at once.
    #[must_use]
    pub fn quic_drops(&self) -> u64 {
        self.quic_drops.load(Relaxed)
    }

    /// Returns how many errors receiving met.
    #[must_use]
    pub fn socket_errors(&self) -> u64 {
        self.socket_errors.load(Relaxed)
    }

    pub(super) fn count_datagrams(&self, kind: DatagramKind, count: u64) {
        for ((known, _), counter) in KINDS.iter().zip(&self.datagrams) {
            if *known == kind {
                counter.fetch_add(count, Relaxed);
            }
        }
    }

    pub(super) fn count_stun_answer(&self) {
        self.stun_answers.fetch_add(1, Relaxed);
    }

    pub(super) fn count_stun_drop(&self) {
        self.stun_drops.fetch_add(1, Relaxed);
    }

    pub(super) fn count_quic_drop(&self) {
        self.quic_drops.fetch_add(1, Relaxed);
    }

    pub(super) fn count_socket_error(&self) {
        self.socket_errors.fetch_add(1, Relaxed);
    }
}
