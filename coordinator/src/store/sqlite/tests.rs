//! The file: what is made, and what is refused.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use super::{SqliteStore, path};
use crate::store::{Op, Outcome, Revision, Store, StoreError, Transaction};

/// Truncations that are tried: every byte of the header, then steps that hit no page boundary.
const STEP: usize = 97;

async fn put(store: &SqliteStore, key: &str, value: &[u8]) -> Outcome {
    let ops = vec![Op::Put { key: key.to_owned(), value: value.to_vec() }];
    store.commit(Transaction { compares: vec![], ops }).await.unwrap()
}

async fn refusal(state_dir: &Path) -> StoreError {
    let error = SqliteStore::open(state_dir).await.err().expect("the file is refused");
    assert!(error.to_string().contains("coordinator.db"), "{error}");
    error
}

#[tokio::test]
async fn files_are_private_and_content_survives() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("made/here");
    let store = SqliteStore::open(&dir).await.unwrap();
    assert_eq!(put(&store, "a", b"1").await, Outcome::Committed(Revision(1)));
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
    for entry in fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
    drop(store);
    let store = SqliteStore::open(&dir).await.unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().value, b"1");
}

#[tokio::test]
async fn a_truncated_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    for n in 0..50 {
        put(&store, &format!("key-{n}"), &[n; 300]).await;
    }
    drop(store);
    // Opening waits until the one before has closed, and with it has put everything into the one file.
    drop(SqliteStore::open(dir.path()).await.unwrap());
    let whole = fs::read(path(dir.path())).unwrap();
    assert!(whole.len() > 16_384);
    let copy = tempfile::tempdir().unwrap();
    for len in (0..100).chain((100..whole.len()).step_by(STEP)) {
        fs::write(path(copy.path()), &whole[..len]).unwrap();
        fs::set_permissions(path(copy.path()), fs::Permissions::from_mode(0o600)).unwrap();
        let error = SqliteStore::open(copy.path()).await.err();
        assert!(matches!(error, Some(StoreError::Damaged { .. })), "{len} of {}: {error:?}", whole.len());
    }
}

#[tokio::test]
async fn a_damaged_file_is_refused_without_losing_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    for n in 0..50 {
        put(&store, &format!("key-{n}"), &[n; 300]).await;
    }
    drop(store);
    // The last change alone is in the log: what is cut off is not.
    let store = SqliteStore::open(dir.path()).await.unwrap();
    put(&store, "key", b"value").await;
    let log = |dir: &Path| dir.join("coordinator.db-wal");
    let (whole, logged) = (fs::read(path(dir.path())).unwrap(), fs::read(log(dir.path())).unwrap());
    assert!(!logged.is_empty());
    let copy = tempfile::tempdir().unwrap();
    let write = |content: &[u8]| {
        fs::write(path(copy.path()), content).unwrap();
        fs::set_permissions(path(copy.path()), fs::Permissions::from_mode(0o600)).unwrap();
    };
    fs::write(log(copy.path()), &logged).unwrap();
    for len in [0, 1, 71, 4096, whole.len() / 2] {
        write(&whole[..len]);
        assert!(matches!(refusal(copy.path()).await, StoreError::Damaged { .. }), "{len}");
        assert!(fs::read(log(copy.path())).unwrap() == logged, "the log beside {len} bytes");
    }
    write(&whole);
    let restored = SqliteStore::open(copy.path()).await.unwrap();
    assert_eq!(restored.get("key").await.unwrap().unwrap().value, b"value");
}

#[tokio::test]
async fn a_flipped_bit_in_a_value_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    put(&store, "key", b"a value of some length").await;
    drop(store);
    drop(SqliteStore::open(dir.path()).await.unwrap());
    let mut content = fs::read(path(dir.path())).unwrap();
    let places: Vec<_> = content.windows(8).enumerate().filter(|(_, text)| *text == b"a value ").collect();
    let places: Vec<_> = places.into_iter().map(|(place, _)| place).collect();
    assert!(!places.is_empty());
    for place in places {
        content[place] ^= 1;
    }
    fs::write(path(dir.path()), content).unwrap();
    let error = refusal(dir.path()).await;
    assert!(error.to_string().contains("the value of key is not as it was written"), "{error}");
}

#[tokio::test]
async fn files_of_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(SqliteStore::open(dir.path()).await.unwrap());
    let file = path(dir.path());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o604)).unwrap();
    assert!(matches!(refusal(dir.path()).await, StoreError::Mode { mode: 0o604, .. }));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();

    let database = rusqlite::Connection::open(&file).unwrap();
    database.pragma_update(None, "user_version", 99).unwrap();
    drop(database);
    assert!(matches!(refusal(dir.path()).await, StoreError::FutureSchema { found: 99, .. }));

    fs::remove_file(&file).unwrap();
    let database = rusqlite::Connection::open(&file).unwrap();
    database.execute_batch("CREATE TABLE notes (x)").unwrap();
    drop(database);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(refusal(dir.path()).await, StoreError::Damaged { .. }));

    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/dev/null", &file).unwrap();
    assert!(matches!(refusal(dir.path()).await, StoreError::Damaged { .. }));

    fs::remove_file(&file).unwrap();
    fs::write(dir.path().join("coordinator.db-wal"), "left").unwrap();
    assert!(matches!(refusal(dir.path()).await, StoreError::Damaged { .. }), "a database was here");
}

/// What is on disk at any moment is what a `kill -9` at that moment leaves.
#[tokio::test]
async fn a_half_made_transaction_is_gone_and_an_acknowledged_one_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    put(&store, "acknowledged", b"1").await;
    let after_kill = tempfile::tempdir().unwrap();
    let target = after_kill.path().to_owned();
    let source = dir.path().to_owned();
    super::call(&store.jobs, move |database| {
        database.in_the_middle_of(&Op::Put { key: "half".to_owned(), value: vec![2; 100_000] }, || {
            for entry in fs::read_dir(&source).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
            }
        })
    })
    .await
    .unwrap();
    let killed = SqliteStore::open(after_kill.path()).await.unwrap();
    let snapshot = killed.range("").await.unwrap();
    assert_eq!(snapshot.revision, Revision(1));
    assert_eq!(snapshot.entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["acknowledged"]);
    assert_eq!(store.range("").await.unwrap(), snapshot, "the transaction was dropped here as well");
}

#[tokio::test]
async fn a_full_disk_is_named_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    put(&store, "a", b"1").await;
    super::call(&store.jobs, |database| database.set_disk_full(true)).await.unwrap();
    let ops = vec![Op::Put { key: "b".to_owned(), value: vec![2; 100_000] }];
    let transaction = Transaction { compares: vec![], ops };
    let error = store.commit(transaction.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(error.to_string().contains("coordinator.db"), "{error}");
    assert_eq!(store.range("").await.unwrap().entries.len(), 1);
    super::call(&store.jobs, |database| database.set_disk_full(false)).await.unwrap();
    assert_eq!(store.commit(transaction).await.unwrap(), Outcome::Committed(Revision(2)));
}

#[tokio::test]
async fn a_crash_while_the_database_is_made_leaves_none() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("coordinator.db.new"), "half").unwrap();
    fs::write(dir.path().join("coordinator.db.new-journal"), "half").unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    assert_eq!(put(&store, "a", b"1").await, Outcome::Committed(Revision(1)));
    assert!(!dir.path().join("coordinator.db.new").exists());
}
