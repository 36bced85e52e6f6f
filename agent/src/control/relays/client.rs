//! The task of one relay: dial, session, wait, and again.
//!
//! It reaches its relay as the coordinator is reached ([`Ways`]): over QUIC, or where UDP is blocked in a byte pipe, in which
//! the relay's frames travel, too. It opens a channel, says so, and keeps the connection so that it can open another one at
//! once. From a byte pipe it goes back to UDP ([`Upgrade`]) with the channel that it has, so nothing is lost on the way. It is
//! cancel-safe: it owns nothing that lasts.

use std::{net::SocketAddr, time::Duration};

use mesh_engine::config::{RelayCarrier, RelayConfig};
use mesh_proto::{
    control::{ClientMessage, Refusal, RelayChannel, ServerMessage},
    key::KeyPin,
    netmap::Relay,
};
use tokio::sync::mpsc;
use tracing::debug;

use super::{
    super::{
        ControlEvent,
        backoff::{self, Backoff},
        book::AddressBook,
        dial::Dialed,
        link::{Link, LinkError},
        namebook::{NameWatch, News},
        race::{QuicAttempt, Reached},
        shared::Gone,
        stream::StreamOptions,
        upgrade::{Progress, Upgrade},
        ways::{Place, Server, Ways},
    },
    Context, Order,
};
use crate::netmap::KnownAddresses;

/// The task.
pub(super) struct Client {
    context: Context,
    relay: Relay,
    ways: Ways,
    place: Place,
    book: AddressBook,
    watch: NameWatch,
    orders: mpsc::Receiver<Order>,
    backoff: Backoff,
}

/// What a connection begins with.
#[derive(Default)]
struct Beginning {
    /// An attempt over QUIC that was slower than the byte pipe.
    quic: Option<QuicAttempt>,
    /// The channel of the connection before, which is kept.
    channel: Option<RelayChannel>,
}

/// How a connection ended.
enum End {
    /// The next attempt comes after this.
    Ended(Duration),
    /// It is left for one over QUIC.
    Moved(Box<Moved>),
}

/// What a byte pipe leaves behind.
struct Moved {
    dialed: Dialed,
    channel: Option<RelayChannel>,
    old: Link,
}

impl Client {
    pub(super) fn new(
        context: Context,
        relay: Relay,
        pin: KeyPin,
        place: Place,
        orders: mpsc::Receiver<Order>,
    ) -> Self {
        let Context { identity, nat64, names, .. } = &context;
        let server = Server { identity, nat64, names, pin, relay: Some(relay.id) };
        let options = StreamOptions { url: None, ..context.proxy.clone() };
        let mut watch = NameWatch::new(names.clone());
        watch.set(place.names.clone(), place.mesh.clone());
        Self {
            watch,
            ways: Ways::new(&server, options, context.winners.clone()),
            context,
            relay,
            place,
            book: AddressBook::new(Vec::new(), KnownAddresses::default()),
            orders,
            backoff: Backoff::default(),
        }
    }

    pub(super) async fn run(mut self) {
        let cancel = self.context.cancel.clone();
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            Err(Gone) = self.stay_connected() => {}
        }
        self.forget();
    }

    async fn stay_connected(&mut self) -> Result<(), Gone> {
        let mut connected = self.connect().await?;
        loop {
            let end = match connected {
                Ok((link, beginning)) => self.serve(link, beginning).await?,
                Err(wait) => End::Ended(wait),
            };
            connected = match end {
                End::Moved(moved) => self.resume(*moved).await,
                End::Ended(wait) => {
                    self.rest(wait).await?;
                    self.connect().await?
                }
            };
        }
    }

    async fn rest(&mut self, wait: Duration) -> Result<(), Gone> {
        tokio::select! {
            biased;
            order = self.orders.recv() => {
                if order.ok_or(Gone)?.is_new_chance() {
                    self.backoff.reset();
                }
            }
            _ = self.watch.next() => debug!(relay = self.relay.id.0, "the relay's name leads elsewhere"),
            () = tokio::time::sleep(wait) => {}
        }
        Ok(())
    }

    /// Dials, again at once whenever the network changes meanwhile; on failure it says how long to wait.
    async fn connect(&mut self) -> Result<Result<(Link, Beginning), Duration>, Gone> {
        let reached = loop {
            let network = self.context.shared.network();
            let race = self.ways.race(self.place.clone(), network.as_ref());
            tokio::pin!(race);
            let reached = loop {
                tokio::select! {
                    biased;
                    order = self.orders.recv() => if order.ok_or(Gone)?.is_new_chance() {
                        break None;
                    },
                    reached = &mut race => break Some(reached),
                }
            };
            if let Some(reached) = reached {
                break reached;
            }
        };
        // The dial was told.
        self.watch.mark_seen();
        let opened = match reached {
            Ok(Reached::Quic(dialed)) => self.open(dialed).await.map(|link| (link, Beginning::default())),
            Ok(Reached::Pipe { dialed, quic }) => {
                debug!(relay = self.relay.id.0, "the relay is reached in a websocket");
                self.ways.handle_won(self.context.shared.network().as_ref(), Some(&dialed.url));
                let link = Link::open_pipe(*dialed, &self.context.tracker);
                link.map(|link| (link, Beginning { quic, channel: None }))
            }
            Err(error) => {
                self.forget();
                return Ok(Err(self.handle_failure(&error)));
            }
        };
        Ok(opened.map_err(|error| self.handle_failure(&error)))
    }

    /// Goes on over QUIC with the channel that a byte pipe has left.
    async fn resume(&mut self, moved: Moved) -> Result<(Link, Beginning), Duration> {
        let Moved { dialed, channel, old } = moved;
        old.close_later(&self.context.tracker, self.context.cancel.clone());
        let link = self.open(dialed).await.map_err(|error| self.handle_failure(&error))?;
        Ok((link, Beginning { quic: None, channel }))
    }

    async fn open(&mut self, dialed: Dialed) -> Result<Link, LinkError> {
        self.place.known = vec![self.context.nat64.meant(dialed.connection.remote_address())];
        self.book.handle_resolved(dialed.resolved.clone());
        self.ways.handle_won(self.context.shared.network().as_ref(), None);
        Link::open(dialed).await
    }

    /// Uses a connection to its end.
    async fn serve(&mut self, mut link: Link, beginning: Beginning) -> Result<End, Gone> {
        let Beginning { quic, mut channel } = beginning;
        let mut upgrade = if link.is_pipe() { Upgrade::from_pipe(quic) } else { Upgrade::default() };
        if let Some(pipe) = link.take_relay_pipe() {
            self.emit(ControlEvent::RelayPipe(self.relay.id, pipe)).await?;
        }
        let mut said = if channel.is_none() { link.queue(&ClientMessage::RelayOpen) } else { Ok(()) };
        let error = loop {
            if let Err(error) = said {
                break error;
            }
            said = tokio::select! {
                biased;
                order = self.orders.recv() => {
                    let order = order.ok_or(Gone)?;
                    if order != Order::Reopen {
                        // A connection that is lost now is no failure of the relay's.
                        self.backoff.reset();
                    }
                    if order == Order::NetworkChanged && link.is_pipe() {
                        upgrade.restart(self.ways.try_quic(self.place.clone()));
                    }
                    handle_order(order, &mut link)
                }
                progress = upgrade.next() => match progress {
                    Progress::Due => {
                        upgrade.start(self.ways.try_quic(self.place.clone()));
                        Ok(())
                    }
                    Progress::Failed(error) => {
                        debug!(relay = self.relay.id.0, %error, "UDP is blocked still");
                        Ok(())
                    }
                    Progress::Reached(dialed) => {
                        self.book.handle_resolved(dialed.resolved.clone());
                        upgrade.start_moving(dialed);
                        self.tell(met(&link, &upgrade), channel.as_ref()).await?;
                        Ok(())
                    }
                    Progress::Moved => Err(LinkError::Closed),
                },
                news = self.watch.next() => {
                    let tested = link.test_if_left(&news);
                    let News { name, addresses } = news;
                    self.book.handle_resolved([(name, addresses)].into());
                    self.tell(met(&link, &upgrade), channel.as_ref()).await?;
                    tested
                }
                message = link.recv() => match message {
                    Ok(ServerMessage::RelayOpened(opened)) => {
                        self.backoff.reset();
                        channel = Some(opened);
                        self.tell(met(&link, &upgrade), channel.as_ref()).await?;
                        Ok(())
                    }
                    Ok(ServerMessage::Refused(refusal)) => return Ok(End::Ended(self.handle_refusal(&refusal))),
                    Ok(
                        ServerMessage::Welcome(_)
                        | ServerMessage::Joined { .. }
                        | ServerMessage::Map { .. }
                        | ServerMessage::Delta { .. }
                        | ServerMessage::PeerStates { .. }
                        | ServerMessage::CallMeMaybe { .. }
                        | ServerMessage::Knock(_)
                        | ServerMessage::Knocking(_)
                        | ServerMessage::AreYouThere { .. }
                        | ServerMessage::Copied
                        | ServerMessage::Routes { .. }
                        | ServerMessage::Pong { .. }
                        | ServerMessage::Unknown,
                    ) => Ok(()),
                    Err(error) => Err(error),
                },
            };
        };
        if let Some(dialed) = upgrade.into_dialed() {
            return Ok(End::Moved(Box::new(Moved { dialed, channel, old: link })));
        }
        let mut wait = self.handle_failure(&error);
        if matches!(error, LinkError::Silent | LinkError::Slept) && self.backoff.failures() == 1 {
            // Time was lost already, and UDP may be what is lost.
            wait = Duration::ZERO;
            self.ways.hurry();
        }
        Ok(End::Ended(wait))
    }

    /// Says where the channel is, for the engine and for the coordinator; `remote` where the relay was met over UDP.
    async fn tell(&self, remote: Option<SocketAddr>, channel: Option<&RelayChannel>) -> Result<(), Gone> {
        let Some(channel) = channel else { return Ok(()) };
        let id = self.relay.id;
        let carrier = match remote {
            Some(remote) => {
                RelayCarrier::Udp(self.book.relay_addresses(&self.relay, remote, &self.place.mesh))
            }
            None => RelayCarrier::Stream,
        };
        self.context.shared.update(|outbox| match remote {
            Some(remote) => outbox.set_relay(id, remote),
            None => outbox.set_pipe_relay(id),
        });
        let bind_lifetime = channel.bind_lifetime();
        let config = RelayConfig { id, carrier, channel: channel.channel, key: channel.key, bind_lifetime };
        self.emit(ControlEvent::RelayOpened(config)).await
    }

    fn handle_refusal(&mut self, refusal: &Refusal) -> Duration {
        debug!(relay = self.relay.id.0, %refusal, "the relay refuses");
        let random = backoff::random();
        match refusal.retry_after_ms {
            Some(asked) => self.backoff.next_wait_asked(Duration::from_millis(asked), random),
            // It may not have heard of this node yet.
            None => self.backoff.next_wait(random),
        }
    }

    fn handle_failure(&mut self, error: &dyn std::error::Error) -> Duration {
        debug!(relay = self.relay.id.0, %error, "the relay is not reached");
        self.backoff.next_wait(backoff::random())
    }

    async fn emit(&self, event: ControlEvent) -> Result<(), Gone> {
        self.context.events.send(event).await.map_err(|_closed| Gone)
    }

    fn forget(&self) {
        let id = self.relay.id;
        self.context.shared.update(|outbox| outbox.remove_relay(id));
    }
}

/// Returns where the relay is met over UDP, if it is.
fn met(link: &Link, upgrade: &Upgrade) -> Option<SocketAddr> {
    upgrade.remote().or_else(|| (!link.is_pipe()).then(|| link.remote()))
}

fn handle_order(order: Order, link: &mut Link) -> Result<(), LinkError> {
    match order {
        Order::Reopen => link.queue(&ClientMessage::RelayOpen).and_then(|()| link.test()),
        Order::NetworkChanged => {
            link.rebind().map_err(|_unreachable| LinkError::Silent).and_then(|()| link.test())
        }
        Order::Unanswered if link.is_pipe() => Ok(()),
        Order::Unanswered => link.test_urgently(),
        Order::Woke(away) => link.wake(away),
    }
}
