//! Whose the Node is, where two machines have one name: their kubelets write it in turn, each as its own.

use std::time::{Duration, Instant};

/// A kubelet writes its Node every ten seconds, if it is not as it should be.
const TURN: Duration = Duration::from_secs(15);

/// Remembers when the Node was another machine's.
#[derive(Debug, Default)]
pub(super) struct Owner {
    others_at: Option<Instant>,
}

impl Owner {
    /// Takes a look, and returns whether another machine has the Node now, or had it within a turn.
    pub(super) fn observe(&mut self, is_others: bool, now: Instant) -> bool {
        if is_others {
            self.others_at = Some(now);
        }
        self.others_at.is_some_and(|at| now.saturating_duration_since(at) < TURN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_two_write_in_turn_is_another_s_all_the_time() {
        let (mut owner, start) = (Owner::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!owner.observe(false, start));
        for turn in 0..5 {
            assert!(owner.observe(true, at(10 * turn)));
            assert!(owner.observe(false, at(10 * turn + 5)));
            assert!(owner.observe(false, at(10 * turn + 9)));
        }
        assert!(!owner.observe(false, at(60)), "the other one has another name now");
    }
}
