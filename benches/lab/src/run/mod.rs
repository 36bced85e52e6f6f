//! A run of the lab: its id, its directory, and the removal of everything it made.
//!
//! All that a run makes can be found by its id alone: namespaces are called `mesh-<id>-<host>`, processes live in
//! those namespaces, and files stand in `/run/mesh-lab/<id>`. Removal therefore needs no memory of what was made
//! and is the same for a run that ends well and for one that was killed.
//!
//! A run is alive as long as it holds the lock on its directory's `lock` file. The kernel drops the lock with the
//! process, whatever it dies of, so a stale run is one whose lock can be taken.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::{self, Netns};
use crate::topology::{Network, Topology};

mod exit;
pub mod rootless;

/// Where runs keep their files.
const DIRECTORY: &str = "/run/mesh-lab";
/// What every namespace's name begins with.
const PREFIX: &str = "mesh-";
/// How long killed processes may take to leave their namespaces.
const KILL_PATIENCE: Duration = Duration::from_secs(3);
/// How often it is looked whether they have left.
const KILL_POLL: Duration = Duration::from_millis(5);

/// One run of the lab.
///
/// Cloning shares the run; everything is removed when the last clone, and the last [`Network`] built on it, is dropped.
#[derive(Debug, Clone)]
pub struct Lab {
    run: Arc<Run>,
}

impl Lab {
    /// Starts a run, and removes what runs that were killed have left.
    ///
    /// As a plain user, the program is started again as root of a user namespace of its own: see [`rootless`].
    ///
    /// # Errors
    ///
    /// If the machine does not let this user make namespaces, with the reason.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        rootless::become_root()?;
        exit::install();
        std::fs::create_dir_all(DIRECTORY).with_context(|| format!("{DIRECTORY} cannot be made"))?;
        // Held while runs are made and swept, so that no one sees a directory whose lock is not yet taken.
        let turn = File::create(Path::new(DIRECTORY).join(".turn"))?;
        turn.lock()?;
        for id in stale()? {
            tracing::info!(id, "removing what a dead run left");
            sweep(&id);
        }
        let run = Run::make(name)?;
        exit::register(&run.id);
        Ok(Self { run: Arc::new(run) })
    }

    /// The id that everything of this run carries.
    pub fn id(&self) -> &str {
        &self.run.id
    }

    /// The run's own directory, removed with it.
    pub fn directory(&self) -> &Path {
        &self.run.directory
    }

    /// Makes a namespace `mesh-<id>-<name>`.
    ///
    /// # Errors
    ///
    /// If the name is taken or the kernel refuses.
    pub fn namespace(&self, name: &str) -> anyhow::Result<Netns> {
        Netns::create(&format!("{PREFIX}{}-{name}", self.run.id))
    }

    /// Builds a network from its description.
    ///
    /// # Errors
    ///
    /// If the description is inconsistent or the kernel refuses a part of it.
    pub fn build(&self, topology: Topology) -> anyhow::Result<Network> {
        Network::build(self, topology)
    }
}

/// What the names of a run's namespaces begin with.
#[must_use]
pub fn namespace_prefix(id: &str) -> String {
    format!("{PREFIX}{id}-")
}

/// Where a run keeps its files.
#[must_use]
pub fn directory_of(id: &str) -> PathBuf {
    Path::new(DIRECTORY).join(id)
}

/// Removes everything that carries this run id: processes, namespaces, files. Never fails; it does what it can.
pub fn sweep(id: &str) {
    let names = netns::list(&namespace_prefix(id));
    let deadline = Instant::now() + KILL_PATIENCE;
    loop {
        let pids: Vec<i32> = names.iter().flat_map(|name| netns::processes(name)).collect();
        if pids.is_empty() || Instant::now() > deadline {
            break;
        }
        for pid in pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(KILL_POLL);
    }
    for name in names {
        if let Err(error) = netns::remove(&name) {
            tracing::warn!(name, %error, "a namespace is left behind");
        }
    }
    let _ = std::fs::remove_dir_all(directory_of(id));
}

/// The ids of runs that are no longer alive.
fn stale() -> anyhow::Result<Vec<String>> {
    let mut dead = Vec::new();
    for entry in std::fs::read_dir(DIRECTORY)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        // A directory without a lock file belongs to a run that died while it was being made.
        let alive = File::open(entry.path().join("lock")).is_ok_and(|lock| lock.try_lock().is_err());
        if let (false, Ok(id)) = (alive, entry.file_name().into_string()) {
            dead.push(id);
        }
    }
    Ok(dead)
}

#[derive(Debug)]
struct Run {
    id: String,
    directory: PathBuf,
    /// Locked as long as the run is alive.
    _lock: File,
}

impl Run {
    fn make(name: &str) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{name}.{}.{count}", std::process::id());
        let directory = directory_of(&id);
        std::fs::create_dir(&directory).with_context(|| format!("run directory {}", directory.display()))?;
        let lock = File::create_new(directory.join("lock"))?;
        lock.try_lock().context("lock of a new run")?;
        std::fs::write(directory.join("pid"), std::process::id().to_string())?;
        Ok(Self { id, directory, _lock: lock })
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            exit::show_logs(&self.directory);
        }
        sweep(&self.id);
        exit::unregister(&self.id);
    }
}
