//! Whether the host has slept, told from its clocks.
//!
//! Three clocks are compared from one look to the next: one that stands while the host sleeps, one that goes on, and the
//! wall clock, which is put right by whoever knows better.
//!
//! | what happened | awake | elapsed | wall |
//! |---|---|---|---|
//! | the host slept | stands | goes on | goes on |
//! | this process was stopped, or starved | goes on, and the look is late | goes on | goes on |
//! | a virtual machine was frozen, and its clocks with it | stands | stands | jumps, once it is put right |
//!
//! Somebody who sets the wall clock looks like the last one: it costs a few probes, as any wake does.

use std::time::Duration;

/// What the clocks show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// Time that the host was awake.
    pub awake: Duration,
    /// All time, asleep or awake.
    pub elapsed: Duration,
    /// Since the Unix epoch.
    pub wall: Duration,
}

/// Clocks to be read; the system's, or a test's.
pub trait Clocks: Send + 'static {
    /// Reads all of them.
    ///
    /// # Errors
    /// When the system has no such clocks.
    fn read(&self) -> std::io::Result<Reading>;
}

/// The host was away, and is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Woke {
    /// How long others have gone on without it.
    pub away: Duration,
    /// How much of that no clock has seen that stands while the host sleeps, as those do that timers go by.
    pub unseen: Duration,
}

/// Tells a sleep from looks at the clocks.
#[derive(Debug, Clone, Copy)]
pub struct Sleeps {
    last: Reading,
}

/// How often the clocks are looked at. A look that became due during a sleep comes at its end.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The clocks are not read at one moment, and a suspend that fails takes a moment, too.
const SHORTEST_SLEEP: Duration = Duration::from_millis(200);
/// A look this much late was not only waiting for a busy processor.
const STALL: Duration = Duration::from_secs(2);
/// A smaller step of the wall clock is somebody who corrects it.
const WALL_JUMP: Duration = Duration::from_secs(10);

impl Sleeps {
    /// Begins with what the clocks show now.
    #[must_use]
    pub fn new(now: Reading) -> Self {
        Self { last: now }
    }

    /// Takes the next look, which was due [`LOOK_INTERVAL`] after the one before at the latest.
    pub fn look(&mut self, now: Reading) -> Option<Woke> {
        let last = std::mem::replace(&mut self.last, now);
        let awake = now.awake.saturating_sub(last.awake);
        let elapsed = now.elapsed.saturating_sub(last.elapsed);
        let wall = now.wall.saturating_sub(last.wall);
        let beyond = |time: Duration, least: Duration| if time >= least { time } else { Duration::ZERO };
        let asleep = beyond(elapsed.saturating_sub(awake), SHORTEST_SLEEP);
        let stalled = beyond(awake.saturating_sub(LOOK_INTERVAL), STALL);
        let frozen = beyond(wall.saturating_sub(elapsed), WALL_JUMP);
        let woke = Woke { away: asleep + stalled + frozen, unseen: asleep + frozen };
        (!woke.away.is_zero()).then_some(woke)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Looks after each of these steps of the clocks.
    fn looks(steps: &[(f64, f64, f64)]) -> Vec<Option<Woke>> {
        let mut now =
            Reading { awake: seconds(50.0), elapsed: seconds(90.0), wall: seconds(1_700_000_000.0) };
        let mut sleeps = Sleeps::new(now);
        let look = |&(awake, elapsed, wall): &(f64, f64, f64)| {
            let shift = |clock: Duration, by: f64| {
                if by < 0.0 { clock - seconds(-by) } else { clock + seconds(by) }
            };
            now = Reading {
                awake: shift(now.awake, awake),
                elapsed: shift(now.elapsed, elapsed),
                wall: shift(now.wall, wall),
            };
            sleeps.look(now)
        };
        steps.iter().map(look).collect()
    }

    #[test]
    fn a_night_is_seen_once_and_a_busy_machine_is_no_sleep() {
        let night = 8.0 * 3600.0;
        let seen = looks(&[(1.0, 1.0, 1.0), (0.4, night, night), (1.0, 1.0, 1.0), (2.5, 2.5, 2.5)]);
        let away = seconds(night - 0.4);
        assert_eq!(seen, [None, Some(Woke { away, unseen: away }), None, None]);
    }

    #[test]
    fn a_short_dark_wake_is_seen_as_what_it_is() {
        let seen = looks(&[(0.3, 55.3, 55.3), (1.0, 1.0, 1.0), (0.1, 0.25, 0.25)]);
        assert_eq!(seen, [Some(Woke { away: seconds(55.0), unseen: seconds(55.0) }), None, None]);
    }

    #[test]
    fn a_stopped_process_has_missed_what_its_own_clock_has_seen() {
        let seen = looks(&[(2.9, 2.9, 2.9), (30.0, 30.0, 30.0), (1.0, 1.0, 1.0)]);
        assert_eq!(seen, [None, Some(Woke { away: seconds(29.0), unseen: Duration::ZERO }), None]);
    }

    #[test]
    fn a_frozen_machine_is_seen_when_its_wall_clock_is_put_right() {
        let seen = looks(&[(1.0, 1.0, 1.0), (1.0, 1.0, 601.0), (1.0, 1.0, 1.0)]);
        assert_eq!(seen, [None, Some(Woke { away: seconds(600.0), unseen: seconds(600.0) }), None]);
    }

    #[test]
    fn clocks_that_are_corrected_or_set_back_are_no_sleep() {
        let steps = [(1.0, 1.0, 6.0), (1.0, 1.0, -3600.0), (1.0, 1.0, 1.0), (1.01, 1.0, 1.0)];
        assert_eq!(looks(&steps), [None; 4]);
    }
}
