//! The engine's wakeups: at most one per reason, ordered by time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::event::{Wakeup, WakeupReason};

/// A wakeup that is asked for while its predecessor is handled comes at least this much later: a mistake in a
/// timer then costs a thousand wakeups per second, not a spinning core.
const MIN_STEP: Duration = Duration::from_millis(1);

/// When to wake, and why.
#[derive(Debug, Default)]
pub(crate) struct Wakeups {
    queue: BTreeSet<Wakeup>,
    by_reason: BTreeMap<WakeupReason, Instant>,
}

impl Wakeups {
    /// Sets the only wakeup for a reason; `None` takes it back.
    pub(crate) fn set(&mut self, reason: WakeupReason, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.by_reason.insert(reason, at),
            None => self.by_reason.remove(&reason),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.queue.remove(&Wakeup { at: before, reason });
        }
        if let Some(at) = at {
            self.queue.insert(Wakeup { at, reason });
        }
    }

    /// Like [`Wakeups::set`] from within the handling of a wakeup: never at or before `now`.
    pub(crate) fn set_after(&mut self, reason: WakeupReason, at: Option<Instant>, now: Instant) {
        self.set(reason, at.map(|at| at.max(now + MIN_STEP)));
    }

    /// Like [`Wakeups::set_after`], but leaves a wakeup that comes early enough as it is: cheap on the hot path.
    pub(crate) fn bring_forward(&mut self, reason: WakeupReason, at: Option<Instant>, now: Instant) {
        let Some(at) = at else { return };
        if self.by_reason.get(&reason).is_none_or(|present| *present > at) {
            self.set_after(reason, Some(at), now);
        }
    }

    /// Returns the next wakeup.
    pub(crate) fn next(&self) -> Option<Wakeup> {
        self.queue.first().copied()
    }

    /// Takes the wakeups that are due.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<WakeupReason> {
        let mut due = Vec::new();
        while let Some(wakeup) = self.next().filter(|wakeup| wakeup.at <= now) {
            self.set(wakeup.reason, None);
            due.push(wakeup.reason);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::netmap::NodeId;

    use super::*;

    #[test]
    fn a_reason_has_one_wakeup_and_the_next_comes_first() {
        let now = Instant::now();
        let later = |ms| Some(now + Duration::from_millis(ms));
        let mut wakeups = Wakeups::default();
        wakeups.set(WakeupReason::NetCheck, later(30));
        wakeups.set(WakeupReason::Session(NodeId(1)), later(20));
        wakeups.set(WakeupReason::NetCheck, later(10));
        assert_eq!(wakeups.next().map(|wakeup| wakeup.reason), Some(WakeupReason::NetCheck));
        assert_eq!(wakeups.take_due(now + Duration::from_millis(15)), [WakeupReason::NetCheck]);
        wakeups.set_after(WakeupReason::NetCheck, Some(now), now + Duration::from_millis(15));
        assert_eq!(wakeups.next().map(|wakeup| wakeup.at), later(16));
        wakeups.set(WakeupReason::NetCheck, None);
        wakeups.set(WakeupReason::Session(NodeId(1)), None);
        assert_eq!(wakeups.next(), None);
    }
}
