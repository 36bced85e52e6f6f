//! Gives memory back to the system, once the start is over and now and then after it.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::os::linux::give_back;

/// Sessions and paths with the peers that are there are made by then.
const START: Duration = Duration::from_secs(10);
/// How often it is done after that. What is in use comes back at once, by about 150 minor faults of a microsecond each.
const INTERVAL: Duration = Duration::from_secs(30);

/// Starts to do so, until it is cancelled.
pub(super) fn spawn(cancel: &CancellationToken) {
    let cancel = cancel.clone();
    tokio::spawn(async move {
        let mut wait = START;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = sleep(wait) => {}
            }
            give_back();
            wait = INTERVAL;
        }
    });
}
