//! What was found out about networks: in which of them UDP lost to a byte pipe, and which pipe that was.
//!
//! Kept on disk, so that an agent that starts there loses no time. Networks where UDP works take no room.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_proto::netmap::RelayId;
use serde::{Deserialize, Serialize};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use super::stream::WebSocketUrl;
use crate::{
    identity::{StateDir, StateFile},
    netmap::Saver,
    os::NetworkId,
};

/// File of what was found out.
const FILE: &str = "networks.json";

/// Pipes that are remembered, of all networks and servers; the one that won longest ago goes first.
const MAX_WINNERS: usize = 64;

/// What all tasks know of networks, and write down. Cheap to clone; the lock is held for moments.
#[derive(Debug, Clone)]
pub(super) struct WinnerBook {
    winners: Arc<Mutex<Winners>>,
    saver: Arc<Saver<Winners>>,
}

/// Where a pipe has won, the latest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Winners(Vec<Winner>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Winner {
    network: NetworkId,
    /// The relay that stands alone to which it leads; `None` for the coordinator.
    #[serde(default)]
    relay: Option<RelayId>,
    url: String,
}

impl WinnerBook {
    /// Reads what was found out, and starts the task that writes it.
    pub(super) fn load(dir: &StateDir, cancel: &CancellationToken, tracker: &TaskTracker) -> Self {
        let saver = Saver::spawn(Winners::file(dir), Duration::ZERO, cancel, tracker);
        Self { winners: Arc::new(Mutex::new(Winners::load(dir))), saver: Arc::new(saver) }
    }

    /// Returns which pipe to a server won last in a network; `None` where UDP works, or nothing is known.
    pub(super) fn pipe_in(
        &self,
        network: Option<&NetworkId>,
        relay: Option<RelayId>,
    ) -> Option<WebSocketUrl> {
        self.lock().pipe_in(network, relay)
    }

    /// Whether a pipe to a server, or to the coordinator, has won in a network.
    pub(super) fn is_blocked(&self, network: Option<&NetworkId>, relay: Option<RelayId>) -> bool {
        let is_it = |winner: &Winner| winner.relay == relay || winner.relay.is_none();
        self.lock().0.iter().any(|winner| Some(&winner.network) == network && is_it(winner))
    }

    /// Remembers that a pipe to a server has won in a network, or with `None` that UDP works.
    pub(super) fn set(
        &self,
        network: Option<&NetworkId>,
        relay: Option<RelayId>,
        pipe: Option<&WebSocketUrl>,
    ) {
        let mut winners = self.lock();
        if winners.set(network, relay, pipe) {
            self.saver.save(Arc::new(winners.clone()));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Winners> {
        // The list is whole after every statement.
        self.winners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Winners {
    /// Reads what was found out. A file that cannot be read is left out: it costs a moment, not a start.
    fn load(dir: &StateDir) -> Self {
        match Self::file(dir).load() {
            Ok(loaded) => loaded.map(|loaded| loaded.value).unwrap_or_default(),
            Err(error) => {
                warn!(%error, "what was known of networks is not used");
                Self::default()
            }
        }
    }

    /// Returns where it is kept.
    fn file(dir: &StateDir) -> StateFile<Self> {
        StateFile::new(dir.clone(), FILE)
    }

    fn pipe_in(&self, network: Option<&NetworkId>, relay: Option<RelayId>) -> Option<WebSocketUrl> {
        let is_it = |winner: &&Winner| Some(&winner.network) == network && winner.relay == relay;
        self.0.iter().find(is_it)?.url.parse().ok()
    }

    /// Returns whether it is new.
    fn set(
        &mut self,
        network: Option<&NetworkId>,
        relay: Option<RelayId>,
        pipe: Option<&WebSocketUrl>,
    ) -> bool {
        let Some(network) = network else { return false };
        let before = self.0.clone();
        self.0.retain(|winner| winner.network != *network || winner.relay != relay);
        if let Some(url) = pipe {
            self.0.insert(0, Winner { network: network.clone(), relay, url: url.to_string() });
            self.0.truncate(MAX_WINNERS);
        }
        self.0 != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_remembered_until_udp_works_there() {
        let url: WebSocketUrl = "wss://pi.example/mesh".parse().unwrap();
        let office = NetworkId("office".to_owned());
        let mut winners = Winners::default();
        let relay = Some(RelayId(3));
        assert!(!winners.set(None, None, Some(&url)), "an unknown network");
        assert!(!winners.set(Some(&office), None, None));
        assert!(winners.set(Some(&office), None, Some(&url)));
        assert!(!winners.set(Some(&office), None, Some(&url)));
        assert_eq!(winners.pipe_in(Some(&office), None), Some(url.clone()));
        assert_eq!(winners.pipe_in(Some(&office), relay), None, "that leads elsewhere");
        assert!(winners.set(Some(&office), relay, Some(&url)));
        assert_eq!(winners.pipe_in(None, None), None);
        for number in 0..MAX_WINNERS {
            winners.set(Some(&NetworkId(number.to_string())), None, Some(&url));
        }
        assert_eq!(winners.pipe_in(Some(&office), None), None, "too long ago");
        assert!(winners.set(Some(&NetworkId("0".to_owned())), None, None));
    }

    #[test]
    fn what_was_written_without_relays_is_read() {
        let written = r#"[{"network":"office","url":"wss://pi.example/mesh"}]"#;
        let winners: Winners = serde_json::from_str(written).unwrap();
        assert!(winners.pipe_in(Some(&NetworkId("office".to_owned())), None).is_some());
    }
}
