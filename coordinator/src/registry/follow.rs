//! The task that follows the store.
//!
//! It watches the store from the revision of the view on, applies every batch to the view, and then
//! announces the changes. It ends when the registry is dropped or the store is closed; its waits are
//! cancel-safe: a batch that was not taken is given again. When the store fails otherwise it tries again.

use std::{sync::Arc, time::Duration};

use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Change, RegistryError,
    view::{SharedView, View},
};
use crate::store::{Revision, Store, StoreError, Watch};

/// How much history the store keeps, in revisions. A watch, which is all that reads it, is rarely one behind.
const HISTORY_KEPT: u64 = 4096;

/// How many revisions pass between two compactions.
const COMPACT_EVERY: u64 = 1024;

/// How long to wait after the store failed: a disk may have room again, a network may be back.
const RETRY: Duration = Duration::from_secs(1);

struct Follower {
    store: Arc<dyn Store>,
    view: SharedView,
    changes: broadcast::Sender<Change>,
    followed: watch::Sender<Revision>,
    compacted: Revision,
}

/// Gives the view the changes that the store still remembers, so that nodes that return after a restart of
/// the coordinator get what they missed and not everything.
pub(super) async fn recall(store: &dyn Store, view: &mut View) -> Result<(), RegistryError> {
    let mut from = Revision(1);
    let batch = loop {
        let watched = match store.watch("", from).await {
            Ok(mut watch) => watch.next().await,
            Err(error) => Err(error),
        };
        match watched {
            Ok(batch) => break batch,
            // Nothing happened since the state was restored: a watch would wait for what comes next.
            Err(StoreError::Compacted { compacted }) if compacted >= view.revision() => {
                return view.recall(compacted.next(), &[]);
            }
            Err(StoreError::Compacted { compacted }) => from = compacted.next(),
            Err(error) => return Err(error.into()),
        }
    };
    view.recall(from, &batch.events)
}

/// Starts the task. What it returns says up to where the view has followed.
pub(super) async fn start(
    store: Arc<dyn Store>,
    view: SharedView,
    changes: broadcast::Sender<Change>,
    cancel: CancellationToken,
) -> Result<watch::Receiver<Revision>, RegistryError> {
    let revision = view.read().revision();
    let events = store.watch("", revision.next()).await?;
    let followed = watch::Sender::new(revision);
    let receiver = followed.subscribe();
    let follower = Follower { store, view, changes, followed, compacted: revision };
    tokio::spawn(follower.run(events, cancel));
    Ok(receiver)
}

impl Follower {
    async fn run(mut self, mut events: Box<dyn Watch>, cancel: CancellationToken) {
        loop {
            let batch = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                batch = events.next() => batch,
            };
            let result = match batch {
                Ok(batch) => self.view.write().apply(batch.revision, &batch.events),
                Err(StoreError::Compacted { .. }) => self.start_over(&mut events).await,
                Err(error) => Err(error.into()),
            };
            match result {
                Ok(changes) => self.announce(changes).await,
                Err(RegistryError::Store(StoreError::Closed)) => return,
                Err(RegistryError::Store(error)) => {
                    tracing::warn!(%error, "the store cannot be followed; trying again");
                    tokio::select! {
                        biased;
                        () = cancel.cancelled() => return,
                        () = tokio::time::sleep(RETRY) => {}
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the store cannot be followed; no change will be accepted");
                    return;
                }
            }
        }
    }

    /// Reads the whole store: the changes in between are gone.
    async fn start_over(&self, events: &mut Box<dyn Watch>) -> Result<Vec<Change>, RegistryError> {
        let view = View::load(&*self.store).await?;
        *events = self.store.watch("", view.revision().next()).await?;
        Ok(self.view.write().replace(view))
    }

    async fn announce(&mut self, changes: Vec<Change>) {
        for change in changes {
            // Nobody may be listening.
            let _ = self.changes.send(change);
        }
        let revision = self.view.read().revision();
        self.followed.send_replace(revision);
        if revision.0 >= self.compacted.0 + COMPACT_EVERY {
            self.compacted = revision;
            if let Err(error) = self.store.compact(Revision(revision.0.saturating_sub(HISTORY_KEPT))).await {
                tracing::warn!(%error, "the history of the store could not be compacted");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;
    use crate::{
        registry::{MeshOptions, Registry, RoutePolicy, TokenSpec},
        store::{Batch, KeyValue, Outcome, Snapshot, StoreFuture, Transaction, memory::MemoryStore},
    };

    /// A store whose watches fail with what is put into `failure`, once.
    #[derive(Clone, Default)]
    struct Flaky {
        store: MemoryStore,
        failure: Arc<Mutex<Option<StoreError>>>,
    }

    struct FlakyWatch {
        store: Flaky,
        watch: Box<dyn Watch>,
        /// What could not be given when the watch failed.
        held: Option<Batch>,
    }

    impl Store for Flaky {
        fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<KeyValue>> {
            self.store.get(key)
        }

        fn range<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Snapshot> {
            self.store.range(prefix)
        }

        fn commit(&self, transaction: Transaction) -> StoreFuture<'_, Outcome> {
            self.store.commit(transaction)
        }

        fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> StoreFuture<'a, Box<dyn Watch>> {
            Box::pin(async move {
                let watch = self.store.watch(prefix, from).await?;
                Ok(Box::new(FlakyWatch { store: self.clone(), watch, held: None }) as Box<dyn Watch>)
            })
        }

        fn compact(&self, revision: Revision) -> StoreFuture<'_, ()> {
            self.store.compact(revision)
        }

        fn close(&self) -> StoreFuture<'_, ()> {
            self.store.close()
        }
    }

    impl Watch for FlakyWatch {
        fn next(&mut self) -> StoreFuture<'_, Batch> {
            Box::pin(async move {
                let batch = match self.held.take() {
                    Some(batch) => batch,
                    None => self.watch.next().await?,
                };
                let failure = self.store.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
                match failure {
                    Some(failure) => {
                        self.held = Some(batch);
                        Err(failure)
                    }
                    None => Ok(batch),
                }
            })
        }
    }

    async fn registry() -> (Flaky, Registry) {
        let store = Flaky::default();
        let options = MeshOptions {
            ipv4: "10.90.0.0/16".parse().unwrap(),
            coordinators: vec!["pi:7443".to_owned()],
            relay_name: "pi".to_owned(),
            routes: RoutePolicy::default(),
        };
        let registry = Registry::with_store(Arc::new(store.clone()), options).await.unwrap();
        (store, registry)
    }

    fn spec() -> TokenSpec {
        TokenSpec { ttl: Duration::from_secs(60), uses: 2, tags: vec![] }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_survives_a_failure_of_the_store() {
        let (store, registry) = registry().await;
        let disk = StoreError::Backend("the disk is gone".into());
        *store.failure.lock().unwrap() = Some(disk);
        registry.create_token(spec()).await.unwrap();
        assert!(store.failure.lock().unwrap().is_none(), "the store has failed meanwhile");
    }

    #[tokio::test]
    async fn what_was_compacted_before_it_was_seen_is_announced_as_differences() {
        let (store, registry) = registry().await;
        let token = registry.create_token(spec()).await.unwrap();
        let mut watch = registry.watch();
        *store.failure.lock().unwrap() = Some(StoreError::Compacted { compacted: Revision(1) });
        let keys = (mesh_proto::key::NodeKey([1; 32]), mesh_proto::key::PublicKey([2; 32]));
        let node = registry.join(keys.0, token, "n1".parse().unwrap(), keys.1).await.unwrap();
        let change = watch.recv().await.unwrap();
        assert_eq!(change.kind, crate::registry::ChangeKind::NodeSet(node));
        assert_eq!(change.version, registry.version());
    }
}
