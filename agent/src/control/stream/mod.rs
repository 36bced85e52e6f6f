//! Reaching the coordinator where UDP is blocked: through a WebSocket, on its own TCP port or behind a web server, and
//! through an HTTP proxy where one is configured.
//!
//! Ways start 250 ms apart, or as soon as one has failed, and alternate between IPv6 and IPv4; the first whose session is complete wins. In the session both
//! keys are proved, so that nobody on the way (proxy, web server, a box that opens TLS) can read along or stand in.

pub(super) mod open;
mod outer;
mod proxy;
mod url;

use std::{collections::VecDeque, future::Future, net::SocketAddr, pin::Pin, sync::Arc};

use futures_util::{StreamExt, stream::FuturesUnordered};
use ipnet::IpNet;
use mesh_proto::nat64::Nat64Prefix;
use tokio::time::Instant;
use tracing::debug;

use super::{
    address::{HostPort, ResolveError, everywhere, is_usable},
    attempt::{ATTEMPT_TIMEOUT, AttemptError, DialError, LOOKUP_PATIENCE, MAX_ATTEMPTS, STAGGER},
    namebook::NameBook,
};
use crate::nat64::Nat64;
use open::{Opened, Pipe, Way, open};

pub use open::PipeError;
pub use proxy::{InvalidProxy, Proxy, ProxyError, ProxyRules};
pub use url::{InvalidUrl, WebSocketUrl};

/// Places where the server was that are tried for each URL, the last ones first.
const MAX_KNOWN: usize = 3;

/// What a person may say about byte pipes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Where the WebSocket is, if not where it is looked for.
    pub url: Option<WebSocketUrl>,
    /// Which proxy leads there.
    pub proxy: ProxyRules,
}

/// Whom to reach, and how.
#[derive(Debug, Clone)]
pub(super) struct StreamTarget {
    /// How to speak to it; holds the pin.
    pub(super) config: Arc<rustls::ClientConfig>,
    /// What a person said.
    pub(super) options: StreamOptions,
    /// Where it says that it is.
    pub(super) names: Vec<HostPort>,
    /// Where it was, the last place first.
    pub(super) known: Vec<SocketAddr>,
    /// The mesh's own ranges, through which it is not reached.
    pub(super) mesh: Vec<IpNet>,
    /// Where it was reached last in this network.
    pub(super) last: Option<WebSocketUrl>,
    /// The way to IPv4 from a network without it.
    pub(super) nat64: Nat64,
    /// What is known of names.
    pub(super) book: NameBook,
}

/// A byte pipe to the holder of the pinned key.
pub(super) struct StreamDialed {
    pub(super) pipe: Pipe,
    /// The server, or the proxy.
    pub(super) remote: SocketAddr,
    pub(super) url: WebSocketUrl,
    pub(super) proxy: Option<Proxy>,
    /// The outer certificate's SHA-256.
    pub(super) fingerprint: Option<String>,
}

enum Progress {
    Resolved(WebSocketUrl, Option<Proxy>, Result<Vec<SocketAddr>, ResolveError>),
    Translated(Vec<Nat64Prefix>),
    Opened(Box<Way>, Result<Box<Opened>, AttemptError>),
}

type Pending<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = Progress> + Send + 'a>>>;

/// Reaches the target.
///
/// # Errors
/// When every attempt failed, or none succeeded until the deadline.
pub(super) async fn dial(target: &StreamTarget, deadline: Instant) -> Result<StreamDialed, DialError> {
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
                Progress::Resolved(url, proxy, result) => dial.handle_resolved(url, proxy, result),
                Progress::Translated(prefixes) => dial.set_prefixes(prefixes),
                Progress::Opened(way, Ok(opened)) => {
                    let Opened { pipe, fingerprint } = *opened;
                    let Way { url, address, proxy } = *way;
                    return Ok(StreamDialed { pipe, remote: address, url, proxy, fingerprint });
                }
                Progress::Opened(way, Err(error)) => {
                    dial.running.retain(|running| *running != *way);
                    dial.error.push(way.url.to_string(), error);
                    next_start = Instant::now();
                }
            },
            Some(Progress::Resolved(url, proxy, result)) = dial.again.next() => {
                dial.handle_resolved(url, proxy, result);
            }
            () = tokio::time::sleep_until(next_start), if !dial.waiting.is_empty() => {}
            () = tokio::time::sleep_until(patience), if dial.is_spent() => {}
        }
    }
}

/// The state of one dial.
struct Dial<'a> {
    target: &'a StreamTarget,
    /// Every URL that is tried, the most promising first.
    urls: Vec<WebSocketUrl>,
    waiting: VecDeque<Way>,
    tried: Vec<Way>,
    running: Vec<Way>,
    pending: Pending<'a>,
    /// Lookups of names that have been resolved in this dial already: their time may end while it lasts.
    again: Pending<'a>,
    /// Behind these, IPv4 addresses are tried too.
    prefixes: Vec<Nat64Prefix>,
    error: DialError,
}

impl<'a> Dial<'a> {
    /// Queues the places where the server was, and starts to resolve everybody's name.
    fn new(target: &'a StreamTarget) -> Self {
        let mut dial = Self {
            target,
            urls: urls(target),
            waiting: VecDeque::new(),
            tried: Vec::new(),
            running: Vec::new(),
            pending: FuturesUnordered::new(),
            again: FuturesUnordered::new(),
            prefixes: target.nat64.prefixes(),
            error: DialError::default(),
        };
        dial.pending.push(Box::pin(async { Progress::Translated(target.nat64.find().await) }));
        for url in dial.urls.clone() {
            let proxy = target.options.proxy.proxy_for(&url.server).cloned();
            // It may be that nothing answers the resolver, where UDP is blocked.
            if proxy.is_none() && target.names.iter().any(|name| name.host() == url.server.host()) {
                let known = target.known.iter().map(|known| SocketAddr::new(known.ip(), url.server.port()));
                dial.add(&url, None, known.take(MAX_KNOWN));
            }
            dial.pending.push(Box::pin(async move {
                let resolved = target.book.resolve(server(&url, proxy.as_ref()), &target.mesh).await;
                Progress::Resolved(url, proxy, resolved)
            }));
        }
        dial
    }

    /// Queues what a server's name leads to, and where it led before; asks again when its time is over.
    fn handle_resolved(
        &mut self,
        url: WebSocketUrl,
        proxy: Option<Proxy>,
        result: Result<Vec<SocketAddr>, ResolveError>,
    ) {
        match result {
            Ok(addresses) => self.add(&url, proxy.as_ref(), addresses),
            Err(error) if self.error.is_of(&url) => debug!(%url, %error, "the name leads nowhere still"),
            Err(error) => self.error.push(url.to_string(), error.into()),
        }
        let target = self.target;
        let name = server(&url, proxy.as_ref()).clone();
        self.add(&url, proxy.as_ref(), target.book.before(&name));
        if name.literal().is_none() {
            self.again.push(Box::pin(async move {
                target.book.until_due(&name).await;
                Progress::Resolved(url, proxy, target.book.resolve(&name, &target.mesh).await)
            }));
        }
    }

    /// Queues ways to a URL, in the order of the URLs, whichever name was resolved first.
    fn add(
        &mut self,
        url: &WebSocketUrl,
        proxy: Option<&Proxy>,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) {
        for address in addresses
            .into_iter()
            .flat_map(|address| everywhere(address, &self.prefixes.clone()).collect::<Vec<_>>())
        {
            let way = Way { url: url.clone(), address, proxy: proxy.cloned() };
            let room = self.tried.len() + self.waiting.len() < MAX_ATTEMPTS;
            let is_known = self.waiting.contains(&way) || self.tried.contains(&way);
            if room && !is_known && is_usable(address, &self.target.mesh) {
                let rank = |way: &Way| self.urls.iter().position(|url| *url == way.url);
                let at = self.waiting.iter().position(|other| rank(other) > rank(&way));
                self.waiting.insert(at.unwrap_or(self.waiting.len()), way);
            }
        }
    }

    /// Queues what is known to be at an IPv4 address behind the prefixes as well.
    fn set_prefixes(&mut self, prefixes: Vec<Nat64Prefix>) {
        self.prefixes = prefixes;
        for way in self.tried.iter().chain(&self.waiting).cloned().collect::<Vec<_>>() {
            self.add(&way.url, way.proxy.as_ref(), [way.address]);
        }
    }

    fn try_start(&mut self) -> bool {
        // A family that leads nowhere does not hold up the other one.
        let last = self.tried.last().map(|way| way.address.is_ipv4());
        let other = self.waiting.iter().position(|way| Some(way.address.is_ipv4()) != last);
        let Some(way) = self.waiting.remove(other.unwrap_or(0)) else { return false };
        self.tried.push(way.clone());
        self.running.push(way.clone());
        let config = self.target.config.clone();
        self.pending.push(Box::pin(async move {
            let result = match tokio::time::timeout(ATTEMPT_TIMEOUT, open(&way, config)).await {
                Ok(Ok(opened)) => Ok(Box::new(opened)),
                Ok(Err(PipeError::PinMismatch)) => Err(AttemptError::PinMismatch),
                Ok(Err(PipeError::Version)) => Err(AttemptError::Version),
                Ok(Err(error)) => Err(AttemptError::Pipe(error)),
                Err(_elapsed) => Err(AttemptError::Timeout),
            };
            Progress::Opened(Box::new(way), result)
        }));
        true
    }

    /// Whether everything that is known was tried in vain: only lookups are left.
    fn is_spent(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && !self.tried.is_empty()
    }

    /// Says of everything that is still open that it did not answer.
    fn give_up(mut self) -> DialError {
        for way in self.running {
            self.error.push(way.url.to_string(), AttemptError::Timeout);
        }
        self.error
    }
}

/// Returns who is connected to: the server, or the proxy that leads there.
fn server<'a>(url: &'a WebSocketUrl, proxy: Option<&'a Proxy>) -> &'a HostPort {
    proxy.map_or(&url.server, |proxy| &proxy.server)
}

/// Returns every URL that is tried, the most promising first, each once.
fn urls(target: &StreamTarget) -> Vec<WebSocketUrl> {
    let mut urls = Vec::new();
    let all: Vec<WebSocketUrl> = match &target.options.url {
        Some(url) => vec![url.clone()],
        None => {
            let of_names = target.names.iter().flat_map(WebSocketUrl::of_coordinator);
            target.last.clone().into_iter().chain(of_names).collect()
        }
    };
    for url in all {
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    urls
}

#[cfg(test)]
mod tests {
    use super::{super::tls, *};
    use crate::{
        identity::Identity,
        nat64::{Mode, Nat64},
    };
    use mesh_proto::key::KeyPin;

    fn target(prefix: Mode) -> StreamTarget {
        StreamTarget {
            config: tls::stream_config(&Identity::generate().unwrap(), KeyPin([0; 32])).unwrap(),
            options: StreamOptions { url: "wss://pi.example/mesh".parse().ok(), ..StreamOptions::default() },
            names: Vec::new(),
            known: Vec::new(),
            mesh: Vec::new(),
            last: None,
            nat64: Nat64::new(prefix),
            book: NameBook::default(),
        }
    }

    fn tried(target: &StreamTarget, addresses: &[&str]) -> Vec<String> {
        let mut dial = Dial::new(target);
        let url = dial.urls[0].clone();
        dial.add(&url, None, addresses.iter().map(|text| text.parse().unwrap()));
        while dial.try_start() {}
        dial.tried.iter().map(|way| way.address.to_string()).collect()
    }

    #[test]
    fn families_take_turns() {
        let addresses =
            ["[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1", "192.0.2.1:1", "192.0.2.2:1"];
        let want = ["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1", "192.0.2.2:1", "[2001:db8::3]:1"];
        assert_eq!(tried(&target(Mode::Off), &addresses), want);
    }

    #[test]
    fn ipv4_is_tried_behind_the_prefix_too() {
        let target = target("64:ff9b::/96".parse().unwrap());
        assert_eq!(tried(&target, &["192.0.2.1:1"]), ["192.0.2.1:1", "[64:ff9b::c000:201]:1"]);
        assert_eq!(tried(&target, &["192.168.1.1:1"]), ["192.168.1.1:1"], "that one is near or nowhere");
    }
}
