//! From the TUN to the underlay.

use std::time::Instant;

use super::Engine;
use crate::{
    batch::{TunFrame, TxArena},
    drops::DropReason,
    peer::Room,
    segment::Segments,
};

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
        self.touch(slot, now);
        let Some(peer) = self.peers.get_mut(slot) else {
            if !self.hand_over_frame(slot, frame) {
                self.local.drops.count(DropReason::NoRoute);
            }
            return;
        };
        if segments.max_len() > usize::from(self.local.mtu) {
            peer.count_drop(DropReason::TooBig);
            return self.local.answer_too_big(segments.packet(), self.local.mtu, now);
        }
        peer.send(&segments, &mut self.local, &mut self.scratch, now, out);
        if self.local.unsettled {
            self.settle(now);
        }
    }

    /// Takes what one read of the TUN gave, and keeps it for [`Engine::poll_backlog`]: for when more comes than can go,
    /// or something waits already. The caller reads no more while the backlog is full: what comes all the same is lost.
    pub fn handle_backlog(&mut self, frame: TunFrame<'_>, now: Instant) {
        match Segments::new(frame) {
            Ok(segments) => match self.local.router.lookup(segments.header().destination) {
                Some(slot) if self.hand_over_frame(slot, frame) => {}
                Some(slot) if self.backlog.is_full() => {
                    if let Some(peer) = self.peers.get_mut(slot) {
                        peer.count_drops(DropReason::QueueFull, segments.count() as u64);
                    }
                }
                Some(slot) if self.peers.get_mut(slot).is_none() => {
                    self.local.drops.count(DropReason::NoRoute);
                }
                Some(slot) => self.backlog.push(slot, &segments, frame.offload, now),
                None => self.local.drops.count(DropReason::NoRoute),
            },
            Err(reason) => self.local.drops.count(reason),
        }
    }

    /// Lays out the frame of the backlog whose turn it is, and returns its length. The caller leaves
    /// [`Engine::MAX_TUN_ROOM`] free in `out`.
    pub fn poll_backlog(&mut self, now: Instant, out: &mut TxArena) -> Option<usize> {
        let peers = &mut self.peers;
        let waiting = self.backlog.pop(now, |lost| {
            if let Some(peer) = peers.get_mut(lost.slot) {
                peer.count_drops(DropReason::QueueDelay, lost.packets as u64);
            }
        })?;
        let len = waiting.frame().packet.len();
        self.handle_tun(waiting.frame(), now, out);
        self.backlog.recycle(waiting);
        Some(len)
    }

    /// Whether something waits in the backlog.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether the backlog takes more.
    #[must_use]
    pub fn is_backlog_full(&self) -> bool {
        self.backlog.is_full()
    }

    /// Lays out what the engine itself has to send, and packets that have waited. Returns whether more is waiting
    /// than `out` has room for.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut TxArena) -> bool {
        self.see_to_touched(now);
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
