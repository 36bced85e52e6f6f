//! Rate limits: a token bucket, and one bucket per source address in a table that never grows.
//!
//! Nothing here reads a clock; every method that needs the time is given `now`.

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

/// Buckets of a [`SourceLimiter`]. Sources whose hashes collide share a bucket; the hash is keyed at
/// random, so nobody can choose whom to share with. 4,096 buckets of 16 bytes fill 64 KiB.
const SOURCE_BUCKETS: usize = 4096;

/// How much passes: so many units per second, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units per second; must not be zero.
    pub per_second: u64,
    /// Units that may pass at once after a pause. A cost above it never passes.
    pub burst: u64,
}

/// A token bucket, kept as the one time at which it is full again (GCRA).
#[derive(Debug, Clone, Copy)]
pub struct TokenBucket {
    full_at: Instant,
}

/// One token bucket per source: an IPv4 address, or the /64 of an IPv6 address.
#[derive(Debug)]
pub struct SourceLimiter {
    rate: Rate,
    hasher: RandomState,
    buckets: Box<[TokenBucket]>,
}

impl Rate {
    /// Returns the time in which `units` come in.
    #[must_use]
    pub fn time_of(self, units: u64) -> Duration {
        let nanos = u128::from(units) * 1_000_000_000 / u128::from(self.per_second.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl TokenBucket {
    /// Makes a full bucket.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes `cost` out of the bucket.
    ///
    /// # Errors
    /// When there is not enough in it: nothing is taken, and the error says after which time there will be.
    pub fn try_take(&mut self, now: Instant, rate: Rate, cost: u64) -> Result<(), Duration> {
        let full_at = self.full_at.max(now) + rate.time_of(cost);
        let excess = full_at.saturating_duration_since(now).saturating_sub(rate.time_of(rate.burst));
        if !excess.is_zero() {
            return Err(excess);
        }
        self.full_at = full_at;
        Ok(())
    }

    /// Checks that one unit is there, and takes nothing.
    ///
    /// # Errors
    /// As [`Self::try_take`].
    pub fn check(&self, now: Instant, rate: Rate) -> Result<(), Duration> {
        let mut copy = *self;
        copy.try_take(now, rate, 1)
    }
}

impl SourceLimiter {
    /// Makes a limiter whose buckets are all full.
    #[must_use]
    pub fn new(now: Instant, rate: Rate) -> Self {
        let buckets = vec![TokenBucket::new(now); SOURCE_BUCKETS].into_boxed_slice();
        Self { rate, hasher: RandomState::new(), buckets }
    }

    /// Takes one unit from the source's bucket.
    ///
    /// # Errors
    /// As [`TokenBucket::try_take`].
    pub fn try_take(&mut self, now: Instant, source: IpAddr) -> Result<(), Duration> {
        let index = self.index_of(source);
        self.buckets[index].try_take(now, self.rate, 1)
    }

    /// Checks that one unit is in the source's bucket, and takes nothing.
    ///
    /// # Errors
    /// As [`TokenBucket::try_take`].
    pub fn check(&self, now: Instant, source: IpAddr) -> Result<(), Duration> {
        self.buckets[self.index_of(source)].check(now, self.rate)
    }

    fn index_of(&self, source: IpAddr) -> usize {
        let hash = self.hasher.hash_one(prefix_of(source));
        usize::try_from(hash % self.buckets.len() as u64).expect("smaller than a usize")
    }
}

/// Returns what one subscriber owns: the IPv4 address, or the /64 of an IPv6 address.
#[must_use]
pub fn prefix_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 3 };

    #[test]
    fn a_bucket_passes_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(start);
        for _ in 0..3 {
            bucket.try_take(start, RATE, 1).unwrap();
        }
        assert_eq!(bucket.try_take(start, RATE, 1), Err(Duration::from_millis(100)));
        assert_eq!(bucket.check(start, RATE), Err(Duration::from_millis(100)));
        let later = start + Duration::from_millis(100);
        bucket.check(later, RATE).unwrap();
        bucket.try_take(later, RATE, 1).unwrap();
        assert!(bucket.try_take(later, RATE, 1).is_err());
    }

    #[test]
    fn a_long_pause_saves_up_no_more_than_the_burst() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(start);
        let later = start + Duration::from_secs(3600);
        bucket.try_take(later, RATE, 3).unwrap();
        assert!(bucket.try_take(later, RATE, 1).is_err());
        assert!(TokenBucket::new(start).try_take(later, RATE, 4).is_err(), "more than the burst");
    }

    #[test]
    fn neighbours_in_one_prefix_share_a_bucket() {
        let now = Instant::now();
        let mut limiter = SourceLimiter::new(now, Rate { per_second: 1, burst: 1 });
        limiter.try_take(now, "2001:db8::1".parse().unwrap()).unwrap();
        assert!(limiter.try_take(now, "2001:db8::2".parse().unwrap()).is_err());
        limiter.try_take(now, "192.0.2.1".parse().unwrap()).unwrap();
        assert!(limiter.check(now, "::ffff:192.0.2.1".parse().unwrap()).is_err());
    }
}
