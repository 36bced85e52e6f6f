//! The clock that the session's Noise library reads.
//!
//! The library takes no `now`; it asks the system. Under the feature `virtual-time` it asks a mock clock
//! instead, which is moved here to what the caller passed in. Without the feature nothing happens.

#[cfg(not(feature = "virtual-time"))]
use std::time::Instant;

/// Moves the library's clock to `now`.
#[cfg(not(feature = "virtual-time"))]
pub(super) fn set(_now: Instant) {}

/// Runs `make` at the beginning of the library's time.
#[cfg(not(feature = "virtual-time"))]
pub(super) fn at_origin<T>(_now: Instant, make: impl FnOnce() -> T) -> T {
    make()
}

#[cfg(feature = "virtual-time")]
pub(super) use mock::{at_origin, set};

#[cfg(feature = "virtual-time")]
mod mock {
    use std::{
        cell::OnceCell,
        time::{Duration, Instant},
    };

    use mock_instant::MockClock;

    /// Where the first `now` of a thread lies on the mock clock: far enough from zero that a later simulation may
    /// begin before it.
    const ANCHOR_OFFSET: Duration = Duration::from_secs(10_000_000);

    thread_local! {
        static ANCHOR: OnceCell<Instant> = const { OnceCell::new() };
    }

    pub(in crate::session) fn set(now: Instant) {
        let anchor = ANCHOR.with(|cell| *cell.get_or_init(|| now));
        let since_zero = match now.checked_duration_since(anchor) {
            Some(after) => ANCHOR_OFFSET + after,
            None => ANCHOR_OFFSET.saturating_sub(anchor.duration_since(now)),
        };
        MockClock::set_time(since_zero);
    }

    /// A handshake's timestamp is the system's time when the session was made plus the mock time since. Made at
    /// mock time zero, sessions made one after the other never go back, however fast virtual time runs.
    pub(in crate::session) fn at_origin<T>(now: Instant, make: impl FnOnce() -> T) -> T {
        MockClock::set_time(Duration::ZERO);
        let made = make();
        set(now);
        made
    }
}
