//! What the demo prints, and the promises that it keeps an account of.

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::report::Chapter;

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// With terminal colours.
    Colours,
    /// Bare text.
    Plain,
}

/// The colours in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    Good,
    Bad,
    Heading,
    Faint,
    Direct,
    Relay,
    Lan,
}

/// Prints lines with the time since the start, and remembers them for the report.
#[derive(Debug)]
pub(super) struct Stage {
    look: Look,
    start: Instant,
    story: Vec<Chapter>,
    kept: usize,
    broken: Vec<String>,
}

impl Stage {
    pub(super) fn new(look: Look) -> Self {
        Self { look, start: Instant::now(), story: Vec::new(), kept: 0, broken: Vec::new() }
    }

    /// Begins a chapter.
    pub(super) fn chapter(&mut self, title: &str) {
        print_line(&format!("\n{}", self.paint(Colour::Heading, title)));
        self.note(title);
    }

    /// Says what happens.
    pub(super) fn say(&mut self, text: &str) {
        print_line(&format!("{} {text}", self.clock()));
        self.note(text);
    }

    /// Shows something that is not part of the story: a table, a program's output.
    pub(super) fn show(&self, text: impl Display) {
        for line in text.to_string().lines() {
            print_line(&format!("    {line}"));
        }
    }

    /// Says what was promised, and whether it is so.
    pub(super) fn promise(&mut self, is_kept: bool, text: &str) {
        if !is_kept {
            return self.break_promise(text);
        }
        self.kept += 1;
        print_line(&format!("{} {} {text}", self.clock(), self.paint(Colour::Good, "ok")));
        self.note(text);
    }

    /// Says that a promise is broken.
    pub(super) fn break_promise(&mut self, text: &str) {
        print_line(&format!("{} {} {text}", self.clock(), self.paint(Colour::Bad, "BROKEN")));
        self.note(&format!("BROKEN: {text}"));
        self.broken.push(text.to_owned());
    }

    /// Whether a promise has been broken.
    pub(super) fn is_broken(&self) -> bool {
        !self.broken.is_empty()
    }

    /// All that was said.
    pub(super) fn take_story(&mut self) -> Vec<Chapter> {
        std::mem::take(&mut self.story)
    }

    /// Says how it went, which is also the program's answer.
    pub(super) fn finish(self) -> ExitCode {
        let seconds = self.start.elapsed().as_secs_f64();
        if self.broken.is_empty() {
            let text = format!("all {} promises kept in {seconds:.0} s", self.kept);
            print_line(&format!("\n{}", self.paint(Colour::Good, &text)));
            return ExitCode::SUCCESS;
        }
        let text = format!("{} promises broken, {} kept, in {seconds:.0} s", self.broken.len(), self.kept);
        print_line(&format!("\n{}", self.paint(Colour::Bad, &text)));
        for broken in &self.broken {
            print_line(&format!("  {broken}"));
        }
        ExitCode::FAILURE
    }

    /// A text in a colour, if there are any.
    pub(super) fn paint(&self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Good => "1;32",
            Colour::Bad => "1;31",
            Colour::Heading => "1",
            Colour::Faint => "2",
            Colour::Direct => "32",
            Colour::Relay => "33",
            Colour::Lan => "36",
        };
        match self.look {
            Look::Colours => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            Look::Plain => text.to_owned(),
        }
    }

    fn clock(&self) -> String {
        self.paint(Colour::Faint, &format!("{:6.1} s", self.start.elapsed().as_secs_f64()))
    }

    fn note(&mut self, text: &str) {
        self.story.push(Chapter { at: self.start.elapsed(), text: text.to_owned() });
    }
}

/// Prints a line. That nobody reads it (`| head`) does not stop the story: the exit code still counts.
fn print_line(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A time in milliseconds, with one digit after the point.
pub(super) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_promise_is_told_again_and_fails() {
        let mut stage = Stage::new(Look::Plain);
        stage.promise(true, "kept");
        assert!(!stage.is_broken());
        stage.promise(false, "not kept");
        assert!(stage.is_broken());
        let story = stage.take_story();
        assert_eq!(story[1].text, "BROKEN: not kept");
        assert_eq!(format!("{:?}", stage.finish()), format!("{:?}", ExitCode::FAILURE));
    }

    #[test]
    fn plain_text_has_no_colours() {
        assert_eq!(Stage::new(Look::Plain).paint(Colour::Bad, "x"), "x");
        assert_eq!(Stage::new(Look::Colours).paint(Colour::Bad, "x"), "\u{1b}[1;31mx\u{1b}[0m");
    }
}
