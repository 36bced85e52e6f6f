//! From the TUN to the underlay.

use std::{io, time::Instant};

use mesh_engine::{Engine, shard::HOME};

use super::{Driver, Queue};
use crate::{
    driver::{DriverEvent, counters::Counter, poller::Source},
    io::tun::{self, Tun},
};

/// Reads of the TUN per turn: more made a UDP flood worse, less costs system calls.
const TUN_READS: usize = 64;

/// Bytes from the TUN that a turn seals. They take about 0.2 ms: so long may what comes from the network have to wait.
pub(super) const TUN_BYTES: usize = 256 * 1024;

impl<T: Tun> Driver<T> {
    /// Gives the engine what the TUN has: to be sealed at once, as long as it all can go, else to wait its turn. Returns
    /// how many bytes were sealed.
    pub(super) fn read_tun(&mut self, now: Instant) -> usize {
        let mut sealed = 0;
        self.note_received_elsewhere();
        if self.silence.handle_sent(now) {
            self.outbox.push(DriverEvent::Unanswered);
        }
        for _ in 0..TUN_READS {
            let waits = sealed >= TUN_BYTES || self.engine.has_backlog() || !self.has_room();
            if waits && self.engine.is_backlog_full() {
                break;
            }
            if self.crossing.is_some() {
                if self.engine.is_handover_full() {
                    self.hand_over();
                }
                if self.is_congested() {
                    break;
                }
            }
            let Some(Queue { tun, .. }) = &self.tun else {
                self.ready.clear(Source::Tun);
                break;
            };
            let buffer = &mut self.tun_buffer;
            match tun.try_read(buffer) {
                Ok(frame) => {
                    self.moved.add(frame.packet.len(), frame.packet.len());
                    self.counters.arrivals.frames += u64::from(self.crossing.is_some());
                    if waits {
                        self.engine.handle_backlog(frame, now);
                    } else {
                        sealed += frame.packet.len();
                        self.engine.handle_tun(frame, now, &mut self.sending.arena);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready.clear(Source::Tun);
                    break;
                }
                Err(error) if tun::is_lost(&error) => {
                    self.tun = None;
                    // All lose it together, and one tells.
                    if self.engine.shard_number() == HOME {
                        self.outbox.push(DriverEvent::TunLost);
                    }
                }
                Err(_) => self.counters.count(Counter::TunRead, 1),
            }
        }
        sealed
    }

    /// Has as much of the backlog sealed as a turn may seal after this many bytes.
    pub(super) fn seal_backlog(&mut self, mut sealed: usize, now: Instant) {
        while sealed < TUN_BYTES && self.engine.has_backlog() && self.has_room() {
            let Some(len) = self.engine.poll_backlog(now, &mut self.sending.arena) else { return };
            sealed += len;
        }
    }

    /// Whether one more frame of the TUN can be laid out, after what is laid out has been sent if need be.
    pub(super) fn has_room(&mut self) -> bool {
        if !self.sending.is_blocked() && self.sending.arena.room() < Engine::MAX_TUN_ROOM {
            self.sending.flush(&mut self.counters);
        }
        !self.sending.is_blocked()
    }
}
