//! What was measured of how long mappings live, in each network where this node was: it need not wait for it the next time.
//!
//! Kept on disk. What is wrong in it, since another network looks the same, is noticed by the engine, which measures anew.

use std::{sync::Arc, time::Duration};

use mesh_engine::snapshot::NatLifetime;
use serde::{Deserialize, Serialize};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    identity::{StateDir, StateFile},
    netmap::Saver,
    os::NetworkId,
};

/// The file.
const FILE: &str = "lifetimes.json";
/// Networks that are remembered; the one that was measured longest ago goes first.
const MAX_NETWORKS: usize = 64;
/// Steps of one measurement come minutes apart, and the last one tells all.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);

/// What is known, and what writes it down.
pub(super) struct LifetimeBook {
    networks: Networks,
    saver: Saver<Networks>,
}

/// The networks, the latest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Networks(Vec<Network>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Network {
    network: NetworkId,
    outlived_s: Option<u64>,
    exceeded_s: Option<u64>,
}

impl LifetimeBook {
    /// Reads what is known, and starts the task that writes it. A file that cannot be read is left out: it costs some
    /// minutes of measuring.
    pub(super) fn load(dir: &StateDir, cancel: &CancellationToken, tracker: &TaskTracker) -> Self {
        let file = || StateFile::new(dir.clone(), FILE);
        let networks = match file().load() {
            Ok(loaded) => loaded.map(|loaded| loaded.value).unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "what was measured in other networks is not used");
                Networks::default()
            }
        };
        Self { networks, saver: Saver::spawn(file(), SAVE_INTERVAL, cancel, tracker) }
    }

    /// Returns what is known of a network: nothing of one that has no name.
    pub(super) fn of(&self, network: Option<&NetworkId>) -> NatLifetime {
        self.networks.of(network)
    }

    /// Remembers what was measured in a network.
    pub(super) fn set(&mut self, network: Option<NetworkId>, measured: NatLifetime) {
        if self.networks.set(network, measured) {
            self.saver.save(Arc::new(self.networks.clone()));
        }
    }
}

impl Networks {
    fn of(&self, network: Option<&NetworkId>) -> NatLifetime {
        let known = self.0.iter().find(|known| Some(&known.network) == network);
        known.map_or_else(NatLifetime::default, |known| NatLifetime {
            outlived: known.outlived_s.map(Duration::from_secs),
            exceeded: known.exceeded_s.map(Duration::from_secs),
        })
    }

    /// Returns whether it is new.
    fn set(&mut self, network: Option<NetworkId>, measured: NatLifetime) -> bool {
        let Some(network) = network.filter(|network| self.of(Some(network)) != measured) else {
            return false;
        };
        self.0.retain(|known| known.network != network);
        if measured != NatLifetime::default() {
            let outlived_s = measured.outlived.map(|outlived| outlived.as_secs());
            let exceeded_s = measured.exceeded.map(|exceeded| exceeded.as_secs());
            self.0.insert(0, Network { network, outlived_s, exceeded_s });
            self.0.truncate(MAX_NETWORKS);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_has_its_own_and_the_oldest_is_forgotten() {
        let id = |number: usize| NetworkId(number.to_string());
        let measured = |seconds| NatLifetime { outlived: Some(Duration::from_secs(seconds)), exceeded: None };
        let mut networks = Networks::default();
        assert!(!networks.set(None, measured(25)), "a network without a name");
        assert!(networks.set(Some(id(1)), measured(25)));
        assert!(!networks.set(Some(id(1)), measured(25)));
        assert!(networks.set(Some(id(2)), measured(100)));
        let written = serde_json::to_string(&networks).unwrap();
        let networks_read: Networks = serde_json::from_str(&written).unwrap();
        assert_eq!(networks_read, networks);
        assert_eq!(networks.of(Some(&id(1))), measured(25));
        assert_eq!(networks.of(Some(&id(3))), NatLifetime::default());
        assert!(networks.set(Some(id(2)), NatLifetime::default()));
        assert_eq!(networks.of(Some(&id(2))), NatLifetime::default());
        for number in 10..10 + MAX_NETWORKS {
            assert!(networks.set(Some(id(number)), measured(50)));
        }
        assert_eq!(networks.of(Some(&id(1))), NatLifetime::default());
        assert_eq!(networks.0.len(), MAX_NETWORKS);
    }
}
