//! The relay's connection to the coordinator.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mesh_proto::{
    control::{self, ClientMessage, Hello, Refusal, RefusalCode, ServerMessage},
    key::PublicKey,
    netmap::NetworkMap,
};
use quinn::crypto::rustls::QuicClientConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    RelayOptions,
    cache::MapCache,
    places::{Found, Places, mesh_ranges},
    service::KnownNodes,
};
use crate::{
    control::{IDLE_TIMEOUT, KEEP_ALIVE, Link, LinkError, VERSION},
    front::observer::knock_from_anywhere,
    identity::Identity,
    relay::RelayHandle,
};

/// From the first packet to Welcome.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// How long an answer may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Pauses between attempts: doubled with each failure, each shortened by up to half at random.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The task that keeps the relay's map.
pub(super) struct Uplink {
    options: RelayOptions,
    identity: Identity,
    config: quinn::ClientConfig,
    places: Places,
    cache: MapCache,
    relay: RelayHandle,
    known: watch::Sender<Option<Arc<KnownNodes>>>,
    map: Option<NetworkMap>,
}

/// Why the uplink gave up.
#[derive(Debug, thiserror::Error)]
pub(super) enum UplinkError {
    /// The coordinator does not want this relay.
    #[error("the coordinator refused this relay: {0}")]
    Refused(Refusal),
    /// The relay is not registered, and has no token.
    #[error("this relay is not registered: give it a join token with the tag \"relay\" (--token)")]
    NoToken,
}

/// Why one attempt ended.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("no address of the coordinator answered: {0}")]
    Unreachable(String),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the coordinator did not answer")]
    Silent,
    #[error("{0}")]
    Refused(Refusal),
    #[error(transparent)]
    Fatal(UplinkError),
}

impl Uplink {
    pub(super) fn new(
        options: RelayOptions,
        identity: Identity,
        cache: MapCache,
        relay: RelayHandle,
        known: watch::Sender<Option<Arc<KnownNodes>>>,
    ) -> io::Result<Self> {
        let tls = mesh_rawkeys::client_config(&identity.pkcs8, options.pin, control::ALPN)
            .map_err(io::Error::other)?;
        let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        let mut transport = quinn::TransportConfig::default();
        transport
            .keep_alive_interval(Some(KEEP_ALIVE))
            .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().map_err(io::Error::other)?));
        config.transport_config(Arc::new(transport));
        let places = Places::load(options.coordinators.clone(), &options.state_dir);
        Ok(Self { options, identity, config, places, cache, relay, known, map: None })
    }

    /// Takes over a map: the relay knows its nodes from now on.
    pub(super) async fn set_map(&mut self, map: NetworkMap) {
        let known = KnownNodes::of_map(&map);
        // If the relay is gone the process is stopping.
        let _ = self.relay.set_nodes(known.nodes.values().copied().collect()).await;
        self.known.send_replace(Some(Arc::new(known)));
        self.map = Some(map);
    }

    /// Stays connected until it is cancelled.
    ///
    /// # Errors
    /// When the coordinator refuses the relay for good.
    pub(super) async fn run(mut self, cancel: CancellationToken) -> Result<(), UplinkError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let ended = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                Err(error) = self.attempt(&mut pause) => error,
            };
            let asked = match ended {
                AttemptError::Fatal(error) => return Err(error),
                AttemptError::Refused(refusal) => {
                    tracing::warn!(code = ?refusal.code, "the coordinator refused the relay");
                    refusal.retry_after_ms.map(Duration::from_millis)
                }
                AttemptError::Unreachable(_) | AttemptError::Link(_) | AttemptError::Silent => {
                    tracing::debug!(error = %ended, "no connection to the coordinator");
                    None
                }
            };
            let wait = asked.unwrap_or_else(|| jittered(pause));
            pause = (pause * 2).min(LONGEST_PAUSE);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Connects, registers if need be, and follows the map until the connection ends. Cancel-safe: the map
    /// is written before it is taken over.
    async fn attempt(&mut self, pause: &mut Duration) -> Result<(), AttemptError> {
        if self.map.is_none() {
            self.join().await?;
        }
        let (_endpoint, mut link) = self.dial().await?;
        let map = self.map.as_ref().map(|map| map.version);
        link.send(&ClientMessage::Connect { public_key: self.public_key(), map, instance: None }).await?;
        link.send(&ClientMessage::ServeRelay { addresses: self.options.addresses.clone() }).await?;
        loop {
            match link.recv().await? {
                ServerMessage::Map { map } => {
                    let is_older = self.map.as_ref().is_some_and(|have| have.check_successor(&map).is_err());
                    if is_older {
                        tracing::warn!("the coordinator offers an older map than is known; it is not taken");
                    } else {
                        self.keep(*map).await;
                    }
                }
                ServerMessage::Delta { delta } => {
                    let applied = self.map.clone().map(|mut map| map.apply(delta).map(|()| map));
                    match applied {
                        Some(Ok(map)) => self.keep(map).await,
                        Some(Err(_)) | None => link.send(&ClientMessage::Resync).await?,
                    }
                }
                ServerMessage::Refused(refusal) => {
                    return Err(self.handle_refusal(refusal).await);
                }
                // Only the coordinator is heard here, and it vouches for who asks.
                ServerMessage::Knock(knock) => {
                    let _ = knock_from_anywhere(&knock).await;
                }
                ServerMessage::Welcome(_)
                | ServerMessage::Knocking(_)
                | ServerMessage::AreYouThere { .. }
                | ServerMessage::Copied
                | ServerMessage::Joined { .. }
                | ServerMessage::PeerStates { .. }
                | ServerMessage::CallMeMaybe { .. }
                | ServerMessage::RelayOpened(_)
                | ServerMessage::Pong { .. }
                | ServerMessage::Routes { .. }
                | ServerMessage::Unknown => {}
            }
            *pause = FIRST_PAUSE;
        }
    }

    /// Registers the relay, on a connection of its own.
    async fn join(&mut self) -> Result<(), AttemptError> {
        let Some(token) = self.options.token.clone() else {
            return Err(AttemptError::Fatal(UplinkError::NoToken));
        };
        let (_endpoint, mut link) = self.dial().await?;
        let name = self.options.name.clone();
        link.send(&ClientMessage::Join { token, name, public_key: self.public_key() }).await?;
        match answer(&mut link).await? {
            ServerMessage::Joined { node } => {
                tracing::info!(node = node.id.0, "registered as a relay");
                Ok(())
            }
            ServerMessage::Refused(refusal) => Err(match refusal.code {
                RefusalCode::Token
                | RefusalCode::ServiceAccount
                | RefusalCode::NameTaken
                | RefusalCode::Protocol => AttemptError::Fatal(UplinkError::Refused(refusal)),
                RefusalCode::NotRegistered
                | RefusalCode::Duplicate
                | RefusalCode::Busy
                | RefusalCode::Replaced
                | RefusalCode::ShuttingDown
                | RefusalCode::Unknown => AttemptError::Refused(refusal),
            }),
            _ => Err(AttemptError::Silent),
        }
    }

    /// Decides what a refusal of the running connection means.
    async fn handle_refusal(&mut self, refusal: Refusal) -> AttemptError {
        match refusal.code {
            RefusalCode::NotRegistered => {
                self.forget().await;
                AttemptError::Refused(refusal)
            }
            RefusalCode::Protocol => AttemptError::Fatal(UplinkError::Refused(refusal)),
            RefusalCode::Token
            | RefusalCode::ServiceAccount
            | RefusalCode::NameTaken
            | RefusalCode::Busy
            | RefusalCode::Replaced
            | RefusalCode::Duplicate
            | RefusalCode::ShuttingDown
            | RefusalCode::Unknown => AttemptError::Refused(refusal),
        }
    }

    /// Writes a map and takes it over. What cannot be written is served all the same.
    async fn keep(&mut self, map: NetworkMap) {
        let (cache, copy) = (self.cache.clone(), map.clone());
        match tokio::task::spawn_blocking(move || cache.save(&copy)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the map cannot be kept on disk"),
            Err(error) => tracing::warn!(%error, "the map could not be kept on disk"),
        }
        self.set_map(map).await;
    }

    /// Serves nobody any more: the relay was removed. It may join again, with a newer token.
    async fn forget(&mut self) {
        if let Err(error) = self.cache.remove() {
            tracing::warn!(%error, "the map cannot be removed from disk");
        }
        // If the relay is gone the process is stopping.
        let _ = self.relay.set_nodes(BTreeSet::new()).await;
        self.known.send_replace(None);
        self.map = None;
    }

    /// Tries the places where the coordinator may be in order, up to Welcome.
    async fn dial(&mut self) -> Result<(quinn::Endpoint, Link), AttemptError> {
        let Found { addresses, mut failures } = self.places.find(&mesh_ranges(self.map.as_ref())).await;
        for address in addresses {
            match tokio::time::timeout(DIAL_DEADLINE, self.dial_address(address)).await {
                Ok(Ok(dialed)) => {
                    self.places.note_met(address).await;
                    return Ok(dialed);
                }
                Ok(Err(error)) => failures.push(format!("{address}: {error}")),
                Err(_elapsed) => failures.push(format!("{address}: no answer")),
            }
        }
        Err(AttemptError::Unreachable(failures.join("; ")))
    }

    async fn dial_address(&self, address: SocketAddr) -> io::Result<(quinn::Endpoint, Link)> {
        let local: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = quinn::Endpoint::client(local)?;
        // The name is not looked at: the pinned key is what counts.
        let connecting =
            endpoint.connect_with(self.config.clone(), address, "coordinator").map_err(io::Error::other)?;
        let connection = connecting.await?;
        let (send, recv) = connection.open_bi().await?;
        let mut link = Link::over_quic(self.identity.node_key, address, recv, send);
        let hello = Hello { version: VERSION.to_owned(), features: Vec::new() };
        link.send(&ClientMessage::Hello(hello)).await.map_err(io::Error::other)?;
        match link.recv().await.map_err(io::Error::other)? {
            ServerMessage::Welcome(_) => Ok((endpoint, link)),
            ServerMessage::Refused(refusal) => Err(io::Error::other(refusal)),
            _ => Err(io::Error::other("no welcome")),
        }
    }

    fn public_key(&self) -> PublicKey {
        PublicKey(self.identity.node_key.0)
    }
}

async fn answer(link: &mut Link) -> Result<ServerMessage, AttemptError> {
    let answer = tokio::time::timeout(ANSWER_DEADLINE, link.recv()).await;
    Ok(answer.map_err(|_elapsed| AttemptError::Silent)??)
}

/// Shortens a pause by up to half, so that relays do not come back all at once.
fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}
