//! What is told of a run: times by kind of event, and all that is known when something stays broken.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::event::Kind;
use crate::mesh::{Daemon, Node};
use crate::village::Village;

/// Lines of every log that are shown.
const LOG_LINES: usize = 20;
/// Pairs that are asked why; more of them say the same.
const ASKED: usize = 6;

/// How soon pairs came back, by kind of event.
#[derive(Debug, Default)]
pub(super) struct Times {
    kinds: BTreeMap<Kind, Vec<Duration>>,
}

impl Times {
    pub(super) fn note(&mut self, kind: Kind, took: Duration) {
        self.kinds.entry(kind).or_default().push(took);
    }

    /// A line for each kind: how many there were, the median, and the longest.
    pub(super) fn table(&self) -> String {
        let mut out =
            format!("{:<20} {:>6} {:>10} {:>10} {:>10}\n", "event", "count", "median", "p99", "longest");
        for (kind, times) in &self.kinds {
            let mut sorted = times.clone();
            sorted.sort();
            let at = |share: usize| {
                let index = (sorted.len() * share / 100).min(sorted.len().saturating_sub(1));
                format!("{} ms", sorted.get(index).map_or(0, Duration::as_millis))
            };
            let _ =
                writeln!(out, "{kind:<20} {:>6} {:>10} {:>10} {:>10}", sorted.len(), at(50), at(99), at(100));
        }
        out
    }
}

/// The status of every node, why pairs are on the paths on which they are, and the last lines of all logs.
pub(super) fn tell(village: &Village, relay: &Daemon, pairs: &[(String, String)]) -> String {
    let mut out = String::new();
    for node in village.nodes() {
        let _ = writeln!(out, "--- {} is at {}: meshctl status", node.name(), node.host().site());
        out += &said(node, &["status"]);
    }
    for (from, to) in pairs.iter().take(ASKED) {
        let _ = writeln!(out, "--- {from}: meshctl why {to}");
        out += &match village.node(from) {
            Ok(node) => said(node, &["why", to]),
            Err(error) => format!("{error:#}\n"),
        };
    }
    for daemon in village.daemons().into_iter().chain([relay]) {
        let log = daemon.log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let _ = writeln!(out, "--- the last lines of {}", daemon.name());
        for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES)) {
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

fn said(node: &Node, args: &[&str]) -> String {
    match node.meshctl(args) {
        Ok(finished) => format!("{}{}", finished.stdout, finished.stderr),
        Err(error) => format!("{error:#}\n"),
    }
}
