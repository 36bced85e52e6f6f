//! Notices that the mesh has gone silent: the host sends into it again and again, and nothing at all comes out of it.
//!
//! That may be because UDP has been blocked, also in one direction alone, so that probes of others still arrive. It may
//! have a hundred other reasons (a peer that is away, a stream that nobody answers), and to find out costs little.
//!
//! It takes no timer: a host that goes on sending notices it by itself, and one that has stopped has nothing to miss.

use std::time::{Duration, Instant};

/// So long nothing came while something was sent: more than any round trip takes.
const SILENCE: Duration = Duration::from_millis(1000);
/// While it stays so, it is told this often.
const INTERVAL: Duration = Duration::from_secs(5);

/// What was sent and came.
#[derive(Debug, Default)]
pub(super) struct Silence {
    unanswered_since: Option<Instant>,
    told: Option<Instant>,
}

impl Silence {
    /// So many packets came out of the mesh.
    pub(super) fn handle_received(&mut self, packets: usize) {
        if packets > 0 {
            *self = Self::default();
        }
    }

    /// The host has sent something into the mesh; whether it has been silent for too long, and that is news.
    pub(super) fn handle_sent(&mut self, now: Instant) -> bool {
        let since = *self.unanswered_since.get_or_insert(now);
        let is_silent = now.saturating_duration_since(since) >= SILENCE;
        let is_news = self.told.is_none_or(|told| now.saturating_duration_since(told) >= INTERVAL);
        if is_silent && is_news {
            self.told = Some(now);
        }
        is_silent && is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_sent_on_and_on_without_an_answer_is_told() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut silence = Silence::default();
        assert!(!silence.handle_sent(at(0)));
        assert!(!silence.handle_sent(at(900)));
        silence.handle_received(0);
        silence.handle_received(1);
        assert!(!silence.handle_sent(at(1000)));
        assert!(!silence.handle_sent(at(1900)));
        assert!(silence.handle_sent(at(2000)));
        assert!(!silence.handle_sent(at(2100)), "told already");
        assert!(silence.handle_sent(at(7000)), "still silent");
        silence.handle_received(1);
        assert!(!silence.handle_sent(at(7100)));
        assert!(silence.handle_sent(at(8100)), "silent anew");
    }
}
