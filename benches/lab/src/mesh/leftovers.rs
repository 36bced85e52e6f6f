//! What a mesh leaves on its hosts after it has stopped.

use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use super::Mesh;
use crate::topology::Footprint;

/// What stood on every host of a mesh before its daemons were started.
#[derive(Debug)]
pub struct Before {
    footprints: Vec<Footprint>,
}

impl Mesh {
    /// Looks at every host, so that [`Mesh::leftovers`] can compare.
    ///
    /// # Errors
    ///
    /// If the tools that show it cannot be run.
    pub fn before(&self) -> anyhow::Result<Before> {
        Ok(Before { footprints: self.footprints()? })
    }

    /// What the daemons have left, who must all have ended: processes, interfaces, addresses, routes, rules, filters,
    /// and sockets in namespaces and directories.
    ///
    /// # Errors
    ///
    /// If the tools that show it cannot be run.
    pub fn leftovers(&self, before: &Before) -> anyhow::Result<Vec<String>> {
        let mut left: Vec<String> = Vec::new();
        for (now, before) in self.footprints()?.iter().zip(&before.footprints) {
            left.extend(now.since(before));
        }
        let directories = self.nodes().map(|node| node.directory().to_owned());
        for directory in directories.chain([self.coordinator_dir().clone()]) {
            sockets(&directory, &mut left);
        }
        Ok(left)
    }

    /// All hosts are looked at, also those without a daemon, for packets may leave traces anywhere.
    fn footprints(&self) -> anyhow::Result<Vec<Footprint>> {
        self.network().hosts().map(crate::topology::Host::footprint).collect()
    }
}

/// Socket files in a directory and those below it.
fn sockets(directory: &Path, found: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            sockets(&entry.path(), found);
        } else if kind.is_socket() {
            found.push(format!("socket {}", entry.path().display()));
        }
    }
}
