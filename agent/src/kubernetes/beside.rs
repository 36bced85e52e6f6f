//! A pod beside an agent on the host: there are never two agents for one node.
//!
//! ```text
//! pod (this process)                                   agent on the host
//!   | -- GET /v1/status, every few seconds ---------------> |   its own mesh: ready, ranges, what became of the routes
//!   | -- PUT /v1/kubernetes (ranges, what is to be shown) -> |   offers them to the coordinator, shows it in `meshctl`
//! ```
//!
//! The pod does the Kubernetes part alone: API server, bridge, plugins, packet filter. When the agent on the host is
//! stopped, for an upgrade or for good, everything stays as it is and the pod waits for it.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use ipnet::IpNet;
use mesh_proto::status::Status;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{KubernetesConfig, KubernetesHandle, Mesh, Start};
use crate::{
    identity::StateDir,
    local_api::{Beside, Client},
};

/// How often the host's agent is asked.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long the tasks may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(3);

/// The mesh of another process.
struct Remote {
    client: Client,
    /// `None` before the Node's ranges are known.
    pods: watch::Sender<Option<Vec<IpNet>>>,
}

impl Mesh for Remote {
    async fn status(&self) -> anyhow::Result<Status> {
        Ok(self.client.status().await?)
    }

    fn offer_pods(&self, ranges: &[IpNet]) {
        self.pods.send_replace(Some(ranges.to_vec()));
    }

    async fn changed(&self) {
        sleep(INTERVAL).await;
    }
}

/// Returns whether an agent answers at this socket.
pub async fn is_there(socket: &Path) -> bool {
    Client::new(socket).live().await.is_ok()
}

/// Runs the Kubernetes part beside the agent that answers at a socket, until it is cancelled.
///
/// # Errors
/// When it cannot start.
pub async fn run(
    config: KubernetesConfig,
    socket: &Path,
    state_dir: &Path,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    let state_dir = StateDir::create(state_dir).context("what is known of the Node cannot be kept")?;
    let (pods, mut offered) = watch::channel(None);
    let handle = KubernetesHandle::new(&config);
    let client = Client::new(socket);
    let mesh = Arc::new(Remote { client: client.clone(), pods });
    let tracker = TaskTracker::new();
    let start = Start { config, mesh, handle: handle.clone(), state_dir, socket: socket.to_owned() };
    super::spawn(start, cancel, &tracker)?;
    tracing::info!("an agent runs on this host: this pod does the Kubernetes part alone");
    let mut was_away = false;
    loop {
        let beside = Beside { pods: offered.borrow_and_update().clone(), status: handle.status() };
        match client.set_kubernetes(&beside).await {
            Ok(()) => was_away = false,
            Err(error) if !was_away => {
                was_away = true;
                tracing::warn!(%error, "what runs goes on without the agent on the host");
            }
            Err(error) => tracing::debug!(%error, "the agent on the host is still away"),
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            changed = offered.changed() => if changed.is_err() { break },
            () = sleep(INTERVAL) => {}
        }
    }
    tracker.close();
    if timeout(STOP_DEADLINE, tracker.wait()).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    Ok(())
}
