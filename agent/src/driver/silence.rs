//! Notices that UDP has gone silent: something is sent again and again, and nothing at all comes back.
//!
//! It costs no timer: a sender that goes on sending notices it by itself, and one that has stopped has nothing to miss.
//! Whether UDP is blocked is for others to find out: a peer that is away is silent, too.

use std::time::{Duration, Instant};

/// So long nothing came while something was sent.
const SILENCE: Duration = Duration::from_millis(1000);
/// It is told this often at most.
const INTERVAL: Duration = Duration::from_secs(5);

/// What was sent and came.
#[derive(Debug, Default)]
pub(super) struct Silence {
    unanswered_since: Option<Instant>,
    told: Option<Instant>,
}

impl Silence {
    /// Something came.
    pub(super) fn handle_received(&mut self) {
        self.unanswered_since = None;
    }

    /// Something was sent; whether it has been silent for too long, and that is news.
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
        silence.handle_received();
        assert!(!silence.handle_sent(at(1000)));
        assert!(!silence.handle_sent(at(1900)));
        assert!(silence.handle_sent(at(2000)));
        assert!(!silence.handle_sent(at(2100)), "told already");
        assert!(silence.handle_sent(at(7000)), "still silent");
    }
}
