//! The coordinator's one TCP port, for nodes whose network lets no UDP out.
//!
//! ```text
//! TCP -- a TLS ClientHello? --> TLS, with a certificate that nobody has to trust --+
//!          \-- else (a proxy on this host or network has ended the TLS) ------------+-> WebSocket at .../mesh
//!     -> TLS with both keys proved -> control messages --> a Link, as over QUIC
//!                                 \-> relay frames ------> the relay, as over UDP
//! ```
//!
//! Everything up to a known node has one deadline and takes a place at the same door as connections over QUIC: a client
//! that trickles, stops in the middle of a handshake or speaks something else costs a bounded number of sockets for
//! some seconds.
//!
//! Tasks: the listener; one per connection, which serves it to its end; and one per open stream, which carries it. The
//! listener and the connections end when cancelled; a stream ends with its connection, and is dropped at the latest
//! two seconds after cancellation. Accepting is cancel-safe; a handshake that is cancelled is dropped with its socket.

mod open;
mod tls;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::tls::StreamTls;
use crate::{
    control::{Door, Service},
    relay::RelayHandle,
};

/// Pause after accepting failed, as it does while the process is out of file descriptors.
const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// How long a stream may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// The TCP port.
pub struct TcpFront {
    listener: TcpListener,
    stats: Arc<TcpStats>,
}

/// What the port's connections are handed to.
pub struct Streams<S> {
    /// The control side.
    pub door: Door<S>,
    /// The relay.
    pub relay: RelayHandle,
    /// Both layers of TLS.
    pub tls: StreamTls,
}

/// The port's counters since it started.
#[derive(Debug, Default)]
pub struct TcpStats {
    accepted: AtomicU64,
    turned_away: AtomicU64,
    streams: AtomicU64,
}

/// What the tasks share.
struct Shared<S> {
    streams: Streams<S>,
    stats: Arc<TcpStats>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl TcpFront {
    /// Binds the port.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, stats: Arc::default() })
    }

    /// Returns the bound address.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Returns the counters.
    #[must_use]
    pub fn stats(&self) -> Arc<TcpStats> {
        self.stats.clone()
    }

    /// Serves the port until it is cancelled.
    pub async fn run<S: Service>(self, streams: Streams<S>, tracker: TaskTracker, cancel: CancellationToken) {
        let shared = Arc::new(Shared { streams, stats: self.stats, tracker, cancel });
        loop {
            let accepted = tokio::select! {
                biased;
                () = shared.cancel.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, remote)) => admit(&shared, stream, remote),
                Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
            }
        }
    }
}

fn admit<S: Service>(shared: &Arc<Shared<S>>, stream: TcpStream, remote: SocketAddr) {
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    shared.stats.accepted.fetch_add(1, Relaxed);
    let Some(place) = shared.streams.door.try_enter_tcp(remote.ip()) else {
        shared.stats.turned_away.fetch_add(1, Relaxed);
        return;
    };
    let (door, cancel) = (shared.streams.door.clone(), shared.cancel.clone());
    let opening = shared.clone();
    let open = async move {
        let opened = open::open(&opening, stream, remote).await;
        opened.inspect_err(|error| tracing::debug!(%error, "no stream")).ok()
    };
    shared.tracker.spawn(door.serve(place, open, cancel));
}

impl TcpStats {
    /// Returns how many connections were accepted.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Returns how many of them were closed at once because there were too many.
    #[must_use]
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Relaxed)
    }

    /// Returns how many became streams of somebody who proved a key.
    #[must_use]
    pub fn streams(&self) -> u64 {
        self.streams.load(Relaxed)
    }
}
