//! From Hello to a known node: Join and Connect, and who is refused.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mesh_proto::{
    control::{ClientMessage, InstanceId, Refusal, RefusalCode, ServerMessage},
    key::PublicKey,
    name::NodeName,
    netmap::Version,
    token::{JoinToken, ServiceAccountToken},
};
use tokio_util::sync::CancellationToken;

use super::{
    door::{Service, Stranger},
    hub::HubHandle,
    link::Link,
    pong, refusal,
    server::{refuse, refuse_broken},
    session::{self, Session},
    stats::ControlStats,
};
use crate::{
    front::observer::Knocker,
    kubernetes::Reviewer,
    limit::{Rate, SourceLimiter, TokenBucket},
    registry::{Registry, RegistryError},
    relay::RelayHandle,
};

/// Joins that may fail per source: a person who mistypes is not slowed down, a guesser is. (A token's secret
/// has 128 bits: this is about load, not about luck.)
const FAILED_JOINS_PER_SOURCE: Rate = Rate { per_second: 1, burst: 30 };
/// Joins that may fail in all.
const FAILED_JOINS: Rate = Rate { per_second: 50, burst: 500 };

/// How long a client waits after the registry failed, in milliseconds.
const INTERNAL_RETRY_AFTER_MS: u64 = 5_000;

/// The service of a coordinator: registers nodes and serves their sessions.
pub struct Coordinator {
    registry: Registry,
    hub: HubHandle,
    relay: RelayHandle,
    knocker: Knocker,
    stats: Arc<ControlStats>,
    /// Who checks the tokens of ServiceAccounts, if they are taken.
    reviewer: Option<Reviewer>,
    failed_joins: Mutex<FailedJoins>,
}

/// What sessions have done through the UDP ports.
pub struct Ports {
    /// The first one's relay.
    pub relay: RelayHandle,
    /// What knocks from the second one.
    pub knocker: Knocker,
}

/// What Join and JoinServiceAccount say.
struct Join<T> {
    token: T,
    name: NodeName,
    public_key: PublicKey,
}

/// What Connect says.
struct Connect {
    public_key: PublicKey,
    map: Option<Version>,
    instance: Option<InstanceId>,
}

#[derive(Debug)]
struct FailedJoins {
    all: TokenBucket,
    by_source: SourceLimiter,
}

impl Coordinator {
    /// Makes the service.
    #[must_use]
    pub fn new(registry: Registry, hub: HubHandle, ports: Ports, stats: Arc<ControlStats>) -> Self {
        let Ports { relay, knocker } = ports;
        let now = Instant::now();
        let failed_joins = FailedJoins {
            all: TokenBucket::new(now),
            by_source: SourceLimiter::new(now, FAILED_JOINS_PER_SOURCE),
        };
        let failed_joins = Mutex::new(failed_joins);
        Self { registry, hub, relay, knocker, stats, reviewer: None, failed_joins }
    }

    /// Takes tokens of ServiceAccounts, too.
    #[must_use]
    pub fn with_reviewer(self, reviewer: Option<Reviewer>) -> Self {
        Self { reviewer, ..self }
    }

    async fn handle_join(&self, link: &Link, join: Join<JoinToken>) -> ServerMessage {
        let source = link.remote.ip();
        if let Err(wait) = self.lock().check(source) {
            return ServerMessage::Refused(busy(wait));
        }
        let Join { token, name, public_key } = join;
        let token_id = token.id().to_owned();
        match self.registry.join(link.node_key, token, name, public_key).await {
            Ok(node) => {
                self.stats.joins.increment();
                tracing::info!(node = node.id.0, token = token_id, "joined");
                ServerMessage::Joined { node }
            }
            Err(error) => {
                self.lock().count(source);
                tracing::debug!(token = token_id, %error, "join refused");
                ServerMessage::Refused(refusal_of(&error))
            }
        }
    }

    async fn handle_join_service_account(
        &self,
        link: &Link,
        join: Join<ServiceAccountToken>,
    ) -> ServerMessage {
        let Some(reviewer) = &self.reviewer else {
            let message = "this coordinator takes no tokens of ServiceAccounts";
            return ServerMessage::Refused(refusal(RefusalCode::ServiceAccount, message));
        };
        // Who asks again is told again, and nobody else is asked for it.
        if let Some(node) = self.registry.node_of(&link.node_key) {
            return ServerMessage::Joined { node };
        }
        let source = link.remote.ip();
        if let Err(wait) = self.lock().check(source) {
            return ServerMessage::Refused(busy(wait));
        }
        let Join { token, name, public_key } = join;
        if let Err(error) = reviewer.review(&token, &name).await {
            self.lock().count(source);
            tracing::debug!(%error, "join with a ServiceAccount's token refused");
            return ServerMessage::Refused(error.refusal());
        }
        match self.registry.join_vouched(link.node_key, name, public_key).await {
            Ok(node) => {
                self.stats.joins.increment();
                tracing::info!(node = node.id.0, "joined with a ServiceAccount's token");
                ServerMessage::Joined { node }
            }
            Err(error) => {
                self.lock().count(source);
                tracing::debug!(%error, "join with a ServiceAccount's token refused");
                ServerMessage::Refused(refusal_of(&error))
            }
        }
    }

    async fn handle_connect(&self, stranger: Stranger, connect: Connect, cancel: CancellationToken) {
        let Stranger { mut link, place, .. } = stranger;
        // Subscribed before the node is looked up: a removal from here on is not missed.
        let changes = self.registry.watch();
        match self.registry.connect(link.node_key, connect.public_key).await {
            Ok(node) => {
                drop(place);
                link.set_allowance(None);
                self.stats.sessions.increment();
                let session = Session {
                    node,
                    version: connect.map,
                    instance: connect.instance,
                    seen: Version::default(),
                    changes,
                    registry: self.registry.clone(),
                    hub: self.hub.clone(),
                    relay: self.relay.clone(),
                    knocker: self.knocker.clone(),
                    knocks: TokenBucket::new(Instant::now()),
                    stats: self.stats.clone(),
                };
                session::run(session, link, cancel).await;
            }
            Err(error) => refuse(link, &self.stats, refusal_of(&error)).await,
        }
    }

    fn lock(&self) -> MutexGuard<'_, FailedJoins> {
        // Nothing panics while it is held.
        self.failed_joins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service for Coordinator {
    async fn serve(self: Arc<Self>, mut stranger: Stranger, cancel: CancellationToken) {
        loop {
            let message = tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    return refuse(stranger.link, &self.stats, session::shutting_down()).await;
                }
                message = tokio::time::timeout_at(stranger.deadline, stranger.link.recv()) => message,
            };
            let reply = match message {
                Ok(Ok(ClientMessage::Join { token, name, public_key })) => {
                    self.handle_join(&stranger.link, Join { token, name, public_key }).await
                }
                Ok(Ok(ClientMessage::JoinServiceAccount { token, name, public_key })) => {
                    let join = Join { token, name, public_key };
                    self.handle_join_service_account(&stranger.link, join).await
                }
                Ok(Ok(ClientMessage::Connect { public_key, map, instance })) => {
                    return self
                        .handle_connect(stranger, Connect { public_key, map, instance }, cancel)
                        .await;
                }
                Ok(Ok(ClientMessage::Ping { id })) => pong(id),
                Ok(Ok(ClientMessage::Unknown)) => continue,
                Ok(Ok(
                    ClientMessage::Hello(_)
                    | ClientMessage::Resync
                    | ClientMessage::Candidates { .. }
                    | ClientMessage::CallMeMaybe { .. }
                    | ClientMessage::RelayOpen
                    | ClientMessage::ServeRelay { .. }
                    | ClientMessage::Knock(_)
                    | ClientMessage::StillHere { .. }
                    | ClientMessage::Advertise { .. },
                )) => ServerMessage::Refused(refusal(RefusalCode::Protocol, "connect first")),
                Ok(Err(error)) => return refuse_broken(stranger.link, &self.stats, &error).await,
                Err(_elapsed) => {
                    let late = refusal(RefusalCode::Protocol, "no join or connect in time");
                    return refuse(stranger.link, &self.stats, late).await;
                }
            };
            match reply {
                ServerMessage::Refused(refusal) => return refuse(stranger.link, &self.stats, refusal).await,
                reply => {
                    if stranger.link.send(&reply).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

impl FailedJoins {
    fn check(&self, source: IpAddr) -> Result<(), Duration> {
        let now = Instant::now();
        self.all.check(now, FAILED_JOINS)?;
        self.by_source.check(now, source)
    }

    /// Counts a failure. That the bucket is empty by now only means that several failed at the same time.
    fn count(&mut self, source: IpAddr) {
        let now = Instant::now();
        let _ = self.all.try_take(now, FAILED_JOINS, 1);
        let _ = self.by_source.try_take(now, source);
    }
}

/// What a client is told of an error of the registry.
pub(super) fn refusal_of(error: &RegistryError) -> Refusal {
    error.refusal().unwrap_or_else(|| {
        tracing::error!(%error, "the registry failed");
        let retry_after_ms = Some(INTERNAL_RETRY_AFTER_MS);
        Refusal {
            code: RefusalCode::Busy,
            message: "the coordinator has a problem".to_owned(),
            retry_after_ms,
        }
    })
}

fn busy(wait: Duration) -> Refusal {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
    Refusal {
        code: RefusalCode::Busy,
        message: "too many failed joins: wait".to_owned(),
        retry_after_ms: Some(wait_ms),
    }
}
