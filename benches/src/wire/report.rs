//! Medians, ratios and goals, and how they are written.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use anyhow::Context as _;
use serde::Serialize;

use super::{
    Kind, Link, Load, Metric, OwnDrops, Plan, Sample,
    goal::{GOALS, Goal},
    profile::{self, Profile},
    stage::Stage,
};
use crate::figure::{self, Figure};

/// Width of a column of the table: `median (lowest..highest)`.
const COLUMN: usize = 25;
/// Width of the first column.
const NAMES: usize = 24;

/// All that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    machine: Machine,
    link: Link,
    rounds: usize,
    seconds: u32,
    tunnels: Vec<Described>,
    /// What was not measured, and why.
    missing: Vec<String>,
    failures: Vec<String>,
    rows: Vec<Row>,
    /// What our agents dropped in all rounds.
    drops: Vec<Dropped>,
    #[serde(skip)]
    profiles: Vec<Profile>,
}

/// Where it was measured.
#[derive(Debug, Clone, Serialize)]
struct Machine {
    cores: usize,
    kernel: String,
}

/// One implementation.
#[derive(Debug, Clone, Serialize)]
struct Described {
    kind: Kind,
    version: String,
    mtu: u16,
}

/// One metric of one load through one tunnel.
#[derive(Debug, Clone, Serialize)]
struct Row {
    load: Load,
    metric: Metric,
    kind: Kind,
    /// Values by round; a failed run leaves a gap.
    rounds: BTreeMap<usize, f64>,
}

/// What our agents dropped under one load, by reason.
#[derive(Debug, Clone, Serialize)]
struct Dropped {
    load: Load,
    kind: Kind,
    reasons: OwnDrops,
}

impl Report {
    /// Makes an empty one.
    #[must_use]
    pub fn new(stage: &Stage, plan: &Plan) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let describe = |tunnel: &super::Tunnel| Described {
            kind: tunnel.kind,
            version: tunnel.version.clone(),
            mtu: tunnel.mtu,
        };
        Self {
            machine: Machine {
                cores: std::thread::available_parallelism().map_or(1, Into::into),
                kernel: kernel.trim().to_owned(),
            },
            link: plan.link,
            rounds: plan.rounds,
            seconds: plan.seconds,
            tunnels: stage.tunnels().iter().map(describe).collect(),
            missing: stage.missing().to_vec(),
            failures: Vec::new(),
            rows: Vec::new(),
            drops: Vec::new(),
            profiles: Vec::new(),
        }
    }

    /// Adds a run.
    pub fn add(&mut self, round: usize, load: Load, kind: Kind, sample: Sample) {
        for (metric, value) in sample {
            let known =
                self.rows.iter_mut().find(|row| (row.load, row.metric, row.kind) == (load, metric, kind));
            match known {
                Some(row) => drop(row.rounds.insert(round, value)),
                None => self.rows.push(Row { load, metric, kind, rounds: BTreeMap::from([(round, value)]) }),
            }
        }
    }

    /// Adds what our agents dropped in a run.
    pub fn add_drops(&mut self, load: Load, kind: Kind, drops: OwnDrops) {
        for (reason, count) in drops {
            let known = self.drops.iter_mut().find(|dropped| (dropped.load, dropped.kind) == (load, kind));
            match known {
                Some(dropped) => *dropped.reasons.entry(reason).or_default() += count,
                None => {
                    let reasons = OwnDrops::from([(reason, count)]);
                    self.drops.push(Dropped { load, kind, reasons });
                }
            }
        }
    }

    /// Adds a profile, if there is one.
    pub fn add_profile(&mut self, profile: Option<Profile>) {
        self.profiles.extend(profile);
    }

    /// Adds a run that failed.
    pub fn add_failure(&mut self, failure: String) {
        self.failures.push(failure);
    }

    /// Returns the runs that failed.
    #[must_use]
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Returns which implementations there are, ours first.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.tunnels.iter().map(|tunnel| tunnel.kind)
    }

    /// Sums up one metric of one load through one tunnel, if it was measured.
    #[must_use]
    pub fn figure(&self, load: Load, metric: Metric, kind: Kind) -> Option<Figure> {
        let values = self.values(load, metric, kind)?.values().copied().collect();
        let what = format!("{}: {}, {}", load.name(), metric.name().trim(), kind.name());
        Figure::new(what, "", values, None).ok()
    }

    /// Judges a goal: by the ratios of rounds in which both were measured. `None` if there is none.
    #[must_use]
    pub fn judge(&self, goal: &Goal) -> Option<Figure> {
        let ours = self.values(goal.load, goal.metric, goal.of)?;
        let way = if goal.of == Kind::Mesh { String::new() } else { format!(", {}", goal.of.name()) };
        let what = format!("{}: {}{way}", goal.load.name(), goal.metric.name().trim());
        let (what, unit, values) = match goal.beside {
            None => (what, "", ours.values().copied().collect()),
            Some(kind) => {
                let theirs = self.values(goal.load, goal.metric, kind)?;
                let ratio = |(round, ours): (&usize, &f64)| {
                    theirs.get(round).filter(|theirs| **theirs > 0.0).map(|theirs| ours / theirs)
                };
                let ratios = ours.iter().filter_map(ratio).collect();
                (format!("{what}, to {}", kind.name()), "x", ratios)
            }
        };
        Figure::new(what, unit, values, Some(goal.wanted)).ok()
    }

    /// Returns every goal that could be judged; they are for a link that is no bottleneck.
    #[must_use]
    pub fn goals(&self) -> Vec<Figure> {
        match self.link {
            Link::Lan => GOALS.iter().filter_map(|goal| self.judge(goal)).collect(),
            Link::Lossy | Link::Narrow | Link::Uplink => Vec::new(),
        }
    }

    /// Writes it for people.
    #[must_use]
    pub fn table(&self) -> String {
        let Machine { cores, kernel } = &self.machine;
        let mut out = format!(
            "link {}, {} interleaved rounds of {} s, {cores} cores, Linux {kernel}; median (lowest..highest)\n\n",
            self.link.name(),
            self.rounds,
            self.seconds
        );
        for tunnel in &self.tunnels {
            let _ = writeln!(out, "{:<14} MTU {}, {}", tunnel.kind.name(), tunnel.mtu, tunnel.version);
        }
        for missing in &self.missing {
            let _ = writeln!(out, "not measured: {missing}");
        }
        let (ours, others): (Vec<_>, Vec<_>) = self.kinds().partition(|kind| kind.is_ours());
        for load in Load::ALL {
            let ways = ours.iter().any(|kind| *kind != Kind::Mesh && kind.carries(load));
            if !(ways && others.is_empty()) {
                self.write_load(&mut out, load, &[&[Kind::Mesh], others.as_slice()].concat());
            }
            if ways {
                self.write_load(&mut out, load, &ours);
            }
        }
        for Dropped { load, kind, reasons } in &self.drops {
            let reasons: Vec<_> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            let _ = write!(out, "\ndropped by {}, {}: {}", kind.name(), load.name(), reasons.join(", "));
        }
        out.push('\n');
        let goals = self.goals();
        if !goals.is_empty() {
            let _ = write!(out, "\n{}", figure::table(&goals));
        }
        if !self.profiles.is_empty() {
            let _ = write!(out, "\n{}", profile::table(&self.profiles));
        }
        for failure in &self.failures {
            let _ = writeln!(out, "failed: {failure}");
        }
        out
    }

    /// Writes it for programs.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        #[derive(Serialize)]
        struct Document<'a> {
            #[serde(flatten)]
            report: &'a Report,
            goals: Vec<Figure>,
        }
        let document = Document { report: self, goals: self.goals() };
        std::fs::create_dir_all(path.parent().context("the file is in a folder")?)?;
        std::fs::write(path, serde_json::to_vec_pretty(&document)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn write_load(&self, out: &mut String, load: Load, kinds: &[Kind]) {
        let metrics: std::collections::BTreeSet<Metric> =
            self.rows.iter().filter(|row| row.load == load).map(|row| row.metric).collect();
        if metrics.is_empty() {
            return;
        }
        let _ = write!(out, "\n{:<NAMES$}", load.name());
        for kind in kinds {
            let _ = write!(out, "{:>COLUMN$}", kind.name());
        }
        out.push('\n');
        for metric in metrics {
            let _ = write!(out, "{:<NAMES$}", metric.name());
            for kind in kinds {
                let cell =
                    self.figure(load, metric, *kind).map_or_else(|| "-".to_owned(), |figure| cell(&figure));
                let _ = write!(out, "{cell:>COLUMN$}");
            }
            out.push('\n');
        }
    }

    fn values(&self, load: Load, metric: Metric, kind: Kind) -> Option<&BTreeMap<usize, f64>> {
        let row = self.rows.iter().find(|row| (row.load, row.metric, row.kind) == (load, metric, kind));
        row.map(|row| &row.rounds)
    }
}

fn cell(figure: &Figure) -> String {
    format!("{} ({}..{})", short(figure.median), short(figure.lowest), short(figure.highest))
}

/// Writes a value with three digits that count.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 || size == 0.0 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
impl Report {
    /// A report of these kinds without a stage.
    pub(super) fn of(kinds: &[Kind]) -> Self {
        let describe = |kind: &Kind| Described { kind: *kind, version: "1".into(), mtu: 1420 };
        Self {
            machine: Machine { cores: 2, kernel: "6.18".into() },
            link: Link::Lan,
            rounds: 3,
            seconds: 3,
            tunnels: kinds.iter().map(describe).collect(),
            missing: vec!["nebula: no Go here".into()],
            failures: Vec::new(),
            rows: Vec::new(),
            drops: Vec::new(),
            profiles: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::of(&[Kind::Mesh, Kind::WireguardGo]);
        for (round, ours, theirs) in [(0, 4.0, 2.0), (1, 9.0, 3.0), (2, 1.0, 1.0)] {
            report.add(round, Load::Tcp1, Kind::Mesh, Sample::from([(Metric::Received, ours)]));
            report.add(round, Load::Tcp1, Kind::WireguardGo, Sample::from([(Metric::Received, theirs)]));
        }
        report
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let goal = report().judge(&GOALS[0]).unwrap();
        assert_eq!((goal.median, goal.lowest, goal.highest), (2.0, 1.0, 3.0));
        assert_eq!(goal.kept, Some(true));
    }

    #[test]
    fn a_round_that_lacks_one_side_has_no_ratio() {
        let mut report = report();
        report.add(3, Load::Tcp1, Kind::Mesh, Sample::from([(Metric::Received, 100.0)]));
        assert_eq!(report.judge(&GOALS[0]).unwrap().runs, 3);
        assert!(report.judge(&GOALS[1]).is_none(), "nothing was measured");
    }

    #[test]
    fn the_table_names_what_is_there_and_what_is_not() {
        let table = report().table();
        assert!(table.contains("4.00 (1.00..9.00)"), "{table}");
        assert!(table.contains("not measured: nebula"), "{table}");
        assert!(table.contains(">= 1.8 ok"), "{table}");
    }

    #[test]
    fn our_other_ways_stand_in_a_table_of_their_own_beside_the_plain_one() {
        let mut report = Report::of(&[Kind::Mesh, Kind::MeshPods, Kind::WireguardGo]);
        for (kind, rate) in [(Kind::Mesh, 4.0), (Kind::MeshPods, 3.0), (Kind::WireguardGo, 2.0)] {
            report.add(0, Load::Tcp1, kind, Sample::from([(Metric::Received, rate)]));
        }
        report.add_drops(Load::Tcp1, Kind::MeshPods, OwnDrops::from([("no-path".to_owned(), 3)]));
        report.add_drops(Load::Tcp1, Kind::MeshPods, OwnDrops::from([("no-path".to_owned(), 4)]));
        let table = report.table();
        let heads: Vec<Vec<&str>> = table
            .lines()
            .filter(|line| line.starts_with("tcp-1 "))
            .map(|line| line.split_whitespace().skip(1).collect())
            .collect();
        assert_eq!(heads, [["mesh", "wireguard-go"], ["mesh", "mesh-pods"]], "{table}");
        assert!(table.contains("dropped by mesh-pods, tcp-1: no-path 7"), "{table}");
        let judged = report.judge(GOALS.iter().find(|goal| goal.of == Kind::MeshPods).unwrap()).unwrap();
        assert_eq!((judged.median, judged.kept), (0.75, Some(false)));
    }

    #[test]
    fn values_are_written_with_three_digits() {
        assert_eq!([1234.4, 12.34, 1.234, 0.1234, 0.0].map(short), ["1234", "12.3", "1.23", "0.123", "0"]);
    }
}
