//! Reaching the holder of a pinned key at any of many addresses (after RFC 8305, "happy eyeballs").
//!
//! Addresses that worked before are tried at once, while names are being resolved. Attempts start 250 ms
//! apart, or as soon as one has failed, and alternate between IPv6 and IPv4. The first connection whose
//! handshake is complete wins, and its key was checked by then. A name whose time ends meanwhile is resolved again, and
//! where names led before is tried, too. An IPv4 address is tried behind the network's translation
//! prefixes as well, where there are any. A dial that has not succeeded soon asks the networks
//! that this host is in ([`neighbours`]). Every dial has sockets of its own, so that no
//! state that a NAT or a firewall keeps for an older one is in its way.

use std::{
    collections::{BTreeSet, VecDeque},
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use ipnet::IpNet;
use mesh_proto::nat64::Nat64Prefix;
use quinn::{Connection, Endpoint, EndpointConfig, TokioRuntime};
use tokio::time::Instant;

use super::{
    address::{HostPort, ResolveError, Resolved, everywhere, is_usable},
    attempt::{ATTEMPT_TIMEOUT, AttemptError, DialError, LOOKUP_PATIENCE, MAX_ATTEMPTS, STAGGER},
    namebook::NameBook,
    neighbours,
    tls::{self, SERVER_NAME},
};
use mesh_names::NameError;

use crate::nat64::Nat64;

/// A dial that has not succeeded by then starts over: names may resolve to something else by now.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(20);
/// Whom to reach, and where.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// How to speak to it; holds the pin.
    pub(super) config: quinn::ClientConfig,
    /// Where it says that it is.
    pub(super) names: Vec<HostPort>,
    /// Where it was, the last place first.
    pub(super) known: Vec<SocketAddr>,
    /// The mesh's own ranges, through which it is not reached.
    pub(super) mesh: Vec<IpNet>,
    /// The way to IPv4 from a network without it.
    pub(super) nat64: Nat64,
    /// What is known of names.
    pub(super) book: NameBook,
}

/// A connection to the holder of the pinned key.
#[derive(Debug)]
pub(super) struct Dialed {
    pub(super) connection: Connection,
    /// The socket below it, to be changed with the network.
    pub(super) endpoint: Endpoint,
    /// What names resolved to on the way.
    pub(super) resolved: Resolved,
}

enum Progress {
    Resolved(HostPort, Result<Vec<SocketAddr>, ResolveError>),
    Neighbours(Vec<SocketAddr>),
    Translated(Vec<Nat64Prefix>),
    Connected(SocketAddr, Result<Connection, AttemptError>),
}

type Pending<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = Progress> + Send + 'a>>>;

/// The state of one dial.
struct Dial<'a> {
    target: &'a Target,
    sockets: Sockets,
    waiting: VecDeque<SocketAddr>,
    tried: Vec<SocketAddr>,
    /// How many of them have neither succeeded nor failed.
    running: usize,
    /// Of them, those that nobody has named: whose they are is not known.
    neighbours: Vec<SocketAddr>,
    pending: Pending<'a>,
    /// Lookups of names that have been resolved in this dial already: their time may end while it lasts.
    again: Pending<'a>,
    resolved: Resolved,
    /// Behind these, IPv4 addresses are tried too.
    prefixes: Vec<Nat64Prefix>,
    error: DialError,
}

/// One endpoint for each address family, made when it is needed.
#[derive(Default)]
struct Sockets {
    v4: Option<Endpoint>,
    v6: Option<Endpoint>,
}

/// Reaches the target.
///
/// # Errors
/// When every attempt failed, or none succeeded until the deadline.
pub(super) async fn dial(target: &Target, deadline: Instant) -> Result<Dialed, DialError> {
    let mut dial = Dial::new(target);
    let mut next_start = Instant::now();
    let patience = next_start + LOOKUP_PATIENCE;
    loop {
        if Instant::now() >= next_start && dial.try_start() {
            next_start = Instant::now() + STAGGER;
        }
        if dial.pending.is_empty() && dial.waiting.is_empty() {
            return Err(dial.error);
        }
        if dial.is_spent() && Instant::now() >= patience {
            return Err(dial.give_up());
        }
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => return Err(dial.give_up()),
            Some(progress) = dial.pending.next() => match progress {
                Progress::Resolved(name, result) => dial.handle_resolved(name, result),
                Progress::Neighbours(addresses) => dial.add_neighbours(addresses),
                Progress::Translated(prefixes) => dial.set_prefixes(prefixes),
                Progress::Connected(address, Ok(connection)) => {
                    let endpoint = dial.sockets.take(address).expect("a connection has its endpoint");
                    return Ok(Dialed { connection, endpoint, resolved: dial.resolved });
                }
                Progress::Connected(address, Err(error)) => {
                    dial.running -= 1;
                    dial.fail(address, error);
                    next_start = Instant::now();
                }
            },
            Some(Progress::Resolved(name, result)) = dial.again.next() => dial.handle_resolved(name, result),
            () = tokio::time::sleep_until(next_start), if !dial.waiting.is_empty() => {}
            () = tokio::time::sleep_until(patience), if dial.is_spent() => {}
        }
    }
}

/// Makes a socket that can reach the address, or says at once that there is none.
pub(crate) fn bind_for(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // Connecting a socket of UDP sends nothing: it asks the routing table.
    UdpSocket::bind(any)?.connect(address)?;
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

impl<'a> Dial<'a> {
    /// Starts to resolve every name, and queues the addresses that are known.
    fn new(target: &'a Target) -> Self {
        let mut dial = Self {
            target,
            sockets: Sockets::default(),
            waiting: VecDeque::new(),
            tried: Vec::new(),
            running: 0,
            neighbours: Vec::new(),
            pending: FuturesUnordered::new(),
            again: FuturesUnordered::new(),
            resolved: Resolved::new(),
            prefixes: target.nat64.prefixes(),
            error: DialError::default(),
        };
        dial.add(&target.known);
        dial.pending.push(Box::pin(async { Progress::Translated(target.nat64.find().await) }));
        dial.pending.push(Box::pin(async {
            let ports = target.names.iter().map(HostPort::port).collect::<BTreeSet<_>>();
            tokio::time::sleep(neighbours::DELAY).await;
            Progress::Neighbours(neighbours::find(&ports).await)
        }));
        for name in &target.names {
            if target.known.is_empty() {
                dial.add(&target.book.before(name));
            }
            dial.pending.push(Box::pin(async {
                Progress::Resolved(name.clone(), target.book.resolve(name, &target.mesh).await)
            }));
        }
        dial
    }

    /// Queues what a name leads to, and where it led before; asks again when its time is over.
    fn handle_resolved(&mut self, name: HostPort, result: Result<Vec<SocketAddr>, ResolveError>) {
        let target = self.target;
        match result {
            Ok(addresses) => {
                self.add(&addresses);
                self.resolved.insert(name.clone(), addresses);
            }
            Err(error) if self.error.is_of(&name) => {
                tracing::debug!(%name, %error, "the name leads nowhere still");
            }
            Err(error) => self.fail_name(&name, error),
        }
        self.add(&target.book.before(&name));
        if name.literal().is_none() {
            self.again.push(Box::pin(async move {
                target.book.until_due(&name).await;
                let result = target.book.resolve(&name, &target.mesh).await;
                Progress::Resolved(name, result)
            }));
        }
    }

    /// Whether everything that is known was tried in vain: only lookups are left.
    fn is_spent(&self) -> bool {
        self.waiting.is_empty() && self.running == 0 && !self.tried.is_empty()
    }

    /// Says of everything that is still open that it did not answer.
    fn give_up(mut self) -> DialError {
        for name in &self.target.names {
            if !self.resolved.contains_key(name) && !self.error.is_of(name) {
                self.fail_name(name, NameError::Silent.into());
            }
        }
        for address in self.tried.clone() {
            if !self.error.is_of(&address) {
                self.fail(address, AttemptError::Timeout);
            }
        }
        self.error
    }

    fn fail_name(&mut self, name: &HostPort, error: ResolveError) {
        self.error.push(name.to_string(), error.into());
    }

    fn fail(&mut self, address: SocketAddr, error: AttemptError) {
        if self.neighbours.contains(&address) {
            // Some other mesh's, perhaps.
            return tracing::debug!(%address, %error, "a neighbour is not the coordinator");
        }
        let what = address.to_string();
        let mut names = self.resolved.iter().filter(|(_, addresses)| addresses.contains(&address));
        // A name may be the address itself.
        let name = names.next().map(|(name, _)| name.to_string()).filter(|name| *name != what);
        self.error.push_address(address, name, error);
    }

    fn add(&mut self, addresses: &[SocketAddr]) {
        for address in addresses.iter().flat_map(|address| everywhere(*address, &self.prefixes)) {
            let known = self.tried.contains(&address) || self.waiting.contains(&address);
            let room = self.tried.len() + self.waiting.len() < MAX_ATTEMPTS;
            if !known && room && is_usable(address, &self.target.mesh) {
                self.waiting.push_back(address);
            }
        }
    }

    /// Queues what is known to be at an IPv4 address behind the prefixes as well.
    fn set_prefixes(&mut self, prefixes: Vec<Nat64Prefix>) {
        self.prefixes = prefixes;
        let all: Vec<_> = self.tried.iter().chain(&self.waiting).copied().collect();
        self.add(&all);
    }

    fn add_neighbours(&mut self, mut addresses: Vec<SocketAddr>) {
        addresses.retain(|address| !self.tried.contains(address) && !self.waiting.contains(address));
        self.add(&addresses);
        self.neighbours = addresses;
    }

    /// Starts the next attempt, of the other family than the last one if there is one.
    fn try_start(&mut self) -> bool {
        let last = self.tried.last().map(SocketAddr::is_ipv4);
        let other = self.waiting.iter().position(|address| Some(address.is_ipv4()) != last);
        let Some(address) = self.waiting.remove(other.unwrap_or(0)) else { return false };
        self.tried.push(address);
        self.running += 1;
        let connecting = self.sockets.get(address).and_then(|endpoint| {
            endpoint.connect_with(self.target.config.clone(), address, SERVER_NAME).map_err(io::Error::other)
        });
        self.pending.push(Box::pin(async move {
            let attempt = async { Ok(tokio::time::timeout(ATTEMPT_TIMEOUT, connecting?).await) };
            let result = match attempt.await {
                Ok(Ok(Ok(connection))) => Ok(connection),
                Ok(Ok(Err(error))) if tls::is_pin_mismatch(&error) => Err(AttemptError::PinMismatch),
                Ok(Ok(Err(error))) if tls::is_version_mismatch(&error) => Err(AttemptError::Version),
                Ok(Ok(Err(error))) => Err(AttemptError::Connection(error)),
                Ok(Err(_elapsed)) => Err(AttemptError::Timeout),
                Err(error) => Err(AttemptError::Socket(error)),
            };
            Progress::Connected(address, result)
        }));
        true
    }
}

impl Sockets {
    fn get(&mut self, address: SocketAddr) -> io::Result<&Endpoint> {
        let slot = match address {
            SocketAddr::V4(_) => &mut self.v4,
            SocketAddr::V6(_) => &mut self.v6,
        };
        let socket = bind_for(address)?;
        match slot {
            Some(endpoint) => Ok(endpoint),
            None => {
                let runtime = Arc::new(TokioRuntime);
                Ok(slot.insert(Endpoint::new(EndpointConfig::default(), None, socket, runtime)?))
            }
        }
    }

    fn take(&mut self, address: SocketAddr) -> Option<Endpoint> {
        match address {
            SocketAddr::V4(_) => self.v4.take(),
            SocketAddr::V6(_) => self.v6.take(),
        }
    }
}
