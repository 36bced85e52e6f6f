//! A short wait before reading, where packets trickle in one by one.
//!
//! A sender of small datagrams wakes the driver for each of them; every wake-up costs more than the packet. Where one
//! side was ready again at once, many times in a row, and brought nothing but small packets, the driver lets a few
//! gather before it reads. Anything else takes that back: the other side being ready (somebody waits for an answer),
//! a pause (a lone packet goes at once), a train of large packets (it comes in batches already).

use std::time::{Duration, Instant};

/// How long packets may gather.
pub(super) const WAIT: Duration = Duration::from_micros(50);

/// So soon after a turn the same side is ready again where packets trickle.
const SOON: Duration = Duration::from_micros(100);

/// So many times in a row.
const STREAK: u32 = 8;

/// Packets up to this length are small: bulk transfers fill theirs.
const SMALL: usize = 1024;

/// Where packets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Udp,
    Tun,
}

/// What a turn has moved.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moved {
    pub(super) packets: usize,
    pub(super) bytes: usize,
}

impl Moved {
    /// Counts bytes that are cut into packets of `stride`.
    pub(super) fn add(&mut self, bytes: usize, stride: usize) {
        self.packets += bytes.div_ceil(stride.max(1));
        self.bytes += bytes;
    }

    fn is_small(self) -> bool {
        self.bytes <= self.packets * SMALL
    }
}

/// Decides on the wait.
#[derive(Debug, Default)]
pub(super) struct Pace {
    side: Option<Side>,
    streak: u32,
    last_end: Option<Instant>,
}

impl Pace {
    /// Takes note that a turn begins; `only` is the side that is ready, if nothing else is. Returns whether to wait.
    pub(super) fn begin(&mut self, only: Option<Side>, now: Instant) -> bool {
        let soon = self.last_end.is_some_and(|end| now.saturating_duration_since(end) < SOON);
        if only.is_none() || only != self.side || !soon {
            self.side = only;
            self.streak = 0;
            return false;
        }
        self.streak = self.streak.saturating_add(1);
        self.streak >= STREAK
    }

    /// Takes note of what the turn has moved, and of when it ended.
    pub(super) fn end(&mut self, moved: Moved, now: Instant) {
        if !moved.is_small() {
            self.streak = 0;
        }
        self.last_end = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL_ONES: Moved = Moved { packets: 2, bytes: 300 };

    /// Turns until the driver would wait, and the time of the last turn.
    fn trickle(pace: &mut Pace, mut now: Instant) -> Instant {
        for turn in 0..=STREAK {
            now += Duration::from_micros(30);
            assert_eq!(pace.begin(Some(Side::Tun), now), turn == STREAK, "turn {turn}");
            now += Duration::from_micros(10);
            pace.end(SMALL_ONES, now);
        }
        now
    }

    #[test]
    fn small_packets_that_keep_coming_are_waited_for() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let now = trickle(&mut pace, start);
        assert!(pace.begin(Some(Side::Tun), now + Duration::from_micros(90)));
    }

    #[test]
    fn the_other_side_a_pause_and_large_packets_take_it_back() {
        let start = Instant::now();
        for (only, gap) in [(Some(Side::Udp), 30), (None, 30), (Some(Side::Tun), 101)] {
            let mut pace = Pace::default();
            let now = trickle(&mut pace, start) + Duration::from_micros(gap);
            assert!(!pace.begin(only, now), "{only:?} after {gap} us");
            pace.end(SMALL_ONES, now);
            trickle(&mut Pace { side: None, ..pace }, now);
        }
        let mut pace = Pace::default();
        let now = trickle(&mut pace, start);
        assert!(pace.begin(Some(Side::Tun), now));
        pace.end(Moved { packets: 45, bytes: 45 * 1420 }, now);
        assert!(!pace.begin(Some(Side::Tun), now));
    }
}
