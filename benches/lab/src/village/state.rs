//! What a village in the background tells those who want to look inside: one JSON file.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::process::Surroundings;

/// A running village, as its state file says it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The supervisor's process id.
    pub pid: u32,
    /// When that process was started, in the kernel's ticks, so that another one with its id is not taken for it.
    pub started: u64,
    /// Whether it lives in a user namespace of its own.
    pub rootless: bool,
    /// The id of the run.
    pub run: String,
    /// The control socket.
    pub control: PathBuf,
    /// The `meshctl` to look inside with.
    pub meshctl: PathBuf,
    /// The nodes, by name.
    pub nodes: Vec<NodeState>,
}

/// A node of a running village.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// Its mesh address.
    pub address: String,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Where its processes live.
    pub surroundings: Surroundings,
}

impl State {
    /// Reads a state file; `None` if there is none, or its village is no longer alive.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or is something else.
    pub fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("state file {}", path.display())),
        };
        let state: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no state of a village", path.display()))?;
        let is_alive = start_time(state.pid).is_some_and(|started| started == state.started);
        Ok(is_alive.then_some(state))
    }

    /// Reads the state of a village that must be there.
    ///
    /// # Errors
    ///
    /// If there is none, or as [`State::read`].
    pub fn expect(path: &Path) -> anyhow::Result<Self> {
        Self::read(path)?.with_context(|| format!("no village is up (by {})", path.display()))
    }

    /// Writes the file in one step, so that no one reads half of it.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let next = path.with_extension("next");
        let mut file =
            std::fs::File::create(&next).with_context(|| format!("state file {}", next.display()))?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&next, path).with_context(|| format!("state file {}", path.display()))
    }

    /// A node by name.
    ///
    /// # Errors
    ///
    /// If there is none of that name; with those that there are.
    pub fn node(&self, name: &str) -> anyhow::Result<&NodeState> {
        if let Some(node) = self.nodes.iter().find(|node| node.name == name) {
            return Ok(node);
        }
        let names: Vec<_> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        bail!("there is no node {name}, only {}", names.join(", "))
    }
}

/// Where the state file is unless told otherwise: in `/run` for root, in a private directory of `/tmp` for others.
///
/// # Errors
///
/// If the directory cannot be made.
pub fn default_path() -> anyhow::Result<PathBuf> {
    let user = nix::unistd::geteuid();
    let directory = match user.is_root() && !crate::run::rootless::is_second() {
        true => PathBuf::from("/run/mesh-lab"),
        false => PathBuf::from(format!("/tmp/mesh-lab-{user}")),
    };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.with_context(|| format!("directory {}", directory.display()))?;
    // In /tmp, anyone may have been there first.
    if std::fs::symlink_metadata(&directory)?.uid() != user.as_raw() {
        bail!("{} belongs to another user", directory.display());
    }
    Ok(directory.join("village.json"))
}

/// When a process was started, in ticks since boot (field 22 of its `stat`, the 20th after the name).
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}
