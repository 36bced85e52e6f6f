//! Processes inside namespaces.
//!
//! A process gets the network namespace of its host, a private mount namespace in which `/etc/resolv.conf`,
//! `/etc/hosts` and `/sys` are the host's own, and a UTS namespace with the host's name. It leads a process group of
//! its own, is killed when its [`Process`] is dropped, and dies with the lab even if the lab is killed (see `spawner`).

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

mod enter;
mod pidfd;
mod spawner;

pub use enter::Surroundings;

/// How long [`HostCommand::output`] waits unless told otherwise.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(30);

/// What daemons log is set by this variable of the lab, for those who look for something.
const LOG_VARIABLE: &str = "MESH_LAB_LOG";

/// A program to be run on a host.
#[derive(Debug)]
pub struct HostCommand {
    command: std::process::Command,
    surroundings: Surroundings,
    logs: PathBuf,
    patience: Duration,
    descriptors: Vec<OwnedFd>,
}

impl HostCommand {
    pub(crate) fn new(program: &OsStr, surroundings: Surroundings, logs: PathBuf) -> Self {
        let mut command = std::process::Command::new(program);
        // The settings of whoever runs the lab are not the host's.
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("MESH_") {
                command.env_remove(key);
            }
        }
        if let Some(filter) = std::env::var_os(LOG_VARIABLE) {
            command.env("MESH_LOG", filter);
        }
        Self { command, surroundings, logs, patience: OUTPUT_PATIENCE, descriptors: Vec::new() }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Sets how long [`HostCommand::output`] waits before it kills the process.
    #[must_use]
    pub fn timeout(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Passes descriptors on, as 3, 4 and so on.
    #[must_use]
    pub fn descriptors(mut self, descriptors: Vec<OwnedFd>) -> Self {
        self.descriptors = descriptors;
        self
    }

    /// Starts the process with its output appended to `<run>/logs/<log>.log`.
    ///
    /// # Errors
    ///
    /// If the log cannot be opened or the program cannot be started.
    pub fn spawn(mut self, log: &str) -> anyhow::Result<Process> {
        std::fs::create_dir_all(&self.logs)?;
        let path = self.logs.join(format!("{log}.log"));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("log {}", path.display()))?;
        self.command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        self.start(path)
    }

    /// Runs the process to its end and returns what it printed.
    ///
    /// # Errors
    ///
    /// If the program cannot be started, or does not end in time; then it is killed. A failure exit is no error.
    pub fn output(mut self) -> anyhow::Result<Finished> {
        let what = self.line();
        let patience = self.patience;
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let process = self.start(PathBuf::new())?;
        let (stdout, stderr) = {
            let mut child = process.child();
            (child.stdout.take(), child.stderr.take())
        };
        std::thread::scope(|scope| {
            let stdout = scope.spawn(|| drain(stdout));
            let stderr = scope.spawn(|| drain(stderr));
            let status = process.wait_timeout(patience)?;
            if status.is_none() {
                process.kill(Signal::SIGKILL)?;
            }
            let text = |thread: std::thread::ScopedJoinHandle<'_, io::Result<String>>| {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("reader of {what} panicked"))?
                    .map_err(anyhow::Error::from)
            };
            let (stdout, stderr) = (text(stdout)?, text(stderr)?);
            let Some(status) = status else {
                bail!("{what} did not end within {patience:?}\n{stdout}{stderr}")
            };
            Ok(Finished { what: what.clone(), status, stdout, stderr })
        })
    }

    /// Runs the process in the foreground, with the terminal of the caller.
    ///
    /// # Errors
    ///
    /// If the program cannot be started.
    pub fn interactive(mut self) -> anyhow::Result<ExitStatus> {
        let what = self.line();
        enter::prepare(&mut self.command, &self.surroundings, self.descriptors)?;
        self.command.status().with_context(|| format!("{what} cannot be run"))
    }

    fn line(&self) -> String {
        let words: Vec<_> =
            std::iter::once(self.command.get_program()).chain(self.command.get_args()).collect();
        words.join(OsStr::new(" ")).to_string_lossy().into_owned()
    }

    fn start(mut self, log: PathBuf) -> anyhow::Result<Process> {
        use std::os::unix::process::CommandExt as _;
        let what = self.line();
        enter::prepare(&mut self.command, &self.surroundings, self.descriptors)?;
        self.command.process_group(0);
        let child = spawner::spawn(self.command).with_context(|| format!("{what} cannot be started"))?;
        let group = Pid::from_raw(child.id().cast_signed());
        Ok(Process { child: Mutex::new(child), group, log })
    }
}

/// What a process that ran to its end left.
#[derive(Debug, Clone)]
pub struct Finished {
    what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Finished {
    /// What a program left that was not run by a [`HostCommand`].
    pub(crate) fn new(what: String, output: &std::process::Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { what, status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// The exit code, or 128 and the signal's number as a shell says it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Turns a failure exit into an error that carries all output.
    ///
    /// # Errors
    ///
    /// If the exit code was not 0.
    pub fn success(self) -> anyhow::Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!("{} ended with {}\n{}{}", self.what, self.code(), self.stdout, self.stderr)
    }
}

/// A process that runs on a host; its whole group is killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Child>,
    group: Pid,
    log: PathBuf,
}

impl Process {
    /// The process id.
    pub fn pid(&self) -> i32 {
        self.group.as_raw()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends a signal to the process and its children.
    ///
    /// # Errors
    ///
    /// If the process has ended and been waited for.
    pub fn kill(&self, signal: Signal) -> anyhow::Result<()> {
        killpg(self.group, signal).with_context(|| format!("{signal} to process {}", self.group))
    }

    /// Waits until the process ends, at most `patience`; `None` if it still runs then.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to wait.
    pub fn wait_timeout(&self, patience: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + patience;
        if let Some(status) = self.child().try_wait()? {
            return Ok(Some(status));
        }
        let watch = pidfd::open(self.group)?;
        while !pidfd::wait(watch.as_fd(), deadline.saturating_duration_since(Instant::now()))? {
            if Instant::now() >= deadline {
                return Ok(None);
            }
        }
        Ok(self.child().try_wait()?)
    }

    /// Whether the process has not ended yet.
    pub fn is_running(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = killpg(self.group, Signal::SIGKILL);
        let _ = child.wait();
    }
}

fn drain(pipe: Option<impl Read>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
