//! What was found, for people.

use std::fmt::Write as _;

use super::Outcome;
use crate::nat::NatType;

/// The width of a cell.
const CELL: usize = 10;

/// The 81 pairs with the longest time of each in milliseconds; `relay` where it stayed so, `!` where that is wrong.
#[must_use]
pub fn table(outcomes: &[Outcome]) -> String {
    let heading: String = NatType::all().map(|kind| format!("{:>CELL$}", kind.to_string())).collect();
    let mut text = format!("{:<CELL$}{heading}\n", "from \\ to");
    for from in NatType::all() {
        let cells: String = NatType::all().map(|to| format!("{:>CELL$}", cell(outcomes, from, to))).collect();
        let _ = writeln!(text, "{:<CELL$}{cells}", from.to_string());
    }
    text
}

/// How many pairs came out right, and how long each kind took.
#[must_use]
pub fn summary(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for (wanted, what) in
        [("direct", "plain"), ("ipv6", "ipv6"), ("punched", "punched"), ("relay", "relayed")]
    {
        let all: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.wanted == wanted).collect();
        if all.is_empty() {
            continue;
        }
        let right = all.iter().filter(|outcome| outcome.is_right()).count();
        let mut times: Vec<f64> = match wanted {
            "relay" => all.iter().filter_map(|outcome| outcome.first_ping_ms).collect(),
            _ => all.iter().filter_map(|outcome| outcome.direct_ms).collect(),
        };
        times.sort_by(f64::total_cmp);
        // The nearest rank: of few times, the 99th percentile is the longest.
        let rank = |percent: usize| (times.len() * percent).div_ceil(100).saturating_sub(1);
        let at = |percent: usize| times.get(rank(percent)).map_or(0.0, |ms| *ms);
        let label = if wanted == "relay" { "first ping" } else { "direct after" };
        let _ = writeln!(
            text,
            "{what:<8} {right:>4} of {:<4} right; {label}: median {:.0} ms, p90 {:.0}, p99 {:.0}, longest {:.0}",
            all.len(),
            at(50),
            at(90),
            at(99),
            at(100)
        );
    }
    for wrong in outcomes.iter().filter(|outcome| !outcome.is_right()) {
        let Outcome { run, from, to, wanted, address: _, direct_ms, first_ping_ms, reason } = wrong;
        let _ = writeln!(
            text,
            "wrong in run {run}: {from} to {to} should be {wanted}: direct after {direct_ms:?}, first ping {first_ping_ms:?}, \"{reason}\""
        );
    }
    text
}

fn cell(outcomes: &[Outcome], from: NatType, to: NatType) -> String {
    let of_pair: Vec<&Outcome> =
        outcomes.iter().filter(|outcome| (outcome.from, outcome.to) == (from, to)).collect();
    if of_pair.is_empty() {
        return "-".to_owned();
    }
    let wrong = if of_pair.iter().all(|outcome| outcome.is_right()) { "" } else { "!" };
    let longest = of_pair.iter().filter_map(|outcome| outcome.direct_ms).max_by(f64::total_cmp);
    match longest {
        Some(longest) => format!("{wrong}{longest:.0}"),
        None => format!("{wrong}relay"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_that_is_wrong_once_is_marked_and_named() {
        let kinds: Vec<NatType> = NatType::all().collect();
        let outcome = |run, direct_ms| Outcome {
            run,
            from: kinds[2],
            to: kinds[8],
            wanted: "punched",
            address: None,
            direct_ms,
            first_ping_ms: Some(80.0),
            reason: "why".to_owned(),
        };
        let outcomes = [outcome(0, Some(1500.0)), outcome(1, None)];
        let table = table(&outcomes);
        assert!(table.contains("!1500"), "{table}");
        let summary = summary(&outcomes);
        assert!(
            summary.contains("1 of 2") && summary.contains("wrong in run 1: EIMxAPDF to APDMxAPDF"),
            "{summary}"
        );
    }
}
