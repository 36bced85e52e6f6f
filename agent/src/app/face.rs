//! What the daemon answers to `meshctl`.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use mesh_engine::{command::Command, event::PathAddress, snapshot::Snapshot};
use mesh_proto::{
    kubernetes::KubernetesStatus,
    netmap::{NetworkMap, Relay},
    netreport::NetReport,
    route::{RouteKind, RouteOffer},
    status::Status,
};
use time::OffsetDateTime;
use tokio::{sync::Mutex, time::timeout};

use super::{
    crowding::Crowding,
    facts::{Facts, Known},
    report::Reporter,
};
use crate::{
    control::{ControlHandle, ProxyRules},
    driver::EngineHandle,
    io::tun::Tun,
    kubernetes::{KubernetesHandle, Mesh},
    local_api::{Agent, ApiError, Beside, PingReply, Report, Why},
    nat64::Nat64,
    netcheck::{self, PortalUrl, RelayTarget},
    portmap::PortMapHandle,
    view,
};

/// The local API's view of a running agent.
pub(super) struct Face<T> {
    pub(super) engine: EngineHandle<T>,
    pub(super) control: ControlHandle,
    pub(super) facts: Arc<Facts>,
    pub(super) reporter: Arc<Reporter>,
    pub(super) interface: String,
    pub(super) mtu: u16,
    pub(super) port_map: PortMapHandle,
    pub(super) nat64: Nat64,
    /// Which proxy byte pipes lead through.
    pub(super) proxy: ProxyRules,
    /// What captive portals are told by.
    pub(super) portal_url: Option<PortalUrl>,
    /// Networks beside this node that are offered to the mesh.
    pub(super) subnets: Vec<IpNet>,
    /// The pod network, if it is on.
    pub(super) kubernetes: Option<KubernetesHandle>,
    /// What a pod beside this agent said of it, if it is off here.
    pub(super) beside: std::sync::Mutex<Option<KubernetesStatus>>,
    /// Held while the network is checked: one check at a time.
    pub(super) checking: Mutex<()>,
    /// Whether the kernel's table of connections is full.
    pub(super) crowding: Crowding,
}

impl<T: Tun> Face<T> {
    fn beside(&self) -> std::sync::MutexGuard<'_, Option<KubernetesStatus>> {
        // It is whole at any moment.
        self.beside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a picture of everything and shows it to a pure function.
    async fn look<R>(&self, known: &Known, show: impl FnOnce(&view::Input<'_>) -> R) -> anyhow::Result<R> {
        let (now, snapshot, counters) = self.engine.snapshot().await?;
        Ok(show(&view::Input {
            snapshot: &snapshot,
            counters: &counters,
            now,
            wall: OffsetDateTime::now_utc(),
            map: &known.map,
            coordinator: self.control.status(),
            clock_offset_ms: self.control.clock_offset_ms(),
            interface: &self.interface,
            mtu: self.mtu,
            port_mapping: self.port_map.report(),
            nat64: self.nat64.prefixes(),
            absent: &known.absent,
            ready: known.ready,
            routes: &known.routes,
            advertised: self.control.routes(),
            warnings: known.warnings.iter().cloned().chain(self.crowding.warning()).collect(),
            kubernetes: self
                .kubernetes
                .as_ref()
                .map(KubernetesHandle::status)
                .or_else(|| self.beside().clone()),
        }))
    }
}

impl<T: Tun> Agent for Face<T> {
    async fn status(&self) -> anyhow::Result<Status> {
        self.look(&self.facts.known(), view::status).await
    }

    async fn netcheck(&self) -> Result<NetReport, ApiError> {
        // What somebody else asked for costs the network something already.
        let _one = self.checking.lock().await;
        let known = self.facts.known();
        let (this, relays) = self
            .look(&known, |input| (view::status(input).this, relay_targets(input.snapshot, &known.map)))
            .await
            .map_err(internal)?;
        let mesh = &known.map.mesh;
        Ok(netcheck::run(netcheck::Inputs {
            this,
            observers: known.observers.clone(),
            relays,
            coordinators: mesh.coordinators.clone(),
            mesh: vec![mesh.ipv4.into(), mesh.ipv6.into()],
            control: self.control.clone(),
            proxy: self.proxy.clone(),
            portal_url: self.portal_url.clone(),
        })
        .await)
    }

    async fn ping(&self, node: &str, wait: Duration) -> Result<PingReply, ApiError> {
        let known = self.facts.known();
        let peer = known.peer(node).ok_or_else(|| unknown(&known, node))?;
        let mut waiting = self.facts.ping();
        let ping = Command::Ping { peer: peer.id, token: waiting.token };
        self.engine.command(ping).await.map_err(internal)?;
        let pong = match timeout(wait, &mut waiting.answer).await {
            Ok(Ok(pong)) => pong,
            Ok(Err(_)) | Err(_) => return Err(ApiError::Timeout { node: peer.name.to_string() }),
        };
        let (endpoint, relay) = match pong.path {
            PathAddress::Direct(remote) | PathAddress::Punched { remote, .. } => (Some(remote), None),
            PathAddress::Relay(id) => {
                let relay = known.map.relays.iter().find(|relay| relay.id == id);
                (None, Some(relay.map_or_else(|| format!("#{}", id.0), |relay| relay.name.clone())))
            }
        };
        let address = *peer
            .addresses
            .first()
            .ok_or_else(|| ApiError::Internal { message: format!("{} has no mesh address", peer.name) })?;
        let rtt_ms = pong.rtt.as_secs_f64() * 1e3;
        Ok(PingReply { node: peer.name.to_string(), address, endpoint, relay, rtt_ms })
    }

    async fn why(&self, node: &str) -> Result<Why, ApiError> {
        let known = self.facts.known();
        let peer = known.peer(node).ok_or_else(|| unknown(&known, node))?;
        let explain = |input: &view::Input<'_>| {
            let snapshot = input.snapshot.peers.iter().find(|snapshot| snapshot.id == peer.id)?;
            Some(view::explain(input, peer.name.as_str(), snapshot))
        };
        let why = self.look(&known, explain).await.map_err(internal)?;
        why.ok_or_else(|| ApiError::Internal { message: format!("{} is not taken up yet", peer.name) })
    }

    async fn set_kubernetes(&self, beside: Beside) -> Result<(), ApiError> {
        if self.kubernetes.is_some() {
            let message =
                "this agent is the pod network itself: turn [kubernetes] off here, or remove the pod";
            return Err(ApiError::BadRequest { message: message.to_owned() });
        }
        if let Some(pods) = beside.pods {
            self.control.set_routes(offers(&self.subnets, &pods));
        }
        *self.beside() = Some(beside.status);
        Ok(())
    }

    async fn report(&self) -> anyhow::Result<Report> {
        self.reporter.report(&self.facts.known().map)
    }
}

impl<T: Tun> Mesh for Face<T> {
    async fn status(&self) -> anyhow::Result<Status> {
        Agent::status(self).await
    }

    fn offer_pods(&self, ranges: &[IpNet]) {
        self.control.set_routes(offers(&self.subnets, ranges));
    }

    async fn changed(&self) {
        self.facts.changed().await;
    }
}

/// What this node offers to the mesh.
pub(super) fn offers(subnets: &[IpNet], pods: &[IpNet]) -> Vec<RouteOffer> {
    let offer = |kind: RouteKind| move |prefix: &IpNet| RouteOffer { prefix: *prefix, kind };
    let pods = pods.iter().map(offer(RouteKind::Pods));
    subnets.iter().map(offer(RouteKind::Subnet)).chain(pods).collect()
}

/// The relays of the map, and where they answer.
fn relay_targets(snapshot: &Snapshot, map: &NetworkMap) -> Vec<RelayTarget> {
    let target = |relay: &Relay| RelayTarget {
        name: relay.name.clone(),
        addresses: relay.addresses.clone(),
        known: snapshot.relays.iter().find(|known| known.id == relay.id).and_then(|known| known.address),
    };
    map.relays.iter().map(target).collect()
}

fn unknown(known: &Known, node: &str) -> ApiError {
    ApiError::UnknownNode { node: node.to_owned(), known: known.names() }
}

#[expect(clippy::needless_pass_by_value, reason = "taken by map_err")]
fn internal(error: anyhow::Error) -> ApiError {
    ApiError::Internal { message: format!("{error:#}") }
}
