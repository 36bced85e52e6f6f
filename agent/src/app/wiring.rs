//! The wiring: every event of the control client, the driver and the host, and what follows from it.
//!
//! ```text
//! control: map ------------------> plan -> host        host: changes -> plan -> host (drift)
//!          peer states, call-me -> engine                    underlay changed -> engine, control, candidates
//!          relay, observers -----> engine, plan        driver: candidates, call-me, lost relays -> control
//!          guess ----------------> candidates -> engine        pongs -> local API; TUN lost -> a new TUN
//! port mapping: mapped ----------> candidates -> engine    clocks: woke up -> engine, control
//! ```
//!
//! Changes of the host come by notification; see [`Following`] for what is tried again and when.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use mesh_engine::{
    command::Command,
    config::{Ipv4Way, Nat64, RelayCarrier, RelayConfig},
    event::{Event, PathAddress},
};
use mesh_proto::{
    candidate::{Candidate, CandidateKind, MAX_CANDIDATES},
    control::PeerState,
    netmap::{NetworkMap, NodeId, RelayId},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    facts::{Facts, Pong},
    following::Following,
    lifetimes::LifetimeBook,
};
use crate::{
    control::{ControlEvent, ControlHandle, Duplicate},
    driver::{DriverEvent, EngineHandle, Events},
    io::tun::Device,
    keep::Companion,
    kubernetes::KubernetesHandle,
    nat64,
    os::{
        Family,
        clocks::Woke,
        linux::{Changes, Watch},
    },
    portmap::PortMapHandle,
};

/// Bursts of host changes that wait; the watch gathers on while the queue is full.
const CHANGES_QUEUE: usize = 4;

/// How long the cached map is held back at a start: if this machine is a copy of another one, the coordinator says so
/// before this agent has taken a tunnel from that. Without the coordinator, it is a delay that nobody sees.
const HOLD: Duration = Duration::from_millis(300);

/// Why the agent's run came to its end, without an error.
#[derive(Debug)]
pub(super) enum Ended {
    /// It was asked to stop.
    Stopped,
    /// This node has other mesh addresses now, and the engine must start over with them.
    AddressesChanged(Vec<IpAddr>),
}

/// Where events come from.
pub(super) struct Inputs {
    pub(super) control: mpsc::Receiver<ControlEvent>,
    pub(super) driver: Events,
    pub(super) changes: mpsc::Receiver<Changes>,
    pub(super) wakes: mpsc::Receiver<Woke>,
}

/// What the network around this host does for it.
pub(super) struct Surroundings {
    pub(super) port_map: PortMapHandle,
    pub(super) nat64: nat64::Changes,
    /// How long its NATs remember.
    pub(super) lifetimes: LifetimeBook,
    /// Where the API server is asked again when the network has changed.
    pub(super) kubernetes: Option<KubernetesHandle>,
    /// With whom the process before this one had sessions: they are made again with the first map.
    pub(super) companions: Vec<Companion>,
    /// Whether this process goes on where another one has left off.
    pub(super) is_resumed: bool,
}

/// The wiring's state.
pub(super) struct Wiring {
    engine: EngineHandle<Device>,
    control: ControlHandle,
    facts: Arc<Facts>,
    following: Following,
    /// The latest news of each peer.
    states: BTreeMap<NodeId, PeerState>,
    relays: BTreeMap<RelayId, RelayConfig>,
    observers: Vec<SocketAddr>,
    guess: Option<IpAddr>,
    surroundings: Surroundings,
    /// What the engine was told last.
    candidates: Option<Vec<Candidate>>,
    /// A map from the cache, until the coordinator has taken this agent for the node, or it is time.
    held: Option<(Arc<NetworkMap>, Instant)>,
    /// Whether maps are held back.
    holds: bool,
}

/// Hands over bursts of host changes; ends at cancellation, between two bursts.
pub(super) fn spawn_watch(
    mut watch: Watch,
    cancel: &CancellationToken,
    tracker: &TaskTracker,
) -> mpsc::Receiver<Changes> {
    let (bursts, receiver) = mpsc::channel(CHANGES_QUEUE);
    let cancel = cancel.clone();
    tracker.spawn(async move {
        loop {
            let burst = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                burst = watch.next() => burst,
            };
            let Some(burst) = burst else {
                tracing::error!("network changes cannot be watched any more");
                return;
            };
            if bursts.send(burst).await.is_err() {
                return;
            }
        }
    });
    receiver
}

impl Wiring {
    pub(super) fn new(
        engine: EngineHandle<Device>,
        control: ControlHandle,
        facts: Arc<Facts>,
        following: Following,
        surroundings: Surroundings,
    ) -> Self {
        Self {
            engine,
            control,
            facts,
            following,
            states: BTreeMap::new(),
            relays: BTreeMap::new(),
            observers: Vec::new(),
            guess: None,
            holds: !surroundings.is_resumed,
            held: None,
            surroundings,
            candidates: None,
        }
    }

    /// Runs until `front` is cancelled, or a part ends (the driver cancels `back`).
    pub(super) async fn run(
        &mut self,
        mut inputs: Inputs,
        front: &CancellationToken,
        back: &CancellationToken,
    ) -> anyhow::Result<Ended> {
        self.following.read_networks().await?;
        self.surroundings.port_map.set_networks(self.following.networks());
        self.set_candidates().await?;
        self.set_nat64().await?;
        self.set_nat_lifetime().await?;
        loop {
            let release_at = self.held.as_ref().map(|(_, until)| *until);
            tokio::select! {
                biased;
                () = front.cancelled() => return Ok(Ended::Stopped),
                () = back.cancelled() => anyhow::bail!("the driver ended by itself"),
                event = inputs.control.recv() => {
                    let event = event.context("the control client ended by itself")?;
                    if let Some(ended) = self.handle_control(event).await? {
                        return Ok(ended);
                    }
                }
                event = inputs.driver.next() => self.handle_driver(event).await,
                changes = inputs.changes.recv() => {
                    self.handle_changes(&changes.context("the network watch ended by itself")?).await?;
                }
                Some(woke) = inputs.wakes.recv() => self.handle_woke(woke).await?,
                () = self.surroundings.port_map.changed() => self.set_candidates().await?,
                () = self.surroundings.nat64.changed() => self.set_nat64().await?,
                () = sleep_until(release_at.unwrap_or_else(Instant::now)), if release_at.is_some() => self.release().await?,
                () = sleep_until(self.following.look_at()) => {
                    self.handle_changes(&Changes::default()).await?;
                }
            }
        }
    }

    /// Takes back what was done to the host.
    pub(super) async fn clear(&mut self) -> anyhow::Result<()> {
        self.following.clear().await
    }

    async fn handle_control(&mut self, event: ControlEvent) -> anyhow::Result<Option<Ended>> {
        match event {
            ControlEvent::Map(map) => {
                if map.this.addresses != self.following.own.addresses {
                    return Ok(Some(Ended::AddressesChanged(map.this.addresses.clone())));
                }
                if self.holds {
                    let until = self.held.as_ref().map_or_else(|| Instant::now() + HOLD, |(_, until)| *until);
                    self.held = Some((map, until));
                } else {
                    self.set_map(map).await?;
                }
            }
            ControlEvent::Admitted(duplicate) => {
                self.following.set_duplicate(duplicate).await;
                match duplicate {
                    Duplicate::None | Duplicate::Other => self.release().await?,
                    // Not before it was taken for the node.
                    Duplicate::This => (self.holds, self.held) = (true, None),
                }
            }
            ControlEvent::PeerStates(states) => {
                for mut state in states {
                    self.add_last_address(&mut state);
                    self.states.insert(state.id, state.clone());
                    self.engine.command(peer_state(state)).await?;
                }
            }
            ControlEvent::CallMeMaybe { from, candidates } => {
                self.engine.command(Command::CallMeMaybe { from, candidates }).await?;
            }
            ControlEvent::RelayPipe(relay, pipe) => self.engine.set_stream(relay, pipe).await?,
            ControlEvent::RelayOpened(relay) => {
                self.relays.insert(relay.id, relay);
                self.set_relays().await?;
                self.set_underlay().await;
            }
            ControlEvent::Observers(observers) => {
                self.observers.clone_from(&observers);
                self.facts.update(|known| known.observers.clone_from(&observers));
                self.engine.command(Command::SetObservers(observers)).await?;
                self.set_underlay().await;
            }
            ControlEvent::Guess(guess) => {
                self.guess = guess;
                self.set_candidates().await?;
            }
            ControlEvent::Fatal(reason) => anyhow::bail!("{reason}"),
        }
        Ok(None)
    }

    async fn handle_driver(&mut self, event: DriverEvent) {
        let event = match event {
            DriverEvent::Engine(event) => event,
            DriverEvent::TunLost => return self.following.look().await,
            DriverEvent::Unanswered => return self.control.unanswered(),
        };
        match event {
            Event::CandidatesChanged(candidates) => self.control.set_candidates(candidates),
            Event::CallMeMaybe { to, candidates } => self.control.call_me_maybe(to, candidates),
            Event::PathChanged { peer, path } => {
                tracing::debug!(peer = self.facts.known().name_of(peer), ?path, "primary path");
                if let Some(PathAddress::Direct(address)) = path {
                    self.control.path_worked(peer, address);
                }
            }
            Event::HomeChanged(home) => {
                self.control.set_home(home);
                if home.is_none() {
                    // No relay answers: UDP may be blocked, though somebody on this LAN still does.
                    self.control.unanswered();
                }
            }
            Event::NatLifetime(measured) => {
                self.surroundings.lifetimes.set(self.following.networks().id(), measured);
            }
            Event::RelayUp(relay) => tracing::debug!(?relay, "relay answers"),
            Event::RelayLost(relay) => {
                tracing::debug!(?relay, "relay does not know its channel");
                self.control.reopen_relay(relay);
            }
            Event::PrefixRefused { peer, prefix, owner } => {
                let known = self.facts.known();
                let (peer, owner) = (known.name_of(peer), known.name_of(owner));
                let why = format!("{prefix} of {peer} is not taken over: {owner} has it");
                self.following.note_refused(prefix, why);
            }
            Event::Pong { token, peer: _, path, rtt } => self.facts.pong(token, Pong { path, rtt }),
        }
    }

    /// The host has slept: everything that somebody knew of it may be forgotten. The watch tells if it woke up elsewhere.
    async fn handle_woke(&mut self, woke: Woke) -> anyhow::Result<()> {
        let Woke { away, unseen } = woke;
        tracing::info!(?away, "this host was away: everything is asked anew");
        self.engine.command(Command::Woke { unseen }).await?;
        self.control.woke(away);
        self.surroundings.port_map.woke(unseen);
        self.surroundings.nat64.network_changed();
        self.handle_changes(&Changes::default()).await
    }

    /// The host changed, or may have.
    async fn handle_changes(&mut self, changes: &Changes) -> anyhow::Result<()> {
        let before = match self.following.read_networks().await {
            Ok(before) => before,
            Err(error) => {
                tracing::warn!(%error, "the host's networks cannot be seen");
                self.following.look().await;
                return Ok(());
            }
        };
        let (old, new) = (before.underlay(), self.following.networks().underlay());
        tracing::trace!(?changes, ?old, ?new, "the host's networks are looked at");
        let lost = old.interfaces.iter().any(|interface| changes.lost.contains(&interface.index));
        if lost || old != new {
            tracing::debug!("the network changed");
            self.surroundings.port_map.set_networks(self.following.networks());
            self.surroundings.nat64.network_changed();
            self.set_candidates().await?;
            self.set_nat64().await?;
            self.engine.command(Command::NetworkChanged).await?;
            self.set_nat_lifetime().await?;
            self.control.set_network(self.following.networks().id());
            self.control.network_changed();
            if let Some(kubernetes) = &self.surroundings.kubernetes {
                kubernetes.network_changed();
            }
        }
        self.following.replan().await;
        Ok(())
    }

    /// Tells the engine what was measured in this network before.
    async fn set_nat_lifetime(&mut self) -> anyhow::Result<()> {
        let known = self.surroundings.lifetimes.of(self.following.networks().id().as_ref());
        self.engine.command(Command::SetNatLifetime(known)).await
    }

    /// Takes over what was held back, and holds nothing back from now on.
    async fn release(&mut self) -> anyhow::Result<()> {
        self.holds = false;
        match self.held.take() {
            Some((map, _)) => self.set_map(map).await,
            None => Ok(()),
        }
    }

    async fn set_map(&mut self, map: Arc<NetworkMap>) -> anyhow::Result<()> {
        let ids = |map: &NetworkMap| map.peers.iter().map(|peer| peer.id).collect::<BTreeSet<_>>();
        let new = ids(&map);
        self.surroundings.nat64.set_mesh(vec![map.mesh.ipv4.into(), map.mesh.ipv6.into()]);
        let old = self.following.map().map(ids).unwrap_or_default();
        // News of a peer may come before the map that has it; news of one that is gone is old.
        self.states.retain(|id, _| new.contains(id) || !old.contains(id));
        self.relays.retain(|id, _| map.relays.iter().any(|relay| relay.id == *id));
        self.following.set_map(map).await?;
        self.set_relays().await?;
        self.set_candidates().await?;
        if old.is_empty() && !self.surroundings.companions.is_empty() {
            let companions = self.surroundings.companions.iter().map(|companion| companion.id);
            self.engine.command(Command::Resume(companions.collect())).await?;
        }
        for id in new.difference(&old) {
            if let Some(state) = self.states.get(id) {
                self.engine.command(peer_state(state.clone())).await?;
            }
        }
        Ok(())
    }

    /// Adds, once, where a peer was when the process before this one ended: what is on disk may be older.
    fn add_last_address(&mut self, state: &mut PeerState) {
        let companions = &mut self.surroundings.companions;
        let found = companions.iter().position(|companion| companion.id == state.id);
        let Some(address) = found.and_then(|found| companions.remove(found).address) else { return };
        if !state.candidates.iter().any(|candidate| candidate.address == address) {
            state.candidates.truncate(MAX_CANDIDATES - 1);
            state.candidates.insert(0, Candidate { address, kind: CandidateKind::Reflexive });
        }
    }

    async fn set_relays(&self) -> anyhow::Result<()> {
        self.engine.command(Command::SetRelays(self.relays.values().cloned().collect())).await
    }

    /// Keeps the coordinator's and the relays' addresses out of the mesh.
    async fn set_underlay(&mut self) {
        let of_relay = |relay: &RelayConfig| match &relay.carrier {
            RelayCarrier::Udp(addresses) => addresses.clone(),
            RelayCarrier::Stream => Vec::new(),
        };
        let addresses = self.relays.values().flat_map(of_relay).chain(self.observers.iter().copied());
        let underlay = addresses.map(|address| address.ip()).collect();
        self.following.set_underlay(underlay).await;
    }

    /// Tells the engine how IPv4 is reached.
    async fn set_nat64(&self) -> anyhow::Result<()> {
        let networks = self.following.networks();
        let is_absent = |family: &Family| !networks.has_way_out(*family);
        let absent: Vec<Family> = [Family::V4, Family::V6].into_iter().filter(is_absent).collect();
        let ipv4 = if absent.contains(&Family::V4) { Ipv4Way::Absent } else { Ipv4Way::Present };
        self.facts.update(|known| known.absent = absent);
        let prefixes = self.surroundings.nat64.prefixes();
        self.engine.command(Command::SetNat64(Nat64 { prefixes, ipv4 })).await
    }

    /// Tells the engine where this node is reached, if that is news.
    async fn set_candidates(&mut self) -> anyhow::Result<()> {
        let mut candidates = self.following.candidates();
        if let Some(mapped) = self.surroundings.port_map.report().mapped {
            candidates.truncate(MAX_CANDIDATES - 1);
            candidates.insert(0, mapped.candidate());
        }
        if let Some(address) = self.guess {
            candidates.truncate(MAX_CANDIDATES - 1);
            let address = SocketAddr::new(address, self.following.own.port);
            candidates.push(Candidate { address, kind: CandidateKind::Guess });
        }
        if self.candidates.as_ref() != Some(&candidates) {
            self.candidates = Some(candidates.clone());
            self.engine.command(Command::SetCandidates(candidates)).await?;
        }
        Ok(())
    }
}

fn peer_state(state: PeerState) -> Command {
    let PeerState { id, online, candidates, relays, home, observed } = state;
    Command::PeerState { id, online, candidates, relays, home, observed }
}
