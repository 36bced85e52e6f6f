//! The host follows the plan: whenever the map, the host's networks or the underlay change, and whenever somebody else
//! changed what this agent had set.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use mesh_engine::command::Command;
use mesh_proto::{
    candidate::Candidate,
    netmap::{Mesh, NetworkMap},
};
use tokio::time::Instant;

use super::{facts::Facts, notify};
use crate::{
    driver::EngineHandle,
    io::{
        offload::Offloads,
        tun::{self, Device},
    },
    os::{Host, HostNetworks, linux::Netlink},
    plan::{Desired, LocalNetworks, PlanOptions, plan},
    reconcile::Reconciler,
};

/// How soon what failed against the host is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How soon prefixes that the system refused are tried again.
const RETRY_REFUSED: Duration = Duration::from_secs(5);

/// How often the host is looked at without any news of it.
const RECHECK: Duration = Duration::from_secs(60);

/// What is this agent's own.
pub(super) struct Own {
    pub(super) interface: String,
    pub(super) offloads: Offloads,
    pub(super) shards: NonZeroU32,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) port: u16,
}

/// One host, and what it should look like.
pub(super) struct Following {
    engine: EngineHandle<Device>,
    facts: Arc<Facts>,
    reconciler: Reconciler<Netlink, EngineHandle<Device>>,
    pub(super) own: Own,
    map: Option<Arc<NetworkMap>>,
    networks: HostNetworks,
    underlay: BTreeSet<IpAddr>,
    desired: Desired,
    /// What the system refused at the last look.
    unable: Vec<String>,
    /// Prefixes that the engine refused, with the reason.
    refused: BTreeMap<IpNet, String>,
    look_at: Instant,
}

impl Following {
    pub(super) fn new(
        engine: EngineHandle<Device>,
        facts: Arc<Facts>,
        reconciler: Reconciler<Netlink, EngineHandle<Device>>,
        own: Own,
    ) -> Self {
        Self {
            engine,
            facts,
            reconciler,
            own,
            map: None,
            networks: HostNetworks::default(),
            underlay: BTreeSet::new(),
            desired: Desired::default(),
            unable: Vec::new(),
            refused: BTreeMap::new(),
            look_at: Instant::now() + RECHECK,
        }
    }

    /// Returns when [`Self::look`] should be called, if nothing happens before.
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    pub(super) fn map(&self) -> Option<&NetworkMap> {
        self.map.as_deref()
    }

    /// Takes a new map, and makes the host follow.
    ///
    /// # Errors
    /// When the engine has ended.
    pub(super) async fn set_map(&mut self, map: Arc<NetworkMap>) -> anyhow::Result<()> {
        self.refused.clear();
        // What may come in, before the peers that it comes from.
        self.engine.command(Command::SetAllowedIps(map.this.allowed_ips.clone())).await?;
        self.map = Some(map);
        self.replan().await;
        Ok(())
    }

    /// Takes the addresses that must stay reachable outside the mesh, and makes the host follow.
    pub(super) async fn set_underlay(&mut self, underlay: BTreeSet<IpAddr>) {
        if self.underlay != underlay {
            self.underlay = underlay;
            self.replan().await;
        }
    }

    /// Looks at the host's networks and tells what they were.
    pub(super) async fn read_networks(&mut self) -> anyhow::Result<HostNetworks> {
        let networks = self.reconciler.host().networks().await?;
        Ok(std::mem::replace(&mut self.networks, networks))
    }

    pub(super) fn networks(&self) -> &HostNetworks {
        &self.networks
    }

    /// Returns where this host is reached: no address of the mesh, nor of what is behind its nodes.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let mut candidates = self.networks.candidates(self.own.port);
        if let Some(map) = &self.map {
            let behind = std::iter::once(&map.this).chain(&map.peers).flat_map(|node| &node.allowed_ips);
            let overlay: Vec<_> = mesh_ranges(&map.mesh).into_iter().chain(behind.copied()).collect();
            candidates
                .retain(|candidate| !overlay.iter().any(|range| range.contains(&candidate.address.ip())));
        }
        candidates
    }

    /// Notes that the engine refused a prefix.
    pub(super) fn note_refused(&mut self, prefix: IpNet, why: String) {
        self.refused.insert(prefix, why);
        self.publish();
    }

    /// Plans anew, and makes the host follow.
    pub(super) async fn replan(&mut self) {
        let Some(map) = &self.map else { return };
        let local = LocalNetworks { connected: self.networks.connected().collect() };
        self.desired = plan(map, &local, &PlanOptions { underlay: self.underlay.clone() });
        self.look().await;
    }

    /// Makes the host look as planned; a TUN that is gone is opened again.
    pub(super) async fn look(&mut self) {
        self.look_at = Instant::now() + RECHECK;
        if self.map.is_none() {
            return;
        }
        let mut outcome = self.reconciler.apply(&self.desired).await;
        if outcome.is_err() && self.reopen_tun().await.is_ok() {
            outcome = self.reconciler.apply(&self.desired).await;
        }
        match outcome {
            Ok(applied) => {
                if applied.changes > 0 {
                    tracing::debug!(changes = applied.changes, "host follows the plan");
                }
                if !applied.refused.is_empty() {
                    self.look_at = Instant::now() + RETRY_REFUSED;
                }
                // A host without IPv6 does with the IPv4 address, and the other way round.
                let missing = |address| applied.refused.iter().any(|(refused, _)| refused == address);
                let ready = !self.desired.addresses.iter().all(missing);
                let refused = applied.refused.iter();
                self.unable = refused.map(|(prefix, why)| format!("{prefix} cannot be set: {why}")).collect();
                self.publish();
                self.set_ready(ready);
            }
            Err(error) => {
                self.look_at = Instant::now() + RETRY;
                let error = format!("{error:#}");
                tracing::warn!(error, "the host does not follow the plan");
                self.unable = vec![error];
                self.publish();
                self.set_ready(false);
            }
        }
    }

    /// Takes back what was done to the host.
    pub(super) async fn clear(&mut self) -> anyhow::Result<()> {
        self.facts.update(|known| known.ready = false);
        self.reconciler.clear().await
    }

    /// Opens the TUN again if somebody deleted it; an error if it is still there.
    async fn reopen_tun(&self) -> anyhow::Result<()> {
        let queues = tun::open_queues(&self.own.interface, self.own.offloads, self.own.shards)?;
        tracing::warn!(interface = self.own.interface, "the interface was gone and is made again");
        self.engine.set_tun(queues).await
    }

    fn set_ready(&self, ready: bool) {
        let mut before = false;
        self.facts.update(|known| before = std::mem::replace(&mut known.ready, ready));
        if ready && !before {
            tracing::info!("interface, addresses and routes are up");
            notify::ready();
        }
    }

    /// Shows map, routes and warnings, the worst first.
    fn publish(&self) {
        let Some(map) = &self.map else { return };
        let ranges = mesh_ranges(&map.mesh);
        let beyond = |route: &&IpNet| !ranges.iter().any(|range| range.contains(*route));
        let routes = self.desired.routes.iter().filter(beyond).copied().collect();
        let planned = self.desired.warnings.iter().map(ToString::to_string);
        let warnings = self.unable.iter().cloned().chain(self.refused.values().cloned()).chain(planned);
        let warnings = warnings.collect();
        self.facts.update(|known| {
            known.map = Arc::clone(map);
            known.routes = routes;
            known.warnings = warnings;
        });
    }
}

fn mesh_ranges(mesh: &Mesh) -> [IpNet; 2] {
    [mesh.ipv4.into(), mesh.ipv6.into()]
}
