//! The task that follows the store.
//!
//! It watches the store from the revision of the view on, applies every batch to the view, and then
//! announces the changes. It ends when the registry is dropped or the store fails; both waits are
//! cancel-safe: a batch that was not taken is given again.

use std::sync::Arc;

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
