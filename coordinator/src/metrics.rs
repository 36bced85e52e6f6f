//! Metrics as Prometheus text, over HTTP on a loopback address.
//!
//! Only numbers are shown: no label carries a name, an address or a key. The listener refuses any other
//! address than a loopback one, and, against web pages that rebind a name of theirs to it, any Host that is
//! not one.
//!
//! Tasks: the listener and one per connection; both end when cancelled. Accepting is cancel-safe; a
//! connection that is dropped is a scrape that failed.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fmt::Write as _,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HOST, HeaderMap},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_proto::netmap::NodeId;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    control::ControlStats,
    front::FrontStats,
    registry::Registry,
    relay::{DropReason, RelayHandle, RelayStats},
    tcp::TcpStats,
};

/// Scrapes at once.
const MAX_CONNECTIONS: usize = 8;
/// How long one connection may take in all.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a request's head may take.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after accepting failed, as it does while the process is out of file descriptors.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// What the metrics are read from.
#[derive(Clone)]
pub struct Sources {
    /// The UDP port.
    pub front: Arc<FrontStats>,
    /// The control side.
    pub control: Arc<ControlStats>,
    /// The TCP port.
    pub tcp: Arc<TcpStats>,
    /// The relay.
    pub relay: RelayHandle,
    /// The registry, whose revision is shown.
    pub registry: Registry,
    /// Who is connected.
    pub online: watch::Receiver<BTreeSet<NodeId>>,
}

/// The listener of the metrics.
pub struct MetricsServer {
    listener: TcpListener,
    sources: Sources,
}

impl MetricsServer {
    /// Binds the listener.
    ///
    /// # Errors
    /// When the address is not a loopback address, or cannot be bound.
    pub async fn bind(address: SocketAddr, sources: Sources) -> io::Result<Self> {
        if !address.ip().is_loopback() {
            let message = "metrics are shown on loopback addresses only, such as 127.0.0.1 or [::1]";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(Self { listener: TcpListener::bind(address).await?, sources })
    }

    /// Returns the bound address.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is cancelled.
    pub async fn run(self, tracker: TaskTracker, cancel: CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            };
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let (sources, cancel) = (self.sources.clone(), cancel.clone());
            tracker.spawn(async move {
                let _place = place;
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => {}
                    _ = tokio::time::timeout(DEADLINE, serve_connection(stream, sources)) => {}
                }
            });
        }
    }
}

async fn serve_connection(stream: TcpStream, sources: Sources) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| {
        let sources = sources.clone();
        async move { Ok::<_, Infallible>(answer(&request, &sources).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer<B>(request: &Request<B>, sources: &Sources) -> Response<Full<Bytes>> {
    let reply = |status: StatusCode, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let text = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, text);
        response
    };
    if !is_local_host(request.headers()) {
        return reply(StatusCode::FORBIDDEN, "only local hosts\n".to_owned());
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match sources.relay.stats().await {
            Ok(relay) => reply(StatusCode::OK, render(sources, &relay)),
            Err(error) => reply(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        },
        _ => reply(StatusCode::NOT_FOUND, "try GET /metrics\n".to_owned()),
    }
}

/// Says whether the request names this host by an address of its own, as a rebound name would not.
fn is_local_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else { return false };
    let is_loopback = |ip: &str| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    host.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
        || is_loopback(host.trim_start_matches('[').trim_end_matches(']'))
        || host == "localhost"
        || host.strip_prefix("localhost:").is_some_and(|port| port.parse::<u16>().is_ok())
}

/// Writes the Prometheus text format, version 0.0.4.
fn render(sources: &Sources, relay: &RelayStats) -> String {
    let Sources { front, control, tcp, registry, online, relay: _ } = sources;
    let mut text = Text::default();
    text.counter("connections_total", "control connections authenticated", control.connections.get());
    text.counter("handshake_failures_total", "control connections that failed before hello", {
        control.handshake_failures.get()
    });
    text.counter("turned_away_total", "control connections refused for want of places", {
        control.turned_away.get()
    });
    text.counter("version_mismatches_total", "connections in another version of the protocol", {
        control.version_mismatches.get()
    });
    text.counter("retries_total", "control connections made to prove their address", control.retries.get());
    text.counter("joins_total", "joins answered with a node", control.joins.get());
    text.counter("sessions_total", "sessions of nodes opened", control.sessions.get());
    text.counters("refusals_total", "refusals sent", "code", control.refusals());
    text.counter("maps_total", "whole network maps sent", control.maps.get());
    text.counter("deltas_total", "changes of the network map sent", control.deltas.get());
    text.counter("calls_total", "call-me-maybes forwarded", control.calls.get());
    text.counter("calls_dropped_total", "call-me-maybes not forwarded", control.calls_dropped.get());
    text.counters("datagrams_total", "datagrams received", "kind", front.datagrams());
    text.counter("stun_answers_total", "stun requests answered", front.stun_answers());
    text.counter("stun_drops_total", "stun messages not answered", front.stun_drops());
    text.counter("quic_drops_total", "quic datagrams dropped before quic saw them", front.quic_drops());
    text.counter("socket_errors_total", "errors while receiving", front.socket_errors());
    text.counter("tcp_connections_total", "tcp connections accepted", tcp.accepted());
    text.counter("tcp_turned_away_total", "tcp connections closed for want of places", tcp.turned_away());
    text.counter("tcp_streams_total", "tcp connections that became streams", tcp.streams());
    text.counter("relay_packets_total", "packets relayed", relay.forwarded_packets);
    text.counter("relay_bytes_total", "bytes of payload relayed", relay.forwarded_bytes);
    text.counter("relay_binds_total", "relay binds taken", relay.binds);
    text.counter("relay_channels_opened_total", "relay channels opened", relay.opened);
    let drops = DropReason::ALL.iter().map(|reason| (reason.as_str(), relay.dropped(*reason)));
    text.counters("relay_drops_total", "relay packets dropped", "reason", drops);
    text.gauge("relay_channels", "relay channels open", relay.channels);
    text.gauge("relay_queued_bytes", "bytes queued in the relay", relay.queued_bytes);
    text.gauge("map_epoch", "epoch of the network map", registry.version().epoch);
    text.gauge("map_revision", "revision of the network map", registry.version().serial);
    text.gauge("nodes_online", "nodes connected", online.borrow().len() as u64);
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, help, "counter");
        self.sample(name, "", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, help, "gauge");
        self.sample(name, "", value);
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl Iterator<Item = (&'static str, u64)>,
    ) {
        self.head(name, help, "counter");
        for (value_of_label, value) in values {
            self.sample(name, &format!("{{{label}=\"{value_of_label}\"}}"), value);
        }
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a String does not fail.
        let _ = write!(self.0, "# HELP mesh_{name} {help}\n# TYPE mesh_{name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "mesh_{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_prometheus_reads() {
        let mut text = Text::default();
        text.gauge("nodes_online", "nodes connected", 2);
        text.counters("refusals_total", "refusals sent", "code", [("token", 1), ("busy", 0)].into_iter());
        assert_eq!(
            text.0,
            "# HELP mesh_nodes_online nodes connected\n\
             # TYPE mesh_nodes_online gauge\n\
             mesh_nodes_online 2\n\
             # HELP mesh_refusals_total refusals sent\n\
             # TYPE mesh_refusals_total counter\n\
             mesh_refusals_total{code=\"token\"} 1\n\
             mesh_refusals_total{code=\"busy\"} 0\n"
        );
    }

    #[test]
    fn only_local_hosts_are_answered() {
        let is_local = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            is_local_host(&headers)
        };
        for good in ["127.0.0.1:9090", "127.0.0.1", "[::1]:9090", "[::1]", "localhost", "localhost:9090"] {
            assert!(is_local(good), "{good}");
        }
        for bad in ["evil.example", "127.0.0.1.evil.example", "192.0.2.1:9090", "localhost.evil", ""] {
            assert!(!is_local(bad), "{bad}");
        }
        assert!(!is_local_host(&HeaderMap::new()));
    }
}
