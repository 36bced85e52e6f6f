//! The schema, as the list of steps that lead to it.
//!
//! SQLite's `user_version` counts the steps that were taken. Each step is one transaction together with its
//! count, so a crash leaves a schema that some version of the program knew. A step that was released is never
//! edited; a change of the schema is a new step at the end.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::file::database_error;
use crate::store::StoreError;

/// The steps, in order.
pub(super) const MIGRATIONS: &[&str] = &[
    // 1: keys, their history, and the two revisions. `STRICT` refuses values of the wrong type; the digest
    // tells whether the disk has kept what was written.
    "CREATE TABLE keys (
        key TEXT PRIMARY KEY NOT NULL,
        value BLOB NOT NULL,
        create_revision INTEGER NOT NULL,
        mod_revision INTEGER NOT NULL,
        digest BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE history (
        revision INTEGER NOT NULL,
        key TEXT NOT NULL,
        value BLOB,
        PRIMARY KEY (revision, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE revisions (
        only INTEGER PRIMARY KEY NOT NULL CHECK (only = 0),
        current INTEGER NOT NULL,
        compacted INTEGER NOT NULL
    ) STRICT;
    INSERT INTO revisions VALUES (0, 0, 0);",
];

/// Takes the steps that the database has not taken yet.
pub(super) fn migrate(
    connection: &mut Connection,
    path: &Path,
    migrations: &[&str],
) -> Result<(), StoreError> {
    let failed = |error| database_error(path, error);
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let taken = usize::try_from(found).unwrap_or(usize::MAX);
    let Some(missing) = migrations.get(taken..) else {
        let known = u32::try_from(migrations.len()).unwrap_or(u32::MAX);
        return Err(StoreError::FutureSchema { path: path.to_owned(), found, known });
    };
    for (version, step) in (found + 1..).zip(missing) {
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        transaction.execute_batch(step).map_err(failed)?;
        transaction.pragma_update(None, "user_version", version).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "test.db";

    fn version(connection: &Connection) -> u32 {
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    }

    #[test]
    fn every_prefix_of_the_steps_can_be_upgraded() {
        for taken in 0..=MIGRATIONS.len() {
            let mut connection = Connection::open_in_memory().unwrap();
            migrate(&mut connection, PATH.as_ref(), &MIGRATIONS[..taken]).unwrap();
            migrate(&mut connection, PATH.as_ref(), MIGRATIONS).unwrap();
            assert_eq!(version(&connection) as usize, MIGRATIONS.len());
        }
    }

    #[test]
    fn a_step_that_fails_leaves_the_schema_before_it() {
        let mut connection = Connection::open_in_memory().unwrap();
        let steps = ["CREATE TABLE a (x);", "CREATE TABLE b (x); CREATE TABLE a (x);"];
        assert!(migrate(&mut connection, PATH.as_ref(), &steps).is_err());
        assert_eq!(version(&connection), 1);
        let tables: u32 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        assert_eq!(tables, 1, "the half of the second step is rolled back");
        migrate(&mut connection, PATH.as_ref(), &[steps[0], "CREATE TABLE b (x);"]).unwrap();
        assert_eq!(version(&connection), 2);
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "user_version", 7).unwrap();
        let error = migrate(&mut connection, PATH.as_ref(), &MIGRATIONS[..1]).unwrap_err();
        assert!(matches!(error, StoreError::FutureSchema { found: 7, known: 1, .. }), "{error}");
    }
}
