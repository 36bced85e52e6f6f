//! Whether a router still has its mappings, told from the clock that it starts when it loses them (RFC 6887, section 8.5).

use std::time::{Duration, Instant};

/// By how much both clocks may differ beyond their drift: rounding, and the way there and back.
const SLACK: Duration = Duration::from_secs(2);
/// A clock may be wrong by one part in so many.
const DRIFT: u32 = 16;

/// What the router's clock showed last, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Epoch {
    seen: u32,
    at: Instant,
}

/// What the clock says about the mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Continuity {
    /// They are as they were.
    Kept,
    /// They are gone: the router has started over, or is another one.
    Lost,
}

impl Epoch {
    /// Notes what the clock shows, and compares it with what it showed before.
    pub(super) fn observe(before: &mut Option<Self>, seen: u32, now: Instant) -> Continuity {
        let Some(last) = before.replace(Self { seen, at: now }) else { return Continuity::Kept };
        if seen.saturating_add(1) < last.seen {
            return Continuity::Lost;
        }
        let theirs = Duration::from_secs(seen.saturating_sub(last.seen).into());
        let ours = now.saturating_duration_since(last.at);
        let is_behind = |a: Duration, b: Duration| a + SLACK < b - b / DRIFT;
        if is_behind(ours, theirs) || is_behind(theirs, ours) { Continuity::Lost } else { Continuity::Kept }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_runs_on_is_the_same_router() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for (first, second, after, expected) in [
            (100, 160, 60, Continuity::Kept),
            (100, 157, 60, Continuity::Kept),
            (100, 99, 0, Continuity::Kept),
            (100, 98, 0, Continuity::Lost),
            (100, 5, 60, Continuity::Lost),
            (100, 101, 60, Continuity::Lost),
            (100, 5000, 60, Continuity::Lost),
            (u32::MAX, 0, 1, Continuity::Lost),
            (0, u32::MAX, 1, Continuity::Lost),
        ] {
            let mut epoch = None;
            assert_eq!(Epoch::observe(&mut epoch, first, start), Continuity::Kept, "nothing to compare with");
            let got = Epoch::observe(&mut epoch, second, at(after));
            assert_eq!(got, expected, "{first} and {second} after {after} s");
        }
    }
}
