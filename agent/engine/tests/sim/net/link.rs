//! Links: delay, jitter, loss, reordering and MTU.

use std::{collections::BTreeMap, time::Duration};

use super::UplinkId;
use crate::rng::Rng;

/// How a link treats what passes over it, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkProfile {
    /// Time that every datagram takes.
    pub(crate) delay: Duration,
    /// Most time on top of it.
    pub(crate) jitter: Duration,
    /// Datagrams of 1000 that are lost.
    pub(crate) loss: u32,
    /// Datagrams of 1000 that may overtake earlier ones.
    pub(crate) reorder: u32,
    /// Largest IP packet that passes, in bytes.
    pub(crate) mtu: usize,
}

/// One direction of a link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) profile: LinkProfile,
    /// When the last datagram to or from another line arrives: they keep their order, but don't wait for others that
    /// come from afar.
    arrivals: BTreeMap<UplinkId, Duration>,
}

/// What becomes of a datagram on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It arrives at this time.
    Arrives(Duration),
    /// It is lost.
    Lost,
    /// It is larger than the MTU.
    TooBig,
}

impl LinkProfile {
    /// A link that only delays.
    pub(crate) const fn clean(delay: Duration) -> Self {
        Self { delay, jitter: Duration::ZERO, loss: 0, reorder: 0, mtu: 1500 }
    }

    /// Whether everything that fits arrives.
    pub(crate) fn is_lossless(&self) -> bool {
        self.loss == 0
    }
}

impl Link {
    /// Makes a link that nothing has passed yet.
    pub(crate) fn new(profile: LinkProfile) -> Self {
        Self { profile, arrivals: BTreeMap::new() }
    }

    /// Sends an IP packet of `len` bytes, to or from another line, over the link. Without reordering, none overtakes
    /// another.
    pub(crate) fn carry(&mut self, other: UplinkId, len: usize, now: Duration, rng: &mut Rng) -> Fate {
        if len > self.profile.mtu {
            return Fate::TooBig;
        }
        if rng.chance(self.profile.loss) {
            return Fate::Lost;
        }
        let jitter = match self.profile.jitter {
            Duration::ZERO => Duration::ZERO,
            most => rng.duration(Duration::ZERO..most),
        };
        let due = now + self.profile.delay + jitter;
        if rng.chance(self.profile.reorder) {
            return Fate::Arrives(due);
        }
        let last = self.arrivals.entry(other).or_default();
        *last = due.max(*last);
        Fate::Arrives(*last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const NEAR: UplinkId = UplinkId(1);
    const FAR: UplinkId = UplinkId(2);

    #[test]
    fn jitter_keeps_the_order_unless_reordering_is_asked_for() {
        let mut rng = Rng::new(1);
        for reorder in [0, 1000] {
            let profile = LinkProfile { jitter: 20 * MS, reorder, ..LinkProfile::clean(10 * MS) };
            let mut link = Link::new(profile);
            let arrivals: Vec<_> = (0..100)
                .map(|i| match link.carry(NEAR, 100, i * MS, &mut rng) {
                    Fate::Arrives(at) => at,
                    Fate::Lost | Fate::TooBig => panic!("nothing is lost"),
                })
                .collect();
            assert_eq!(arrivals.is_sorted(), reorder == 0);
            assert!(arrivals.iter().zip(0..).all(|(at, i)| (i * MS + 10 * MS..=200 * MS).contains(at)));
        }
    }

    #[test]
    fn what_comes_from_afar_holds_nothing_up() {
        let mut rng = Rng::new(3);
        let mut link = Link::new(LinkProfile::clean(MS));
        assert_eq!(link.carry(FAR, 100, 80 * MS, &mut rng), Fate::Arrives(81 * MS));
        assert_eq!(link.carry(NEAR, 100, 10 * MS, &mut rng), Fate::Arrives(11 * MS));
        assert_eq!(link.carry(FAR, 100, 70 * MS, &mut rng), Fate::Arrives(81 * MS));
    }

    #[test]
    fn loss_and_mtu_are_kept_to() {
        let mut rng = Rng::new(2);
        let mut link = Link::new(LinkProfile { loss: 200, mtu: 1400, ..LinkProfile::clean(MS) });
        let lost = (0..10_000).filter(|_| link.carry(NEAR, 1400, MS, &mut rng) == Fate::Lost).count();
        assert!((1800..2200).contains(&lost), "{lost}");
        assert_eq!(link.carry(NEAR, 1401, MS, &mut rng), Fate::TooBig);
    }
}
