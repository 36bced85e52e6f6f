//! Percentiles, held against their budgets.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

/// What a series is held against.
#[derive(Debug, Clone, Copy, Default)]
pub struct Budget {
    /// The median.
    pub p50: Option<Duration>,
    /// The 99th percentile.
    pub p99: Option<Duration>,
}

/// One series of times.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    /// Whose.
    pub who: String,
    /// What happened.
    pub kind: &'static str,
    /// What was waited for.
    pub what: &'static str,
    /// How often it was tried.
    pub trials: usize,
    /// How often it did not come in time.
    pub failed: usize,
    /// Percentiles, in milliseconds; a failure counts as infinite, which JSON does not know.
    pub p50: Option<f64>,
    /// The 90th.
    pub p90: Option<f64>,
    /// The 99th.
    pub p99: Option<f64>,
    /// The longest.
    pub max: Option<f64>,
    /// What the median may be, in milliseconds.
    pub budget_p50: Option<f64>,
    /// What the 99th percentile may be, in milliseconds.
    pub budget_p99: Option<f64>,
    /// Whether the budget is kept, where there is one.
    pub kept: Option<bool>,
    /// Whether the TCP download beside it has arrived whole, where there was one.
    pub download_whole: Option<bool>,
    /// All of them, in milliseconds, in the order in which they came.
    pub all: Vec<Option<f64>>,
}

impl Series {
    /// Sums times up; none stands for what did not come in time.
    pub(crate) fn new(
        who: &str,
        kind: &'static str,
        what: &'static str,
        times: Vec<Option<Duration>>,
        budget: Budget,
    ) -> Self {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let all: Vec<Option<f64>> = times.into_iter().map(|time| time.map(millis)).collect();
        let mut sorted: Vec<f64> = all.iter().map(|time| time.unwrap_or(f64::INFINITY)).collect();
        sorted.sort_by(f64::total_cmp);
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|share| percentile(&sorted, share));
        let [budget_p50, budget_p99] = [budget.p50, budget.p99].map(|limit| limit.map(millis));
        let holds = |value: f64, limit: Option<f64>| limit.is_none_or(|limit| value <= limit);
        let has_budget = budget_p50.is_some() || budget_p99.is_some();
        let finite = |value: f64| value.is_finite().then_some(value);
        Self {
            who: who.to_owned(),
            kind,
            what,
            trials: all.len(),
            failed: all.iter().filter(|time| time.is_none()).count(),
            p50: finite(p50),
            p90: finite(p90),
            p99: finite(p99),
            max: finite(max),
            budget_p50,
            budget_p99,
            kept: has_budget.then(|| holds(p50, budget_p50) && holds(p99, budget_p99)),
            download_whole: None,
            all,
        }
    }

    /// Notes whether the download beside it has arrived whole.
    pub(super) fn with_download(self, whole: bool) -> Self {
        Self { download_whole: Some(whole), ..self }
    }

    /// Whether something is not as it should be.
    #[must_use]
    pub fn is_missed(&self) -> bool {
        self.kept == Some(false) || (self.who == "ours" && self.download_whole == Some(false))
    }
}

/// The least of the times that so large a share of all is not above (nearest rank).
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::INFINITY)
}

/// Writes series as a table.
#[must_use]
pub fn table(series: &[Series]) -> String {
    let heading = format!(
        "{:<9} {:<15} {:<13} {:>6} {:>6} {:>8} {:>8} {:>8} {:>8}  {:<22} {:<10} {}",
        "who",
        "kind",
        "until",
        "trials",
        "failed",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "max ms",
        "budget",
        "",
        "download"
    );
    let mut out = heading.clone() + "\n" + &"-".repeat(heading.len()) + "\n";
    for one in series {
        let number =
            |value: Option<f64>| value.map_or_else(|| "never".to_owned(), |value| format!("{value:.0}"));
        let limit = |name: &str, value: Option<f64>| value.map(|value| format!("{name} <= {value:.0}"));
        let budget = [limit("p50", one.budget_p50), limit("p99", one.budget_p99)];
        let budget = budget.into_iter().flatten().collect::<Vec<_>>().join(", ");
        let verdict = match one.kept {
            Some(true) => "ok",
            Some(false) => "MISSED",
            None => "",
        };
        let download = match one.download_whole {
            Some(true) => "whole",
            Some(false) => "BROKEN",
            None => "",
        };
        let _ = writeln!(
            out,
            "{:<9} {:<15} {:<13} {:>6} {:>6} {:>8} {:>8} {:>8} {:>8}  {budget:<22} {verdict:<10} {download}",
            one.who,
            one.kind,
            one.what,
            one.trials,
            one.failed,
            number(one.p50),
            number(one.p90),
            number(one.p99),
            number(one.max),
        );
    }
    out
}

/// Writes series as JSON.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(series: &[Series], path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().context("the file is in a folder")?;
    std::fs::create_dir_all(folder)?;
    std::fs::write(path, serde_json::to_vec_pretty(series)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_came_is_worse_than_all_that_did() {
        let ms = |ms| Some(Duration::from_millis(ms));
        let budget = Budget { p50: ms(20), p99: ms(100) };
        let times: Vec<_> = (1..=100).map(|number| ms(number % 30)).collect();
        let kept = Series::new("ours", "roam", "first reply", times.clone(), budget);
        assert_eq!((kept.p50, kept.p99, kept.kept), (Some(13.0), Some(29.0), Some(true)));
        let failed = [times.clone(), vec![None, None]].concat();
        let failed = Series::new("ours", "roam", "first reply", failed, budget);
        assert_eq!((failed.failed, failed.p99, failed.kept), (2, None, Some(false)));
        assert!(table(&[failed]).contains("never"));
        let broken = Series::new("ours", "roam", "first reply", times, budget).with_download(false);
        assert!(broken.is_missed() && !kept.is_missed());
    }
}
