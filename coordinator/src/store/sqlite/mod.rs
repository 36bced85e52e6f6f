//! The store in SQLite: the default, for a coordinator on one machine.
//!
//! One thread owns the connection and does one operation after the other; a [`SqliteStore`] is a handle that
//! sends it work. The thread ends, and the database is closed, when a handle asks for it or the last one is
//! dropped. Commits are synced to disk before they are acknowledged.

use std::{
    fs::File,
    path::{Path, PathBuf},
    thread,
};

use tokio::sync::{mpsc, oneshot, watch};

use self::database::Database;
use super::{
    Batch, KeyValue, Outcome, Revision, Snapshot, Store, StoreError, StoreFuture, Transaction, Watch,
};

mod database;
mod file;
mod migrations;
#[cfg(test)]
mod tests;

/// How many operations may wait for the thread; who wants more waits as well.
const QUEUE: usize = 256;

/// A handle to an open database. Clones share it.
#[derive(Clone)]
pub struct SqliteStore {
    jobs: mpsc::Sender<Job>,
    revision: watch::Receiver<Revision>,
}

enum Job {
    Do(Box<dyn FnOnce(&mut Database) + Send>),
    /// Close the database, and say so.
    Close(oneshot::Sender<()>),
}

struct SqliteWatch {
    /// Weak, so that a watch does not keep the database open.
    jobs: mpsc::WeakSender<Job>,
    revision: watch::Receiver<Revision>,
    prefix: String,
    from: Revision,
}

/// Returns where the database of a state directory is.
#[must_use]
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(file::FILE_NAME)
}

impl SqliteStore {
    /// Opens the database of a state directory, making both where they are missing.
    ///
    /// # Errors
    /// When the file is damaged, not private, of a newer program or in use; the error names it.
    pub async fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let state_dir = state_dir.to_owned();
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (opened, result) = oneshot::channel();
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                let opening = Database::open(&state_dir).and_then(|database| {
                    let revision = watch::Sender::new(database.revision()?);
                    Ok((database, revision))
                });
                match opening {
                    Ok((database, revision)) => {
                        let _ = opened.send(Ok(revision.subscribe()));
                        work(database, queue, &revision);
                    }
                    Err(error) => {
                        let _ = opened.send(Err(error));
                    }
                }
            })
            .map_err(|error| StoreError::Backend(error.into()))?;
        let revision = result.await.map_err(|_| StoreError::Closed)??;
        Ok(Self { jobs, revision })
    }
}

/// Keeps coordinators out of a state directory as long as it exists.
pub struct Offline {
    _lock: File,
}

impl Offline {
    /// Takes the directory, and makes it if need be.
    ///
    /// # Errors
    /// When a coordinator runs there, or the system refuses.
    pub fn claim(state_dir: &Path) -> Result<Self, StoreError> {
        Ok(Self { _lock: file::claim(state_dir)? })
    }
}

/// Returns the names of the files that may hold a database: itself, and what SQLite keeps beside it.
#[must_use]
pub fn file_names() -> [String; 4] {
    file::names()
}

/// Makes a database of a snapshot, in a directory without one.
///
/// # Errors
/// When the system refuses.
pub fn import(directory: &Path, snapshot: &Snapshot) -> Result<(), StoreError> {
    file::make(directory, |connection| database::import(connection, snapshot))
}

impl Store for SqliteStore {
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<KeyValue>> {
        let key = key.to_owned();
        Box::pin(call(&self.jobs, move |database| database.get(&key)))
    }

    fn range<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Snapshot> {
        let prefix = prefix.to_owned();
        Box::pin(call(&self.jobs, move |database| database.range(&prefix)))
    }

    fn commit(&self, transaction: Transaction) -> StoreFuture<'_, Outcome> {
        Box::pin(call(&self.jobs, move |database| database.commit(&transaction)))
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> StoreFuture<'a, Box<dyn Watch>> {
        Box::pin(async move {
            call(&self.jobs, move |database| database.check_kept(from)).await?;
            let watch = SqliteWatch {
                jobs: self.jobs.downgrade(),
                revision: self.revision.clone(),
                prefix: prefix.to_owned(),
                from,
            };
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }

    fn compact(&self, revision: Revision) -> StoreFuture<'_, ()> {
        Box::pin(call(&self.jobs, move |database| database.compact(revision)))
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        Box::pin(async {
            let (closed, result) = oneshot::channel();
            self.jobs.send(Job::Close(closed)).await.map_err(|_| StoreError::Closed)?;
            result.await.map_err(|_| StoreError::Closed)
        })
    }
}

impl Watch for SqliteWatch {
    fn next(&mut self) -> StoreFuture<'_, Batch> {
        Box::pin(async move {
            let from = self.from;
            self.revision.wait_for(|now| *now >= from).await.map_err(|_| StoreError::Closed)?;
            let jobs = self.jobs.upgrade().ok_or(StoreError::Closed)?;
            let prefix = self.prefix.clone();
            let batch = call(&jobs, move |database| database.history(&prefix, from)).await?;
            self.from = batch.revision.next();
            Ok(batch)
        })
    }
}

/// Does what is asked until nobody is left to ask, and announces every new revision.
fn work(mut database: Database, mut queue: mpsc::Receiver<Job>, revision: &watch::Sender<Revision>) {
    while let Some(job) = queue.blocking_recv() {
        let job = match job {
            Job::Do(job) => job,
            Job::Close(closed) => {
                drop(database);
                // Whoever asked may have gone.
                let _ = closed.send(());
                return;
            }
        };
        job(&mut database);
        match database.revision() {
            Ok(now) => revision.send_if_modified(|last| std::mem::replace(last, now) != now),
            Err(error) => {
                tracing::error!(%error, "the store cannot be read");
                false
            }
        };
    }
}

async fn call<T, F>(jobs: &mpsc::Sender<Job>, operation: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: FnOnce(&mut Database) -> Result<T, StoreError> + Send + 'static,
{
    let (answer, result) = oneshot::channel();
    let job = Job::Do(Box::new(move |database: &mut Database| {
        // The asker may have gone; what it asked for is done all the same.
        let _ = answer.send(operation(database).map_err(|error| database.explain(error)));
    }));
    jobs.send(job).await.map_err(|_| StoreError::Closed)?;
    result.await.map_err(|_| StoreError::Closed)?
}
