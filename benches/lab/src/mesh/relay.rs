//! Relays that stand alone, on hosts of their own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::{Daemon, Mesh, wait_until};

/// How long a relay may take until it is in the map of every agent and has answered it.
const RELAY_PATIENCE: Duration = Duration::from_secs(60);

impl Mesh {
    /// Starts `mesh-coordinator relay` on a host, registered with a token of its own; its name is the host's.
    ///
    /// # Errors
    ///
    /// If there is no such host, the coordinator makes no token, or the relay cannot be started.
    pub fn start_relay(&self, host: &str) -> anyhow::Result<Daemon> {
        let line = self.token(&["--tag", "relay"])?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |flag: &str| {
            let value = words.windows(2).find(|pair| pair[0] == flag).map(|pair| pair[1]);
            value.with_context(|| format!("no {flag} in {line}"))
        };
        let coordinator = words.get(2).context("a join line names the coordinator")?;
        let directory = self.network().lab().directory().join("relays").join(host);
        std::fs::create_dir_all(&directory)?;
        let address = self.network().host(host)?.address().to_string();
        let settings = [
            ("--ca-cert-hash", after("--ca-cert-hash")?),
            ("--token", after("--token")?),
            ("--name", host),
            ("--address", &address),
        ];
        let mut args = vec!["relay".into(), coordinator.into(), "--state-dir".into(), directory.into()];
        args.extend(settings.iter().flat_map(|(flag, value)| [flag.into(), value.into()]));
        let network = Arc::clone(self.network());
        let daemon = Daemon::new(network, host, self.binaries().coordinator.clone(), args);
        daemon.start()?;
        Ok(daemon)
    }

    /// Waits until a node's status says that this relay is its home.
    ///
    /// # Errors
    ///
    /// If it does not in time, with what it says.
    pub fn wait_home(&self, node: &str, relay: &str) -> anyhow::Result<()> {
        wait_until(RELAY_PATIENCE, &format!("{node} is at home at {relay}"), || {
            let home = self.node(node)?.status()?.this.relay;
            ensure!(home.as_ref().is_some_and(|home| home.name == relay), "it says {home:?}");
            Ok(true)
        })
    }
}
