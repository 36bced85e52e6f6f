//! What this process has logged lately, for a report of a problem.
//!
//! The lines are those that went to the log's real destination, which this host may not keep, or may not show to who
//! asks. They are held in memory: for [`HORIZON`], and never more than [`CAPACITY`] bytes of them.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing_subscriber::fmt::MakeWriter;

/// Lines are kept for this long: a person who is asked for a report has seen the trouble within it.
pub const HORIZON: Duration = Duration::from_secs(3600);

/// Bytes of text that are kept: a thousand lines, and little beside all else that an agent holds.
pub const CAPACITY: usize = 128 << 10;

/// The latest lines of the log. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct RecentLogs {
    lines: Arc<Mutex<Lines>>,
}

#[derive(Debug, Default)]
struct Lines {
    /// Oldest first.
    kept: VecDeque<(Instant, Box<str>)>,
    bytes: usize,
    /// Lines that went before their time, for want of room.
    lost: u64,
}

impl RecentLogs {
    /// Returns the lines of the last hour, oldest first. The first one says how many did not fit.
    #[must_use]
    pub fn text(&self) -> String {
        self.with(|lines| lines.text(Instant::now()))
    }

    fn with<R>(&self, read: impl FnOnce(&mut Lines) -> R) -> R {
        read(&mut self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl io::Write for RecentLogs {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        self.with(|lines| lines.push(&text, Instant::now()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for RecentLogs {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Lines {
    fn push(&mut self, line: &str, now: Instant) {
        if line.len() > CAPACITY {
            self.lost += 1;
            return;
        }
        self.bytes += line.len();
        self.kept.push_back((now, line.into()));
        self.forget(now);
        while self.bytes > CAPACITY {
            self.pop();
            self.lost += 1;
        }
    }

    fn text(&mut self, now: Instant) -> String {
        self.forget(now);
        let lost = match self.lost {
            0 => String::new(),
            lost => format!("({lost} earlier lines are not kept)\n"),
        };
        self.kept.iter().fold(lost, |text, (_, line)| text + line)
    }

    fn forget(&mut self, now: Instant) {
        while self.kept.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > HORIZON) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some((_, line)) = self.kept.pop_front() {
            self.bytes -= line.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn lines_are_kept_for_an_hour() {
        let start = Instant::now();
        let mut lines = Lines::default();
        lines.push("one\n", start);
        lines.push("two\n", start + Duration::from_secs(60));
        assert_eq!(lines.text(start + HORIZON), "one\ntwo\n");
        assert_eq!(lines.text(start + HORIZON + Duration::from_secs(1)), "two\n");
        assert_eq!(lines.text(start + HORIZON * 2), "");
        assert_eq!(lines.bytes, 0);
    }

    #[test]
    fn a_storm_of_lines_takes_bounded_room() {
        let now = Instant::now();
        let mut lines = Lines::default();
        let line = format!("{}\n", "x".repeat(99));
        for _ in 0..10_000 {
            lines.push(&line, now);
        }
        lines.push(&"y".repeat(CAPACITY + 1), now);
        assert!(lines.bytes <= CAPACITY && lines.bytes > CAPACITY - line.len(), "{}", lines.bytes);
        let lost = 10_001 - lines.kept.len();
        assert!(lines.text(now).starts_with(&format!("({lost} earlier lines are not kept)\nxxx")));
    }

    #[test]
    fn an_event_is_a_line() {
        let logs = RecentLogs::default();
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(logs.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(peers = 3, "something happened");
            tracing::info!("something else");
        });
        let text = logs.text();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("something happened peers=3"), "{text}");
        logs.clone().write_all(b"\xff\n").expect("it never fails");
        assert!(logs.text().ends_with("\u{fffd}\n"));
    }
}
