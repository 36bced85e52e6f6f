//! What daemons should not have logged.

use anyhow::bail;

use super::{Daemon, Mesh};

/// What of a line says that something went wrong, when it stands there as a word of its own.
const COMPLAINTS: [&str; 2] = ["WARN", "ERROR"];
/// What a program prints that dies of a bug.
const PANIC: &str = "panicked at";

impl Mesh {
    /// Fails if a daemon has logged WARN, ERROR or a panic that is not expected; a line is expected if it contains one
    /// of `allowed`. A panic never is.
    ///
    /// # Errors
    ///
    /// With all such lines.
    pub fn check_logs(&self, allowed: &[&str]) -> anyhow::Result<()> {
        let mut found = Vec::new();
        for daemon in self.daemons() {
            // A daemon that was never started has said nothing.
            let log = daemon.log().unwrap_or_default();
            found.extend(
                complaints(&log, allowed).into_iter().map(|line| format!("{}: {line}", daemon.name())),
            );
        }
        if found.is_empty() {
            return Ok(());
        }
        bail!("daemons complain:\n{}", found.join("\n"))
    }
}

impl Daemon {
    /// As [`Mesh::check_logs`] finds them, the complaints in what was logged since the last look, which ended at `read`
    /// bytes.
    ///
    /// # Errors
    ///
    /// If the log cannot be read.
    pub fn complaints_since(&self, read: &mut usize, allowed: &[&str]) -> anyhow::Result<Vec<String>> {
        let log = self.log()?;
        // A line that is still being written is read when it is complete.
        let end = log.rfind('\n').map_or(0, |at| at + 1);
        let fresh = log.get(*read..end).unwrap_or_default();
        *read = end;
        Ok(complaints(fresh, allowed))
    }
}

/// The lines of a log that no one expects.
fn complaints(log: &str, allowed: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for line in log.lines() {
        let line = without_colours(line);
        let complains = line.split_whitespace().any(|word| COMPLAINTS.contains(&word))
            && !allowed.iter().any(|text| line.contains(text));
        if complains || line.contains(PANIC) {
            found.push(line);
        }
    }
    found
}

/// A line without terminal sequences: ESC, `[`, and all up to a letter.
fn without_colours(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unexpected_complaints_are_found() {
        let log = "2026-01-01T00:00:00Z  INFO mesh_agent: ready\n\
                   \u{1b}[2m2026-01-01T00:00:00Z\u{1b}[0m \u{1b}[33m WARN\u{1b}[0m mesh_agent: coordinator lost\n\
                   2026-01-01T00:00:00Z ERROR mesh_agent: no TUN\n\
                   a WARNING in the middle of text\n";
        assert_eq!(complaints(log, &["coordinator lost"]), ["2026-01-01T00:00:00Z ERROR mesh_agent: no TUN"]);
        assert_eq!(complaints(log, &[]).len(), 2);
    }

    #[test]
    fn panics_are_never_expected() {
        let log = "thread 'main' panicked at src/main.rs:1:1:\nindex out of bounds\n";
        assert_eq!(complaints(log, &["panicked", "src"]).len(), 1);
    }
}
