//! What is found after the power has come back.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, OpenOptions},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Files in memory: what is written there is gone in a moment anyway.
const MEMORY: &str = "/dev/shm";

/// The content of a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    entries: BTreeMap<PathBuf, Found>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Found {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
}

/// Makes a directory that is removed when it is dropped, in memory where there is room for files.
///
/// # Errors
/// When there is no room at all.
pub fn workspace() -> io::Result<tempfile::TempDir> {
    tempfile::tempdir_in(MEMORY).or_else(|_| tempfile::tempdir())
}

impl Image {
    /// Adds what was found; without the directory that it is in, it is not found.
    pub(crate) fn insert(&mut self, path: PathBuf, found: Found) {
        let parent = path.parent().unwrap_or(Path::new(""));
        if parent.as_os_str().is_empty() || self.entries.contains_key(parent) {
            self.entries.insert(path, found);
        }
    }

    /// Returns a number that no other image has, by all probability.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.entries.hash(&mut hasher);
        hasher.finish()
    }

    /// Puts everything into an empty directory.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write_to(&self, root: &Path) -> io::Result<()> {
        for (path, found) in &self.entries {
            let path = root.join(path);
            match found {
                Found::Directory { mode } => DirBuilder::new().mode(*mode).create(path)?,
                Found::File { mode, content } => {
                    let mut options = OpenOptions::new();
                    options.write(true).create_new(true).mode(*mode).open(path)?.write_all(content)?;
                }
            }
        }
        Ok(())
    }

    /// Says what is there, without the contents.
    #[must_use]
    pub fn listing(&self) -> String {
        let lines = self.entries.iter().map(|(path, found)| match found {
            Found::Directory { .. } => format!("{}/", path.display()),
            Found::File { content, .. } => format!("{} ({} bytes)", path.display(), content.len()),
        });
        lines.collect::<Vec<_>>().join(", ")
    }
}

/// Removes everything from a directory.
pub(crate) fn empty(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
