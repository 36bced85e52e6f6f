//! The session of a connected node: its map and every change of it, news of its peers, and what it says.

use std::{sync::Arc, time::Duration};

use mesh_proto::{
    control::{
        ClientMessage, InstanceId, Knock, Knocking, Refusal, RefusalCode, RelayChannel, ServerMessage,
    },
    netmap::{MapDelta, NodeId, RelayId, Version},
    route::RouteOffer,
};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    board::News,
    enter::refusal_of,
    hub::{Admission, Arrival, Attachment, HubHandle, Incumbent, Newcomer, Post, Reach, Seen},
    link::{Link, LinkError},
    mailbox::Mail,
    pong, refusal,
    server::{IDLE_TIMEOUT, refuse, refuse_broken},
    stats::ControlStats,
};
use crate::{
    front::observer::Knocker,
    limit::{Rate, TokenBucket},
    registry::{Change, ChangeKind, Registry, RegistryError, mapgen},
    relay::{BIND_LIFETIME_S, RelayHandle},
};

/// Messages of one client. One that is over it is read more slowly, which QUIC passes on to it. The burst
/// is a call to each of a thousand peers.
const MESSAGE_RATE: Rate = Rate { per_second: 200, burst: 2000 };
/// Knocks that one client may ask for: a check of its network takes three.
const KNOCK_RATE: Rate = Rate { per_second: 2, burst: 8 };
/// How long an agent may take to answer that it is there still: a few round trips over a bad link. So long a restarted one
/// waits for its session, if the one before it was killed; its tunnels do not wait.
const PROOF_PATIENCE: Duration = Duration::from_millis(1500);
/// How long one may that another run was there beside already: longer than it takes until the connection of an agent that
/// is gone has ended, so that only this decides.
const COPY_PATIENCE: Duration = IDLE_TIMEOUT.saturating_add(Duration::from_secs(5));
/// How long a copy waits before it asks again, in milliseconds: it changes nothing until somebody has mended it.
const DUPLICATE_RETRY_MS: u64 = 60_000;
/// The relay inside the coordinator.
const OWN_RELAY: RelayId = RelayId(0);
/// When the coordinator stops, clients come back after this and up to as much again, not all at once.
const SHUTDOWN_RETRY_MS: u64 = 500;

/// What a session works with.
pub(super) struct Session {
    pub(super) node: NodeId,
    /// The version of the map that the client has.
    pub(super) version: Option<Version>,
    /// Which run of the agent the client is.
    pub(super) instance: Option<InstanceId>,
    /// Up to where changes were looked at; those that do not concern the client are not sent.
    pub(super) seen: Version,
    pub(super) changes: broadcast::Receiver<Change>,
    pub(super) registry: Registry,
    pub(super) hub: HubHandle,
    pub(super) relay: RelayHandle,
    pub(super) knocker: Knocker,
    /// How often the client may still ask for knocks.
    pub(super) knocks: TokenBucket,
    pub(super) stats: Arc<ControlStats>,
}

/// Why a session ended.
enum End {
    /// The connection failed, or what came over it made no sense.
    Link(LinkError),
    /// The client is told why, and the connection is closed.
    Refused(Refusal),
}

/// Whether the client was told what became of the routes that it offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnRoutes {
    Sent,
    NotSent,
}

/// Serves a session until its connection, the node or the coordinator is gone.
pub(super) async fn run(mut session: Session, mut link: Link, cancel: CancellationToken) {
    let end = match session.attach(Seen::of(&link)).await {
        Ok(mut attachment) => {
            tracing::debug!(node = session.node.0, "connected");
            let end = match session.send_map_or_changes(&mut link).await {
                Ok(()) => session.serve(&mut link, &mut attachment, &cancel).await,
                Err(end) => end,
            };
            session.hub.detach(attachment).await;
            tracing::debug!(node = session.node.0, "disconnected");
            end
        }
        Err(end) => end,
    };
    match end {
        End::Link(error) => refuse_broken(link, &session.stats, &error).await,
        End::Refused(refusal) => refuse(link, &session.stats, refusal).await,
    }
}

impl Session {
    /// Becomes the node's session; another run of its agent goes first, as long as it answers.
    async fn attach(&self, seen: Seen) -> Result<Attachment, End> {
        let mut past = None;
        loop {
            let arrival = Arrival { seen, instance: self.instance, past };
            let admission = self.hub.attach(self.node, arrival).await;
            match admission.map_err(|_| End::Refused(shutting_down()))? {
                Admission::Attached(attachment) => return Ok(attachment),
                Admission::Occupied(incumbent) if incumbent.mailbox.is_alive(patience(&incumbent)).await => {
                    tracing::warn!(
                        node = self.node.0,
                        "two agents have this node's keys: the second one is refused; remove the state directory of the \
                         copy and join it again"
                    );
                    incumbent.mailbox.put_copied();
                    if let Some(instance) = self.instance {
                        self.hub.note_copy(self.node, instance).await;
                    }
                    return Err(End::Refused(duplicate()));
                }
                Admission::Occupied(incumbent) => past = Some(incumbent.session),
            }
        }
    }

    /// Serves until something ends the session. Changes go before what the hub has: a peer is in the map before there
    /// is news of it.
    async fn serve(
        &mut self,
        link: &mut Link,
        attachment: &mut Attachment,
        cancel: &CancellationToken,
    ) -> End {
        let mut bucket = TokenBucket::new(std::time::Instant::now());
        let mut read_from = Instant::now();
        loop {
            let step = tokio::select! {
                biased;
                () = cancel.cancelled() => Err(End::Refused(shutting_down())),
                change = self.changes.recv() => self.handle_change(link, change).await,
                post = attachment.take() => match post {
                    Post::Mail(mail) => self.handle_mail(link, mail).await,
                    Post::News(news) => self.handle_news(link, &news).await,
                },
                message = recv_from(link, read_from) => match message {
                    Ok(message) => {
                        if let Err(wait) = bucket.try_take(std::time::Instant::now(), MESSAGE_RATE, 1) {
                            read_from = Instant::now() + wait;
                        }
                        self.handle_message(link, attachment, message).await
                    }
                    Err(error) => Err(End::Link(error)),
                },
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Brings the client's map to the present: by what it misses if that is known still, or whole.
    async fn send_map_or_changes(&mut self, link: &mut Link) -> Result<(), End> {
        let Some(version) = self.version else { return self.send_map(link).await };
        self.seen = version;
        self.send_changes(link).await?;
        Ok(())
    }

    /// Sends a whole map. What was removed since the one that the client has is said before that: so nobody has to believe
    /// that a map has got smaller by itself.
    async fn send_map(&mut self, link: &mut Link) -> Result<(), End> {
        if let Some(known) = self.version {
            let removed = self.registry.removed_since(known);
            if !removed.is_empty() {
                let (this, changed, relays) = (None, vec![], None);
                let delta = MapDelta { from: known, to: known, this, changed, removed, relays };
                self.stats.deltas.increment();
                link.send(&ServerMessage::Delta { delta }).await?;
            }
        }
        let (version, message) = self.registry.map_message_for(self.node)?;
        self.seen = version;
        self.version = Some(version);
        self.stats.maps.increment();
        link.send_shared(message.map_err(LinkError::from)?).await?;
        Ok(())
    }

    /// Sends what changed since the last time, as far as it concerns the client.
    async fn send_changes(&mut self, link: &mut Link) -> Result<OwnRoutes, End> {
        let Some(changes) = self.registry.changes_since(self.seen).await? else {
            self.send_map(link).await?;
            return Ok(OwnRoutes::NotSent);
        };
        if changes.iter().any(|change| change.kind == ChangeKind::NodeRemoved(self.node)) {
            return Err(RegistryError::NotRegistered.into());
        }
        self.seen = changes.last().map_or(self.seen, |change| change.version);
        let own_routes = changes.iter().any(|change| change.kind == ChangeKind::RoutesSet(self.node));
        let news: Vec<Change> =
            changes.into_iter().filter(|change| mapgen::concerns(self.node, change)).collect();
        if !news.is_empty() {
            let delta = mapgen::delta(self.node, self.version.unwrap_or_default(), &news);
            self.version = Some(delta.to);
            self.stats.deltas.increment();
            link.send(&ServerMessage::Delta { delta }).await?;
        }
        if own_routes { self.send_routes(link).await } else { Ok(OwnRoutes::NotSent) }
    }

    async fn send_routes(&mut self, link: &mut Link) -> Result<OwnRoutes, End> {
        let routes = self.registry.route_answers(self.node);
        link.send(&ServerMessage::Routes { routes }).await?;
        Ok(OwnRoutes::Sent)
    }

    /// Takes over what the client offers, and answers once: what that has changed is among the changes.
    async fn handle_advertise(&mut self, link: &mut Link, routes: Vec<RouteOffer>) -> Result<(), End> {
        self.registry.advertise(self.node, routes).await?;
        match self.send_changes(link).await? {
            OwnRoutes::Sent => {}
            OwnRoutes::NotSent => {
                self.send_routes(link).await?;
            }
        }
        Ok(())
    }

    /// A change that is announced is a reason to look: several may have come, and those of one version
    /// belong into one delta.
    async fn handle_change(
        &mut self,
        link: &mut Link,
        announced: Result<Change, RecvError>,
    ) -> Result<(), End> {
        if matches!(announced, Err(RecvError::Closed)) {
            return Err(End::Refused(shutting_down()));
        }
        self.changes = self.changes.resubscribe();
        self.send_changes(link).await?;
        Ok(())
    }

    async fn handle_mail(&self, link: &mut Link, mail: Mail) -> Result<(), End> {
        if let Some(refusal) = mail.end {
            return Err(End::Refused(refusal));
        }
        if let Some(id) = mail.question {
            link.send(&ServerMessage::AreYouThere { id }).await?;
        }
        if mail.copied {
            link.send(&ServerMessage::Copied).await?;
        }
        for knock in mail.knocks {
            link.send(&ServerMessage::Knock(knock)).await?;
        }
        for (from, candidates) in mail.calls {
            link.send(&ServerMessage::CallMeMaybe { from, candidates }).await?;
        }
        Ok(())
    }

    async fn handle_news(&self, link: &mut Link, news: &News) -> Result<(), End> {
        if let Some(message) = news.message_to(self.node).map_err(LinkError::from)? {
            link.send_shared(message).await?;
        }
        Ok(())
    }

    async fn handle_message(
        &mut self,
        link: &mut Link,
        attachment: &Attachment,
        message: ClientMessage,
    ) -> Result<(), End> {
        match message {
            ClientMessage::Resync => self.send_map(link).await,
            ClientMessage::Candidates { candidates, relays, home } => {
                self.hub.set_reach(self.node, Reach { candidates, relays, home }).await;
                Ok(())
            }
            ClientMessage::CallMeMaybe { to, candidates } => {
                self.hub.call(self.node, to, candidates).await;
                Ok(())
            }
            ClientMessage::RelayOpen => {
                let opened = self.relay.open(self.node).await;
                let (channel, key) = opened.map_err(|_| End::Refused(shutting_down()))?;
                let opened =
                    RelayChannel { relay: OWN_RELAY, channel, key, bind_lifetime_s: Some(BIND_LIFETIME_S) };
                link.send(&ServerMessage::RelayOpened(opened)).await?;
                Ok(())
            }
            ClientMessage::ServeRelay { addresses } => {
                self.registry.set_relay(self.node, addresses).await?;
                Ok(())
            }
            ClientMessage::Ping { id } => {
                link.send(&pong(id)).await?;
                Ok(())
            }
            ClientMessage::StillHere { id } => {
                attachment.mailbox().note_answer(id);
                Ok(())
            }
            ClientMessage::Knock(knock) => self.handle_knock(link, knock).await,
            ClientMessage::Advertise { routes } => self.handle_advertise(link, routes).await,
            ClientMessage::Hello(_)
            | ClientMessage::Join { .. }
            | ClientMessage::JoinServiceAccount { .. }
            | ClientMessage::Connect { .. } => {
                Err(End::Refused(refusal(RefusalCode::Protocol, "this connection is a node's already")))
            }
            ClientMessage::Unknown => Ok(()),
        }
    }
}

impl Session {
    /// Knocks, and has others knock, at an address of the client's own; anything else is nobody's business here.
    async fn handle_knock(&mut self, link: &mut Link, knock: Knock) -> Result<(), End> {
        let is_own = knock.to.ip() == link.remote.ip().to_canonical() && knock.to.port() != 0;
        let now = std::time::Instant::now();
        if !is_own || self.knocks.try_take(now, KNOCK_RATE, 1).is_err() {
            return Ok(());
        }
        self.knocker.knock(&knock);
        let others = self.hub.knock(self.node, knock).await.map_err(|_| End::Refused(shutting_down()))?;
        let Knock { to: _, transaction } = knock;
        let knocking = Knocking { transaction, port: self.knocker.port(), others };
        link.send(&ServerMessage::Knocking(knocking)).await?;
        Ok(())
    }
}

impl From<LinkError> for End {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

impl From<RegistryError> for End {
    fn from(error: RegistryError) -> Self {
        Self::Refused(refusal_of(&error))
    }
}

/// Returns how long an agent may be silent before another run of it takes over.
fn patience(incumbent: &Incumbent) -> Duration {
    match incumbent.newcomer {
        Newcomer::New => PROOF_PATIENCE,
        Newcomer::Copy => COPY_PATIENCE,
    }
}

/// What a copy of an agent is told.
fn duplicate() -> Refusal {
    Refusal {
        code: RefusalCode::Duplicate,
        message: "another agent with the same keys is connected: one of the two machines is a copy of the other; on the \
                  copy, remove the agent's state directory and join again"
            .to_owned(),
        retry_after_ms: Some(DUPLICATE_RETRY_MS),
    }
}

/// What a client is told when the coordinator stops.
pub(super) fn shutting_down() -> Refusal {
    let jitter = getrandom::u32().map_or(0, |random| u64::from(random) % SHUTDOWN_RETRY_MS);
    Refusal {
        code: RefusalCode::ShuttingDown,
        message: "the coordinator is stopping".to_owned(),
        retry_after_ms: Some(SHUTDOWN_RETRY_MS + jitter),
    }
}

/// Waits for a message, but not before the time. Cancel-safe.
async fn recv_from(link: &mut Link, not_before: Instant) -> Result<ClientMessage, LinkError> {
    tokio::time::sleep_until(not_before).await;
    link.recv().await
}
