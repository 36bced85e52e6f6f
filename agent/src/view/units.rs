//! How quantities are written for people.

use std::time::Duration;

/// Writes an age in the largest unit that it fills: `3s`, `12m`, `5h`, `9d`.
#[must_use]
pub fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Writes how long something lasted: below a minute with three significant digits.
#[must_use]
pub fn span(seconds: f64) -> String {
    match seconds {
        ..1.0 => millis(seconds * 1e3),
        1.0..60.0 => format!("{}s", three_digits(seconds)),
        _ => age(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)),
    }
}

/// Writes a number of bytes with three significant digits: `512`, `1.21K`, `48.2M`.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [char; 5] = ['K', 'M', 'G', 'T', 'P'];
    if bytes < 1_000 {
        return bytes.to_string();
    }
    let mut value = bytes as f64;
    let mut unit = ' ';
    for next in UNITS {
        // From 999.5 on, rounding would make a fourth digit.
        if value < 999.5 {
            break;
        }
        value /= 1_000.0;
        unit = next;
    }
    format!("{}{unit}", three_digits(value))
}

/// Writes milliseconds with three significant digits: `0.21ms`, `18.2ms`, `341ms`.
#[must_use]
pub fn millis(millis: f64) -> String {
    format!("{}ms", three_digits(millis))
}

/// Writes a share in percent.
#[must_use]
pub fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

fn three_digits(value: f64) -> String {
    match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_short() {
        let ages = [0, 59, 60, 3_599, 3_600, 86_400 * 400].map(|s| age(Duration::from_secs(s)));
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "1h", "400d"]);
        let sizes = [0, 999, 1_000, 1_214, 99_960, 999_500, 48_210_000].map(bytes);
        assert_eq!(sizes, ["0", "999", "1.00K", "1.21K", "100K", "1.00M", "48.2M"]);
        assert_eq!([0.214, 18.23, 341.4].map(millis), ["0.21ms", "18.2ms", "341ms"]);
        assert_eq!([0.2, 2.5, 59.94, 61.0, 7_300.0].map(span), ["200ms", "2.50s", "59.9s", "1m", "2h"]);
    }
}
