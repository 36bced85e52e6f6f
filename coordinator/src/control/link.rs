//! A control connection as its messages: framed, with deadlines and limits.
//!
//! Carriers (QUIC, TLS in a WebSocket) hand in the two halves of their stream; nothing above
//! this file knows which carrier it is.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use mesh_proto::{
    control::frame::{self, Decoder, FrameError},
    key::NodeKey,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::Instant,
};

use crate::shared::SharedMessage;

/// A message that has begun must be whole after this: a sender that trickles is cut off.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(10);
/// A message must have been taken over by the carrier after this: a receiver that does not read is cut off.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection is kept after its last message, so that the other side can read it.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes that are read at once: most messages are shorter.
const READ_CHUNK: usize = 2048;

/// A connection whose other side proved its node key.
pub struct Link {
    /// Who the other side is.
    pub node_key: NodeKey,
    /// Where the other side is.
    pub remote: SocketAddr,
    /// What carries the connection, down to the network.
    pub carrier: Carrier,
    reader: FrameReader,
    writer: FrameWriter,
}

/// What carries a connection through the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// UDP: it gets through, then, both ways.
    Udp,
    /// TCP.
    Tcp,
}

/// Reads messages.
struct FrameReader {
    stream: Box<dyn AsyncRead + Send + Sync + Unpin>,
    decoder: Decoder,
    chunk: Box<[u8; READ_CHUNK]>,
    /// When the message that is not yet whole began.
    partial_since: Option<Instant>,
    /// Bytes that may still be read; `None` for no limit but that of a message.
    allowance: Option<usize>,
}

/// Writes messages.
struct FrameWriter {
    stream: Outbound,
}

/// Where messages go.
enum Outbound {
    /// Takes over what it is given, and copies nothing.
    Quic(quinn::SendStream),
    /// Any other.
    Stream(Box<dyn AsyncWrite + Send + Sync + Unpin>),
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other side closed the stream.
    #[error("the stream was closed")]
    Closed,
    /// The carrier failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// What was read is not a message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A message took too long to arrive, or to be taken.
    #[error("a message took longer than its deadline")]
    Slow,
    /// More was sent than a stranger may send.
    #[error("too many bytes before the node was known")]
    TooMuch,
}

impl Link {
    /// Makes a link of a stream over UDP.
    pub fn new(
        node_key: NodeKey,
        remote: SocketAddr,
        reader: impl AsyncRead + Send + Sync + Unpin + 'static,
        writer: impl AsyncWrite + Send + Sync + Unpin + 'static,
    ) -> Self {
        Self::over(node_key, remote, reader, Outbound::Stream(Box::new(writer)))
    }

    /// Makes a link of a stream over QUIC.
    #[must_use]
    pub fn over_quic(
        node_key: NodeKey,
        remote: SocketAddr,
        recv: quinn::RecvStream,
        send: quinn::SendStream,
    ) -> Self {
        Self::over(node_key, remote, recv, Outbound::Quic(send))
    }

    fn over(
        node_key: NodeKey,
        remote: SocketAddr,
        reader: impl AsyncRead + Send + Sync + Unpin + 'static,
        stream: Outbound,
    ) -> Self {
        let reader = FrameReader {
            stream: Box::new(reader),
            decoder: Decoder::default(),
            chunk: Box::new([0; READ_CHUNK]),
            partial_since: None,
            allowance: None,
        };
        let writer = FrameWriter { stream };
        Self { node_key, remote, carrier: Carrier::Udp, reader, writer }
    }

    /// Says that the stream is one over TCP.
    #[must_use]
    pub fn over_tcp(self) -> Self {
        Self { carrier: Carrier::Tcp, ..self }
    }

    /// Limits how many bytes are read from now on; `None` lifts the limit.
    pub fn set_allowance(&mut self, allowance: Option<usize>) {
        self.reader.allowance = allowance;
    }

    /// Waits for the next message. Cancel-safe: what was read is kept.
    ///
    /// # Errors
    /// When the connection cannot go on.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<T, LinkError> {
        self.reader.recv().await
    }

    /// Sends a message. Not cancel-safe.
    ///
    /// # Errors
    /// When the connection cannot go on.
    pub async fn send(&mut self, message: &impl Serialize) -> Result<(), LinkError> {
        self.writer.send(message).await
    }

    /// Sends a message that is shared with others. Not cancel-safe.
    ///
    /// # Errors
    /// When the connection cannot go on.
    pub(crate) async fn send_shared(&mut self, message: SharedMessage) -> Result<(), LinkError> {
        self.writer.send_pieces(message.into_pieces()).await
    }

    /// Sends a last message and waits a little for the other side to have read it.
    pub async fn close(mut self, last: &impl Serialize) {
        if self.send(last).await.is_err() {
            return;
        }
        let _ = tokio::time::timeout(LINGER, async {
            if self.writer.stream.shutdown().await.is_ok() {
                let chunk = &mut self.reader.chunk[..];
                while self.reader.stream.read(chunk).await.is_ok_and(|len| len > 0) {}
            }
        })
        .await;
    }
}

impl FrameReader {
    async fn recv<T: DeserializeOwned>(&mut self) -> Result<T, LinkError> {
        loop {
            if let Some(message) = self.decoder.poll_message()? {
                self.partial_since = None;
                return Ok(message);
            }
            if self.decoder.has_partial() {
                self.partial_since.get_or_insert_with(Instant::now);
            }
            let read = self.stream.read(&mut self.chunk[..]);
            let len = match self.partial_since {
                Some(since) => tokio::time::timeout_at(since + MESSAGE_DEADLINE, read)
                    .await
                    .map_err(|_elapsed| LinkError::Slow)??,
                None => read.await?,
            };
            if len == 0 {
                return Err(LinkError::Closed);
            }
            if let Some(allowance) = &mut self.allowance {
                *allowance = allowance.checked_sub(len).ok_or(LinkError::TooMuch)?;
            }
            self.decoder.handle_bytes(&self.chunk[..len]);
        }
    }
}

impl FrameWriter {
    async fn send(&mut self, message: &impl Serialize) -> Result<(), LinkError> {
        self.send_pieces(vec![frame::encode(message)?.into()]).await
    }

    async fn send_pieces(&mut self, pieces: Vec<Bytes>) -> Result<(), LinkError> {
        tokio::time::timeout(WRITE_DEADLINE, self.stream.write(pieces))
            .await
            .map_err(|_elapsed| LinkError::Slow)??;
        Ok(())
    }
}

impl Outbound {
    async fn write(&mut self, mut pieces: Vec<Bytes>) -> io::Result<()> {
        match self {
            Self::Quic(stream) => Ok(stream.write_all_chunks(&mut pieces).await?),
            Self::Stream(stream) => {
                for piece in pieces {
                    stream.write_all(&piece).await?;
                }
                stream.flush().await
            }
        }
    }

    async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Quic(stream) => stream.shutdown().await,
            Self::Stream(stream) => stream.shutdown().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::control::ClientMessage;
    use tokio::io::{DuplexStream, duplex, split};

    use super::*;

    fn link_over(stream: DuplexStream) -> Link {
        let (reader, writer) = split(stream);
        Link::new(NodeKey([1; 32]), ([127, 0, 0, 1], 1).into(), reader, writer)
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_trickles_is_cut_off_and_an_idle_stream_is_not() {
        let (mut client, server) = duplex(64);
        let mut link = link_over(server);
        let idle = tokio::time::timeout(Duration::from_secs(3600), link.recv::<ClientMessage>()).await;
        assert!(idle.is_err(), "nothing begun, nothing late");
        let trickle = tokio::spawn(async move {
            for byte in frame::encode(&ClientMessage::Ping { id: 1 }).unwrap() {
                if client.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let started = Instant::now();
        assert!(matches!(link.recv::<ClientMessage>().await, Err(LinkError::Slow)));
        assert!(started.elapsed() <= MESSAGE_DEADLINE + Duration::from_secs(1));
        drop(link);
        trickle.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_does_not_read_is_cut_off() {
        let (_client, server) = duplex(4);
        let mut link = link_over(server);
        assert!(matches!(link.send(&ClientMessage::Ping { id: 1 }).await, Err(LinkError::Slow)));
    }

    #[tokio::test]
    async fn a_stranger_may_send_only_so_much() {
        let (mut client, server) = duplex(1 << 16);
        let mut link = link_over(server);
        link.set_allowance(Some(1000));
        client.write_all(&[0, 0, 0x10, 0]).await.unwrap();
        client.write_all(&[b' '; 2000]).await.unwrap();
        assert!(matches!(link.recv::<ClientMessage>().await, Err(LinkError::TooMuch)));
    }

    #[tokio::test]
    async fn a_cancelled_recv_loses_nothing() {
        let (mut client, server) = duplex(1 << 16);
        let mut link = link_over(server);
        let bytes = frame::encode(&ClientMessage::Ping { id: 7 }).unwrap();
        for part in bytes.chunks(3) {
            client.write_all(part).await.unwrap();
            let early = tokio::time::timeout(Duration::from_millis(1), link.recv::<ClientMessage>()).await;
            if let Ok(message) = early {
                assert!(matches!(message, Ok(ClientMessage::Ping { id: 7 })));
                return;
            }
        }
        panic!("the message never came");
    }
}
