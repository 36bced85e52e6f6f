//! Trouble with paths to other nodes that lasts, and is worth an Event on the Node.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use mesh_proto::status::{PathKind, Status};

use super::tell::{Notice, Severity};

/// A peer that roams or reboots is back by then.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(300);
/// What a person may want to put right, and need not.
const RELAYED_AFTER: Duration = Duration::from_secs(900);
/// Of the last probes, so many stay unanswered on a path that leads nowhere.
const ALL_LOST: f64 = 0.99;

/// Remembers since when there is trouble.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    since: BTreeMap<String, Instant>,
}

impl Troubles {
    /// Takes a look at all paths, and returns what has lasted.
    pub(super) fn observe(&mut self, status: &Status, now: Instant) -> Vec<Notice> {
        let mut found = BTreeMap::new();
        for peer in status.peers.iter().filter(|peer| peer.online) {
            let path = &peer.path;
            if path.kind == PathKind::None || peer.loss >= ALL_LOST {
                let message = format!("node {} is there and cannot be reached: {}", peer.name, path.reason);
                let notice = Notice { reason: "MeshNodeUnreachable", message, severity: Severity::Warning };
                found.insert(peer.name.clone(), (UNREACHABLE_AFTER, notice));
            }
        }
        let relayed = |kind: PathKind| kind == PathKind::Relay;
        if status.this.nat.udp_blocked
            && status.peers.iter().any(|peer| peer.online && relayed(peer.path.kind))
        {
            let message = "UDP does not get out of this node's network: other nodes are reached through a relay over TCP";
            let notice = Notice {
                reason: "MeshRelayedOverTCP",
                message: message.to_owned(),
                severity: Severity::Normal,
            };
            // No node has this name.
            found.insert(String::new(), (RELAYED_AFTER, notice));
        }
        self.since.retain(|about, _| found.contains_key(about));
        let mut lasting = Vec::new();
        for (about, (patience, notice)) in found {
            let since = *self.since.entry(about).or_insert(now);
            if now.saturating_duration_since(since) >= patience {
                lasting.push(notice);
            }
        }
        lasting
    }
}
