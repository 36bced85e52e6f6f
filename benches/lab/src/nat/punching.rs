//! The reference model of hole punching: which two NATs plain simultaneous probing gets through.
//!
//! Both sides probe the endpoint that the other one shows to an observer, adopt the endpoint that a probe really comes
//! from, and repeat. A side that filters by address only, or not at all, lets the first probe in whatever port it
//! comes from. If both filter by port, each has to send to the very port that the other one's probes come from, which
//! is known beforehand only if both map independently of the endpoint. That leaves 8 of the 81 ordered pairs out.

use super::{Filtering, Mapping, Nat, NatType};
use crate::topology::Reach;

/// How two sites come together; `None` has no NAT.
///
/// More than plain probing gets through half of what it does not: if one of the two maps independently of the endpoint,
/// it can probe ports of the other until it hits one of many sockets; and ports that count on can be predicted.
pub(crate) fn reach(a: Option<&Nat>, b: Option<&Nat>) -> Reach {
    let (Some(a), Some(b)) = (a, b) else { return Reach::Direct };
    let is_stable = |nat: &Nat| nat.kind.mapping == Mapping::Eim;
    let counts_on = |nat: &Nat| nat.allocator.step().is_some();
    if a.kind.punches(b.kind) {
        Reach::Direct
    } else if is_stable(a) || is_stable(b) || (counts_on(a) && counts_on(b)) {
        Reach::Punched
    } else {
        Reach::Relay
    }
}

impl NatType {
    /// Whether plain simultaneous probing makes a direct path between hosts behind these two.
    #[must_use]
    pub fn punches(self, other: Self) -> bool {
        let by_port = |nat: Self| nat.filtering == Filtering::Apdf;
        let is_stable = |nat: Self| nat.mapping == Mapping::Eim;
        !(by_port(self) && by_port(other)) || (is_stable(self) && is_stable(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_81_ordered_pairs_73_are_punched() {
        let pairs: Vec<_> = NatType::all().flat_map(|a| NatType::all().map(move |b| (a, b))).collect();
        assert_eq!(pairs.len(), 81);
        assert_eq!(pairs.iter().filter(|(a, b)| a.punches(*b)).count(), 73);
        assert!(pairs.iter().all(|(a, b)| a.punches(*b) == b.punches(*a)), "it takes both sides alike");
    }
}
