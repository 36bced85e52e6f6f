//! Recognises NATs that hand out ports at a constant distance, from the ports that an observer saw: a pure function.

use mesh_proto::punch::Sequence;

/// Least ports that must have been seen: three distances that agree are no accident.
const MIN_PORTS: usize = 4;
/// So many mappings of others may have come between two of ours.
const MAX_SKIPPED: i32 = 8;

/// Returns how the ports go on that mappings got one after the other, if they keep a constant distance.
///
/// Where other hosts behind the same NAT open mappings meanwhile, distances are multiples of the step.
pub(crate) fn recognise(ports: &[u16]) -> Option<Sequence> {
    if ports.len() < MIN_PORTS {
        return None;
    }
    let distances: Vec<i32> =
        ports.windows(2).map(|pair| i32::from(pair[1].wrapping_sub(pair[0]).cast_signed())).collect();
    let step = *distances.iter().min_by_key(|distance| distance.abs())?;
    let fits = |distance: &i32| {
        step != 0 && distance % step == 0 && (1..=1 + MAX_SKIPPED).contains(&(distance / step))
    };
    if !distances.iter().all(fits) {
        return None;
    }
    let step = i16::try_from(step).ok()?;
    let last = *ports.last()?;
    Some(Sequence { next: last.wrapping_add(step.cast_unsigned()), step })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_steps_of_any_size_and_sign_are_recognised() {
        type Row = (&'static [u16], Option<(u16, i16)>);
        let table: &[Row] = &[
            (&[4000, 4001, 4002, 4003], Some((4004, 1))),
            (&[4000, 4002, 4004, 4006], Some((4008, 2))),
            (&[12405, 12661, 12917, 13173], Some((13429, 256))),
            (&[4003, 4002, 4001, 4000], Some((3999, -1))),
            (&[65_400, 120, 376, 632], Some((888, 256))),
            (&[2, 1, 0, 65_535], Some((65_534, -1))),
            // Others have opened mappings between ours.
            (&[4000, 4001, 4004, 4005], Some((4006, 1))),
            (&[9000, 8744, 8232, 7976], Some((7720, -256))),
            // Not constant, too few, or all the same.
            (&[4000, 4001, 4017, 4018], None),
            (&[31_977, 48_120, 30_411, 40_990], None),
            (&[4000, 4001, 4002], None),
            (&[4000, 4000, 4000, 4000], None),
            (&[4000, 4001, 4000, 4001], None),
        ];
        for (ports, expected) in table {
            let found = recognise(ports).map(|sequence| (sequence.next, sequence.step));
            assert_eq!(found, *expected, "{ports:?}");
        }
    }

    #[test]
    fn random_ports_are_hardly_ever_taken_for_a_sequence() {
        let mut state = 1_u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u16::try_from(1024 + (state >> 33) % 64_512).unwrap()
        };
        let taken = (0..100_000).filter(|_| recognise(&[draw(), draw(), draw(), draw()]).is_some()).count();
        assert!(taken <= 20, "{taken} of 100,000");
    }
}
