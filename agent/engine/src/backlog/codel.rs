//! Controlled delay (RFC 8289): when a queue that stays long loses a packet.
//!
//! A queue may be long for a moment: bursts are what queues are for. One that is late for a whole [`INTERVAL`] stands,
//! and only a loss tells its sender to send less. The next loss follows the sooner the longer that takes to help.

use std::time::{Duration, Instant};

/// A packet that has waited for longer is late (RFC 8289, section 4.4).
pub(super) const TARGET: Duration = Duration::from_millis(5);
/// A queue may be late for this long: the round-trip time of a far sender (RFC 8289, section 4.3).
pub(super) const INTERVAL: Duration = Duration::from_millis(100);
/// A queue that is late again so soon goes on with the rate of losses that helped (RFC 8289, section 5.4).
const MEMORY: Duration = Duration::from_millis(1600);

/// The state of one queue.
#[derive(Debug, Default)]
pub(super) struct Codel {
    /// When the queue will have been late for long enough.
    standing_at: Option<Instant>,
    /// When the next loss is due, while the queue stands; afterwards, when it would have been.
    next: Option<Instant>,
    is_dropping: bool,
    /// Losses since the queue began to stand, and at the beginning of the time before.
    count: u32,
    last_count: u32,
}

impl Codel {
    /// Decides on the packet that is next, which is `late` or not: whether it is lost.
    ///
    /// Asked again for the packet that takes its place.
    pub(super) fn drops(&mut self, late: bool, now: Instant) -> bool {
        if !self.stands(late, now) {
            self.is_dropping = false;
            return false;
        }
        if self.is_dropping {
            let Some(next) = self.next.filter(|next| *next <= now) else { return false };
            self.count += 1;
            self.next = Some(next + self.gap());
            return true;
        }
        let is_again = self.next.is_some_and(|next| now.saturating_duration_since(next) < MEMORY);
        let delta = self.count - self.last_count;
        self.count = if is_again && delta > 1 { delta } else { 1 };
        self.last_count = self.count;
        self.next = Some(now + self.gap());
        self.is_dropping = true;
        true
    }

    fn stands(&mut self, late: bool, now: Instant) -> bool {
        if !late {
            self.standing_at = None;
            return false;
        }
        *self.standing_at.get_or_insert(now + INTERVAL) <= now
    }

    /// Until the next loss: the rate of losses grows so that TCP's rate falls linearly.
    fn gap(&self) -> Duration {
        INTERVAL.div_f64(f64::from(self.count).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [u64; 0] = [];

    /// Asks every millisecond for so long; returns when packets were lost, in milliseconds.
    fn losses(codel: &mut Codel, start: Instant, from: u64, to: u64, late: bool) -> Vec<u64> {
        let is_lost = |ms: &u64| codel.drops(late, start + Duration::from_millis(*ms));
        (from..to).filter(is_lost).collect()
    }

    #[test]
    fn a_burst_loses_nothing() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        for burst in 0..10 {
            assert_eq!(losses(&mut codel, start, burst * 100, burst * 100 + 99, true), NONE);
            assert_eq!(losses(&mut codel, start, burst * 100 + 99, burst * 100 + 100, false), NONE);
        }
    }

    #[test]
    fn a_queue_that_stands_loses_more_and_more_often() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        let lost = losses(&mut codel, start, 0, 500, true);
        // 100 ms, then 100 / sqrt(n) apart, rounded up to the next millisecond.
        assert_eq!(lost, [100, 200, 271, 329, 379, 424, 464]);
    }

    #[test]
    fn one_that_stands_again_soon_goes_on_where_it_was() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        let before = losses(&mut codel, start, 0, 500, true).len();
        assert_eq!(losses(&mut codel, start, 500, 600, false), NONE);
        let soon = losses(&mut codel, start, 600, 1000, true).len();
        assert!(soon > before, "{soon} after {before}");
        assert_eq!(losses(&mut codel, start, 1000, 4000, false), NONE);
        assert_eq!(losses(&mut codel, start, 4000, 4500, true).len(), before);
    }
}
