//! A WebSocket as a byte stream.
//!
//! Bytes travel in binary messages that are cut anywhere; text messages are an error. Pings are answered while the
//! stream is read. The request has to be for the path [`mesh_proto::stream::PATH`], or one that ends in it, so that a
//! proxy may put it anywhere.

use std::{
    io::{self, IoSlice},
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use mesh_proto::stream::PATH;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async_with_config, client_async_with_config,
    tungstenite::{
        Error, Message,
        handshake::server::{ErrorResponse, Request, Response},
        http::{StatusCode, Uri},
        protocol::WebSocketConfig,
    },
};

use crate::{BoxedStream, ByteStream};

/// Longest message that is written: what the TLS session above has ready at once, a few of its records.
const MAX_MESSAGE: usize = 64 << 10;
/// Longest message that is taken, from somebody who may have proved nothing yet.
const MAX_RECEIVED: usize = 2 * MAX_MESSAGE;
/// Bytes that are read at once.
const READ_BUFFER: usize = 16 << 10;
/// Who is behind a proxy on the same host, as nginx is told to say it.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// A WebSocket as a byte stream.
#[derive(Debug)]
pub struct WebSocketPipe<S> {
    inner: WebSocketStream<S>,
    /// What was received and not yet read.
    received: Bytes,
}

/// A WebSocket that a client has opened.
pub struct Accepted {
    /// The stream.
    pub pipe: WebSocketPipe<BoxedStream>,
    /// Where the client is, if a proxy says so. To be believed only of a proxy that is trusted.
    pub forwarded_for: Option<IpAddr>,
}

/// Why a client has no WebSocket.
#[derive(Debug, thiserror::Error)]
#[error("no websocket was asked for: {0}")]
pub struct AcceptError(Box<Error>);

/// Why a server gives no WebSocket.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It answered, with something else.
    #[error("the server answers with HTTP {0}: there is no websocket at this address")]
    Http(u16),
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// What it answered is not HTTP, or not a WebSocket.
    #[error("the server does not speak websocket: {0}")]
    Protocol(String),
}

/// Opens a WebSocket on a stream to its server.
///
/// # Errors
/// When the server gives none.
pub async fn connect(
    stream: BoxedStream,
    host: &str,
    path: &str,
) -> Result<WebSocketPipe<BoxedStream>, ConnectError> {
    let uri = Uri::builder().scheme("wss").authority(host).path_and_query(path).build();
    let uri = uri.map_err(|error| ConnectError::Protocol(error.to_string()))?;
    match client_async_with_config(uri, stream, Some(config())).await {
        Ok((inner, _response)) => Ok(WebSocketPipe::new(inner)),
        Err(Error::Http(response)) => Err(ConnectError::Http(response.status().as_u16())),
        Err(Error::Io(error)) => Err(ConnectError::Io(error)),
        Err(error) => Err(ConnectError::Protocol(error.to_string())),
    }
}

/// Gives a client its WebSocket. The caller sets a deadline.
///
/// # Errors
/// When the client asks for something else; it has its answer.
pub async fn accept(stream: BoxedStream) -> Result<Accepted, AcceptError> {
    let mut forwarded_for = None;
    // The type of the callback's result is the library's.
    #[expect(clippy::result_large_err, reason = "the library's type")]
    let check = |request: &Request, response: Response| {
        if !request.uri().path().ends_with(PATH) {
            let mut refusal = ErrorResponse::new(None);
            *refusal.status_mut() = StatusCode::NOT_FOUND;
            return Err(refusal);
        }
        // The last one was added by the proxy that is nearest.
        let header = request.headers().get(FORWARDED_FOR).and_then(|value| value.to_str().ok());
        forwarded_for = header.and_then(|list| list.rsplit(',').next()?.trim().parse().ok());
        Ok(response)
    };
    match accept_hdr_async_with_config(stream, check, Some(config())).await {
        Ok(inner) => Ok(Accepted { pipe: WebSocketPipe::new(inner), forwarded_for }),
        Err(error) => Err(AcceptError(Box::new(error))),
    }
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        // Every message is written at once: the session above gathers.
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MAX_MESSAGE)
        .max_message_size(Some(MAX_RECEIVED))
        .max_frame_size(Some(MAX_RECEIVED))
}

impl<S: ByteStream> WebSocketPipe<S> {
    fn new(inner: WebSocketStream<S>) -> Self {
        Self { inner, received: Bytes::new() }
    }

    fn send(&mut self, cx: &mut Context<'_>, message: Bytes) -> Poll<io::Result<usize>> {
        let len = message.len();
        Pin::new(&mut self.inner).start_send(Message::Binary(message)).map_err(into_io)?;
        // Now, and not only when the caller flushes; what cannot go waits, and the next write with it.
        let _ = Pin::new(&mut self.inner).poll_flush(cx).map_err(into_io)?;
        Poll::Ready(Ok(len))
    }
}

impl<S: ByteStream> AsyncRead for WebSocketPipe<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.received.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.received = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a text message")));
                }
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
            }
        }
        let len = self.received.len().min(out.remaining());
        out.put_slice(&self.received[..len]);
        self.received.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl<S: ByteStream> AsyncWrite for WebSocketPipe<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.inner).poll_ready(cx)).map_err(into_io)?;
        let len = bytes.len().min(MAX_MESSAGE);
        self.send(cx, Bytes::copy_from_slice(&bytes[..len]))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.inner).poll_ready(cx)).map_err(into_io)?;
        let mut message =
            Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>().min(MAX_MESSAGE));
        for part in parts {
            let room = MAX_MESSAGE - message.len();
            message.extend_from_slice(&part[..part.len().min(room)]);
        }
        if message.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send(cx, message.into())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx).map_err(into_io)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx).map_err(into_io)
    }
}

fn into_io(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn bytes_cross_both_ways_and_the_end_is_seen() {
        let (client, server) = duplex(3000);
        let (client, server) =
            tokio::join!(connect(Box::new(client), "mesh.example", "/behind/mesh"), accept(Box::new(server)));
        let (mut client, mut server) = (client.unwrap(), server.unwrap().pipe);
        let bytes: Vec<u8> = (0..200_000_u32).map(|index| index.to_le_bytes()[0]).collect();
        let sent = bytes.clone();
        let writer = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.flush().await.unwrap();
            let mut reply = [0; 5];
            client.read_exact(&mut reply).await.unwrap();
            client.shutdown().await.unwrap();
            reply
        });
        let mut got = vec![0; bytes.len()];
        server.read_exact(&mut got).await.unwrap();
        assert!(got == bytes);
        server.write_all(b"reply").await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(server.read(&mut [0; 10]).await.unwrap(), 0);
        assert_eq!(&writer.await.unwrap(), b"reply");
    }

    #[tokio::test]
    async fn another_path_is_not_found_and_a_page_is_no_websocket() {
        let (client, server) = duplex(3000);
        let (client, server) =
            tokio::join!(connect(Box::new(client), "mesh.example", "/other"), accept(Box::new(server)));
        assert!(matches!(client, Err(ConnectError::Http(404))));
        assert!(server.is_err());
        let (client, mut server) = duplex(3000);
        let page = tokio::spawn(async move {
            let _ = server.read(&mut [0; 2000]).await;
            server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>").await.unwrap();
            server
        });
        let client = connect(Box::new(client), "mesh.example", PATH).await;
        assert!(matches!(client, Err(ConnectError::Http(200))));
        page.await.unwrap();
    }

    #[tokio::test]
    async fn a_proxy_says_who_asks() {
        let (mut client, server) = duplex(3000);
        let request = "GET /mesh HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            X-Forwarded-For: 10.0.0.1, 203.0.113.7\r\n\r\n";
        client.write_all(request.as_bytes()).await.unwrap();
        let accepted = accept(Box::new(server)).await.unwrap();
        assert_eq!(accepted.forwarded_for, Some(IpAddr::from([203, 0, 113, 7])));
    }
}
