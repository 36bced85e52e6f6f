//! The end of a process that another one goes on for: peers keep what is for this node, and what they have sent before that
//! is still opened here.

use std::time::{Duration, Instant};

use mesh_engine::{command::Command, snapshot::Snapshot};

use crate::{driver::EngineHandle, io::tun::Tun};

/// A path with traffic is probed every second, and one probe may be lost.
const LATELY: Duration = Duration::from_millis(2500);
/// How long this process stays for what is on its way, at most: it is a part of the silence that a stream bears.
const MAX_WAIT: Duration = Duration::from_millis(100);
/// What a round trip may take longer than was measured.
const JITTER: Duration = Duration::from_millis(10);

/// Tells the peers; returns until when something may come of what they sent before they knew.
pub(super) async fn announce<T: Tun>(engine: &EngineHandle<T>) -> Option<Instant> {
    let (now, snapshot, _) = engine.snapshot().await.ok()?;
    let stays = farthest(&snapshot, now).map_or(Duration::ZERO, |rtt| (rtt + JITTER).min(MAX_WAIT));
    engine.command(Command::Pause { stays }).await.ok()?;
    Some(now + stays)
}

/// The longest round trip to a peer that is talked to: what this node says arrives, and what was sent just before does.
fn farthest(snapshot: &Snapshot, now: Instant) -> Option<Duration> {
    let paths = snapshot.peers.iter().filter_map(|peer| peer.path.as_ref());
    let is_used = |at: Instant| now.saturating_duration_since(at) < LATELY;
    let used = paths.filter(|path| path.last_answer.is_some_and(is_used));
    used.filter_map(|path| path.rtt).max()
}
