//! WireGuard's timers for one session (whitepaper, section 6), as a table of deadlines.
//!
//! ```text
//!            wants a session                    answered
//!   quiet ------------------------> attempt ----------------> established
//!     ^       retried, then given up   |                       |   data received, nothing sent for 10 s: keepalive
//!     +--------------------------------+                       |   data sent, nothing received for 15 s: attempt
//!     +------------- 180 s after the last handshake -----------+
//! ```
//!
//! Rekeying needs no timer: it is due only when data is sent or received, see [`super::Session`]. So a session
//! over which nothing flows has one wakeup left, its end.

use std::time::{Duration, Instant};

/// A session is replaced after this long by the side that initiated it (whitepaper, REKEY_AFTER_TIME).
pub(super) const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// A session is not used after this long (whitepaper, REJECT_AFTER_TIME).
pub(crate) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Data is answered at the latest after this long, by a keepalive if need be (whitepaper, KEEPALIVE_TIMEOUT).
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a handshake may take (whitepaper, REKEY_TIMEOUT).
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Nothing is sealed with keys that are older than this: the peer's may be older by what their handshake took, and what is
/// sealed has to arrive before the peer rejects it.
pub(super) const SEAL_TIME: Duration = REJECT_AFTER_TIME.saturating_sub(REKEY_TIMEOUT);
/// An attempt to make a session is given up after this long (whitepaper, REKEY_ATTEMPT_TIME).
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);

/// Waits between the initiations of one attempt; the last one repeats. Quicker than the whitepaper's 5 s at first,
/// since one lost datagram must not cost 5 s, and always below it, so that the library never retries by itself.
/// Far above the 20 ms that the kernel's responder asks for between two initiations.
const RETRY_WAITS: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
    Duration::from_millis(4000),
];
/// Random addition to each wait, so that two sides don't retry in step (whitepaper: 333 ms).
pub(super) const RETRY_JITTER: Duration = Duration::from_millis(333);

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing yet.
    Nothing,
    /// A keepalive is to be sent.
    Keepalive,
    /// An initiation is to be sent; `distress` if that is because data was not answered.
    Initiate {
        /// Whether the peer owes an answer.
        distress: bool,
    },
    /// The attempt is over, without a session.
    GivenUp,
    /// The session is of no more use.
    Expired,
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    keepalive_at: Option<Instant>,
    answer_by: Option<Instant>,
    attempt: Option<Attempt>,
    expires_at: Option<Instant>,
}

#[derive(Debug)]
struct Attempt {
    started: Instant,
    retries: usize,
    retry_at: Instant,
}

impl Timers {
    /// Whether an initiation waits for its answer.
    pub(super) fn is_attempting(&self) -> bool {
        self.attempt.is_some()
    }

    /// Whether there are keys whose time is not over.
    pub(super) fn has_keys(&self) -> bool {
        self.expires_at.is_some()
    }

    /// Returns how many initiations of the present attempt were sent again.
    pub(super) fn retries(&self) -> usize {
        self.attempt.as_ref().map_or(0, |attempt| attempt.retries)
    }

    pub(super) fn on_initiation_sent(&mut self, now: Instant, jitter: Duration) {
        self.answer_by = None;
        let retries = self.attempt.as_ref().map_or(0, |attempt| attempt.retries + 1);
        let started = self.attempt.as_ref().map_or(now, |attempt| attempt.started);
        let wait = RETRY_WAITS[retries.min(RETRY_WAITS.len() - 1)];
        self.attempt = Some(Attempt { started, retries, retry_at: now + wait + jitter });
    }

    /// There are new keys, which the peer may not have confirmed yet.
    pub(super) fn on_keys(&mut self, now: Instant) {
        self.answer_by = None;
        self.keepalive_at = None;
        self.expires_at = Some(now + REJECT_AFTER_TIME);
    }

    /// The peer uses the keys made at this moment: an attempt that began before has reached its end.
    pub(super) fn on_confirmed(&mut self, made: Instant) {
        if self.attempt.as_ref().is_some_and(|attempt| attempt.started <= made) {
            self.attempt = None;
        }
    }

    pub(super) fn on_data_sent(&mut self, now: Instant) {
        self.keepalive_at = None;
        if self.answer_by.is_none() && self.attempt.is_none() {
            self.answer_by = Some(now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT);
        }
    }

    pub(super) fn on_keepalive_sent(&mut self) {
        self.keepalive_at = None;
    }

    pub(super) fn on_received(&mut self) {
        self.answer_by = None;
    }

    pub(super) fn on_data_received(&mut self, now: Instant) {
        self.answer_by = None;
        self.keepalive_at.get_or_insert(now + KEEPALIVE_TIMEOUT);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let retry_at = self.attempt.as_ref().map(|attempt| attempt.retry_at);
        // While an attempt runs, the session's end is left to it.
        let expires_at = if self.attempt.is_some() { None } else { self.expires_at };
        [self.keepalive_at, self.answer_by, retry_at, expires_at].into_iter().flatten().min()
    }

    /// Says what is due, once each: what is returned is no longer armed.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Due {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if let Some(attempt) = &mut self.attempt
            && attempt.retry_at <= now
        {
            if now.duration_since(attempt.started) >= REKEY_ATTEMPT_TIME {
                self.attempt = None;
                return Due::GivenUp;
            }
            // Re-armed by `on_initiation_sent`; should that not come, the wait still moves on.
            attempt.retry_at = now + REKEY_TIMEOUT;
            return Due::Initiate { distress: false };
        }
        if is_due(self.answer_by) {
            self.answer_by = None;
            return Due::Initiate { distress: true };
        }
        if is_due(self.keepalive_at) {
            self.keepalive_at = None;
            return Due::Keepalive;
        }
        if self.attempt.is_none() && is_due(self.expires_at) {
            self.expires_at = None;
            return Due::Expired;
        }
        Due::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_JITTER: Duration = Duration::ZERO;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Runs the timers to their end; returns what was due, and when.
    fn run(timers: &mut Timers, start: Instant, mut on_due: impl FnMut(&mut Timers, Instant, Due)) {
        let mut last = start;
        while let Some(at) = timers.poll_timeout() {
            assert!(at >= last, "time goes on");
            last = at;
            let due = timers.handle_timeout(at);
            assert_ne!(due, Due::Nothing, "a wakeup has a reason");
            on_due(timers, at, due);
        }
    }

    #[test]
    fn an_attempt_is_retried_quickly_then_slowly_and_given_up() {
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.on_initiation_sent(start, NO_JITTER);
        let mut times = Vec::new();
        let mut given_up = 0;
        run(&mut timers, start, |timers, at, due| match due {
            Due::Initiate { distress } => {
                assert!(!distress);
                times.push((at - start).as_millis());
                timers.on_initiation_sent(at, NO_JITTER);
            }
            Due::GivenUp => given_up += 1,
            Due::Nothing | Due::Keepalive | Due::Expired => panic!("{due:?}"),
        });
        assert_eq!(times[..6], [500, 1500, 3500, 7500, 11500, 15500]);
        assert_eq!(given_up, 1);
        assert!(*times.last().unwrap() < 90_000);
        assert!(!timers.has_keys());
    }

    #[test]
    fn data_that_is_not_answered_calls_for_a_handshake_and_an_answer_for_none() {
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.on_keys(start);
        timers.on_data_sent(start + seconds(1));
        timers.on_data_sent(start + seconds(9));
        assert_eq!(timers.poll_timeout(), Some(start + seconds(16)));
        assert_eq!(timers.handle_timeout(start + seconds(16)), Due::Initiate { distress: true });
        timers.on_data_sent(start + seconds(20));
        timers.on_received();
        assert_eq!(timers.poll_timeout(), Some(start + REJECT_AFTER_TIME));
    }

    #[test]
    fn data_is_answered_by_a_keepalive_unless_something_else_is_sent() {
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.on_keys(start);
        timers.on_data_received(start + seconds(1));
        timers.on_data_received(start + seconds(5));
        assert_eq!(timers.poll_timeout(), Some(start + seconds(11)));
        assert_eq!(timers.handle_timeout(start + seconds(11)), Due::Keepalive);
        timers.on_keepalive_sent();
        timers.on_data_received(start + seconds(12));
        timers.on_data_sent(start + seconds(13));
        timers.on_received();
        assert_eq!(timers.poll_timeout(), Some(start + REJECT_AFTER_TIME));
    }

    #[test]
    fn a_session_without_data_has_one_wakeup_its_end() {
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.on_initiation_sent(start, NO_JITTER);
        timers.on_keys(start + seconds(1));
        timers.on_confirmed(start + seconds(1));
        let mut due = Vec::new();
        run(&mut timers, start, |_, at, what| due.push((at - start, what)));
        assert_eq!(due, [(seconds(181), Due::Expired)]);
    }

    #[test]
    fn old_keys_do_not_end_a_later_attempt() {
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.on_keys(start);
        timers.on_initiation_sent(start + seconds(120), NO_JITTER);
        timers.on_confirmed(start);
        assert!(timers.is_attempting());
        timers.on_confirmed(start + seconds(121));
        assert!(!timers.is_attempting());
    }
}
