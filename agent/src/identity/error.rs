//! What may be wrong with the state directory: every error names the file.

use std::{io, path::PathBuf};

/// Why the state of this node cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is no state.
    #[error("{}: this node has not joined a mesh: run `mesh-agent join`", dir.display())]
    NotJoined {
        /// The state directory.
        dir: PathBuf,
    },
    /// The state directory is something else.
    #[error("{}: the state directory is {what}", path.display())]
    NotADirectory {
        /// Its path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Others may read a secret or write into the directory.
    #[error("{}: has mode {mode:04o}, which lets others in: run `chmod {wanted:o} {}`", path.display(), path.display())]
    Mode {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        wanted: u32,
    },
    /// Another user owns a secret.
    #[error("{}: belongs to user {owner}, this is user {user}", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who reads it.
        user: u32,
    },
    /// A file that has to be there is not.
    #[error("{}: is missing, and this node's identity with it: put it back, or remove the whole directory and join again", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file's content is not what was written.
    #[error("{}: is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In which way.
        why: DamageKind,
    },
    /// Two files of the directory do not belong together.
    #[error("{}: belongs to another node than {}", path.display(), other.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The file that it contradicts.
        other: PathBuf,
    },
    /// Another process uses the directory.
    #[error("{}: the state directory is in use by another mesh-agent", path.display())]
    InUse {
        /// The state directory.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// In which way a state file is damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DamageKind {
    /// The first line is not a header.
    #[error("it has no header")]
    Header,
    /// The header is of a later format.
    #[error("it was written by a later version ({0})")]
    Format(String),
    /// It is a state file of another kind.
    #[error("it holds {0:?}")]
    Kind(String),
    /// The content does not match the checksum.
    #[error("its checksum does not match")]
    Checksum,
    /// The content matches the checksum, but is not understood.
    #[error("its content is not understood: {0}")]
    Content(String),
    /// The file is longer than any state file.
    #[error("it is {0} bytes long")]
    Length(u64),
}

impl StateError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
