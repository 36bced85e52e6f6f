//! Figures, and how they are shown.

use std::{fmt::Write as _, path::Path};

use anyhow::Context;
use serde::Serialize;

/// One measured figure.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// Unit of the values.
    pub unit: &'static str,
    /// The middle value.
    pub median: f64,
    /// The lowest value.
    pub lowest: f64,
    /// The highest value.
    pub highest: f64,
    /// How often it was measured.
    pub runs: usize,
    /// What the median is held against, if anything.
    pub budget: Option<Budget>,
    /// Whether the median keeps the budget.
    pub kept: Option<bool>,
}

/// What a figure is held against.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// It may be this at the most.
    AtMost(f64),
    /// It has to be this at least.
    AtLeast(f64),
}

impl Figure {
    /// Sums values up.
    ///
    /// # Errors
    /// When there are none.
    pub fn new(
        what: impl Into<String>,
        unit: &'static str,
        mut values: Vec<f64>,
        budget: Option<Budget>,
    ) -> anyhow::Result<Self> {
        let what = what.into();
        values.sort_by(f64::total_cmp);
        let (Some(&lowest), Some(&highest)) = (values.first(), values.last()) else {
            anyhow::bail!("nothing was measured of: {what}");
        };
        let median = values[values.len() / 2];
        let kept = budget.map(|budget| match budget {
            Budget::AtMost(limit) => median <= limit,
            Budget::AtLeast(limit) => median >= limit,
        });
        Ok(Self { what, unit, median, lowest, highest, runs: values.len(), budget, kept })
    }
}

/// Writes figures as a table.
#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let heading = format!(
        "{:<58} {:>9} {:>9} {:>9} {:<6} {:>4} {:>9}",
        "figure", "median", "lowest", "highest", "unit", "runs", "budget"
    );
    let mut out = heading.clone() + "\n" + &"-".repeat(heading.len()) + "\n";
    for figure in figures {
        let budget = match figure.budget {
            Some(Budget::AtMost(limit)) => format!("<= {limit}"),
            Some(Budget::AtLeast(limit)) => format!(">= {limit}"),
            None => String::new(),
        };
        let verdict = match figure.kept {
            Some(true) => "ok",
            Some(false) => "MISSED",
            None => "",
        };
        let _ = writeln!(
            out,
            "{:<58} {:>9.2} {:>9.2} {:>9.2} {:<6} {:>4} {budget:>9} {verdict}",
            figure.what, figure.median, figure.lowest, figure.highest, figure.unit, figure.runs,
        );
    }
    out
}

/// Writes figures as JSON.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(figures: &[Figure], path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().context("the file is in a folder")?;
    std::fs::create_dir_all(folder)?;
    std::fs::write(path, serde_json::to_vec_pretty(figures)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_judged() {
        let figure = Figure::new("x", "ms", vec![9.0, 1.0, 2.0], Some(Budget::AtMost(2.0))).unwrap();
        assert_eq!((figure.median, figure.lowest, figure.highest, figure.kept), (2.0, 1.0, 9.0, Some(true)));
        let figure = Figure::new("x", "ms", vec![1.0], Some(Budget::AtLeast(2.0))).unwrap();
        assert!(table(&[figure]).contains("MISSED"));
        assert!(Figure::new("x", "ms", vec![], None).is_err());
    }
}
