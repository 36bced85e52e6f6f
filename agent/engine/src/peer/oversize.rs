//! Packets that may not be cut and are larger than what is known to pass, while that is not measured.
//!
//! A new path is taken to carry [`crate::path::mtu::FLOOR`], and most carry more. To say "too big" then would be to tell a
//! guess to a system that keeps to it for ten minutes (RFC 1191, section 6.3), so the packet takes another path that is known
//! to carry it, as the relay on which the pair was until now. Without one it waits: mostly for one round trip, on a narrow
//! path until the search has ended. Then it goes, or its sender is told what the path does carry. Smaller packets go
//! meanwhile.

use std::time::Instant;

use super::Peer;
use crate::{drops::DropReason, local::Local, path::mtu::Carries, segment::Segments};

impl Peer {
    /// Keeps the packets of a frame that are larger than what their way is taken to carry, and may not be cut.
    pub(super) fn hold_oversize(&mut self, segments: &Segments<'_>, local: &mut Local, now: Instant) {
        let Self { oversize, drops, .. } = self;
        oversize.push_all(segments, now, &mut local.budget, |reason| drops.count(reason));
    }

    /// Takes such a packet that has waited: tells its sender, or keeps it if it is still not known what passes.
    pub(super) fn refuse_oversize(
        &mut self,
        packet: Vec<u8>,
        carries: Carries,
        local: &mut Local,
        now: Instant,
    ) {
        let Self { oversize, drops, .. } = self;
        if carries.is_measured {
            drops.count(DropReason::TooBig);
            local.answer_too_big(&packet, carries.mtu, now);
        } else {
            oversize.push(packet, now, &mut local.budget, |reason| drops.count(reason));
        }
    }

    /// Whether packets wait for a measurement that there is now.
    pub(super) fn has_measured_oversize(&self, now: Instant) -> bool {
        !self.oversize.is_empty() && self.paths.carries(self.paths.targets(now)).is_measured
    }
}
