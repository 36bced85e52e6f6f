//! Tells when the kernel's table of connections is full.
//!
//! Packets that begin a connection are dropped then, wherever they come from: those of pods, and those by which this agent
//! looks for a new path. What has its place in the table goes on, so most of the mesh looks well. The agent's own packets are
//! not kept out of the table (`notrack`): a filter that lets in what answers (`ct state established`), as most hosts have
//! one, would drop all that peers send.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::os::linux::Conntrack;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(10);
/// From so many percent on the table counts as full: a burst fills the rest between two looks.
const FULL: u64 = 95;
/// Below so many it does not any more.
const RELIEVED: u64 = 85;

/// What a person should know of it, as of the last look.
#[derive(Debug, Clone, Default)]
pub(super) struct Crowding(Arc<Mutex<Option<String>>>);

impl Crowding {
    /// Looks until it is cancelled.
    pub(super) fn spawn(cancel: &CancellationToken) -> Self {
        let (crowding, cancel) = (Self::default(), cancel.clone());
        let shared = crowding.clone();
        tokio::spawn(async move {
            loop {
                shared.observe(Conntrack::read());
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return,
                    () = sleep(INTERVAL) => {}
                }
            }
        });
        crowding
    }

    /// Returns a sentence if the table is full.
    pub(super) fn warning(&self) -> Option<String> {
        self.lock().clone()
    }

    /// Takes a look, and says in the log what has changed.
    fn observe(&self, table: Option<Conntrack>) {
        let mut warning = self.lock();
        let was_full = warning.is_some();
        let is_full = |Conntrack { count, most }: &Conntrack| {
            count.saturating_mul(100) >= most.saturating_mul(if was_full { RELIEVED } else { FULL })
        };
        *warning = table.filter(is_full).map(|Conntrack { count, most }| {
            format!(
                "the kernel's table of connections is full ({count} of {most}): new connections of this host and its pods are dropped, and with them new paths to other nodes; raise net.netfilter.nf_conntrack_max"
            )
        });
        match (&*warning, was_full) {
            (Some(warning), false) => tracing::warn!("{warning}"),
            (None, true) => tracing::info!("the kernel's table of connections has room again"),
            (Some(_), true) | (None, false) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        // It is whole at any moment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_is_told_until_there_is_room_again() {
        let crowding = Crowding::default();
        let is_told = |count| {
            crowding.observe(Some(Conntrack { count, most: 1000 }));
            crowding.warning().is_some()
        };
        let looks = [0, 900, 949, 950, 1000, 900, 850, 849, 900, 950];
        let told = [false, false, false, true, true, true, true, false, false, true];
        assert_eq!(looks.map(is_told), told);
        assert!(crowding.warning().unwrap().contains("(950 of 1000)"));
        crowding.observe(None);
        assert_eq!(crowding.warning(), None);
    }
}
