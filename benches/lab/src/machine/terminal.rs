//! A terminal on a machine: one shell that is given command after command, and keeps its variables between them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// What the shell says after each block. Nothing that is run prints it.
const DONE: &str = "--- what the terminal says of itself: done ---";
/// Ends a block in the shell's own syntax. Nothing that is run has such a line.
const END: &str = "THE-TERMINALS-OWN-END";

/// A shell that runs.
#[derive(Debug)]
pub struct Terminal {
    shell: Child,
    input: ChildStdin,
    output: Receiver<String>,
    what: String,
}

impl Terminal {
    pub(super) fn open(mut command: Command, what: &str) -> anyhow::Result<Self> {
        let mut shell = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("a shell for {what}"))?;
        let (input, output) = (shell.stdin.take(), shell.stdout.take());
        let mut input = input.context("the shell's input was asked for")?;
        let mut output = BufReader::new(output.context("the shell's output was asked for")?);
        let (lines, received) = channel();
        std::thread::spawn(move || {
            // A command may print anything.
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                line.clear();
                if lines.send(text).is_err() {
                    break;
                }
            }
        });
        // The first command that fails is the last one; what people see is one stream.
        input.write_all(b"exec 2>&1; set -e -o pipefail\n")?;
        Ok(Self { shell, input, output: received, what: what.to_owned() })
    }

    /// Runs a block of commands, each of which must succeed, and returns what they print. None of them is given an input.
    ///
    /// # Errors
    ///
    /// If one fails, or they take longer than `patience`, with what was printed. The terminal is of no use after that.
    pub fn run(&mut self, block: &str, patience: Duration) -> anyhow::Result<String> {
        let line = format!(". /dev/fd/3 3<<'{END}' </dev/null\n{block}\n{END}\nprintf '\\n%s\\n' '{DONE}'\n");
        self.input
            .write_all(line.as_bytes())
            .with_context(|| format!("the shell of {} has ended", self.what))?;
        let deadline = Instant::now() + patience;
        let mut printed: Vec<String> = Vec::new();
        loop {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line == DONE => return Ok(printed.join("\n").trim_end().to_owned()),
                Ok(line) => printed.push(line),
                Err(end) => {
                    let how = match end {
                        RecvTimeoutError::Timeout => format!("does not end within {patience:?}"),
                        RecvTimeoutError::Disconnected => "fails".to_owned(),
                    };
                    bail!("what {} runs {how}:\n{block}\n--- it prints:\n{}", self.what, printed.join("\n"));
                }
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It ends with its input, too, but not while it waits for a command.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
