//! A task that keeps the latest value of something on disk.
//!
//! Values are handed over without waiting, and only the latest is written: a burst of changes costs one write
//! before and one after it. The task is cancel-safe because a write is never cut short: it runs on a blocking
//! thread, and what was not written yet is written before the task ends.

use std::{sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::identity::StateFile;

/// Hands values to the task.
#[derive(Debug)]
pub(crate) struct Saver<T> {
    latest: watch::Sender<Option<Arc<T>>>,
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Saver<T> {
    /// Starts the task, which writes at most once in `interval`.
    pub(crate) fn spawn(
        file: StateFile<T>,
        interval: Duration,
        cancel: &CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let (latest, receiver) = watch::channel(None);
        tracker.spawn(run(file, interval, receiver, cancel.clone()));
        Self { latest }
    }

    /// Hands over the latest value.
    pub(crate) fn save(&self, value: Arc<T>) {
        self.latest.send_replace(Some(value));
    }
}

async fn run<T: Serialize + DeserializeOwned + Send + Sync + 'static>(
    file: StateFile<T>,
    interval: Duration,
    mut latest: watch::Receiver<Option<Arc<T>>>,
    cancel: CancellationToken,
) {
    let mut failing = false;
    loop {
        let ending = tokio::select! {
            biased;
            () = cancel.cancelled() => true,
            changed = latest.changed() => changed.is_err(),
        };
        if ending && !latest.has_changed().unwrap_or(true) {
            return;
        }
        let value = latest.borrow_and_update().clone();
        if let Some(value) = value {
            failing = write(&file, value, failing).await;
        }
        if ending {
            return;
        }
        // Cancelled or not, the loop above decides.
        let _ = tokio::time::timeout_at(Instant::now() + interval, cancel.cancelled()).await;
    }
}

/// Returns whether it failed. Only the first failure in a row is worth a warning.
async fn write<T>(file: &StateFile<T>, value: Arc<T>, failing: bool) -> bool
where
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let file = file.clone();
    let error = match tokio::task::spawn_blocking(move || file.store(&value)).await {
        Ok(Ok(())) => return false,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    if failing {
        debug!(error, "the cache cannot be written");
    } else {
        warn!(
            error,
            "the cache cannot be written: a restart without the coordinator starts from an older one"
        );
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::StateDir;

    #[tokio::test]
    async fn the_latest_value_is_on_disk_when_the_task_has_ended() {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::create(&parent.path().join("state")).unwrap();
        let file = StateFile::<u32>::new(dir, "number.json");
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let saver = Saver::spawn(file.clone(), Duration::from_secs(3600), &cancel, &tracker);
        for number in 0..100 {
            saver.save(Arc::new(number));
            tokio::task::yield_now().await;
        }
        cancel.cancel();
        tracker.close();
        tracker.wait().await;
        assert_eq!(file.load().unwrap().unwrap().value, 99);
    }
}
