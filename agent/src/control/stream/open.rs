//! One attempt at a byte pipe: TCP, a proxy where there is one, TLS, WebSocket, and in it the session with both keys.

use std::{io, net::SocketAddr, sync::Arc};

use mesh_pipe::{BoxedStream, ConnectError, WebSocketPipe};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    outer,
    proxy::{self, Proxy, ProxyError},
    url::WebSocketUrl,
};
use crate::control::tls::{self, SERVER_NAME};

/// What carries a session.
pub(super) type Pipe = TlsStream<WebSocketPipe<BoxedStream>>;

/// One way to a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    /// The WebSocket.
    pub(super) url: WebSocketUrl,
    /// Whom to connect to: the server, or the proxy.
    pub(super) address: SocketAddr,
    /// The proxy.
    pub(super) proxy: Option<Proxy>,
}

/// A pipe to the holder of the pinned key.
pub(super) struct Opened {
    pub(super) pipe: Pipe,
    /// The outer certificate's SHA-256.
    pub(super) fingerprint: Option<String>,
}

/// Why a pipe is not there.
#[derive(Debug, thiserror::Error)]
pub enum PipeError {
    /// TCP.
    #[error("{0}")]
    Tcp(io::Error),
    /// The proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The outer TLS.
    #[error("TLS with whoever answers there failed: {0}")]
    OuterTls(io::Error),
    /// The WebSocket.
    #[error(transparent)]
    WebSocket(#[from] ConnectError),
    /// Somebody else answered.
    #[error("the coordinator's key does not match the pinned key")]
    PinMismatch,
    /// The coordinator speaks no version of the protocol that this agent does.
    #[error(
        "the coordinator speaks another version of the protocol than this agent: upgrade the older of the two"
    )]
    Version,
    /// The session.
    #[error("the session failed: {0}")]
    Session(io::Error),
}

/// Goes one way. The caller sets a deadline.
pub(super) async fn open(way: &Way, config: Arc<rustls::ClientConfig>) -> Result<Opened, PipeError> {
    let mut stream = TcpStream::connect(way.address).await.map_err(PipeError::Tcp)?;
    mesh_pipe::prepare(&stream).map_err(PipeError::Tcp)?;
    if let Some(proxy) = &way.proxy {
        proxy::connect(&mut stream, proxy, &way.url.server).await?;
    }
    let host = way.url.server.host().to_owned();
    let name = ServerName::try_from(host).map_err(|error| PipeError::OuterTls(io::Error::other(error)))?;
    let outer = outer::config().map_err(|error| PipeError::OuterTls(io::Error::other(error)))?;
    let stream = TlsConnector::from(Arc::new(outer)).connect(name, stream).await;
    let stream = stream.map_err(|error| page_or(way, error))?;
    let fingerprint = outer::fingerprint(stream.get_ref().1.peer_certificates());
    let authority = way.url.server.to_string();
    let pipe = mesh_pipe::connect(Box::new(stream), &authority, &way.url.path).await?;
    let name = ServerName::try_from(SERVER_NAME).expect("the constant is a name");
    let pipe = TlsConnector::from(config).connect(name, pipe).await.map_err(|error| {
        match (tls::is_pin_mismatch_io(&error), tls::is_version_mismatch_io(&error)) {
            (true, _) => PipeError::PinMismatch,
            (false, true) => PipeError::Version,
            (false, false) => PipeError::Session(error),
        }
    })?;
    Ok(Opened { pipe, fingerprint })
}

/// A proxy that says it has connected, and goes on with something that is no TLS, has sent a page of its own.
fn page_or(way: &Way, error: io::Error) -> PipeError {
    let rustls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match (rustls, &way.proxy) {
        (Some(rustls::Error::InvalidMessage(_)), Some(_)) => ProxyError::Page.into(),
        _ => PipeError::OuterTls(error),
    }
}
