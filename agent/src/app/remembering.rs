//! What the next process finds in the record: with whom this one has sessions, a few seconds old at most.

use std::time::{Duration, Instant};

use mesh_engine::{
    event::PathAddress,
    snapshot::{PeerSnapshot, Snapshot},
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    driver::EngineHandle,
    io::tun::Tun,
    keep::{Companion, Record, RecordFile},
};

/// How often the record is brought up to date: with whom there are sessions changes rarely, and a peer that is not in it
/// is met when it sends.
const INTERVAL: Duration = Duration::from_secs(2);
/// A session that is older is none any more (WireGuard's Reject-After-Time).
const LIFETIME: Duration = Duration::from_secs(180);
/// Sessions that are made again at once, the latest first: each costs a handshake, and whoever comes last waits for all.
const MAX_COMPANIONS: usize = 256;

/// The record, as this process writes it.
#[derive(Debug)]
pub(super) struct Memory {
    /// Where no service manager keeps anything, there is none.
    file: Option<RecordFile>,
    record: Record,
}

impl Memory {
    pub(super) fn new(file: Option<RecordFile>, record: Record) -> Self {
        Self { file, record }
    }

    /// Writes the record as it is known.
    pub(super) fn write(&mut self) {
        if let Some(file) = &mut self.file
            && let Err(error) = file.write(&self.record)
        {
            tracing::warn!(%error, "the record for the next process cannot be written");
        }
    }

    fn note(&mut self, snapshot: &Snapshot, now: Instant) {
        self.record.companions = companions(&snapshot.peers, now);
        self.write();
    }
}

/// Keeps the record up to date until cancelled, and does so a last time then.
pub(super) fn spawn<T: Tun>(
    mut memory: Memory,
    engine: EngineHandle<T>,
    cancel: &CancellationToken,
    tracker: &TaskTracker,
) {
    if memory.file.is_none() {
        return;
    }
    let cancel = cancel.clone();
    tracker.spawn(async move {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // At first it says what the process before this one left, until the same sessions are there again.
        ticks.reset();
        loop {
            let is_last = tokio::select! {
                biased;
                () = cancel.cancelled() => true,
                _ = ticks.tick() => false,
            };
            let Ok((now, snapshot, _)) = engine.snapshot().await else { return };
            memory.note(&snapshot, now);
            if is_last {
                return;
            }
        }
    });
}

/// Chooses the peers with a session, the latest first.
fn companions(peers: &[PeerSnapshot], now: Instant) -> Vec<Companion> {
    let age = |peer: &PeerSnapshot| peer.last_handshake.map(|at| now.saturating_duration_since(at));
    let mut recent: Vec<_> = peers
        .iter()
        .filter_map(|peer| age(peer).filter(|age| *age < LIFETIME).map(|age| (age, peer)))
        .collect();
    recent.sort_by_key(|(age, peer)| (*age, peer.id));
    let companion = |(_, peer): (Duration, &PeerSnapshot)| Companion {
        id: peer.id,
        address: match peer.path.as_ref().map(|path| path.address) {
            Some(PathAddress::Direct(address)) => Some(address),
            // The socket of a punched path ends with this process.
            Some(PathAddress::Punched { .. } | PathAddress::Relay(_)) | None => None,
        },
    };
    recent.into_iter().take(MAX_COMPANIONS).map(companion).collect()
}
