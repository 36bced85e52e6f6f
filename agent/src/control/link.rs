//! A connection as messages both ways.

use std::{net::SocketAddr, time::Duration};

use mesh_proto::control::{
    ClientMessage, Hello, ServerMessage,
    frame::{self, Decoder, FrameError},
};
use quinn::{Connection, ConnectionError, Endpoint, ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::time::Instant;

use super::dial::{Dialed, bind_for};

/// Bytes that wait to be taken by the connection; nothing is added while more wait.
const OUTGOING_ROOM: usize = 64 << 10;
/// Bytes taken from the connection at once.
const READ_CHUNK: usize = 64 << 10;
/// Pause between two signs of life that are asked for. The other side may have restarted and know nothing of the
/// connection, which QUIC alone notices only by its idle timeout.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A heartbeat is answered by then, or the connection is dead: time for two retransmissions.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(3);
/// An answer to a test is expected after this, or after three round trips if that is longer.
const TEST_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a goodbye may take to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(20);

/// A connection with its one stream open.
#[derive(Debug)]
pub(super) struct Link {
    connection: Connection,
    endpoint: Endpoint,
    send: SendStream,
    recv: RecvStream,
    decoder: Decoder,
    /// What waits to be sent.
    outgoing: Vec<u8>,
    test: Option<Test>,
    tests: u64,
    /// When to ask for a sign of life, unless one is waited for.
    heartbeat: Instant,
}

/// A Ping that has to be answered, or the connection is dead.
#[derive(Debug, Clone, Copy)]
struct Test {
    id: u64,
    deadline: Instant,
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The connection is gone.
    #[error("the connection was lost: {0}")]
    Connection(#[from] ConnectionError),
    /// The other side ended the stream.
    #[error("the other side ended the stream")]
    Closed,
    /// What was said cannot be read.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The other side did not answer a test in time.
    #[error("the other side does not answer")]
    Silent,
}

impl Link {
    /// Opens the stream and says Hello. Nothing is sent before [`Self::recv`] is called.
    pub(super) async fn open(dialed: Dialed) -> Result<Self, LinkError> {
        let Dialed { connection, endpoint, resolved: _ } = dialed;
        let (send, recv) = connection.open_bi().await?;
        let (decoder, outgoing) = (Decoder::default(), Vec::new());
        let heartbeat = Instant::now() + HEARTBEAT;
        let mut link =
            Self { connection, endpoint, send, recv, decoder, outgoing, test: None, tests: 0, heartbeat };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        link.queue(&ClientMessage::Hello(Hello { version, features: Vec::new() }))?;
        Ok(link)
    }

    /// Returns the other side's address.
    pub(super) fn remote(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Returns whether there is room for another message.
    pub(super) fn has_room(&self) -> bool {
        self.outgoing.len() < OUTGOING_ROOM
    }

    /// Adds a message to what is sent while [`Self::recv`] waits.
    pub(super) fn queue(&mut self, message: &ClientMessage) -> Result<(), LinkError> {
        self.outgoing.extend_from_slice(&frame::encode(message)?);
        Ok(())
    }

    /// Asks for a sign of life now: [`Self::recv`] fails if there is none soon.
    pub(super) fn test(&mut self) -> Result<(), LinkError> {
        self.start_test(TEST_TIMEOUT)
    }

    fn start_test(&mut self, timeout: Duration) -> Result<(), LinkError> {
        self.tests += 1;
        self.queue(&ClientMessage::Ping { id: self.tests })?;
        let patience = timeout.max(self.connection.rtt() * 3);
        self.test = Some(Test { id: self.tests, deadline: Instant::now() + patience });
        Ok(())
    }

    fn handle_pong(&mut self, id: u64) {
        if self.test.is_some_and(|test| test.id == id) {
            self.test = None;
            self.heartbeat = Instant::now() + HEARTBEAT;
        }
    }

    /// Sends what is queued, and waits for a message. Cancel-safe.
    pub(super) async fn recv(&mut self) -> Result<ServerMessage, LinkError> {
        loop {
            match self.decoder.poll_message()? {
                Some(ServerMessage::Pong { id }) => self.handle_pong(id),
                Some(message) => return Ok(message),
                None => self.exchange().await?,
            }
        }
    }

    /// Sends or receives some bytes. Cancel-safe.
    async fn exchange(&mut self) -> Result<(), LinkError> {
        let wakeup = self.test.map_or(self.heartbeat, |test| test.deadline);
        tokio::select! {
            // An answer that is there already is read before the deadline is looked at.
            biased;
            chunk = self.recv.read_chunk(READ_CHUNK, true) => {
                self.decoder.handle_bytes(&chunk?.ok_or(LinkError::Closed)?.bytes);
            }
            written = self.send.write(&self.outgoing), if !self.outgoing.is_empty() => {
                self.outgoing.drain(..written?);
            }
            () = tokio::time::sleep_until(wakeup) => match self.test {
                Some(_) => return Err(LinkError::Silent),
                None => self.start_test(HEARTBEAT_TIMEOUT)?,
            },
        }
        Ok(())
    }

    /// Moves the connection to a new socket: the host's network is another one.
    pub(super) fn rebind(&self) -> std::io::Result<()> {
        self.endpoint.rebind(bind_for(self.remote())?)
    }

    /// Says goodbye, so that the other side need not wait for a timeout.
    pub(super) async fn close(self) {
        self.connection.close(VarInt::from_u32(0), b"");
        // Whether it arrives does not matter here.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

impl From<ReadError> for LinkError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => Self::Connection(error),
            ReadError::Reset(_)
            | ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<WriteError> for LinkError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Self::Connection(error),
            WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Closed,
        }
    }
}
