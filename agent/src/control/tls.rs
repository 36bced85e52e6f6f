//! TLS with raw public keys (RFC 7250): this side proves its node key, the other side has the pinned key.
//!
//! The server's key is checked in the handshake, before this side has sent its own key or any message. TLS 1.3
//! only, X25519MLKEM768 offered first, no resumption: every connection proves both keys anew.

use std::{io, sync::Arc, time::Duration};

use mesh_proto::{control, key::KeyPin, stream};
use quinn::{IdleTimeout, TransportConfig, TransportErrorCode, VarInt, crypto::rustls::QuicClientConfig};
use rustls::{AlertDescription, CertificateError, ClientConfig, Error};

use crate::identity::Identity;

/// What stands for the server's name: it is neither sent nor checked.
pub(super) const SERVER_NAME: &str = "mesh";

/// Keeps NAT mappings and shows a dead coordinator.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Two keep-alives may be lost, three mean that the other side is gone.
const IDLE_TIMEOUT_MS: u32 = 15_000;
/// First guess of the round-trip time: a lost first packet is sent again after twice this, not after a second.
const INITIAL_RTT: Duration = Duration::from_millis(200);
/// One message of the longest kind, and the beginning of another.
const RECEIVE_WINDOW: u32 = 2 << 20;

/// Makes the configuration of connections that reach the holder of the pinned key, and nobody else.
///
/// # Errors
/// When the node key cannot be used, which [`Identity`] excludes.
pub(super) fn client_config(identity: &Identity, pin: KeyPin) -> Result<quinn::ClientConfig, Error> {
    let tls = mesh_rawkeys::client_config(identity.node_key_pkcs8().secret_pkcs8_der(), pin, control::ALPN)?;
    let quic = QuicClientConfig::try_from(tls).map_err(|error| Error::General(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(quic));
    config.transport_config(Arc::new(transport()));
    Ok(config)
}

/// Makes the configuration of sessions in a byte pipe, as [`client_config`].
///
/// # Errors
/// As [`client_config`].
pub(super) fn stream_config(identity: &Identity, pin: KeyPin) -> Result<Arc<ClientConfig>, Error> {
    mesh_rawkeys::client_config(identity.node_key_pkcs8().secret_pkcs8_der(), pin, stream::ALPN).map(Arc::new)
}

/// Returns whether a connection failed because the other side does not have the pinned key.
pub(super) fn is_pin_mismatch(error: &quinn::ConnectionError) -> bool {
    // Only this side's verifier makes a local error of this alert.
    let alert = TransportErrorCode::crypto(AlertDescription::AccessDenied.into());
    matches!(error, quinn::ConnectionError::TransportError(error) if error.code == alert)
}

/// Returns whether a connection failed because the other side speaks no version of the protocol that this side does
/// (RFC 7301, section 3.2).
pub(super) fn is_version_mismatch(error: &quinn::ConnectionError) -> bool {
    let alert = TransportErrorCode::crypto(AlertDescription::NoApplicationProtocol.into());
    match error {
        quinn::ConnectionError::TransportError(error) => error.code == alert,
        quinn::ConnectionError::ConnectionClosed(close) => close.error_code == alert,
        quinn::ConnectionError::VersionMismatch
        | quinn::ConnectionError::ApplicationClosed(_)
        | quinn::ConnectionError::Reset
        | quinn::ConnectionError::TimedOut
        | quinn::ConnectionError::LocallyClosed
        | quinn::ConnectionError::CidsExhausted => false,
    }
}

/// As [`is_pin_mismatch`], for a session in a byte pipe.
pub(super) fn is_pin_mismatch_io(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    // Only this side's verifier makes this error.
    matches!(error, Some(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)))
}

/// As [`is_version_mismatch`], for a session in a byte pipe.
pub(super) fn is_version_mismatch_io(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(error, Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)))
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .datagram_receive_buffer_size(None);
    transport
}
