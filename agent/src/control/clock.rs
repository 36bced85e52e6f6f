//! How far the coordinator's clock is from this host's, from the times in its Pongs.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

/// A measurement that took this much longer than the best one is worth less than that: half of what it took is its error.
const WORSE: Duration = Duration::from_millis(5);

/// The offset of the other side's clock.
#[derive(Debug, Default)]
pub(super) struct Clock(Mutex<Option<Sample>>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    /// In milliseconds; positive if the other side's clock is ahead.
    offset: f64,
    rtt: Duration,
}

impl Clock {
    /// Returns the offset in milliseconds.
    pub(super) fn offset_ms(&self) -> Option<f64> {
        self.lock().map(|sample| sample.offset)
    }

    /// Takes the other side's time, which an answer brought after `rtt`, at `now`.
    pub(super) fn add(&self, time_ms: u64, rtt: Duration, now: SystemTime) {
        let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else { return };
        // The answer was made half a round trip ago; it counts whole milliseconds, half of one too few on average.
        let then = now.as_secs_f64() * 1e3 - rtt.as_secs_f64() * 5e2;
        let sample = Sample { offset: time_ms as f64 + 0.5 - then, rtt };
        let mut best = self.lock();
        if best.is_none_or(|best| rtt <= best.rtt + WORSE) {
            *best = Some(sample);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Sample>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_answers_tell_the_offset() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let clock = Clock::default();
        assert_eq!(clock.offset_ms(), None);
        clock.add(2_000_000, Duration::from_millis(100), at(1_000_000));
        assert_eq!(clock.offset_ms(), Some(1_000_050.5));
        clock.add(5_000_000, Duration::from_millis(900), at(1_000_000));
        assert_eq!(clock.offset_ms(), Some(1_000_050.5), "half of 900 ms is too large an error");
        clock.add(2_000_000, Duration::from_millis(20), at(1_000_000));
        assert_eq!(clock.offset_ms(), Some(1_000_010.5));
        clock.add(1_000_000, Duration::from_millis(20), at(2_000_000));
        assert_eq!(clock.offset_ms(), Some(-999_989.5), "a clock that was set is followed");
    }
}
