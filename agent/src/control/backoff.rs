//! How long to wait before the next attempt.
//!
//! The first retry comes after 100 to 300 ms: most losses are a restart or a change of network. After that the
//! upper bound doubles from 2 s to 30 s, and the wait is drawn from its upper half, so that a thousand agents
//! that lost the same coordinator come back spread out.

use std::time::Duration;

/// Range of the first wait.
const FIRST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(300));
/// Range of the wait after a sign that the other side is back: a thousand agents get that sign at the same moment.
const AFTER_SIGN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(600));
/// Upper bound of the longest wait.
const MAX: Duration = Duration::from_secs(30);
/// Longest wait that a coordinator may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// Counts failures in a row. Each method that gives a wait takes a random number from 0 to 1.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts a failure and returns how long to wait after it.
    pub(crate) fn next_wait(&mut self, random: f64) -> Duration {
        let top = Duration::from_secs(1 << self.failures.min(5)).min(MAX);
        let (low, high) = if self.failures == 0 { FIRST } else { (top / 2, top) };
        self.failures = self.failures.saturating_add(1);
        low + (high - low).mul_f64(random)
    }

    /// Counts a failure with a wait that the other side asked for: at least that, up to twice as much.
    pub(super) fn next_wait_asked(&mut self, asked: Duration, random: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        asked.min(MAX_RETRY_AFTER).mul_f64(1.0 + random)
    }

    /// Counts a failure after which coming back soon would do harm.
    pub(super) fn longest_wait(&mut self, random: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        MAX / 2 + (MAX / 2).mul_f64(random)
    }

    /// Returns how often it failed in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Forgets the failures: it worked for a while, or everything is different now.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Returns how long to wait at most once the other side has shown that it is back.
pub(super) fn after_sign(random: f64) -> Duration {
    AFTER_SIGN.0 + (AFTER_SIGN.1 - AFTER_SIGN.0).mul_f64(random)
}

/// Returns a random number from 0 to 1.
pub(crate) fn random() -> f64 {
    // Without random numbers the waits are merely not spread.
    getrandom::u32().map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_stay_there() {
        let millis = |random: f64| {
            let mut backoff = Backoff::default();
            (0..8).map(|_| backoff.next_wait(random).as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(millis(0.0), [100, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
        assert_eq!(millis(1.0), [300, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
    }

    #[test]
    fn what_the_coordinator_asks_for_is_honoured_within_reason() {
        let mut backoff = Backoff::default();
        let second = Duration::from_secs(1);
        assert_eq!(backoff.next_wait_asked(7 * second, 0.0), 7 * second);
        assert_eq!(backoff.next_wait_asked(7 * second, 1.0), 14 * second);
        assert_eq!(backoff.next_wait_asked(Duration::MAX, 0.0), MAX_RETRY_AFTER);
        assert_eq!(backoff.failures(), 3);
        backoff.reset();
        assert_eq!(backoff.next_wait(0.0), FIRST.0);
    }
}
