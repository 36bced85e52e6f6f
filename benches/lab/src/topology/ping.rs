//! The answer of `ping`, read.

use std::time::Duration;

use anyhow::Context as _;

use crate::process::Finished;

/// What a run of `ping` has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ping {
    /// Requests sent.
    pub sent: u32,
    /// The round trips of the replies, in the order in which they came.
    pub round_trips: Vec<Duration>,
}

impl Ping {
    /// Reads what `ping` of iputils printed.
    ///
    /// # Errors
    ///
    /// If it is something else, with all of it.
    pub(super) fn parse(finished: &Finished) -> anyhow::Result<Self> {
        let round_trips = finished.stdout.lines().filter_map(round_trip).collect();
        let sent =
            finished.stdout.lines().find_map(|line| line.split_once(" packets transmitted")?.0.parse().ok());
        let sent = sent.with_context(|| format!("ping said: {}{}", finished.stdout, finished.stderr))?;
        Ok(Self { sent, round_trips })
    }

    /// The number of replies.
    pub fn received(&self) -> usize {
        self.round_trips.len()
    }

    /// The middle round trip, if there was a reply.
    pub fn median(&self) -> Option<Duration> {
        let mut sorted = self.round_trips.clone();
        sorted.sort();
        sorted.get(sorted.len() / 2).copied()
    }
}

fn round_trip(line: &str) -> Option<Duration> {
    let (_, after) = line.split_once("time=")?;
    let milliseconds: f64 = after.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_secs_f64(milliseconds / 1000.0))
}
