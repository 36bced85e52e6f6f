//! One connection to the coordinator, from Connect to its end.
//!
//! Everything that can be said without an answer is said at once (Hello, Connect, RelayOpen, Candidates), so a
//! session is up one round trip after the handshake.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_engine::config::{RelayCarrier, RelayConfig};
use mesh_proto::{
    candidate::{Candidate, MAX_CANDIDATES},
    control::{ClientMessage, EXPLICIT_REMOVALS, Knock, PeerState, Refusal, RelayChannel, ServerMessage},
    netmap::{NetworkMap, NodeId, RelayId},
    stun,
};
use tracing::{debug, warn};

use super::{
    ControlEvent,
    address::is_usable,
    book::mesh_ranges,
    client::{Admission, Client},
    dial::{Dialed, bind_for},
    link::{Link, LinkError},
    namebook::News,
    race::QuicAttempt,
    shared::Gone,
    upgrade::{Progress, Upgrade},
};
use crate::netmap::{Rejection, Removals, Update};

/// The relay inside the coordinator.
const OWN_RELAY: RelayId = RelayId(0);

/// Most knocks at others within [`KNOCK_WINDOW`]: a few nodes that check their networks at once.
const MAX_KNOCKS: usize = 20;
/// See [`MAX_KNOCKS`].
const KNOCK_WINDOW: Duration = Duration::from_secs(5);

/// Why a session ended.
pub(super) enum End {
    /// The agent stops, or nobody listens to events any more.
    Gone,
    /// The connection is of no more use.
    Lost(LinkError),
    /// The coordinator wants no connection.
    Refused(Refusal),
    /// A connection over QUIC is there, to go on with.
    Moved(Box<Moved>),
}

/// What a session that moves from a byte pipe to QUIC leaves behind.
pub(super) struct Moved {
    /// The connection to go on with.
    pub(super) dialed: Dialed,
    /// The channel at the coordinator's relay, bound over UDP by now.
    pub(super) relay: Option<OpenChannel>,
    /// The link that is left.
    pub(super) old: Link,
}

/// A channel at the coordinator's relay, and what the engine was told of it.
type OpenChannel = (RelayChannel, RelayConfig);

/// What a session begins with.
#[derive(Default)]
pub(super) struct Beginning {
    /// An attempt over QUIC that was slower than the byte pipe.
    pub(super) quic: Option<QuicAttempt>,
    /// The channel of the session before, which is kept.
    pub(super) relay: Option<OpenChannel>,
}

/// What one session remembers.
pub(super) struct Session<'a> {
    client: &'a mut Client,
    link: Link,
    /// A whole map was asked for and has not come.
    resyncing: bool,
    /// The coordinator is behind what is known: asking it again makes no difference.
    behind: bool,
    /// The channel at the coordinator's relay, and what the engine was told of it.
    relay: Option<OpenChannel>,
    /// In a byte pipe: the way back to UDP.
    upgrade: Upgrade,
    /// When others were knocked at lately.
    knocked: Vec<Instant>,
}

/// Runs a session to its end.
pub(super) async fn run(client: &mut Client, link: Link, beginning: Beginning) -> End {
    let mut session = Session {
        client,
        upgrade: if link.is_pipe() { Upgrade::from_pipe(beginning.quic) } else { Upgrade::default() },
        link,
        resyncing: false,
        behind: false,
        relay: beginning.relay,
        knocked: Vec::new(),
    };
    let end = match session.run().await {
        Ok(()) => End::Gone,
        Err(end) => end,
    };
    match (end, session.upgrade.into_dialed()) {
        (End::Lost(_) | End::Refused(_) | End::Moved(_), Some(dialed)) => {
            End::Moved(Box::new(Moved { dialed, relay: session.relay, old: session.link }))
        }
        (end, _) => {
            session.link.close().await;
            end
        }
    }
}

impl Session<'_> {
    async fn run(&mut self) -> Result<(), End> {
        let connect = ClientMessage::Connect {
            public_key: self.client.identity.public_key(),
            map: self.client.store.version(),
            instance: Some(self.client.instance()),
        };
        self.link.queue(&connect)?;
        if self.relay.is_none() {
            self.link.queue(&ClientMessage::RelayOpen)?;
        }
        if let Some(pipe) = self.link.take_relay_pipe() {
            self.client.emit(ControlEvent::RelayPipe(OWN_RELAY, pipe)).await?;
        }
        self.client.shared.with_outbox(super::outbox::Outbox::handle_connected);
        let shared = self.client.shared.clone();
        let cancel = self.client.cancel.clone();
        loop {
            self.flush().await?;
            let proxy = self.link.proxy().map(|proxy| proxy.server.clone());
            self.client.watch_names(proxy);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = shared.changed() => {}
                news = self.client.watch.next() => self.handle_news(news).await?,
                progress = self.upgrade.next() => match progress {
                    Progress::Due => self.upgrade.start(self.client.try_quic()),
                    Progress::Reached(dialed) => self.start_moving(dialed).await?,
                    Progress::Failed(error) => debug!(%error, "UDP is blocked still"),
                    // As if the link were gone: either way there is the other one to go on with.
                    Progress::Moved => return Err(End::Lost(LinkError::Closed)),
                },
                message = self.link.recv() => self.handle(message?).await?,
            }
        }
    }

    /// Has the channel bound over UDP, through which QUIC was answered; the session follows soon.
    async fn start_moving(&mut self, dialed: Dialed) -> Result<(), End> {
        debug!("UDP is let through: moving there");
        let remote = dialed.connection.remote_address();
        self.client.book.handle_resolved(dialed.resolved.clone());
        self.upgrade.start_moving(dialed);
        if let Some((_, told)) = &self.relay {
            let id = told.id;
            self.client.shared.update(|outbox| outbox.set_relay(id, remote));
        }
        self.handle_addresses().await
    }

    /// Takes where a name leads now; if it is the name of who is at the other end, that end is tested.
    async fn handle_news(&mut self, news: News) -> Result<(), End> {
        let is_proxy = self.link.proxy().is_some_and(|proxy| proxy.server == news.name);
        let is_other_end = match self.link.proxy() {
            Some(_) => is_proxy,
            None => self.client.is_coordinator(&news.name),
        };
        if is_other_end {
            self.link.test_if_left(&news)?;
        }
        self.client.handle_news(news);
        self.handle_addresses().await
    }

    /// Does and says what waits in the outbox.
    async fn flush(&mut self) -> Result<(), End> {
        let local = self.client.handle_outbox();
        if local.network_changed {
            debug!("the network changed: the connection is tested");
            self.client.suspect_network();
            self.link.rebind().map_err(|_unreachable| LinkError::Silent)?;
            self.link.test()?;
            if self.link.is_pipe() {
                self.upgrade.restart(self.client.try_quic());
            }
        }
        if let Some(away) = local.woke {
            debug!(?away, "this host has slept: the connection is tested");
            self.client.suspect_network();
            self.link.wake(away)?;
        }
        if local.unanswered && !self.link.is_pipe() {
            debug!("nothing is answered: the connection is tested");
            self.client.suspect_network();
            self.link.test_urgently()?;
        }
        if local.reopen_relay {
            self.link.queue(&ClientMessage::RelayOpen)?;
            self.link.test()?;
        }
        while self.link.has_room() {
            let next = self.client.shared.with_outbox(|outbox| outbox.poll_message(Instant::now()));
            let Some(message) = next else { break };
            self.link.queue(&message)?;
        }
        self.client.emit_observers().await?;
        Ok(())
    }

    async fn handle(&mut self, message: ServerMessage) -> Result<(), End> {
        match &message {
            ServerMessage::Map { .. }
            | ServerMessage::Delta { .. }
            | ServerMessage::PeerStates { .. }
            | ServerMessage::RelayOpened(_) => self.client.set_duplicate(Admission::Taken).await?,
            ServerMessage::Copied => self.client.set_duplicate(Admission::Copied).await?,
            ServerMessage::Welcome(_)
            | ServerMessage::Joined { .. }
            | ServerMessage::CallMeMaybe { .. }
            | ServerMessage::Pong { .. }
            | ServerMessage::Knock(_)
            | ServerMessage::Knocking(_)
            | ServerMessage::AreYouThere { .. }
            | ServerMessage::Routes { .. }
            | ServerMessage::Refused(_)
            | ServerMessage::Unknown => {}
        }
        match message {
            ServerMessage::Welcome(welcome) => {
                debug!(version = welcome.version, "connected");
                let is_explicit = welcome.features.iter().any(|feature| feature == EXPLICIT_REMOVALS);
                let removals = if is_explicit { Removals::Explicit } else { Removals::Implied };
                self.client.store.set_removals(removals);
                if !self.link.is_pipe() {
                    self.client.book.handle_observed(welcome.observed);
                    self.client.book.set_observer_ports(welcome.observer_ports);
                }
                self.handle_addresses().await
            }
            ServerMessage::Map { map } => {
                self.resyncing = false;
                let update = self.client.store.handle_map(*map);
                self.handle_update(update).await
            }
            ServerMessage::Delta { delta } => {
                let update = self.client.store.handle_delta(delta);
                self.handle_update(update).await
            }
            ServerMessage::PeerStates { peers } => self.handle_peer_states(peers).await,
            ServerMessage::CallMeMaybe { from, candidates } => self.handle_call(from, candidates).await,
            ServerMessage::RelayOpened(channel) => self.handle_relay(channel).await,
            ServerMessage::Knock(knock) => {
                self.handle_knock(&knock);
                Ok(())
            }
            ServerMessage::Knocking(knocking) => {
                self.client.shared.set_knocking(knocking);
                Ok(())
            }
            ServerMessage::Routes { routes } => {
                self.client.shared.set_routes(routes);
                Ok(())
            }
            ServerMessage::Refused(refusal) => Err(End::Refused(refusal)),
            ServerMessage::AreYouThere { id } => Ok(self.link.queue(&ClientMessage::StillHere { id })?),
            ServerMessage::Joined { .. }
            | ServerMessage::Pong { .. }
            | ServerMessage::Copied
            | ServerMessage::Unknown => Ok(()),
        }
    }

    async fn handle_update(&mut self, update: Result<Update, Rejection>) -> Result<(), End> {
        self.show_rejection(&update);
        match update {
            Ok(Update::Changed(map)) => {
                self.client.handle_map(map).await?;
                self.handle_addresses().await
            }
            Ok(Update::Unchanged) => Ok(()),
            Err(rejection @ Rejection::Older(_)) => {
                if !self.behind {
                    warn!(%rejection, "the coordinator lost its latest state: what is known is kept");
                }
                self.behind = true;
                Ok(())
            }
            Err(rejection @ (Rejection::Gap(_) | Rejection::NoMap)) => {
                debug!(%rejection, "a delta does not fit");
                self.resync()
            }
            Err(rejection @ Rejection::Doubtful { .. }) => {
                warn!(%rejection, "it is asked for again before it is believed");
                self.resync()
            }
            Err(rejection @ (Rejection::Shrunk { .. } | Rejection::NotOurs)) => {
                warn!(%rejection, "what the coordinator says is not taken over");
                Ok(())
            }
        }
    }

    /// Shows in the status that the coordinator's map is not the one that is used.
    fn show_rejection(&self, update: &Result<Update, Rejection>) {
        let rejection = match update {
            Ok(Update::Changed(_) | Update::Unchanged) => None,
            // These are asked for again at once.
            Err(Rejection::Gap(_) | Rejection::NoMap) => return,
            Err(
                rejection @ (Rejection::Older(_)
                | Rejection::Doubtful { .. }
                | Rejection::Shrunk { .. }
                | Rejection::NotOurs),
            ) => Some(format!("its map is not taken over: {rejection}")),
        };
        self.client.shared.set_rejection(rejection);
    }

    fn resync(&mut self) -> Result<(), End> {
        if !self.resyncing && !self.behind {
            self.resyncing = true;
            self.link.queue(&ClientMessage::Resync)?;
        }
        Ok(())
    }

    async fn handle_peer_states(&mut self, mut peers: Vec<PeerState>) -> Result<(), End> {
        let map = self.client.store.map().cloned();
        for peer in &mut peers {
            peer.candidates = sanitize(&peer.candidates, map.as_deref());
        }
        self.client.handle_peer_states(&peers);
        Ok(self.client.emit(ControlEvent::PeerStates(peers)).await?)
    }

    async fn handle_call(&mut self, from: NodeId, candidates: Vec<Candidate>) -> Result<(), End> {
        let map = self.client.store.map();
        if !map.is_some_and(|map| map.peers.iter().any(|peer| peer.id == from)) {
            return Ok(());
        }
        let candidates = sanitize(&candidates, map.map(Arc::as_ref));
        Ok(self.client.emit(ControlEvent::CallMeMaybe { from, candidates }).await?)
    }

    async fn handle_relay(&mut self, channel: RelayChannel) -> Result<(), End> {
        let config = self.relay_config(&channel);
        self.relay = Some((channel, config.clone()));
        let (id, remote) = (config.id, self.udp_remote());
        self.client.shared.update(|outbox| match remote {
            Some(remote) => outbox.set_relay(id, remote),
            None => outbox.set_pipe_relay(id),
        });
        Ok(self.client.emit(ControlEvent::RelayOpened(config)).await?)
    }

    /// Knocks at another node, which the coordinator vouches for, from a socket that is used for nothing else.
    fn handle_knock(&mut self, knock: &Knock) {
        let Knock { to, transaction } = *knock;
        let mesh = mesh_ranges(self.client.store.map().map(Arc::as_ref));
        let now = Instant::now();
        self.knocked.retain(|at| now.duration_since(*at) < KNOCK_WINDOW);
        if !is_usable(to, &mesh) || self.knocked.len() >= MAX_KNOCKS {
            return;
        }
        self.knocked.push(now);
        let message = stun::Message::BindingSuccess { transaction, mapped: to }.encode();
        if let Err(error) = bind_for(to).and_then(|socket| socket.send_to(&message, to)) {
            debug!(%error, "cannot knock");
        }
    }

    /// Passes on what follows from addresses that became known.
    async fn handle_addresses(&mut self) -> Result<(), End> {
        if let Some((channel, told)) = &self.relay {
            let config = self.relay_config(channel);
            if config != *told {
                self.relay = Some((channel.clone(), config.clone()));
                self.client.emit(ControlEvent::RelayOpened(config)).await?;
            }
        }
        self.client.emit_observers().await?;
        Ok(self.client.emit_guess().await?)
    }

    /// Returns where the coordinator is reached over UDP, if it is.
    fn udp_remote(&self) -> Option<SocketAddr> {
        self.upgrade.remote().or_else(|| (!self.link.is_pipe()).then(|| self.link.remote()))
    }

    fn relay_config(&self, channel: &RelayChannel) -> RelayConfig {
        let map = self.client.store.map();
        let relay = map.and_then(|map| map.relays.iter().find(|relay| relay.id == channel.relay));
        let mesh = mesh_ranges(map.map(Arc::as_ref));
        let carrier = match (self.udp_remote(), relay) {
            (Some(met), Some(relay)) => {
                RelayCarrier::Udp(self.client.book.relay_addresses(relay, met, &mesh))
            }
            (Some(met), None) => RelayCarrier::Udp(vec![met]),
            (None, _) => RelayCarrier::Stream,
        };
        RelayConfig {
            id: channel.relay,
            carrier,
            channel: channel.channel,
            key: channel.key,
            bind_lifetime: channel.bind_lifetime(),
        }
    }
}

/// Leaves out candidates that cannot be on the underlay.
fn sanitize(candidates: &[Candidate], map: Option<&NetworkMap>) -> Vec<Candidate> {
    let mesh = mesh_ranges(map);
    let usable = candidates.iter().filter(|candidate| is_usable(candidate.address, &mesh));
    usable.take(MAX_CANDIDATES).copied().collect()
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl From<LinkError> for End {
    fn from(error: LinkError) -> Self {
        Self::Lost(error)
    }
}
