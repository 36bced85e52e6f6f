//! Leaving a village running in the background.
//!
//! [`up`] starts this program once more as the supervisor, which builds the village, writes the state file and then
//! answers its control socket until a signal ends it; the run's exit handlers remove everything. [`down`] sends that
//! signal.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::state::{NodeState, State, start_time};
use super::{Village, control};
use crate::run::{Lab, rootless};

/// How long the village may take to come up, on a busy machine.
const UP_PATIENCE: Duration = Duration::from_secs(90);
/// How long it may take to be removed.
const DOWN_PATIENCE: Duration = Duration::from_secs(15);
/// How often it is looked whether it is up, or gone.
const POLL: Duration = Duration::from_millis(50);

/// Starts a supervisor and waits until its village is up.
///
/// # Errors
///
/// If one is up already, or this one fails; then with its log.
pub fn up(path: &Path) -> anyhow::Result<State> {
    if let Some(state) = State::read(path)? {
        bail!("a village is up already (process {}); `mesh-lab village down` removes it", state.pid);
    }
    let _ = std::fs::remove_file(path);
    let log_path = path.with_extension("log");
    let log = File::create(&log_path).with_context(|| format!("log {}", log_path.display()))?;
    let mut supervisor = Command::new(std::env::current_exe()?)
        .args(["village", "supervise", "--state"])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("the supervisor cannot be started")?;
    let deadline = Instant::now() + UP_PATIENCE;
    loop {
        if let Some(state) = State::read(path)? {
            return Ok(state);
        }
        let ended = supervisor.try_wait()?;
        if ended.is_some() || Instant::now() > deadline {
            let _ = kill(Pid::from_raw(supervisor.id().cast_signed()), Signal::SIGTERM);
            let said = std::fs::read_to_string(&log_path).unwrap_or_default();
            bail!("the village does not come up\n{said}");
        }
        std::thread::sleep(POLL);
    }
}

/// Ends a village and waits until it is gone.
///
/// # Errors
///
/// If none is up, or it does not end.
pub fn down(path: &Path) -> anyhow::Result<()> {
    let state = State::expect(path)?;
    kill(Pid::from_raw(state.pid.cast_signed()), Signal::SIGTERM)
        .context("the supervisor cannot be told to stop")?;
    let deadline = Instant::now() + DOWN_PATIENCE;
    while start_time(state.pid).is_some_and(|started| started == state.started) && !is_zombie(state.pid) {
        if Instant::now() > deadline {
            bail!("the supervisor (process {}) does not stop", state.pid);
        }
        std::thread::sleep(POLL);
    }
    let _ = std::fs::remove_file(&state.control);
    let _ = std::fs::remove_file(path.with_extension("log"));
    std::fs::remove_file(path).with_context(|| format!("state file {}", path.display()))
}

/// Is the supervisor: builds the village and serves it until a signal comes.
///
/// # Errors
///
/// If the village does not come up.
pub fn supervise(path: &Path) -> anyhow::Result<()> {
    let lab = Lab::new("village")?;
    let village = Village::start(&lab)?;
    let pid = std::process::id();
    let node = |node: &crate::mesh::Node| -> anyhow::Result<NodeState> {
        Ok(NodeState {
            name: node.name().to_owned(),
            address: node.address()?.to_string(),
            socket: node.socket(),
            surroundings: node.host().surroundings(),
        })
    };
    let state = State {
        pid,
        started: start_time(pid).context("start time of this process")?,
        rootless: rootless::is_second(),
        run: lab.id().to_owned(),
        control: path.with_extension("sock"),
        meshctl: village.binaries().meshctl.clone(),
        nodes: village.nodes().map(node).collect::<anyhow::Result<_>>()?,
    };
    state.write(path)?;
    control::serve(&state.control, &village)
}

/// Whether a process has ended and only waits to be collected.
fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('Z'))
}
