//! What a report of a problem needs of the process itself.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::Context;
use mesh_proto::{netmap::NetworkMap, status::Timestamp};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    config::RunConfig,
    local_api::{Report, StateFileInfo},
    logs::RecentLogs,
};

/// Permission bits of a file's mode.
const PERMISSIONS: u32 = 0o7777;

/// Remembers how the process was started, and what it has logged.
pub(super) struct Reporter {
    config: RunConfig,
    started: OffsetDateTime,
    logs: RecentLogs,
}

impl Reporter {
    /// Makes one at the process's start.
    pub(super) fn new(config: &RunConfig, logs: &RecentLogs) -> Self {
        Self { config: config.clone(), started: OffsetDateTime::now_utc(), logs: logs.clone() }
    }

    /// Reports, with the map that is known.
    ///
    /// # Errors
    /// When the state directory cannot be read.
    pub(super) fn report(&self, map: &NetworkMap) -> anyhow::Result<Report> {
        Ok(Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: timestamp(self.started).unwrap_or_default(),
            pid: std::process::id(),
            config: format!("{:#?}", self.config),
            state: state_files(&self.config.state_dir).context("cannot list the state directory")?,
            map: map.clone(),
            logs: self.logs.text(),
        })
    }
}

/// Lists the files of a state directory; what comes or goes meanwhile is left out.
fn state_files(dir: &Path) -> std::io::Result<Vec<StateFileInfo>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(metadata) = entry.metadata() else { continue };
        files.push(StateFileInfo {
            name: entry.file_name().to_string_lossy().into_owned(),
            len: metadata.len(),
            mode: format!("{:o}", metadata.permissions().mode() & PERMISSIONS),
            modified: metadata.modified().ok().and_then(|at| timestamp(at.into())),
        });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}

/// `None` for years that RFC 3339 cannot write.
fn timestamp(at: OffsetDateTime) -> Option<Timestamp> {
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).ok()
}
