//! How long the machine kept work waiting for a processor, by the kernel's own account (PSI).
//!
//! Budgets are meant for a machine that has the time. Where others build beside a test, what was waited for is no time
//! that the mesh took.

use std::time::Duration;

const FILE: &str = "/proc/pressure/cpu";

/// The time so far in which something waited for a processor; zero where the kernel keeps no account.
pub(super) fn waited() -> Duration {
    std::fs::read_to_string(FILE).ok().and_then(|text| parse(&text)).unwrap_or_default()
}

/// The total of the line `some`, which is in microseconds.
fn parse(text: &str) -> Option<Duration> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some.split(' ').find_map(|field| field.strip_prefix("total="))?;
    Some(Duration::from_micros(total.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read() {
        let text = "some avg10=94.02 avg60=95.12 avg300=54.00 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(parse(text), Some(Duration::from_millis(1500)));
        assert_eq!(parse(""), None);
    }
}
