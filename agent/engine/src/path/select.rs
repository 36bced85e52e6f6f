//! The choice of a primary path: a pure function.
//!
//! | order | by |
//! |---|---|
//! | 1 | a direct path that answers, before a relay, before what has not answered (see [`Standing`]) |
//! | 2 | among direct paths: the local network before the internet |
//! | 3 | one that has answered lately before one that has not |
//! | 4 | smoothed round-trip time, with a head start for IPv6 on the internet |
//!
//! Within one standing and class the present path is left only for one that is faster by [`MIN_GAIN`], by
//! [`MIN_GAIN_RATIO`], and by more than both paths' measurements scatter, all at once: so that two paths that are as
//! good as each other don't take turns, and one lucky answer moves nothing. What it is left for has answered lately: how
//! fast a path was an hour ago says nothing.
//!
//! IPv6 goes before IPv4 where they are about as fast: no NAT stands in between that may run out of ports, forget its
//! mapping or be restarted. The head start is less than what a path must gain to be chosen instead, so the two don't take
//! turns either.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::event::PathAddress;

/// A challenger must be faster by this: below it nobody notices, and measurements scatter as much.
pub(crate) const MIN_GAIN: Duration = Duration::from_millis(10);
/// A challenger must be faster by this part of the present path's round-trip time.
pub(crate) const MIN_GAIN_RATIO: f64 = 0.2;

/// How much slower a path over IPv6 may be than one over IPv4 to go before it: half of what anybody would notice.
const V6_HEAD_START: Duration = Duration::from_millis(5);

/// What a path can be chosen for, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Direct, and it answers.
    Direct,
    /// Through a relay, and something came from the peer that way.
    Relayed,
    /// Direct, never answered, but authentic WireGuard messages come from there: a peer that speaks no disco.
    Heard,
    /// Through the relay that the peer calls its home.
    Home,
    /// Through a relay at which the peer is said to be.
    Listed,
    /// Through a relay of this node's; nothing says that the peer is there.
    Hoped,
    /// Through a relay on which the peer has not answered.
    Silent,
}

/// Where a direct path leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// To a private address: it answers only on a network that both sides share.
    Lan,
    /// Anywhere else.
    Internet,
}

impl Class {
    /// Tells the class of an address.
    pub(crate) fn of(address: SocketAddr) -> Self {
        let private = match address.ip() {
            IpAddr::V4(v4) => v4.is_private() || v4.is_link_local() || v4.is_loopback(),
            IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_loopback(),
        };
        if private { Self::Lan } else { Self::Internet }
    }
}

/// A path as the choice sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) address: PathAddress,
    pub(crate) standing: Standing,
    pub(crate) class: Class,
    pub(crate) rtt: Option<Duration>,
    /// By how much measurements of `rtt` scatter.
    pub(crate) variation: Duration,
    /// Whether it has answered lately.
    pub(crate) fresh: bool,
}

/// Chooses the primary path among those that can be used.
pub(crate) fn select(views: &[View], present: Option<PathAddress>) -> Option<View> {
    let best = views.iter().min_by_key(|view| rank(view))?;
    let present = views.iter().find(|view| Some(view.address) == present);
    match present {
        Some(present) if same_tier(present, best) && !is_worth_it(present, best) => Some(*present),
        Some(_) | None => Some(*best),
    }
}

fn rank(view: &View) -> (Standing, Class, bool, Duration, PathAddress) {
    (view.standing, view.class, !view.fresh, handicapped_rtt(view), view.address)
}

/// The round-trip time that counts.
fn handicapped_rtt(view: &View) -> Duration {
    let handicap = if family(view) == Some(Family::V4) { V6_HEAD_START } else { Duration::ZERO };
    view.rtt.unwrap_or(Duration::MAX).saturating_add(handicap)
}

/// The family of a path that may have one of the other family beside it: a direct one on the internet.
fn family(view: &View) -> Option<Family> {
    match (view.address, view.class) {
        (PathAddress::Direct(remote), Class::Internet) if remote.is_ipv6() => Some(Family::V6),
        (PathAddress::Direct(_) | PathAddress::Punched { .. }, Class::Internet) => Some(Family::V4),
        (PathAddress::Direct(_) | PathAddress::Punched { .. }, Class::Lan) | (PathAddress::Relay(_), _) => {
            None
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

fn same_tier(a: &View, b: &View) -> bool {
    (a.standing, a.class) == (b.standing, b.class)
}

fn is_worth_it(present: &View, challenger: &View) -> bool {
    if !challenger.fresh {
        return false;
    }
    // What is doubted is left for what answers, however far that is.
    if !present.fresh {
        return true;
    }
    match (present.rtt, challenger.rtt) {
        (Some(now), Some(then))
            if (family(present), family(challenger)) == (Some(Family::V4), Some(Family::V6)) =>
        {
            then < now + V6_HEAD_START
        }
        (Some(now), Some(then)) => {
            let gain = now.saturating_sub(then);
            let scatter = present.variation + challenger.variation;
            gain >= MIN_GAIN && gain.as_secs_f64() >= now.as_secs_f64() * MIN_GAIN_RATIO && gain > scatter
        }
        // What was never measured is left for what was.
        (None, Some(_)) => true,
        (_, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::netmap::RelayId;

    use super::*;

    fn direct(address: &str, standing: Standing, rtt_ms: u64) -> View {
        let address: SocketAddr = address.parse().unwrap();
        View {
            address: PathAddress::Direct(address),
            standing,
            class: Class::of(address),
            rtt: (rtt_ms > 0).then(|| Duration::from_millis(rtt_ms)),
            variation: Duration::ZERO,
            fresh: rtt_ms > 0,
        }
    }

    fn relay(id: u32, standing: Standing, rtt_ms: u64) -> View {
        View {
            address: PathAddress::Relay(RelayId(id)),
            standing,
            class: Class::Internet,
            rtt: (rtt_ms > 0).then(|| Duration::from_millis(rtt_ms)),
            variation: Duration::ZERO,
            fresh: rtt_ms > 0,
        }
    }

    #[test]
    fn the_table() {
        use Standing::{Direct, Heard, Hoped, Listed, Relayed, Silent};
        let lan = |rtt| direct("192.168.1.5:1", Direct, rtt);
        let wan = |rtt| direct("203.0.113.5:1", Direct, rtt);
        let wan2 = |rtt| direct("203.0.113.6:1", Direct, rtt);
        let wan6 = |rtt| direct("[2001:db8::5]:1", Direct, rtt);
        let heard = direct("203.0.113.7:1", Heard, 0);
        // (what there is, which of it is the present path, which is chosen)
        let table: &[(&[View], Option<usize>, usize)] = &[
            // Direct before relayed, however slow.
            (&[relay(1, Relayed, 5), wan(200)], Some(0), 1),
            (&[relay(1, Listed, 0), wan(200)], None, 1),
            // The local network before the internet, however slow.
            (&[wan(5), lan(50)], Some(0), 1),
            // Round-trip time, with hysteresis in both measures.
            (&[wan(40), wan2(20)], None, 1),
            (&[wan(40), wan2(20)], Some(0), 1),
            (&[wan(40), wan2(31)], Some(0), 0),
            (&[wan(100), wan2(85)], Some(0), 0),
            (&[wan(100), wan2(79)], Some(0), 1),
            (&[lan(1), direct("192.168.1.6:1", Direct, 9)], Some(1), 1),
            // IPv6 where it is about as fast; IPv4 only if it is faster by what one would leave any path for.
            (&[wan(40), wan6(44)], Some(0), 1),
            (&[wan(40), wan6(45)], Some(0), 0),
            (&[wan(40), wan6(44)], None, 1),
            (&[wan(35), wan6(44)], Some(1), 1),
            (&[wan(34), wan6(44)], Some(1), 0),
            (&[wan6(5), lan(50)], Some(0), 1),
            // Among relays: the one that answers, then the one the peer is said to be at.
            (&[relay(1, Listed, 0), relay(2, Relayed, 90)], Some(0), 1),
            (&[relay(1, Hoped, 0), relay(2, Listed, 0)], None, 1),
            (&[relay(1, Silent, 10), relay(2, Hoped, 0)], Some(0), 1),
            (&[relay(1, Relayed, 60), relay(2, Relayed, 20)], Some(0), 1),
            (&[relay(1, Relayed, 25), relay(2, Relayed, 20)], Some(0), 0),
            // A peer without disco: where it was heard from, rather than a relay that it may not be at.
            (&[relay(1, Listed, 0), heard], Some(0), 1),
            (&[relay(1, Relayed, 50), heard], None, 0),
            // The present path is gone.
            (&[relay(1, Silent, 50)], None, 0),
        ];
        for (row, (views, present, chosen)) in table.iter().enumerate() {
            let present = present.map(|index| views[index].address);
            assert_eq!(select(views, present), Some(views[*chosen]), "row {row}");
        }
        assert_eq!(select(&[], None), None);
    }

    #[test]
    fn a_gain_within_the_scatter_of_the_measurements_is_none() {
        let ms = Duration::from_millis;
        let scattered = |address, rtt, variation| View {
            variation: ms(variation),
            ..direct(address, Standing::Direct, rtt)
        };
        let present = scattered("203.0.113.5:1", 60, 8);
        let table = [(30, 30, false), (30, 22, false), (30, 21, true), (5, 2, true)];
        for (rtt, variation, chosen) in table {
            let challenger = scattered("203.0.113.6:1", rtt, variation);
            let choice = select(&[present, challenger], Some(present.address));
            assert_eq!(choice == Some(challenger), chosen, "{rtt} ms, scattered by {variation} ms");
        }
    }

    #[test]
    fn what_was_fast_long_ago_is_no_gain() {
        let present = direct("203.0.113.5:1", Standing::Direct, 60);
        let stale = View { fresh: false, ..direct("203.0.113.6:1", Standing::Direct, 5) };
        let fresh = direct("203.0.113.7:1", Standing::Direct, 20);
        assert_eq!(select(&[present, stale], Some(present.address)), Some(present));
        assert_eq!(select(&[present, stale, fresh], Some(present.address)), Some(fresh));
        let silent = View { fresh: false, ..present };
        assert_eq!(select(&[silent, stale], Some(silent.address)), Some(silent));
        let far = direct("203.0.113.8:1", Standing::Direct, 90);
        assert_eq!(select(&[silent, stale, far], Some(silent.address)), Some(far), "it answers, at least");
        assert_eq!(select(&[stale], Some(silent.address)), Some(stale), "better than none");
    }

    #[test]
    fn the_choice_is_stable() {
        let views =
            [direct("203.0.113.5:1", Standing::Direct, 40), direct("203.0.113.6:1", Standing::Direct, 45)];
        for view in views {
            assert_eq!(select(&views, Some(view.address)), Some(view));
        }
    }
}
