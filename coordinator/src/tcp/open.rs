//! From an accepted connection to a link and a stream of the relay.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering::Relaxed,
};

use mesh_pipe::{AcceptError, BoxedStream, CONTROL_ROOM, Ends, carry};
use mesh_proto::{key::NodeKey, stream::ALPN};
use tokio::{
    io::{duplex, split},
    net::TcpStream,
};

use super::{GOODBYE, Shared, StreamTls};
use crate::{
    control::{IDLE_TIMEOUT, Link},
    relay::RelayGone,
};

/// First byte of a TLS record that carries a handshake (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// Why a connection did not become a stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    WebSocket(#[from] AcceptError),
    #[error("the inner session is of another protocol")]
    Protocol,
    #[error("the other side proved no node key")]
    NoKey,
    #[error(transparent)]
    Relay(#[from] RelayGone),
}

/// Opens a connection to a link. The caller sets a deadline.
pub(super) async fn open<S>(
    shared: &Shared<S>,
    stream: TcpStream,
    remote: SocketAddr,
) -> Result<Link, OpenError> {
    mesh_pipe::prepare(&stream)?;
    let (stream, forwarded_for) = unwrap_outer(stream, &shared.streams.tls).await?;
    // Only a proxy on this host is believed: it was set up by whoever set this up.
    let remote = match forwarded_for {
        Some(client) if remote.ip().is_loopback() => SocketAddr::new(client.to_canonical(), remote.port()),
        Some(_) | None => remote,
    };
    let stream = shared.streams.tls.inner.accept(stream).await?;
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(ALPN) {
        return Err(OpenError::Protocol);
    }
    let node_key: NodeKey =
        session.peer_certificates().and_then(mesh_rawkeys::node_key).ok_or(OpenError::NoKey)?;
    let (relay, outbound) = shared.streams.relay.add_stream(remote).await?;
    shared.stats.streams.fetch_add(1, Relaxed);
    let (control, near) = duplex(CONTROL_ROOM);
    let ends = Ends { control, outbound, inbound: relay.inbound() };
    let cancel = shared.cancel.clone();
    shared.tracker.spawn(async move {
        let late = async {
            cancel.cancelled().await;
            tokio::time::sleep(GOODBYE).await;
        };
        tokio::select! {
            biased;
            ended = carry(stream, ends, IDLE_TIMEOUT, |train| relay.wrap(train)) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "stream ended");
                }
            }
            () = late => {}
        }
        relay.remove().await;
    });
    let (reader, writer) = split(near);
    Ok(Link::new(node_key, remote, reader, writer).over_tcp())
}

/// Takes off what is only there for whoever stands on the way; returns what a proxy says of the client.
async fn unwrap_outer(
    stream: TcpStream,
    tls: &StreamTls,
) -> Result<(mesh_pipe::WebSocketPipe<BoxedStream>, Option<IpAddr>), OpenError> {
    let mut first = [0];
    let stream: BoxedStream = match stream.peek(&mut first).await? {
        1 if first == [TLS_HANDSHAKE] => Box::new(tls.outer.accept(stream).await?),
        _ => Box::new(stream),
    };
    let accepted = mesh_pipe::accept(stream).await?;
    Ok((accepted.pipe, accepted.forwarded_for))
}
