//! The host follows the plan: whenever the map, the host's networks or the underlay change, and whenever somebody else
//! changed what this agent had set.
//!
//! The latter is told from the former by the plan's being the same as it was when it was applied last. It is said, in the
//! log and in the status, and met with [`Patience`].

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

use super::{facts::Facts, notify, opening};
use crate::{
    control::Duplicate,
    driver::EngineHandle,
    io::{
        offload::Offloads,
        tun::{self, Device},
    },
    keep::Keeper,
    os::{Host, HostNetworks, linux::Netlink},
    plan::{Desired, LocalNetworks, PlanOptions, plan},
    reconcile::{Applied, Attitude, Patience, PutBack, Reconciler},
};

/// How soon what failed against the host is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How soon prefixes that the system refused are tried again.
const RETRY_REFUSED: Duration = Duration::from_secs(5);

/// How often the host is looked at without any news of it.
const RECHECK: Duration = Duration::from_secs(60);

/// How long it is shown what was put back.
const SHOWN: Duration = Duration::from_secs(600);

/// What is this agent's own.
pub(super) struct Own {
    pub(super) interface: String,
    pub(super) offloads: Offloads,
    pub(super) shards: NonZeroU32,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) port: u16,
    pub(super) keeper: Keeper,
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
    duplicate: Duplicate,
    desired: Desired,
    /// What the system refused at the last look.
    unable: Vec<String>,
    /// Prefixes that the engine refused, with the reason.
    refused: BTreeMap<IpNet, String>,
    /// The plan that was applied last without a failure or refusal: what has to be changed then was changed by others.
    settled: Option<Desired>,
    patience: Patience,
    /// What was put back lately.
    put_back: Option<(Instant, String)>,
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
            duplicate: Duplicate::None,
            desired: Desired::default(),
            unable: Vec::new(),
            refused: BTreeMap::new(),
            settled: None,
            patience: Patience::default(),
            put_back: None,
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

    /// Takes whether another agent has this node's keys. If that was there first, this one is silent.
    pub(super) async fn set_duplicate(&mut self, duplicate: Duplicate) {
        if self.duplicate == duplicate {
            return;
        }
        self.duplicate = duplicate;
        self.publish_duplicate();
        self.replan().await;
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
        if self.duplicate == Duplicate::This {
            // The peers would take it for the other one, and turn from one to the other.
            self.desired.peers.clear();
            self.desired.routes.clear();
        }
        self.look().await;
    }

    /// Makes the host look as planned; a TUN that is gone is opened again.
    pub(super) async fn look(&mut self) {
        let now = Instant::now();
        self.look_at = now + RECHECK;
        if self.map.is_none() {
            return;
        }
        let is_settled = self.settled.as_ref() == Some(&self.desired);
        if let Some(until) = self.patience.put_off_until(now.into_std()).filter(|_| is_settled) {
            self.look_at = until.into();
            return;
        }
        let mut outcome = self.reconciler.apply(&self.desired).await;
        let mut was_gone = false;
        if outcome.is_err() && self.reopen_tun().await.is_ok() {
            was_gone = true;
            outcome = self.reconciler.apply(&self.desired).await;
        }
        self.settled = None;
        match outcome {
            Ok(applied) => {
                self.handle_applied(
                    &applied,
                    (is_settled || was_gone).then(|| PutBack::of(&applied, was_gone)),
                );
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

    fn handle_applied(&mut self, applied: &Applied, drift: Option<PutBack>) {
        let Applied { link, addresses, routes, refused } = applied;
        if *addresses + *routes > 0 {
            tracing::debug!(?link, addresses, routes, "host follows the plan");
        }
        if refused.is_empty() {
            self.settled = Some(self.desired.clone());
        } else {
            self.look_at = Instant::now() + RETRY_REFUSED;
        }
        if let Some(drift) = drift.filter(|drift| !drift.is_nothing()) {
            self.handle_drift(drift);
        }
        // A host without IPv6 does with the IPv4 address, and the other way round.
        let missing = |address| refused.iter().any(|(refused, _)| refused == address);
        let ready = !self.desired.addresses.iter().all(missing);
        let unable = refused.iter().map(|(prefix, why)| format!("{prefix} cannot be set: {why}"));
        self.unable = unable.collect();
        self.publish();
        self.set_ready(ready);
    }

    /// Says what somebody else had changed and was put back.
    fn handle_drift(&mut self, drift: PutBack) {
        let now = Instant::now();
        let what = drift.to_string();
        let interface = &self.own.interface;
        let said = match self.patience.handle_drift(now.into_std()) {
            Attitude::Calm => {
                tracing::warn!(interface, what, "another program or person changed this: it was put back");
                format!("put back on {interface}, which another program or person had changed: {what}")
            }
            Attitude::Contested { wait, news } => {
                let wait_s = wait.as_secs();
                if news {
                    tracing::warn!(
                        interface,
                        what,
                        wait_s,
                        "another program changes this again and again: it is put back less often from now on; have it \
                         leave the interface alone"
                    );
                } else {
                    tracing::debug!(interface, what, wait_s, "put back again");
                }
                format!(
                    "another program changes {interface} again and again ({what}), which is put back after {wait_s} s \
                     only: have NetworkManager, systemd-networkd or whatever it is leave {interface} alone"
                )
            }
        };
        self.put_back = Some((now, said));
    }

    /// Takes back what was done to the host.
    pub(super) async fn clear(&mut self) -> anyhow::Result<()> {
        self.facts.update(|known| known.ready = false);
        self.reconciler.clear().await
    }

    /// Opens the TUN again if somebody deleted it; an error if it is still there.
    async fn reopen_tun(&self) -> anyhow::Result<()> {
        let queues = tun::open_queues(&self.own.interface, self.own.offloads, self.own.shards)?;
        opening::keep_tun(&self.own.keeper, &queues, self.own.shards);
        tracing::debug!(interface = self.own.interface, "the interface was gone and is made again");
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

    /// Shows what there is to say of another agent with this node's keys, before there is a map.
    fn publish_duplicate(&self) {
        if self.map.is_none() {
            let warning = duplicate_warning(self.duplicate).map(str::to_owned);
            self.facts.update(|known| known.warnings = warning.into_iter().collect());
        }
    }

    /// Shows map, routes and warnings, the worst first.
    fn publish(&self) {
        let Some(map) = &self.map else { return };
        let ranges = mesh_ranges(&map.mesh);
        let beyond = |route: &&IpNet| !ranges.iter().any(|range| range.contains(*route));
        let routes = self.desired.routes.iter().filter(beyond).copied().collect();
        let planned = self.desired.warnings.iter().map(ToString::to_string);
        let put_back =
            self.put_back.iter().filter(|(at, _)| at.elapsed() < SHOWN).map(|(_, said)| said.clone());
        let duplicate = duplicate_warning(self.duplicate).map(str::to_owned);
        let warnings = duplicate
            .into_iter()
            .chain(self.unable.iter().cloned())
            .chain(self.refused.values().cloned())
            .chain(planned)
            .chain(put_back);
        let warnings = warnings.collect();
        self.facts.update(|known| {
            known.map = Arc::clone(map);
            known.routes = routes;
            known.warnings = warnings;
        });
    }
}

fn duplicate_warning(duplicate: Duplicate) -> Option<&'static str> {
    match duplicate {
        Duplicate::None => None,
        Duplicate::Other => Some(
            "another machine has a copy of this node's keys and was refused: on the copy, remove the agent's state directory \
             and join again",
        ),
        Duplicate::This => Some(
            "this machine is a copy: another agent with the same keys is connected, so this one is silent; remove its state \
             directory and join again",
        ),
    }
}

fn mesh_ranges(mesh: &Mesh) -> [IpNet; 2] {
    [mesh.ipv4.into(), mesh.ipv6.into()]
}
