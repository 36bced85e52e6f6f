//! How many engines a node has.

use std::num::NonZeroU32;

/// Most engines: the TUN and the sockets have a queue for each, and nobody has measured more.
const MAX_SHARDS: u32 = 16;
/// Most that are chosen without being asked for: four move far more than the links of the machines that this is for.
const MAX_BY_DEFAULT: usize = 4;

/// Chooses by the number of cores: half of them, since what an engine moves costs the system about as much again, and
/// the machine is there for something else. With two cores and fewer, one: a second engine would only add switches.
pub(super) fn by_cores(cores: usize) -> NonZeroU32 {
    let half = u32::try_from((cores / 2).min(MAX_BY_DEFAULT)).unwrap_or(1);
    NonZeroU32::new(half).unwrap_or(NonZeroU32::MIN)
}

/// Chooses for this machine. Where the system does not share what comes to a port, one engine has it all.
pub(super) fn by_default() -> NonZeroU32 {
    match std::thread::available_parallelism() {
        Ok(cores) if cfg!(target_os = "linux") => by_cores(cores.get()),
        Ok(_) | Err(_) => NonZeroU32::MIN,
    }
}

/// Parses a number, or `auto`.
pub(super) fn parse(text: &str) -> Result<NonZeroU32, String> {
    if text == "auto" {
        return Ok(by_default());
    }
    let most = if cfg!(target_os = "linux") { MAX_SHARDS } else { 1 };
    let number = text.parse().ok().filter(|number| (1..=most).contains(number)).and_then(NonZeroU32::new);
    number.ok_or_else(|| format!("not auto, nor a number from 1 to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_cores_have_an_engine_up_to_four() {
        let chosen = [1, 2, 3, 4, 7, 8, 16, 128].map(|cores| by_cores(cores).get());
        assert_eq!(chosen, [1, 1, 1, 2, 3, 4, 4, 4]);
    }

    #[test]
    fn a_number_is_taken_as_it_is() {
        assert_eq!(parse("2").map(NonZeroU32::get), Ok(2));
        assert_eq!(parse("auto"), Ok(by_default()));
        for bad in ["0", "17", "-1", "all", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
