//! Where the coordinator's state is kept: revisioned key-values with etcd's semantics.
//!
//! The store has one *revision*, which rises by one with every transaction that changes something. A
//! [`Transaction`] is a list of comparisons and a list of operations: when every comparison holds, all
//! operations are applied at once and get the same revision, and when [`Store::commit`] has returned they
//! survive a crash; when one does not hold, nothing happens. Every change is kept in a history until it is
//! compacted, so that a [`Watch`] can start at any revision that is not, and sees every change exactly once
//! and in order.
//!
//! Nothing here knows what a node is, and nothing above it knows what SQL is: [`sqlite`] is embedded and the
//! default, [`memory`] serves tests, and etcd can be put behind the same trait when one machine is not enough.

use std::{error::Error, fmt, future::Future, path::PathBuf, pin::Pin};

#[cfg(test)]
mod conformance;
pub mod memory;
pub mod sqlite;

/// A point in the history of a store; 0 is before the first change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

/// A key with its value, and when it changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// When the key was made; a key that is deleted and put again is made again.
    pub create_revision: Revision,
    /// When the value was last put.
    pub mod_revision: Revision,
}

/// The keys of a range, all at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The store's revision when they were read.
    pub revision: Revision,
    /// The keys, in ascending order.
    pub entries: Vec<KeyValue>,
}

/// What must hold for a transaction to be applied: the key was last put at this revision, or, with
/// revision 0, does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// Its `mod_revision`, or 0.
    pub mod_revision: Revision,
}

/// One operation of a transaction.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets the value of a key.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
    },
    /// Deletes a key; nothing happens if there is none.
    Delete {
        /// The key.
        key: String,
    },
}

/// Operations that are applied all or none, if every comparison holds. A key may occur in one operation only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is done.
    pub ops: Vec<Op>,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied; the store is at this revision.
    Committed(Revision),
    /// A comparison did not hold; nothing was changed.
    Conflict,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When it happened.
    pub revision: Revision,
    /// The key.
    pub key: String,
    /// Its new value; `None` when the key was deleted.
    pub value: Option<Vec<u8>>,
}

/// Changes that a watch saw. Those of one revision are in the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The watch has seen everything up to and including this revision.
    pub revision: Revision,
    /// The changes in order; empty when others than the watched keys changed.
    pub events: Vec<Event>,
}

/// Why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The history before this revision is gone: start from a [`Snapshot`].
    #[error("the history up to revision {} is compacted", compacted.0)]
    Compacted {
        /// The last revision that is gone.
        compacted: Revision,
    },
    /// A transaction changes one key twice.
    #[error("the transaction changes the key {key} twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// The file or directory could not be used.
    #[error("{}: {cause}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The file is not private.
    #[error("{}: has mode {mode:04o}, but must be readable by its owner alone: chmod 600 it", path.display())]
    Mode {
        /// Which one.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is damaged, truncated, or something else.
    #[error("{}: not a usable coordinator database: {reason}; restore it from a backup", path.display())]
    Damaged {
        /// Which one.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file was written by a newer program.
    #[error(
        "{}: has schema version {found}, this program knows up to {known}: install the newer mesh-coordinator",
        path.display()
    )]
    FutureSchema {
        /// Which one.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version that this program knows.
        known: u32,
    },
    /// Another process has it open.
    #[error("{}: in use by another mesh-coordinator", path.display())]
    InUse {
        /// Which one.
        path: PathBuf,
    },
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
    /// What keeps the data failed.
    #[error("the store failed: {0}")]
    Backend(Box<dyn Error + Send + Sync>),
}

/// What an operation of a store returns.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Revisioned key-values; see the module for the semantics.
///
/// An operation whose future is dropped may or may not happen, but never by half.
pub trait Store: Send + Sync + 'static {
    /// Returns one key as it is now.
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<KeyValue>>;

    /// Returns all keys that begin with `prefix` as they are now.
    fn range<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Snapshot>;

    /// Applies a transaction. One without effect (no operation, or only deletions of keys that do not
    /// exist) is committed at the revision that the store is at.
    fn commit(&self, transaction: Transaction) -> StoreFuture<'_, Outcome>;

    /// Watches the keys that begin with `prefix`, from the changes of revision `from` on. Fails with
    /// [`StoreError::Compacted`] when they are gone.
    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> StoreFuture<'a, Box<dyn Watch>>;

    /// Forgets the history up to and including `revision`; the present values stay.
    fn compact(&self, revision: Revision) -> StoreFuture<'_, ()>;

    /// Puts everything in its place and lets go of it; nothing is to be asked of it after that. A store that is
    /// not closed loses nothing.
    fn close(&self) -> StoreFuture<'_, ()>;
}

/// The changes of a range of keys, as they happen.
pub trait Watch: Send {
    /// Waits for changes. It may be dropped and called again: nothing is lost. It fails with
    /// [`StoreError::Compacted`] when the watch fell behind the compaction.
    fn next(&mut self) -> StoreFuture<'_, Batch>;
}

impl Revision {
    /// Returns the revision of the following change.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Op {
    /// Returns the key that is operated on.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

impl Transaction {
    /// Checks that no key is changed twice.
    ///
    /// # Errors
    /// When one is.
    pub fn check(&self) -> Result<(), StoreError> {
        let mut keys: Vec<_> = self.ops.iter().map(Op::key).collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(StoreError::DuplicateKey { key: pair[0].to_owned() }),
            None => Ok(()),
        }
    }
}

/// Checks that the changes of revision `from` are still kept.
fn check_kept(from: Revision, compacted: Revision) -> Result<(), StoreError> {
    if compacted > Revision(0) && from <= compacted {
        Err(StoreError::Compacted { compacted })
    } else {
        Ok(())
    }
}

/// Values are not shown: some of them are secret.
impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { key, value } => {
                f.debug_struct("Put").field("key", key).field("len", &value.len()).finish()
            }
            Self::Delete { key } => f.debug_struct("Delete").field("key", key).finish(),
        }
    }
}
