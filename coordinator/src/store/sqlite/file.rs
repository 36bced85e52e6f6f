//! The database file: how it is made, locked and checked.
//!
//! A new database is made complete under another name and then given its own, so a file with its name has
//! a schema from its first moment, and one without was damaged: an empty file is never taken for a new
//! database. The file and what SQLite puts beside it are readable by their owner alone. A lock on the state
//! directory keeps a second coordinator out; the kernel drops it when the process dies.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read},
    ops::Range,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};
use rustix::fs::{FlockOperation, flock};

use super::migrations::{MIGRATIONS, migrate};
use crate::store::StoreError;

/// Name of the database in the state directory.
pub(super) const FILE_NAME: &str = "coordinator.db";

/// Marks a SQLite file as ours: "mesh" in ASCII.
const APPLICATION_ID: i32 = 0x6d65_7368;

/// Where that mark stands in the file, big-endian (SQLite's file format, section 1.3).
const APPLICATION_ID_AT: Range<usize> = 68..72;

/// Mode of the state directory when it is made here.
const DIRECTORY_MODE: u32 = 0o700;

/// Mode of the database.
const FILE_MODE: u32 = 0o600;

/// Permission bits that a private file must not have.
const OTHERS: u32 = 0o077;

/// How long to wait for a predecessor that is about to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// How often the lock is tried meanwhile.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// How long SQLite waits for another process that reads the file, such as `sqlite3` on a shell.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the database of a state directory, making both where they are missing. The second part of the
/// result is the lock, to be kept as long as the connection.
pub(super) fn open(state_dir: &Path) -> Result<(Connection, File), StoreError> {
    let lock = claim(state_dir)?;
    let path = state_dir.join(FILE_NAME);
    match fs::symlink_metadata(&path) {
        Ok(metadata) if !metadata.is_file() => {
            return Err(damaged(&path, "not a regular file"));
        }
        Ok(metadata) if metadata.mode() & OTHERS != 0 => {
            return Err(StoreError::Mode { path, mode: metadata.mode() & 0o7777 });
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => create(state_dir, &path)?,
        Err(error) => return Err(io_error(&path)(error)),
    }
    let connection = connect(&path)?;
    Ok((connection, lock))
}

/// Makes the state directory if need be and returns its lock.
pub(super) fn claim(state_dir: &Path) -> Result<File, StoreError> {
    mesh_durable::make_directories(state_dir, DIRECTORY_MODE).map_err(io_error(state_dir))?;
    lock(state_dir)
}

/// Returns the names of the files that may hold a database: itself, and what SQLite keeps beside it.
pub(super) fn names() -> [String; 4] {
    ["", "-wal", "-shm", "-journal"].map(|suffix| format!("{FILE_NAME}{suffix}"))
}

/// Makes a new database that `fill` fills, in a directory without one.
pub(super) fn make(
    directory: &Path,
    fill: impl FnOnce(&mut Connection) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let path = directory.join(FILE_NAME);
    let draft = draft(&path, fill)?;
    publish(directory, &draft, &path)
}

/// Says what a failure of SQLite means for the file.
pub(super) fn database_error(path: &Path, error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => damaged(path, error),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StoreError::InUse { path: path.to_owned() }
        }
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            io_error(path)(io::Error::other(error))
        }
        Some(ErrorCode::DiskFull) => io_error(path)(ErrorKind::StorageFull.into()),
        _ => StoreError::Backend(error.into()),
    }
}

fn lock(state_dir: &Path) -> Result<File, StoreError> {
    let directory = File::open(state_dir).map_err(io_error(state_dir))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(directory),
            Err(error) if io::Error::from(error).kind() != ErrorKind::WouldBlock => {
                return Err(io_error(state_dir)(error.into()));
            }
            Err(_) if Instant::now() >= deadline => {
                return Err(StoreError::InUse { path: state_dir.to_owned() });
            }
            Err(_) => thread::sleep(LOCK_RETRY),
        }
    }
}

/// Makes the database where there is none. The lock keeps others from doing the same.
fn create(state_dir: &Path, path: &Path) -> Result<(), StoreError> {
    let orphans = ["-wal", "-journal"].map(|suffix| beside(path, suffix));
    if let Some(orphan) = orphans.into_iter().find(|orphan| orphan.exists()) {
        return Err(damaged(path, format!("it is missing although {} is there", orphan.display())));
    }
    make(state_dir, |_| Ok(()))
}

/// Makes a complete database under a temporary name.
fn draft(
    path: &Path,
    fill: impl FnOnce(&mut Connection) -> Result<(), StoreError>,
) -> Result<PathBuf, StoreError> {
    let draft = beside(path, ".new");
    for leftover in [draft.clone(), beside(path, ".new-journal")] {
        remove_if_present(&leftover)?;
    }
    OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&draft).map_err(io_error(&draft))?;
    let mut connection =
        Connection::open_with_flags(&draft, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed(&draft))?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed(&draft))?;
    connection.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed(&draft))?;
    migrate(&mut connection, &draft, MIGRATIONS)?;
    fill(&mut connection)?;
    connection.close().map_err(|(_, error)| database_error(&draft, error))?;
    Ok(draft)
}

/// Gives a database its name.
fn publish(state_dir: &Path, draft: &Path, path: &Path) -> Result<(), StoreError> {
    fs::rename(draft, path).map_err(io_error(path))?;
    mesh_durable::sync_directory(state_dir).map_err(io_error(state_dir))
}

/// Sets whether closing leaves the log as it is, instead of moving what it holds into the database and removing it:
/// beside a damaged database it may be all that is left of the last changes.
pub(super) fn keep_log(connection: &Connection, keep: bool) -> Result<(), rusqlite::Error> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep).map(drop)
}

/// Opens the database; its log is kept until the caller has found everything in order.
fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    check_header(path)?;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed(path))?;
    keep_log(&connection, true).map_err(failed(path))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed(path))?;
    check_length(&connection, path)?;
    // FULL syncs the write-ahead log at every commit: what was acknowledged survives a power cut.
    for (pragma, value) in [("journal_mode", "WAL"), ("synchronous", "FULL"), ("trusted_schema", "OFF")] {
        connection.pragma_update(None, pragma, value).map_err(failed(path))?;
    }
    migrate(&mut connection, path, MIGRATIONS)?;
    let check: String =
        connection.pragma_query_value(None, "quick_check", |row| row.get(0)).map_err(failed(path))?;
    if check != "ok" {
        return Err(damaged(path, check));
    }
    Ok(connection)
}

/// Checks that the file is ours before SQLite sees it, which would take the log of an empty one for a leftover and
/// remove it.
fn check_header(path: &Path) -> Result<(), StoreError> {
    let mut header = [0; APPLICATION_ID_AT.end];
    match File::open(path).and_then(|mut file| file.read_exact(&mut header)) {
        Ok(()) if header[APPLICATION_ID_AT] == APPLICATION_ID.to_be_bytes() => Ok(()),
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(io_error(path)(error)),
        Ok(()) | Err(_) => Err(damaged(path, "it was not made by mesh-coordinator, or is empty")),
    }
}

/// Checks that the file ends with a page: SQLite would take the rest of the last one for zeros. Where there is
/// a log, the page may be whole there.
fn check_length(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let page: u32 =
        connection.pragma_query_value(None, "page_size", |row| row.get(0)).map_err(failed(path))?;
    let len = fs::metadata(path).map_err(io_error(path))?.len();
    let logged = fs::metadata(beside(path, "-wal")).is_ok_and(|log| log.len() > 0);
    if len.is_multiple_of(page.into()) || logged { Ok(()) } else { Err(damaged(path, "its end is missing")) }
}

/// Returns the path of a file that SQLite or we keep beside the database.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    path.with_file_name(format!("{FILE_NAME}{suffix}"))
}

fn remove_if_present(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error(path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn failed(path: &Path) -> impl Fn(rusqlite::Error) -> StoreError {
    move |error| database_error(path, error)
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path: PathBuf = path.to_owned();
    move |cause| StoreError::Io { path: path.clone(), cause }
}

fn damaged(path: &Path, reason: impl ToString) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), reason: reason.to_string() }
}
