//! The clocks of Linux, and a timer that goes by the one that does not stand while the host sleeps.

use std::{io, time::Duration};

use nix::{
    sys::{
        time::TimeSpec,
        timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    time::{ClockId, clock_gettime},
};

use crate::os::clocks::{Clocks, Reading};

/// The kernel's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClocks;

impl Clocks for SystemClocks {
    fn read(&self) -> io::Result<Reading> {
        let read = |clock| Ok::<_, io::Error>(Duration::from(clock_gettime(clock)?));
        Ok(Reading {
            awake: read(ClockId::CLOCK_MONOTONIC)?,
            elapsed: read(ClockId::CLOCK_BOOTTIME)?,
            wall: read(ClockId::CLOCK_REALTIME)?,
        })
    }
}

/// A timer of which no turn waits for the end of a sleep: one that was missed comes at the very moment of waking.
#[derive(Debug)]
pub struct Ticks {
    timer: TimerFd,
}

impl Ticks {
    /// Starts it.
    ///
    /// # Errors
    /// When the system gives no timer.
    pub fn every(interval: Duration) -> io::Result<Self> {
        let timer = TimerFd::new(TimerClock::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC)?;
        timer.set(Expiration::Interval(TimeSpec::from(interval)), TimerSetTimeFlags::empty())?;
        Ok(Self { timer })
    }

    /// Keeps the thread waiting until the next turn; those that were missed are one.
    ///
    /// # Errors
    /// When the timer cannot be waited for any more.
    pub fn wait(&self) -> io::Result<()> {
        Ok(self.timer.wait()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_come_and_the_clocks_go_on_together() {
        let ticks = Ticks::every(Duration::from_millis(10)).unwrap();
        let before = SystemClocks.read().unwrap();
        for _ in 0..3 {
            ticks.wait().unwrap();
        }
        let after = SystemClocks.read().unwrap();
        let went = |of: fn(&Reading) -> Duration| of(&after) - of(&before);
        assert!(went(|now| now.elapsed) >= Duration::from_millis(20));
        assert!(went(|now| now.awake) >= Duration::from_millis(20));
    }
}
