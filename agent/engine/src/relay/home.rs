//! Which relay is this node's home: a pure function.
//!
//! The home is the relay at which peers reach this node before anything was measured between them, so it should be near,
//! and it should not change: each change is told to every peer. A relay over UDP comes before one in a byte stream, where
//! a lost packet holds up all behind it; then the shortest round trip counts, with hysteresis.

use std::time::Duration;

use mesh_proto::netmap::RelayId;

/// A challenger must be nearer by this: round trips scatter as much on the way to one and the same relay.
const MIN_GAIN: Duration = Duration::from_millis(10);
/// A challenger's round trip must be at most this part of the present home's: a third less is felt, and two relays
/// that are about equally far never take turns (Tailscale's proportion for the same choice).
const MAX_RATIO: (u32, u32) = (2, 3);

/// What carries a relay's frames, the better one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Carrier {
    /// UDP.
    Udp,
    /// A byte stream.
    Stream,
}

/// A relay that is up, as the choice sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) id: RelayId,
    pub(crate) carrier: Carrier,
    /// The shortest of the last round trips.
    pub(crate) latency: Duration,
}

/// Chooses among the relays that are up.
pub(crate) fn choose(views: &[View], present: Option<RelayId>) -> Option<RelayId> {
    let best = views.iter().min_by_key(|view| (view.carrier, view.latency, view.id))?;
    let present = views.iter().find(|view| Some(view.id) == present);
    let stays = present.filter(|present| present.carrier == best.carrier && !is_worth_it(present, best));
    Some(stays.unwrap_or(best).id)
}

fn is_worth_it(present: &View, challenger: &View) -> bool {
    let (part, whole) = MAX_RATIO;
    challenger.latency + MIN_GAIN <= present.latency && challenger.latency * whole <= present.latency * part
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn view(id: u32, carrier: Carrier, ms: u64) -> View {
        View { id: RelayId(id), carrier, latency: Duration::from_millis(ms) }
    }

    fn udp(id: u32, ms: u64) -> View {
        view(id, Carrier::Udp, ms)
    }

    #[test]
    fn the_table() {
        let table: &[(&[View], Option<u32>, Option<u32>)] = &[
            (&[], Some(1), None),
            (&[udp(1, 40), udp(2, 20)], None, Some(2)),
            (&[udp(1, 20), udp(2, 20)], None, Some(1)),
            // It is gone.
            (&[udp(1, 40)], Some(2), Some(1)),
            // A third less, and 10 ms.
            (&[udp(1, 60), udp(2, 41)], Some(1), Some(1)),
            (&[udp(1, 60), udp(2, 40)], Some(1), Some(2)),
            (&[udp(1, 12), udp(2, 3)], Some(1), Some(1)),
            (&[udp(1, 13), udp(2, 3)], Some(1), Some(2)),
            // UDP first.
            (&[view(1, Carrier::Stream, 5), udp(2, 200)], Some(1), Some(2)),
            (&[view(1, Carrier::Stream, 90), view(2, Carrier::Stream, 5)], Some(1), Some(2)),
        ];
        for (row, (views, present, chosen)) in table.iter().enumerate() {
            assert_eq!(choose(views, present.map(RelayId)), chosen.map(RelayId), "row {row}");
        }
    }

    fn views() -> impl Strategy<Value = Vec<View>> {
        let relay = (prop_oneof![Just(Carrier::Udp), Just(Carrier::Stream)], 0u64..400_000);
        prop::collection::vec(relay, 0..6).prop_map(|relays| {
            let view = |(id, (carrier, micros))| View {
                id: RelayId(id),
                carrier,
                latency: Duration::from_micros(micros),
            };
            (0..).zip(relays).map(view).collect()
        })
    }

    proptest! {
        /// A home is up, whenever anything is; asked again it stays; and it never is a third farther than need be.
        #[test]
        fn the_choice_is_up_near_and_final(views in views(), present in prop::option::of(0u32..8)) {
            let chosen = choose(&views, present.map(RelayId));
            prop_assert_eq!(chosen.is_some(), !views.is_empty());
            prop_assert_eq!(choose(&views, chosen), chosen);
            if let Some(chosen) = views.iter().find(|view| Some(view.id) == chosen) {
                prop_assert!(views.iter().all(|other| chosen.carrier <= other.carrier));
                let same = views.iter().filter(|other| other.carrier == chosen.carrier);
                for other in same {
                    prop_assert!(!is_worth_it(chosen, other), "{:?} is much nearer than {:?}", other, chosen);
                }
            }
        }

        /// Measurements that scatter by less than [`MIN_GAIN`] never move a home.
        #[test]
        fn scatter_moves_nothing(
            base in 1u64..200,
            rounds in prop::collection::vec(prop::collection::vec(0u64..10_000, 4), 1..20),
        ) {
            let mut present = None;
            for (round, scatter) in rounds.iter().enumerate() {
                let views: Vec<_> = (0..).zip(scatter).map(|(id, micros)| View {
                    id: RelayId(id),
                    carrier: Carrier::Udp,
                    latency: Duration::from_millis(base) + Duration::from_micros(*micros),
                }).collect();
                let chosen = choose(&views, present);
                prop_assert!(round == 0 || chosen == present);
                present = chosen;
            }
        }
    }
}
