//! To other drivers and from them, where a node has several.

use std::time::Instant;

use mesh_engine::{Engine, batch::RxBatch};

use super::{Driver, inbound::write_inner, outbound::TUN_BYTES};
use crate::{
    driver::{
        counters::{Counter, Counters},
        crossing::Crossing,
        silence::Silence,
    },
    io::tun::Tun,
};

/// Datagrams, or trains of them, that a turn takes from the inbox.
const HANDOVERS: usize = 64;

impl<T: Tun> Driver<T> {
    /// Puts what belongs to other engines into their drivers' inboxes.
    pub(super) fn hand_over(&mut self) {
        hand_over(&mut self.engine, self.crossing.as_ref(), &mut self.counters);
    }

    /// Whether something is to be taken from the inbox.
    pub(super) fn has_handovers(&self) -> bool {
        let wants_frames = || !self.engine.is_backlog_full();
        self.crossing.as_ref().is_some_and(|crossing| crossing.has_waiting(wants_frames()))
    }

    /// Whether another driver has more packets from the TUN before it than it can seal.
    pub(super) fn is_congested(&self) -> bool {
        self.crossing.as_ref().is_some_and(|crossing| crossing.is_congested())
    }

    /// Gives the engine what others have received for it, and the TUN what comes of it.
    pub(super) fn take_handovers(&mut self, now: Instant) {
        for _ in 0..HANDOVERS {
            let Some(mut handover) = self.crossing.as_ref().and_then(|crossing| crossing.take_other()) else {
                return;
            };
            self.moved.add(handover.len(), handover.len());
            let arena = &mut self.sending.arena;
            self.engine.handle_handover(&mut handover, now, arena, &mut self.packets);
            note_received(&mut self.silence, self.crossing.as_ref(), &self.packets);
            write_inner(&self.tun, handover.bytes_mut(), &mut self.packets, &mut self.counters);
        }
    }

    /// Gives the engine what others have read from the TUN for it: as much as a turn may seal after this many bytes.
    /// Returns how many bytes were sealed.
    pub(super) fn take_frames(&mut self, mut sealed: usize, now: Instant) -> usize {
        while self.crossing.is_some() && sealed < TUN_BYTES && !self.engine.is_backlog_full() {
            // Where nothing more can be laid out, it goes to the backlog.
            self.has_room();
            let Some(mut handover) = self.crossing.as_ref().and_then(|crossing| crossing.take_frame()) else {
                break;
            };
            self.moved.add(handover.len(), handover.len());
            sealed += handover.len();
            let arena = &mut self.sending.arena;
            self.engine.handle_handover(&mut handover, now, arena, &mut self.packets);
        }
        sealed
    }

    /// Notes what has come out of the mesh at other drivers.
    pub(super) fn note_received_elsewhere(&mut self) {
        let Some(crossing) = &self.crossing else { return };
        let received = crossing.received();
        let is_news = std::mem::replace(&mut self.heard_elsewhere, received) != received;
        self.silence.handle_received(is_news.into());
    }
}

/// Puts what belongs to other engines into their drivers' inboxes.
pub(super) fn hand_over(engine: &mut Engine, crossing: Option<&Crossing>, counters: &mut Counters) {
    let Some(crossing) = crossing else { return };
    while let Some((to, handover)) = engine.poll_handover() {
        let sent = crossing.send(to, handover);
        counters.count(Counter::InboxFull, (!sent).into());
    }
}

/// Notes that packets come out of the mesh.
pub(super) fn note_received(silence: &mut Silence, crossing: Option<&Crossing>, packets: &RxBatch) {
    let count = packets.packets().len();
    silence.handle_received(count);
    if let Some(crossing) = crossing {
        crossing.note_received(count);
    }
}
