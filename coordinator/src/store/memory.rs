//! A store in memory, for tests and as the plainest statement of what a store does.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::{
    Batch, Event, KeyValue, Op, Outcome, Revision, Snapshot, Store, StoreError, StoreFuture, Transaction,
    Watch, check_kept,
};

/// A store that is gone when it is dropped. Clones share one content.
#[derive(Clone)]
pub struct MemoryStore {
    content: Arc<Mutex<Content>>,
    revision: watch::Sender<Revision>,
}

#[derive(Default)]
struct Content {
    revision: Revision,
    compacted: Revision,
    keys: BTreeMap<String, KeyValue>,
    history: Vec<Event>,
}

struct MemoryWatch {
    store: MemoryStore,
    revision: watch::Receiver<Revision>,
    prefix: String,
    from: Revision,
}

impl MemoryStore {
    /// Makes an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self { content: Arc::default(), revision: watch::Sender::new(Revision(0)) }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<KeyValue>> {
        Box::pin(async move { Ok(self.content().keys.get(key).cloned()) })
    }

    fn range<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Snapshot> {
        Box::pin(async move {
            let content = self.content();
            let entries = content.keys.range(prefix.to_owned()..).map(|(_, entry)| entry);
            let entries = entries.take_while(|entry| entry.key.starts_with(prefix)).cloned().collect();
            Ok(Snapshot { revision: content.revision, entries })
        })
    }

    fn commit(&self, transaction: Transaction) -> StoreFuture<'_, Outcome> {
        Box::pin(async move {
            transaction.check()?;
            let mut content = self.content();
            let outcome = content.apply(transaction);
            self.revision
                .send_if_modified(|last| std::mem::replace(last, content.revision) != content.revision);
            Ok(outcome)
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> StoreFuture<'a, Box<dyn Watch>> {
        Box::pin(async move {
            let watch = MemoryWatch {
                store: self.clone(),
                revision: self.revision.subscribe(),
                prefix: prefix.to_owned(),
                from,
            };
            check_kept(from, self.content().compacted)?;
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }

    fn compact(&self, revision: Revision) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let mut content = self.content();
            content.compacted = content.compacted.max(revision.min(content.revision));
            let compacted = content.compacted;
            content.history.retain(|event| event.revision > compacted);
            Ok(())
        })
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

impl Watch for MemoryWatch {
    fn next(&mut self) -> StoreFuture<'_, Batch> {
        Box::pin(async move {
            self.revision.wait_for(|now| *now >= self.from).await.map_err(|_| StoreError::Closed)?;
            let content = self.store.content();
            check_kept(self.from, content.compacted)?;
            let seen = |event: &&Event| event.revision >= self.from && event.key.starts_with(&self.prefix);
            let events = content.history.iter().filter(seen).cloned().collect();
            self.from = content.revision.next();
            Ok(Batch { revision: content.revision, events })
        })
    }
}

impl Content {
    fn apply(&mut self, transaction: Transaction) -> Outcome {
        let mod_revision = |key: &str| self.keys.get(key).map_or(Revision(0), |entry| entry.mod_revision);
        if transaction.compares.iter().any(|compare| mod_revision(&compare.key) != compare.mod_revision) {
            return Outcome::Conflict;
        }
        let revision = self.revision.next();
        let mut ops = transaction.ops;
        ops.sort_by(|a, b| a.key().cmp(b.key()));
        for op in ops {
            match op {
                Op::Put { key, value } => {
                    let create_revision = self.keys.get(&key).map_or(revision, |entry| entry.create_revision);
                    let entry = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision,
                        mod_revision: revision,
                    };
                    self.keys.insert(key.clone(), entry);
                    self.history.push(Event { revision, key, value: Some(value) });
                    self.revision = revision;
                }
                Op::Delete { key } => {
                    if self.keys.remove(&key).is_some() {
                        self.history.push(Event { revision, key, value: None });
                        self.revision = revision;
                    }
                }
            }
        }
        Outcome::Committed(self.revision)
    }
}
