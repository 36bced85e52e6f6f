//! A process that is killed and started again.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use crate::process::Process;
use crate::topology::{Host, Network};

/// How long a daemon may take to stop when it is asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// A daemon on a host: what is run, and the process if it runs.
#[derive(Debug)]
pub struct Daemon {
    network: Arc<Network>,
    host: String,
    program: PathBuf,
    args: Vec<OsString>,
    log: String,
    process: Mutex<Option<Process>>,
}

impl Daemon {
    pub(crate) fn new(network: Arc<Network>, host: &str, program: PathBuf, args: Vec<OsString>) -> Self {
        let kind = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = format!("{host}-{}", kind.trim_start_matches("mesh-"));
        Self { network, host: host.to_owned(), program, args, log, process: Mutex::new(None) }
    }

    /// What it is called in logs: its host, and what it is.
    pub fn name(&self) -> &str {
        &self.log
    }

    /// The host on which it runs.
    ///
    /// # Errors
    ///
    /// If the network has no such host.
    pub fn host(&self) -> anyhow::Result<&Host> {
        self.network.host(&self.host)
    }

    /// What is run, and with which arguments.
    pub(super) fn line(&self) -> impl Iterator<Item = &OsStr> {
        std::iter::once(self.program.as_os_str()).chain(self.args.iter().map(OsString::as_os_str))
    }

    /// Starts it, unless it runs already.
    ///
    /// # Errors
    ///
    /// If the program cannot be started.
    pub fn start(&self) -> anyhow::Result<()> {
        let mut process = self.process();
        if process.as_ref().is_some_and(Process::is_running) {
            return Ok(());
        }
        *process = Some(self.host()?.command(&self.program).args(&self.args).spawn(&self.log)?);
        Ok(())
    }

    /// Sends it a signal. After SIGKILL it is waited for.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill(&self, signal: Signal) -> anyhow::Result<()> {
        let process = self.process();
        let running = process.as_ref().with_context(|| format!("{} does not run", self.log))?;
        running.kill(signal)?;
        if signal == Signal::SIGKILL {
            running.wait_timeout(STOP_PATIENCE)?;
        }
        Ok(())
    }

    /// Asks it to stop and waits for its end.
    ///
    /// # Errors
    ///
    /// If it does not stop in time (then it is killed), or ends with a failure.
    pub fn stop(&self) -> anyhow::Result<()> {
        let Some(process) = self.process().take() else { return Ok(()) };
        if process.is_running() {
            process.kill(Signal::SIGTERM)?;
        }
        match process.wait_timeout(STOP_PATIENCE)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("{} ended with {status}", self.log),
            None => bail!("{} did not stop within {STOP_PATIENCE:?}", self.log),
        }
    }

    /// Stops it in order and starts it again.
    ///
    /// # Errors
    ///
    /// As [`Daemon::stop`] and [`Daemon::start`].
    pub fn restart(&self) -> anyhow::Result<()> {
        self.stop()?;
        self.start()
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.process().as_ref().is_some_and(Process::is_running)
    }

    /// Its process id, if it runs.
    pub fn pid(&self) -> Option<i32> {
        self.process().as_ref().filter(|process| process.is_running()).map(Process::pid)
    }

    /// All it has logged, over all its lives.
    ///
    /// # Errors
    ///
    /// If it was never started.
    pub fn log(&self) -> anyhow::Result<String> {
        let path = self.log_path();
        let bytes = std::fs::read(&path).with_context(|| format!("log {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The file that it logs to, over all its lives; it is there once it was started.
    pub fn log_path(&self) -> PathBuf {
        self.network.lab().directory().join("logs").join(format!("{}.log", self.log))
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
