//! What was found out about networks: in which of them UDP lost to a byte pipe, and which pipe that was.
//!
//! Kept on disk, so that an agent that starts there loses no time. Networks where UDP works take no room.

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::stream::WebSocketUrl;
use crate::{
    identity::{StateDir, StateFile},
    os::NetworkId,
};

/// File of what was found out.
const FILE: &str = "networks.json";

/// Networks that are remembered; the one that was met longest ago goes first.
const MAX_NETWORKS: usize = 32;

/// The networks where a pipe has won, the latest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Winners(Vec<Winner>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Winner {
    network: NetworkId,
    url: String,
}

impl Winners {
    /// Reads what was found out. A file that cannot be read is left out: it costs a moment, not a start.
    pub(super) fn load(dir: &StateDir) -> Self {
        match Self::file(dir).load() {
            Ok(loaded) => loaded.map(|loaded| loaded.value).unwrap_or_default(),
            Err(error) => {
                warn!(%error, "what was known of networks is not used");
                Self::default()
            }
        }
    }

    /// Returns where it is kept.
    pub(super) fn file(dir: &StateDir) -> StateFile<Self> {
        StateFile::new(dir.clone(), FILE)
    }

    /// Returns which pipe won last in a network; `None` where UDP works, or nothing is known.
    pub(super) fn pipe_in(&self, network: Option<&NetworkId>) -> Option<WebSocketUrl> {
        let winner = self.0.iter().find(|winner| Some(&winner.network) == network)?;
        winner.url.parse().ok()
    }

    /// Remembers that a pipe has won in a network, or with `None` that UDP works; returns whether that is new.
    pub(super) fn set(&mut self, network: Option<&NetworkId>, pipe: Option<&WebSocketUrl>) -> bool {
        let Some(network) = network else { return false };
        let before = self.0.clone();
        self.0.retain(|winner| winner.network != *network);
        if let Some(url) = pipe {
            self.0.insert(0, Winner { network: network.clone(), url: url.to_string() });
            self.0.truncate(MAX_NETWORKS);
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
        assert!(!winners.set(None, Some(&url)), "an unknown network");
        assert!(!winners.set(Some(&office), None));
        assert!(winners.set(Some(&office), Some(&url)));
        assert!(!winners.set(Some(&office), Some(&url)));
        assert_eq!(winners.pipe_in(Some(&office)), Some(url.clone()));
        assert_eq!(winners.pipe_in(None), None);
        for number in 0..MAX_NETWORKS {
            winners.set(Some(&NetworkId(number.to_string())), Some(&url));
        }
        assert_eq!(winners.pipe_in(Some(&office)), None, "too long ago");
        assert!(winners.set(Some(&NetworkId("0".to_owned())), None));
    }
}
