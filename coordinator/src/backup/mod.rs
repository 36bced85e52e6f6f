//! Backups: everything that makes a coordinator, in one private file.
//!
//! A backup is taken from the running coordinator and holds the store as it was at one revision, and the coordinator's
//! key: with both another machine can take over, and agents trust it. A [`restore()`] makes a state directory of it.
//!
//! ```text
//! mesh-coordinator-backup 1 <SHA-256 of the rest, in hexadecimal>
//! {"created":"…","identity":"…","revision":17,"entries":[{"key":"meta/mesh","value":"…",…},…]}
//! ```

use std::{fmt, io, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use zeroize::Zeroizing;

use crate::{
    identity::Identity,
    store::{KeyValue, Revision, Snapshot},
};

mod restore;

pub use self::restore::{RestoreError, Restored, restore, resume};

/// Begins the first line; the number is the format's.
const MAGIC: &str = "mesh-coordinator-backup 1 ";

/// Length of a SHA-256 in hexadecimal.
const DIGEST_LEN: usize = 64;

/// A backup holds the coordinator's key.
const MODE: u32 = 0o600;

/// A coordinator, as it was at one moment.
pub struct Backup {
    /// Who it is.
    pub identity: Identity,
    /// What it knows.
    pub snapshot: Snapshot,
}

/// Why bytes are no backup.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BackupError {
    /// They are something else, or of another version of this program.
    #[error("it is not a backup of mesh-coordinator that this version can read")]
    Foreign,
    /// They are not as they were written.
    #[error("it is damaged or cut off")]
    Damaged,
    /// A value of the store is not text.
    #[error("the value of {0} is not text")]
    NotText(String),
}

#[derive(Serialize, Deserialize)]
struct Document {
    created: String,
    identity: String,
    revision: u64,
    entries: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: String,
    value: String,
    create_revision: u64,
    mod_revision: u64,
}

impl Backup {
    /// Writes it as text.
    ///
    /// # Errors
    /// When the store holds what no registry puts there.
    pub fn encode(&self, now: OffsetDateTime) -> Result<Zeroizing<Vec<u8>>, BackupError> {
        let entries = self.snapshot.entries.iter().map(|entry| {
            Ok(Entry {
                key: entry.key.clone(),
                value: String::from_utf8(entry.value.clone())
                    .map_err(|_| BackupError::NotText(entry.key.clone()))?,
                create_revision: entry.create_revision.0,
                mod_revision: entry.mod_revision.0,
            })
        });
        let document = Document {
            created: now.format(&Rfc3339).map_err(|_| BackupError::Damaged)?,
            identity: BASE64.encode(&self.identity.pkcs8[..]),
            revision: self.snapshot.revision.0,
            entries: entries.collect::<Result<_, _>>()?,
        };
        let text = Zeroizing::new(serde_json::to_vec(&document).map_err(|_| BackupError::Damaged)?);
        let head = format!("{MAGIC}{}\n", hex::encode(Sha256::digest(&text)));
        Ok(Zeroizing::new([head.as_bytes(), &text, b"\n"].concat()))
    }

    /// Reads what [`Backup::encode`] has written.
    ///
    /// # Errors
    /// When a single bit is another one.
    pub fn decode(bytes: &[u8]) -> Result<Self, BackupError> {
        let rest = bytes.strip_prefix(MAGIC.as_bytes()).ok_or(BackupError::Foreign)?;
        let (digest, rest) = rest.split_at_checked(DIGEST_LEN).ok_or(BackupError::Damaged)?;
        let text = rest.strip_prefix(b"\n").and_then(|rest| rest.strip_suffix(b"\n"));
        let text = text.ok_or(BackupError::Damaged)?;
        if hex::encode(Sha256::digest(text)).as_bytes() != digest {
            return Err(BackupError::Damaged);
        }
        let document: Document = serde_json::from_slice(text).map_err(|_| BackupError::Foreign)?;
        let pkcs8 = BASE64.decode(document.identity.as_bytes()).map_err(|_| BackupError::Damaged)?;
        let identity = Identity::from_pkcs8(Zeroizing::new(pkcs8)).ok_or(BackupError::Damaged)?;
        let entries = document.entries.into_iter().map(|entry| KeyValue {
            key: entry.key,
            value: entry.value.into_bytes(),
            create_revision: Revision(entry.create_revision),
            mod_revision: Revision(entry.mod_revision),
        });
        let snapshot = Snapshot { revision: Revision(document.revision), entries: entries.collect() };
        Ok(Self { identity, snapshot })
    }
}

impl fmt::Debug for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backup").field("revision", &self.snapshot.revision).finish_non_exhaustive()
    }
}

/// Writes a backup to a file, in place of one that is there: it is the old one or the new one, whole, at any time.
///
/// # Errors
/// When the system refuses.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    mesh_durable::replace(path, MODE, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(dir: &Path) -> Backup {
        let entry = KeyValue {
            key: "meta/mesh".to_owned(),
            value: "{\"a\":\"ä\"}".into(),
            create_revision: Revision(1),
            mod_revision: Revision(3),
        };
        let snapshot = Snapshot { revision: Revision(4), entries: vec![entry] };
        Backup { identity: Identity::load_or_create(dir).unwrap(), snapshot }
    }

    #[test]
    fn a_backup_reads_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let backup = backup(dir.path());
        let bytes = backup.encode(OffsetDateTime::UNIX_EPOCH).unwrap();
        let read = Backup::decode(&bytes).unwrap();
        assert_eq!((read.snapshot, read.identity.pin), (backup.snapshot.clone(), backup.identity.pin));
        assert!(!format!("{backup:?}").contains(&BASE64.encode(&backup.identity.pkcs8[..])));
    }

    #[test]
    fn one_that_is_cut_off_or_damaged_anywhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = backup(dir.path()).encode(OffsetDateTime::UNIX_EPOCH).unwrap();
        for len in 0..bytes.len() {
            assert!(Backup::decode(&bytes[..len]).is_err(), "cut at {len}");
        }
        for index in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[index] ^= 1;
            assert!(Backup::decode(&damaged).is_err(), "bit at {index}");
        }
    }
}
