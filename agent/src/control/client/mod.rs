//! The task that keeps the connection to the coordinator: dial, session, wait, and again.
//!
//! It is the one owner of map, caches and address book. Being cancelled at any await is safe: what has to
//! last is written by the [`Saver`] tasks.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mesh_proto::control::RefusalCode;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info};

use super::{
    ControlConfig, ControlEvent, Duplicate,
    address::HostPort,
    backoff::Backoff,
    book::{AddressBook, mesh_ranges},
    dial::Dialed,
    link::{Link, LinkError},
    namebook::{NameBook, NameWatch, News},
    race::{QuicAttempt, Reached},
    relays::{self, Relays},
    session::{self, Beginning, End, Moved},
    shared::{Gone, LinkState, Shared},
    stream::{StreamDialed, WebSocketUrl},
    ways::{Place, Server, Ways},
    winners::WinnerBook,
};
use crate::{
    entropy,
    identity::Identity,
    netmap::{self, CachedMap, CachedPeer, CachedPeers, Caches, KnownAddresses, Saver, Store},
};

mod retry;
mod telling;

use retry::Next;

/// A session that lasted this long was a good one: the next failure is the first.
const GOOD_SESSION: Duration = Duration::from_secs(10);
/// The map is written at once, and at most this often while it changes all the time.
const MAP_INTERVAL: Duration = Duration::from_secs(1);
/// News of peers come often and are worth little: they are written rarely.
const PEERS_INTERVAL: Duration = Duration::from_secs(10);

/// The state of the task.
pub(super) struct Client {
    pub(super) identity: Arc<Identity>,
    pub(super) shared: Arc<Shared>,
    pub(super) cancel: CancellationToken,
    pub(super) store: Store,
    pub(super) book: AddressBook,
    pub(super) watch: NameWatch,
    names: NameBook,
    config: ControlConfig,
    ways: Ways,
    tracker: TaskTracker,
    events: mpsc::Sender<ControlEvent>,
    peers: CachedPeers,
    relays: Relays,
    savers: Savers,
    backoff: Backoff,
    /// What was said last, not to be said again.
    observers: Vec<SocketAddr>,
    guess: Option<IpAddr>,
    /// What was said of other agents with this node's keys; `None` before the first session.
    duplicate: Option<Duplicate>,
    /// Whether it was said since the last connection that there is none.
    warned: bool,
    /// The address that was tried last, since the last connection.
    tried: Option<SocketAddr>,
    /// When the coordinator's relay last answered that it does not know this node: it runs, and has been restarted.
    sign_at: Option<Instant>,
}

/// What the outbox asks of the connection itself.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LocalNews {
    /// The host's network is another one.
    pub(super) network_changed: bool,
    /// The coordinator's relay forgot the channel.
    pub(super) reopen_relay: bool,
    /// What this host sends gets no answers.
    pub(super) unanswered: bool,
    /// The host has slept for this long.
    pub(super) woke: Option<Duration>,
}

/// What the coordinator makes of this agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is the node.
    Taken,
    /// It is, and another one wanted to be.
    Copied,
    /// It is not: another one is.
    Refused,
}

struct Savers {
    map: Saver<CachedMap>,
    peers: Saver<Vec<CachedPeer>>,
    coordinator: Saver<KnownAddresses>,
}

impl Client {
    pub(super) fn new(
        config: ControlConfig,
        shared: Arc<Shared>,
        events: mpsc::Sender<ControlEvent>,
        cancel: &CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let identity = Arc::new(config.identity.clone());
        let dir = &config.state_dir;
        let winners = WinnerBook::load(dir, cancel, tracker);
        let names = NameBook::load(dir, cancel, tracker);
        let server = Server {
            identity: &config.identity,
            nat64: &config.nat64,
            names: &names,
            pin: config.membership.pin,
            relay: None,
        };
        let ways = Ways::new(&server, config.stream.clone(), winners.clone());
        let context = relays::Context {
            identity: identity.clone(),
            proxy: config.stream.clone(),
            nat64: config.nat64.clone(),
            winners,
            names: names.clone(),
            shared: shared.clone(),
            events: events.clone(),
            cancel: cancel.clone(),
            tracker: tracker.clone(),
        };
        let caches = Caches::load(dir, &config.membership);
        let savers = Savers {
            map: Saver::spawn(netmap::map_file(dir), MAP_INTERVAL, cancel, tracker),
            peers: Saver::spawn(netmap::peers_file(dir), PEERS_INTERVAL, cancel, tracker),
            coordinator: Saver::spawn(netmap::coordinator_file(dir), Duration::ZERO, cancel, tracker),
        };
        let joined = HostPort::parse_all(&config.membership.coordinators);
        Self {
            store: Store::new(identity.node_key(), caches.map),
            book: AddressBook::new(joined, caches.coordinator).with_stun(config.stun.clone()),
            relays: Relays::new(context),
            watch: NameWatch::new(names.clone()),
            names,
            cancel: cancel.clone(),
            peers: caches.peers,
            backoff: Backoff::default(),
            observers: Vec::new(),
            guess: None,
            duplicate: None,
            warned: false,
            tried: None,
            sign_at: None,
            ways,
            tracker: tracker.clone(),
            identity,
            shared,
            config,
            events,
            savers,
        }
    }

    /// Runs until it is cancelled, nobody listens, or the node is not a member any more.
    pub(super) async fn run(mut self) {
        if self.emit_cached().await.is_err() {
            return;
        }
        entropy::gathered().await;
        let mut moved: Option<Moved> = None;
        loop {
            let connected = match moved.take() {
                Some(moved) => Ok(self.resume(moved).await),
                None => self.connect().await,
            };
            let next = match connected {
                Ok(Ok((link, beginning))) => {
                    let started = Instant::now();
                    let end = session::run(&mut self, link, beginning).await;
                    if started.elapsed() >= GOOD_SESSION {
                        self.backoff.reset();
                    }
                    match end {
                        End::Gone => return,
                        End::Moved(to) => {
                            moved = Some(*to);
                            continue;
                        }
                        End::Lost(error) => self.handle_lost(&error),
                        End::Refused(refusal) => {
                            if refusal.code == RefusalCode::Duplicate
                                && self.set_duplicate(Admission::Refused).await.is_err()
                            {
                                return;
                            }
                            self.handle_refusal(refusal)
                        }
                    }
                }
                Ok(Err(next)) => next,
                Err(Gone) => return,
            };
            if self.rest(next).await.is_err() {
                return;
            }
        }
    }

    /// Dials, again at once whenever the network changes meanwhile.
    async fn connect(&mut self) -> Result<Result<(Link, Beginning), Next>, Gone> {
        let reached = loop {
            let race = self.ways.race(self.place(), self.shared.network().as_ref());
            match self.interruptible(race).await? {
                Some(Ok(reached)) => break reached,
                Some(Err(error)) => {
                    self.know_names();
                    return Ok(Err(self.handle_unreachable(&error)));
                }
                None => {}
            }
        };
        self.know_names();
        Ok(match reached {
            Reached::Quic(dialed) => self.open(dialed).await.map(|link| (link, Beginning::default())),
            Reached::Pipe { dialed, quic } => {
                self.handle_pipe(&dialed);
                Link::open_pipe(*dialed, &self.tracker).map(|link| (link, Beginning { quic, relay: None }))
            }
        }
        .inspect(|(link, _)| self.shared.set_link(LinkState::Connected(link.view())))
        .map_err(|error| self.handle_lost(&error)))
    }

    /// Goes on over QUIC where a session in a byte pipe has left off.
    async fn resume(&mut self, moved: Moved) -> Result<(Link, Beginning), Next> {
        let Moved { dialed, relay, old } = moved;
        // The coordinator ends the old session once it has the new one.
        old.close_later(&self.tracker, self.cancel.clone());
        let link = self.open(dialed).await.map_err(|error| self.handle_lost(&error))?;
        self.shared.set_link(LinkState::Connected(link.view()));
        info!("UDP is let through again: the connection to the coordinator has moved to it");
        Ok((link, Beginning { quic: None, relay }))
    }

    /// Where the coordinator is.
    fn place(&self) -> Place {
        let map = self.store.map().map(Arc::as_ref);
        Place {
            names: self.book.names(map),
            known: self.book.known().as_slice().to_vec(),
            mesh: mesh_ranges(map),
        }
    }

    /// Says whose names are resolved again when their time is over: the coordinator's, the relays' that are met through it,
    /// the STUN servers', and that of a proxy in use.
    pub(super) fn watch_names(&mut self, proxy: Option<HostPort>) {
        let map = self.store.map().map(Arc::as_ref);
        let relays = map.map(|map| map.relays.as_slice()).unwrap_or_default();
        let relays = relays.iter().flat_map(|relay| HostPort::parse_all(&relay.addresses));
        let stun = self.book.stun().iter().cloned();
        let names = self.book.names(map).into_iter().chain(relays).chain(stun).chain(proxy);
        self.watch.set(names.collect::<Vec<_>>(), mesh_ranges(map));
    }

    /// Takes what a dial has found, for it is no news any more.
    fn know_names(&mut self) {
        self.watch_names(None);
        while let Some(News { name, addresses }) = self.watch.take_news() {
            self.book.handle_resolved([(name, addresses)].into());
        }
    }

    /// Takes where a name leads now.
    pub(super) fn handle_news(&mut self, news: News) {
        self.book.handle_resolved([(news.name, news.addresses)].into());
    }

    /// Whether this is one of the coordinator's names.
    pub(super) fn is_coordinator(&self, name: &HostPort) -> bool {
        self.book.names(self.store.map().map(Arc::as_ref)).contains(name)
    }

    /// Starts an attempt over QUIC beside a session in a byte pipe.
    pub(super) fn try_quic(&self) -> QuicAttempt {
        self.ways.try_quic(self.place())
    }

    async fn open(&mut self, dialed: Dialed) -> Result<Link, LinkError> {
        let remote = dialed.connection.remote_address();
        self.book.handle_resolved(dialed.resolved.clone());
        if self.book.handle_connected(remote, self.config.nat64.meant(remote)) {
            self.savers.coordinator.save(Arc::new(self.book.known().clone()));
        }
        self.handle_reached(None);
        info!("connected to the coordinator");
        debug!(%remote, "where it was reached");
        Link::open(dialed).await
    }

    fn handle_pipe(&mut self, dialed: &StreamDialed) {
        let StreamDialed { pipe: _, remote, url, proxy, fingerprint } = dialed;
        self.book.handle_pipe();
        self.handle_reached(Some(url));
        info!(
            through_a_proxy = proxy.is_some(),
            "connected to the coordinator in a websocket: UDP does not get through"
        );
        debug!(%remote, %url, certificate = fingerprint, "where it was reached; the outer certificate proves nothing");
    }

    /// Notes that the coordinator was reached, and how.
    fn handle_reached(&mut self, pipe: Option<&WebSocketUrl>) {
        self.ways.handle_won(self.shared.network().as_ref(), pipe);
        self.warned = false;
        self.tried = None;
        self.sign_at = None;
    }

    /// Waits for something, unless the agent stops; `None` when the network changed meanwhile.
    async fn interruptible<T>(&mut self, work: impl Future<Output = T>) -> Result<Option<T>, Gone> {
        tokio::pin!(work);
        let (cancel, shared) = (self.cancel.clone(), self.shared.clone());
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Gone),
                () = shared.changed() => if self.handle_local_news().await? { return Ok(None) },
                done = &mut work => return Ok(Some(done)),
            }
        }
    }

    /// Does what waits while there is no connection. Returns whether all that failed before may succeed now.
    async fn handle_local_news(&mut self) -> Result<bool, Gone> {
        let news = self.handle_outbox();
        if news.network_changed || news.woke.is_some() {
            self.backoff.reset();
            return Ok(true);
        }
        self.emit_observers().await?;
        Ok(false)
    }
}
