//! From the TUN to the underlay.

use std::time::{Duration, Instant};

use super::Engine;
use crate::{
    batch::{TunFrame, TxArena},
    drops::DropReason,
    peer::Room,
    segment::Segments,
};

/// ICMP errors per second at most (Linux: `icmp_msgs_per_sec`, one per millisecond and host; this is for one node).
const ICMP_PER_SECOND: u32 = 50;

/// Counts ICMP errors of the running second.
#[derive(Debug, Default)]
pub(crate) struct IcmpLimit {
    since: Option<Instant>,
    sent: u32,
}

impl IcmpLimit {
    pub(super) fn admit(&mut self, now: Instant) -> bool {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= Duration::from_secs(1);
        if self.since.is_none_or(is_over) {
            *self = Self { since: Some(now), sent: 0 };
        }
        self.sent += 1;
        self.sent <= ICMP_PER_SECOND
    }
}

impl Engine {
    /// Takes what one read of the TUN gave. The caller leaves [`Engine::MAX_TUN_ROOM`] free in `out`.
    pub fn handle_tun(&mut self, frame: TunFrame<'_>, now: Instant, out: &mut TxArena) {
        let segments = match Segments::new(frame) {
            Ok(segments) => segments,
            Err(reason) => return self.local.drops.count(reason),
        };
        let Some(slot) = self.local.router.lookup(segments.header().destination) else {
            return self.local.drops.count(DropReason::NoRoute);
        };
        let Some(peer) = self.peers.get_mut(slot) else {
            return self.local.drops.count(DropReason::NoRoute);
        };
        if segments.max_len() > usize::from(self.local.mtu) {
            peer.count_drop(DropReason::TooBig);
            return self.local.answer_too_big(segments.packet(), self.local.mtu, now);
        }
        peer.send(&segments, &mut self.local, &mut self.scratch, now, out);
        peer.arm_loosely(&mut self.wakeups, now);
        if peer.has_ready_packets(now) {
            self.ready.insert(slot);
        }
        if self.local.unsettled {
            self.settle(now);
        }
    }

    /// Lays out what the engine itself has to send, and packets that have waited. Returns whether more is waiting
    /// than `out` has room for.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut TxArena) -> bool {
        if self.local.outbox.flush(out) {
            return true;
        }
        while let Some(slot) = self.ready.last().copied() {
            if let Some(peer) = self.peers.get_mut(slot) {
                if peer.send_waiting(&mut self.local, &mut self.scratch, now, out) == Room::None {
                    return true;
                }
                peer.arm_loosely(&mut self.wakeups, now);
            }
            self.ready.remove(&slot);
        }
        self.local.outbox.flush(out)
    }
}
