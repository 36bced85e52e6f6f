//! What can happen to a directory.

use std::{path::PathBuf, sync::Arc};

/// A file, whatever its names are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub(crate) u32);

/// One thing that happened. Paths are relative to the recorded directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A new, empty file.
    Create {
        /// Its name.
        path: PathBuf,
        /// The file.
        file: FileId,
        /// Its permission bits.
        mode: u32,
    },
    /// Bytes were written.
    Write {
        /// Into which file.
        file: FileId,
        /// From where on.
        offset: u64,
        /// What.
        bytes: Arc<[u8]>,
    },
    /// A file was cut off, or grew by zeros.
    Resize {
        /// Which one.
        file: FileId,
        /// Its length since.
        len: u64,
    },
    /// A file was synced.
    Sync {
        /// Which one.
        file: FileId,
    },
    /// A file could not be synced: nobody knows what of it is safe.
    SyncFailed {
        /// Which one.
        file: FileId,
    },
    /// A directory was synced.
    SyncDirectory {
        /// Which one.
        path: PathBuf,
    },
    /// A file or directory got another name, perhaps in place of another file.
    Rename {
        /// The name before.
        from: PathBuf,
        /// The name since.
        to: PathBuf,
    },
    /// A file got a second name.
    Link {
        /// The name that it had.
        from: PathBuf,
        /// The new one.
        to: PathBuf,
    },
    /// A name was removed.
    Remove {
        /// Which one.
        path: PathBuf,
    },
    /// A new directory.
    MakeDirectory {
        /// Its name.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Whoever asked for a change was told that it is done.
    Acknowledged(u64),
}
