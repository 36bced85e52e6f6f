//! What the daemons logged in the slowest trial of a kind, kept for whoever wants to know why it was slow.
//!
//! How much they log is set as everywhere in the lab: `MESH_LAB_LOG=mesh_agent=debug,mesh_engine=trace make bench-roam`.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_lab::mesh::Daemon;

use super::{Kind, PATIENCE, Sample};

/// Where the logs are kept, from this crate's folder: a folder for each kind, a file for each daemon.
const FOLDER: &str = "../target/bench/roam";

/// The logs of the slowest trial so far.
pub(super) struct Slowest<'a> {
    folder: PathBuf,
    /// Every daemon, and how long its log was when the present trial began.
    logs: Vec<(&'a Daemon, u64)>,
    worst: Option<Duration>,
}

impl<'a> Slowest<'a> {
    /// Begins with the first trial of a kind.
    pub(super) fn new(kind: Kind, daemons: Vec<&'a Daemon>) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER).join(kind.name());
        let mut slowest =
            Self { folder, logs: daemons.into_iter().map(|daemon| (daemon, 0)).collect(), worst: None };
        slowest.begin();
        slowest
    }

    /// A trial begins.
    pub(super) fn begin(&mut self) {
        for (daemon, length) in &mut self.logs {
            *length = std::fs::metadata(daemon.log_path()).map_or(0, |file| file.len());
        }
    }

    /// The trial has ended: its logs are kept if none before it was as slow.
    ///
    /// # Errors
    ///
    /// If they cannot be written.
    pub(super) fn end(&mut self, trial: usize, sample: &Sample) -> anyhow::Result<()> {
        let took = sample.reply.unwrap_or(PATIENCE).max(sample.direct.flatten().unwrap_or_default());
        if self.logs.is_empty() || self.worst.is_some_and(|worst| took <= worst) {
            return Ok(());
        }
        self.worst = Some(took);
        std::fs::create_dir_all(&self.folder)?;
        std::fs::write(self.folder.join("trial.txt"), format!("{trial}: {sample:?}\n"))?;
        for (daemon, length) in &self.logs {
            // A daemon that was never started has no log.
            let Ok(mut log) = File::open(daemon.log_path()) else { continue };
            log.seek(SeekFrom::Start(*length))?;
            let mut lines = Vec::new();
            log.read_to_end(&mut lines)?;
            std::fs::write(self.folder.join(format!("{}.log", daemon.name())), lines)?;
        }
        Ok(())
    }
}
