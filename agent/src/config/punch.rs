//! The settings that bound what is done to get through hard pairs of NATs.

use std::{ffi::OsString, ops::RangeInclusive, time::Duration};

use mesh_engine::config::PunchLimits;

use mesh_settings::Settings;

use super::cli::RunArgs;

/// Most probes per second, and in one attempt.
const MAX_PROBES: u16 = 4096;
/// Sockets in one attempt: as many as ports are predicted, to what a process may open beside its other files.
const SOCKETS: RangeInclusive<u16> = 32..=1024;
/// Longest wait before an attempt, in milliseconds.
const MAX_WAIT: u16 = 60_000;
/// Shortest and longest pause after a failed attempt, in seconds: so that no mistake makes a node a nuisance.
const BACKOFF: RangeInclusive<u64> = 10..=86_400;

/// Takes the settings; what is wrong is noted with the others.
pub(super) fn take<E: Fn(&str) -> Option<OsString>>(
    settings: &mut Settings<E>,
    args: &RunArgs,
) -> PunchLimits {
    let usual = PunchLimits::default();
    let within = |range: RangeInclusive<u16>| {
        move |text: &str| {
            let number = text.parse().ok().filter(|number| range.contains(number));
            number.ok_or_else(|| format!("not a number from {} to {}", range.start(), range.end()))
        }
    };
    let rate = settings.take("punch-rate", args.punch_rate.as_deref(), within(0..=MAX_PROBES));
    let budget = settings.take("punch-budget", args.punch_budget.as_deref(), within(0..=MAX_PROBES));
    let sockets = settings.take("punch-sockets", args.punch_sockets.as_deref(), within(SOCKETS));
    let wait = settings.take("punch-wait", args.punch_wait.as_deref(), within(0..=MAX_WAIT));
    let backoff = settings.take("punch-backoff", args.punch_backoff.as_deref(), parse_backoff);
    let (min_backoff, max_backoff) = backoff.unwrap_or((usual.min_backoff, usual.max_backoff));
    PunchLimits {
        rate: rate.unwrap_or(usual.rate),
        budget: budget.unwrap_or(usual.budget),
        sockets: sockets.unwrap_or(usual.sockets),
        wait: wait.map_or(usual.wait, |ms| Duration::from_millis(ms.into())),
        min_backoff,
        max_backoff,
    }
}

fn parse_backoff(text: &str) -> Result<(Duration, Duration), String> {
    let seconds = |text: &str| text.parse().ok().filter(|seconds| BACKOFF.contains(seconds));
    let pair = text.split_once("..").and_then(|(min, max)| Some((seconds(min)?, seconds(max)?)));
    let (min, max) = pair
        .filter(|(min, max)| min <= max)
        .ok_or_else(|| format!("not MIN..MAX, in seconds from {} to {}", BACKOFF.start(), BACKOFF.end()))?;
    Ok((Duration::from_secs(min), Duration::from_secs(max)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_taken_and_wrong_ones_reported() {
        let args = RunArgs { punch_rate: Some("250".into()), ..RunArgs::default() };
        let file = "punch-backoff = '30..600'\npunch-wait = 500";
        let mut settings = Settings::new(|_| None, file).unwrap();
        let limits = take(&mut settings, &args);
        settings.finish().unwrap();
        assert_eq!((limits.rate, limits.budget, limits.sockets), (250, 4096, 256));
        assert_eq!((limits.min_backoff.as_secs(), limits.max_backoff.as_secs()), (30, 600));
        assert_eq!(limits.wait, Duration::from_millis(500));

        let file = "punch-rate = 5000\npunch-backoff = '600..30'\npunch-sockets = 7\npunch-budget = 'all'";
        let mut settings = Settings::new(|_| None, file).unwrap();
        take(&mut settings, &RunArgs::default());
        let problems = settings.finish().unwrap_err().to_string();
        for key in ["punch-rate", "punch-backoff", "punch-sockets", "punch-budget"] {
            assert!(problems.contains(key), "{key} is missing in: {problems}");
        }
    }
}
