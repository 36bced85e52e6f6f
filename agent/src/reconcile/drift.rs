//! What others changed of this agent's own at the host, and how patiently it is put back.
//!
//! ```text
//!   calm  -- drift: put back at once, said -->  calm
//!     |      more than FREE of them within WINDOW
//!     v
//!   contested  -- drift: put back FIRST_WAIT after the last time, then twice as long, up to MAX_WAIT
//!     |           no drift for CALM_AFTER
//!     `------->  calm
//! ```
//!
//! A person who deletes a route, or a program that flushes all routes once, is put right at once. A program that deletes
//! again whatever is set again would be fought without end: it is said who the other one may be, and it wins more
//! and more of the time.

use std::{
    collections::VecDeque,
    fmt,
    time::{Duration, Instant},
};

use super::Applied;

/// Times that are put back at once within [`WINDOW`]: more than a person's typing, or a service that starts over, needs.
const FREE: usize = 6;
/// See [`FREE`].
const WINDOW: Duration = Duration::from_secs(60);
/// The first wait once it is contested; a change is put right within 5 s all the same.
const FIRST_WAIT: Duration = Duration::from_secs(4);
/// The longest wait.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// Whoever has changed nothing for this long has given up: longer than the longest wait.
const CALM_AFTER: Duration = Duration::from_secs(900);

/// What was put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PutBack {
    /// The interface had been deleted.
    pub interface: bool,
    /// The interface had been set down.
    pub up: bool,
    /// The interface had been given another MTU.
    pub mtu: bool,
    /// So many addresses.
    pub addresses: usize,
    /// So many routes.
    pub routes: usize,
}

/// How a change of somebody else's is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attitude {
    /// It is put back as often as it happens.
    Calm,
    /// Somebody changes it again and again: it is put back after this time at the earliest, from now on.
    Contested {
        /// From the last time to the next.
        wait: Duration,
        /// Whether that has just begun.
        news: bool,
    },
}

/// Decides when to put back what others changed.
///
/// Every method takes the time. [`Self::put_off_until`] is asked before the host is looked at, [`Self::handle_drift`] told
/// of what was put back.
#[derive(Debug, Default)]
pub struct Patience {
    recent: VecDeque<Instant>,
    wait: Option<Duration>,
    last: Option<Instant>,
}

impl PutBack {
    /// Returns what applying the same plan as before had to do.
    #[must_use]
    pub fn of(applied: &Applied, interface: bool) -> Self {
        let Applied { link, addresses, routes, refused: _ } = applied;
        Self {
            interface,
            up: link.was_down && !interface,
            mtu: link.mtu_differed && !interface,
            addresses: *addresses,
            routes: *routes,
        }
    }

    /// Whether it is nothing.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for PutBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: usize, one: &str, several: &str| match count {
            0 => None,
            1 => Some(one.to_owned()),
            _ => Some(format!("{count} {several}")),
        };
        let parts: Vec<String> = [
            self.interface.then(|| "the interface".to_owned()),
            self.up.then(|| "the link's being up".to_owned()),
            self.mtu.then(|| "the MTU".to_owned()),
            count(self.addresses, "an address", "addresses"),
            count(self.routes, "a route", "routes"),
        ]
        .into_iter()
        .flatten()
        .collect();
        f.write_str(&parts.join(", "))
    }
}

impl Patience {
    /// Returns until when the host is left as it is, if somebody contests it.
    #[must_use]
    pub fn put_off_until(&mut self, now: Instant) -> Option<Instant> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) >= CALM_AFTER) {
            *self = Self::default();
        }
        let until = self.last? + self.wait?;
        (now < until).then_some(until)
    }

    /// Notes that something had to be put back, and tells how the next time is met.
    pub fn handle_drift(&mut self, now: Instant) -> Attitude {
        self.last = Some(now);
        if let Some(wait) = &mut self.wait {
            *wait = (*wait * 2).min(MAX_WAIT);
            return Attitude::Contested { wait: *wait, news: false };
        }
        self.recent.retain(|at| now.saturating_duration_since(*at) < WINDOW);
        self.recent.push_back(now);
        if self.recent.len() <= FREE {
            return Attitude::Calm;
        }
        self.recent.clear();
        self.wait = Some(FIRST_WAIT);
        Attitude::Contested { wait: FIRST_WAIT, news: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::LinkChange;

    #[test]
    fn a_change_now_and_then_is_put_right_at_once() {
        let (mut patience, mut now) = (Patience::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(patience.put_off_until(now), None);
            assert_eq!(patience.handle_drift(now), Attitude::Calm);
            now += WINDOW / 4;
        }
    }

    #[test]
    fn whoever_goes_on_for_ever_is_met_less_and_less_until_it_is_calm() {
        let (mut patience, mut now) = (Patience::default(), Instant::now());
        let start = now;
        let (mut times, mut told) = (0, 0);
        while now < start + Duration::from_secs(3600) {
            if let Some(until) = patience.put_off_until(now) {
                now = until;
                continue;
            }
            times += 1;
            told += usize::from(matches!(patience.handle_drift(now), Attitude::Contested { news: true, .. }));
            now += Duration::from_millis(100);
        }
        assert!((15..=30).contains(&times), "{times} times in an hour");
        assert_eq!(told, 1);
        now += CALM_AFTER;
        assert_eq!(patience.put_off_until(now), None);
        assert_eq!(patience.handle_drift(now), Attitude::Calm);
    }

    #[test]
    fn it_is_said_what_was_put_back() {
        let link = LinkChange { was_down: true, mtu_differed: true };
        let applied = Applied { link, addresses: 1, routes: 3, refused: vec![] };
        let said = PutBack::of(&applied, false).to_string();
        assert_eq!(said, "the link's being up, the MTU, an address, 3 routes");
        assert_eq!(PutBack::of(&applied, true).to_string(), "the interface, an address, 3 routes");
        assert!(PutBack::of(&Applied::default(), false).is_nothing());
    }
}
