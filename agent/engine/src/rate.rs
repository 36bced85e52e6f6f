//! How much of something may be done in a time.

use std::time::Instant;

/// How fast an allowance refills, and how much it holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    pub(crate) burst: f64,
}

/// What is left; full before its first use.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Allowance(Option<(f64, Instant)>);

impl Allowance {
    /// Takes from it; whether there was as much.
    pub(crate) fn take(&mut self, cost: f64, rate: Rate, now: Instant) -> bool {
        let earned = |at| now.saturating_duration_since(at).as_secs_f64() * rate.per_second;
        let left = self.0.map_or(rate.burst, |(left, at)| (left + earned(at)).min(rate.burst));
        let has = left >= cost;
        self.0 = Some((if has { left - cost } else { left }, now));
        has
    }
}
