//! Accepts connections over QUIC.

use std::{io, sync::Arc, time::Duration};

use mesh_proto::{
    control::{self, Refusal, RefusalCode, ServerMessage},
    key::NodeKey,
};
use quinn::{
    Connection, ConnectionError, Incoming, TransportErrorCode, VarInt, crypto::rustls::QuicServerConfig,
};
use rustls::{AlertDescription, pki_types::CertificateDer};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    door::{Door, Service},
    gate::{AddressProof, Admission},
    link::{Link, LinkError},
    refusal,
    stats::ControlStats,
};

/// Without a packet for this long a client is gone.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Both sides keep the connection alive: two lost packets in a row do not end it.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// What a client may send ahead of our reading; the longest honest messages are of a few KiB.
const RECEIVE_WINDOW: u32 = 64 << 10;
/// What waits for a client to acknowledge it. More than this is never buffered for one that is slow.
const SEND_WINDOW: u64 = 256 << 10;
/// Connections that quinn keeps while they wait to be accepted, and the bytes it keeps for them.
const MAX_INCOMING: usize = 256;
const INCOMING_BUFFER: u64 = 16 << 10;
const INCOMING_BUFFER_TOTAL: u64 = 1 << 20;

/// The task that accepts connections.
pub struct ControlServer<S> {
    endpoint: quinn::Endpoint,
    door: Door<S>,
}

/// Makes the QUIC configuration of a control server with this Ed25519 key.
///
/// # Errors
/// When the key cannot be used.
pub fn server_config(pkcs8: &[u8]) -> io::Result<quinn::ServerConfig> {
    let tls = mesh_rawkeys::server_config(pkcs8, control::ALPN).map_err(io::Error::other)?;
    let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .send_window(SEND_WINDOW)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().map_err(io::Error::other)?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

impl<S: Service> ControlServer<S> {
    /// Makes a server that accepts from an endpoint and hands over to a service, through its door.
    #[must_use]
    pub fn new(endpoint: quinn::Endpoint, door: Door<S>) -> Self {
        Self { endpoint, door }
    }

    /// Accepts connections until it is cancelled; their tasks are tracked.
    pub async fn run(self, tracker: TaskTracker, cancel: CancellationToken) {
        loop {
            let incoming = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { return };
            self.admit(incoming, &tracker, &cancel);
        }
    }

    fn admit(&self, incoming: Incoming, tracker: &TaskTracker, cancel: &CancellationToken) {
        let proof = match incoming.remote_address_validated() {
            true => AddressProof::Proved,
            false => AddressProof::Claimed,
        };
        match self.door.try_enter(incoming.remote_address().ip(), proof) {
            Admission::Enter(place) => {
                let stats = self.door.stats.clone();
                let opening = async move { open(incoming, &stats).await };
                tracker.spawn(self.door.clone().serve(place, opening, cancel.clone()));
            }
            Admission::ProveAddress => {
                self.door.stats.retries.increment();
                // An error says that the address is proved already, which the gate was told.
                let _ = incoming.retry();
            }
            Admission::Full => {
                self.door.stats.turned_away.increment();
                incoming.refuse();
            }
        }
    }
}

/// Takes a connection to its one stream. `None`: it failed.
async fn open(incoming: Incoming, stats: &ControlStats) -> Option<Link> {
    let connection = match incoming.await {
        Ok(connection) => connection,
        Err(error) => {
            if is_version_mismatch(&error) {
                stats.count_version_mismatch();
            }
            return None;
        }
    };
    let node_key = node_key(&connection)?;
    let (send, recv) = connection.accept_bi().await.ok()?;
    Some(Link::over_quic(node_key, connection.remote_address(), recv, send))
}

/// Returns the node key that the other side has proved.
fn node_key(connection: &Connection) -> Option<NodeKey> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    mesh_rawkeys::node_key(&identity)
}

/// Returns whether the other side offered no version of the protocol that this side speaks (RFC 7301, section 3.2).
fn is_version_mismatch(error: &ConnectionError) -> bool {
    let alert = TransportErrorCode::crypto(AlertDescription::NoApplicationProtocol.into());
    matches!(error, ConnectionError::TransportError(error) if error.code == alert)
}

/// Says why, and closes.
pub(super) async fn refuse(link: Link, stats: &ControlStats, refusal: Refusal) {
    tracing::debug!(code = ?refusal.code, "refused");
    stats.count_refusal(refusal.code);
    link.close(&ServerMessage::Refused(refusal)).await;
}

/// Closes a connection on which reading failed, and says why if the other side may be listening still.
pub(super) async fn refuse_broken(link: Link, stats: &ControlStats, error: &LinkError) {
    tracing::debug!(%error, "connection ended");
    match error {
        LinkError::Closed | LinkError::Io(_) => {}
        LinkError::Frame(_) | LinkError::Slow | LinkError::TooMuch => {
            refuse(link, stats, refusal(RefusalCode::Protocol, &error.to_string())).await;
        }
    }
}
