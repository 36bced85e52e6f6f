//! The store's operations in SQL, on the thread that owns the connection.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use sha2::{Digest, Sha256};

use super::file;
use crate::store::{
    Batch, Event, KeyValue, Op, Outcome, Revision, Snapshot, StoreError, Transaction, check_kept,
};

/// How much of a SHA-256 is stored with each key: it guards against accidents, not against forgers, who could
/// write any digest.
const DIGEST_LEN: usize = 8;

/// An open database.
pub(super) struct Database {
    connection: Connection,
    path: PathBuf,
    /// Keeps other coordinators out of the state directory.
    _lock: File,
}

impl Database {
    pub(super) fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let (connection, lock) = file::open(state_dir)?;
        let database = Self { connection, path: super::path(state_dir), _lock: lock };
        let verified = database.verify().and_then(|()| Ok(file::keep_log(&database.connection, false)?));
        verified.map_err(|error| database.explain(error))?;
        Ok(database)
    }

    /// Checks that every key reads as it was written: SQLite itself does not notice a flipped bit in a value.
    fn verify(&self) -> Result<(), StoreError> {
        let mut statement =
            self.connection.prepare("SELECT key, value, create_revision, mod_revision, digest FROM keys")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let entry = key_value(row)?;
            let written: Vec<u8> = row.get(4)?;
            if digest(&entry)[..] != written[..] {
                let reason = format!("the value of {} is not as it was written", entry.key);
                return Err(StoreError::Damaged { path: self.path.clone(), reason });
            }
        }
        Ok(())
    }

    /// Says what a failure of SQLite means, and names the file.
    pub(super) fn explain(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Backend(cause) => match cause.downcast() {
                Ok(cause) => file::database_error(&self.path, *cause),
                Err(cause) => StoreError::Backend(cause),
            },
            other => other,
        }
    }

    pub(super) fn revision(&self) -> Result<Revision, StoreError> {
        Ok(revisions(&self.connection)?.current)
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT key, value, create_revision, mod_revision FROM keys WHERE key = ?1")?;
        Ok(statement.query_row([key], key_value).optional()?)
    }

    pub(super) fn range(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT key, value, create_revision, mod_revision FROM keys WHERE key >= ?1 ORDER BY key",
        )?;
        let mut rows = statement.query([prefix])?;
        let mut entries = Vec::new();
        while let Some(row) = rows.next()? {
            let entry = key_value(row)?;
            if !entry.key.starts_with(prefix) {
                break;
            }
            entries.push(entry);
        }
        Ok(Snapshot { revision: self.revision()?, entries })
    }

    pub(super) fn commit(&mut self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        let sql = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for compare in &transaction.compares {
            if mod_revision(&sql, &compare.key)? != compare.mod_revision {
                return Ok(Outcome::Conflict);
            }
        }
        let before = revisions(&sql)?.current;
        let revision = before.next();
        let mut changes = 0;
        for op in &transaction.ops {
            changes += apply(&sql, op, revision)?;
        }
        if changes == 0 {
            return Ok(Outcome::Committed(before));
        }
        sql.execute("UPDATE revisions SET current = ?1", [to_sql(revision)])?;
        sql.commit()?;
        Ok(Outcome::Committed(revision))
    }

    /// Drops a transaction after its first operation, and lets a test look before that.
    #[cfg(test)]
    pub(super) fn in_the_middle_of(&mut self, op: &Op, look: impl FnOnce()) -> Result<(), StoreError> {
        let sql = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let revision = revisions(&sql)?.current.next();
        apply(&sql, op, revision)?;
        // What does not fit into SQLite's memory reaches the log before it is committed.
        sql.cache_flush()?;
        look();
        Ok(())
    }

    /// Lets the database not grow beyond what it has now, or lifts that.
    #[cfg(test)]
    pub(super) fn set_disk_full(&self, full: bool) -> Result<(), StoreError> {
        let pages: u32 = if full { 1 } else { u32::MAX >> 1 };
        Ok(self.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?)
    }

    pub(super) fn history(&self, prefix: &str, from: Revision) -> Result<Batch, StoreError> {
        let Revisions { current, compacted } = revisions(&self.connection)?;
        check_kept(from, compacted)?;
        let mut statement = self.connection.prepare_cached(
            "SELECT revision, key, value FROM history WHERE revision >= ?1 ORDER BY revision, key",
        )?;
        let mut rows = statement.query([to_sql(from)])?;
        let mut events = Vec::new();
        while let Some(row) = rows.next()? {
            let event = Event { revision: from_sql(row, 0)?, key: row.get(1)?, value: row.get(2)? };
            if event.key.starts_with(prefix) {
                events.push(event);
            }
        }
        Ok(Batch { revision: current, events })
    }

    pub(super) fn check_kept(&self, from: Revision) -> Result<(), StoreError> {
        check_kept(from, revisions(&self.connection)?.compacted)
    }

    pub(super) fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        let sql = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let Revisions { current, compacted } = revisions(&sql)?;
        let compacted = compacted.max(revision.min(current));
        sql.execute("DELETE FROM history WHERE revision <= ?1", [to_sql(compacted)])?;
        sql.execute("UPDATE revisions SET compacted = ?1", [to_sql(compacted)])?;
        Ok(sql.commit()?)
    }
}

/// Fills an empty database with the keys of a snapshot, each as old as it is there; what led to them is not known.
pub(super) fn import(connection: &mut Connection, snapshot: &Snapshot) -> Result<(), StoreError> {
    let sql = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for entry in &snapshot.entries {
        let mut put = sql.prepare_cached(
            "INSERT INTO keys (key, value, create_revision, mod_revision, digest) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        let revisions = (to_sql(entry.create_revision), to_sql(entry.mod_revision));
        put.execute(params![entry.key, entry.value, revisions.0, revisions.1, &digest(entry)[..]])?;
    }
    sql.execute("UPDATE revisions SET current = ?1, compacted = ?1", [to_sql(snapshot.revision)])?;
    Ok(sql.commit()?)
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Backend(error.into())
    }
}

struct Revisions {
    current: Revision,
    compacted: Revision,
}

fn revisions(connection: &Connection) -> Result<Revisions, rusqlite::Error> {
    connection
        .prepare_cached("SELECT current, compacted FROM revisions")?
        .query_row([], |row| Ok(Revisions { current: from_sql(row, 0)?, compacted: from_sql(row, 1)? }))
}

fn mod_revision(connection: &Connection, key: &str) -> Result<Revision, rusqlite::Error> {
    let found = connection
        .prepare_cached("SELECT mod_revision FROM keys WHERE key = ?1")?
        .query_row([key], |row| from_sql(row, 0))
        .optional()?;
    Ok(found.unwrap_or_default())
}

/// Applies one operation and returns how many keys it changed.
fn apply(connection: &Connection, op: &Op, revision: Revision) -> Result<usize, rusqlite::Error> {
    let (changed, value) = match op {
        Op::Put { key, value } => {
            let create_revision = connection
                .prepare_cached("SELECT create_revision FROM keys WHERE key = ?1")?
                .query_row([key], |row| from_sql(row, 0))
                .optional()?
                .unwrap_or(revision);
            let entry =
                KeyValue { key: key.clone(), value: value.clone(), create_revision, mod_revision: revision };
            let mut put = connection.prepare_cached(
                "INSERT OR REPLACE INTO keys (key, value, create_revision, mod_revision, digest)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            let revisions = (to_sql(create_revision), to_sql(revision));
            (put.execute(params![key, value, revisions.0, revisions.1, &digest(&entry)[..]])?, Some(value))
        }
        Op::Delete { key } => {
            (connection.prepare_cached("DELETE FROM keys WHERE key = ?1")?.execute([key])?, None)
        }
    };
    if changed > 0 {
        connection
            .prepare_cached("INSERT INTO history (revision, key, value) VALUES (?1, ?2, ?3)")?
            .execute(params![to_sql(revision), op.key(), value])?;
    }
    Ok(changed)
}

/// Digests all of an entry. The lengths keep two entries from running into each other.
fn digest(entry: &KeyValue) -> [u8; DIGEST_LEN] {
    let whole = Sha256::new()
        .chain_update((entry.key.len() as u64).to_be_bytes())
        .chain_update(&entry.key)
        .chain_update(entry.create_revision.0.to_be_bytes())
        .chain_update(entry.mod_revision.0.to_be_bytes())
        .chain_update(&entry.value)
        .finalize();
    let mut digest = [0; DIGEST_LEN];
    digest.copy_from_slice(&whole[..DIGEST_LEN]);
    digest
}

fn key_value(row: &Row<'_>) -> Result<KeyValue, rusqlite::Error> {
    Ok(KeyValue {
        key: row.get(0)?,
        value: row.get(1)?,
        create_revision: from_sql(row, 2)?,
        mod_revision: from_sql(row, 3)?,
    })
}

/// SQLite's integers are signed; a revision of 2^63 is out of reach.
fn to_sql(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

fn from_sql(row: &Row<'_>, column: usize) -> Result<Revision, rusqlite::Error> {
    let revision: i64 = row.get(column)?;
    u64::try_from(revision)
        .map(Revision)
        .map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, revision))
}
