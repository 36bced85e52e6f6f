//! A connection as messages both ways.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use mesh_pipe::{CONTROL_ROOM, Ends, carry};

use mesh_proto::control::{
    ClientMessage, Hello, ServerMessage,
    frame::{self, Decoder, FrameError},
};
use quinn::{Connection, ConnectionError, Endpoint, VarInt};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex, split},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::{
    clock::Clock,
    dial::{Dialed, bind_for},
    namebook::News,
    stream::{Proxy, StreamDialed},
};
use crate::io::stream::RelayPipe;

/// How long a link is kept beside the one that replaces it.
const REPLACED_LIFETIME: Duration = Duration::from_secs(2);
/// Bytes that wait to be taken by the connection; nothing is added while more wait.
const OUTGOING_ROOM: usize = 64 << 10;
/// Bytes taken from the connection at once.
const READ_CHUNK: usize = 16 << 10;
/// Pause between two signs of life that are asked for. The other side may have restarted and know nothing of the
/// connection, which QUIC alone notices only by its idle timeout.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A heartbeat is answered by then, or the connection is dead: time for two retransmissions.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(3);
/// An answer to a test is expected after this, or after three round trips if that is longer.
const TEST_TIMEOUT: Duration = Duration::from_secs(1);
/// A test that is made because nothing is answered any more: an answer takes a round trip, and time is short.
const URGENT_TIMEOUT: Duration = Duration::from_millis(500);
/// Without a byte for this long a byte pipe is dead; heartbeats notice it earlier.
const PIPE_IDLE: Duration = Duration::from_secs(20);
/// The other side forgets a connection on which it has heard nothing for this long: its idle timeout is 15 s, and what it
/// has sent meanwhile went unanswered.
const MEMORY: Duration = Duration::from_secs(20);
/// Weight of a new measurement in the smoothed round-trip time (RFC 6298: 1/8).
const RTT_WEIGHT: u64 = 8;
/// How long a goodbye may take to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(20);

/// A connection with its one stream open.
pub(super) struct Link {
    carrier: Carrier,
    send: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    recv: Box<dyn AsyncRead + Send + Sync + Unpin>,
    chunk: BytesMut,
    decoder: Decoder,
    /// What waits to be sent.
    outgoing: Vec<u8>,
    test: Option<Test>,
    tests: u64,
    /// When to ask for a sign of life, unless one is waited for.
    heartbeat: Instant,
    clock: Arc<Clock>,
}

/// What carries a link.
enum Carrier {
    Quic {
        connection: Connection,
        endpoint: Endpoint,
    },
    Pipe {
        remote: SocketAddr,
        rtt: Arc<Rtt>,
        certificate: Option<String>,
        proxy: Option<Proxy>,
        /// For the driver, until it has them.
        relay: Option<RelayPipe>,
        task: JoinHandle<()>,
    },
}

/// What others see of a link.
#[derive(Debug, Clone)]
pub(super) struct LinkView {
    /// What carries it.
    pub(super) carrier: CarrierView,
    /// The other side's clock.
    pub(super) clock: Arc<Clock>,
}

/// What others see of what carries a link.
#[derive(Debug, Clone)]
pub(super) enum CarrierView {
    /// Over QUIC.
    Quic(Connection),
    /// In a byte pipe.
    Pipe {
        /// The server's address, or that of the proxy that leads to it.
        remote: SocketAddr,
        /// The smoothed round-trip time.
        rtt: Arc<Rtt>,
        /// The outer certificate's SHA-256.
        certificate: Option<String>,
        /// The proxy on the way.
        proxy: Option<Proxy>,
    },
}

/// A smoothed round-trip time in microseconds; zero while there is none.
#[derive(Debug, Default)]
pub(super) struct Rtt(AtomicU64);

/// A Ping that has to be answered, or the connection is dead.
#[derive(Debug, Clone, Copy)]
struct Test {
    id: u64,
    sent: Instant,
    deadline: Instant,
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The connection is gone.
    #[error("the connection was lost: {0}")]
    Connection(#[from] ConnectionError),
    /// The connection is gone.
    #[error("the connection was lost: {0}")]
    Io(#[from] io::Error),
    /// The other side ended the stream.
    #[error("the other side ended the stream")]
    Closed,
    /// What was said cannot be read.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The other side did not answer a test in time.
    #[error("the other side does not answer")]
    Silent,
    /// This host has slept for longer than the other side keeps a connection.
    #[error("this host has slept")]
    Slept,
}

impl Rtt {
    /// Returns it.
    pub(super) fn get(&self) -> Option<Duration> {
        Some(self.0.load(Relaxed)).filter(|micros| *micros > 0).map(Duration::from_micros)
    }

    fn add(&self, sample: Duration) {
        let sample = u64::try_from(sample.as_micros()).unwrap_or(u64::MAX).max(1);
        let smoothed = match self.0.load(Relaxed) {
            0 => sample,
            before => (before * (RTT_WEIGHT - 1)).saturating_add(sample) / RTT_WEIGHT,
        };
        self.0.store(smoothed.max(1), Relaxed);
    }
}

impl Link {
    /// Opens the stream and says Hello. Nothing is sent before [`Self::recv`] is called.
    pub(super) async fn open(dialed: Dialed) -> Result<Self, LinkError> {
        let Dialed { connection, endpoint, resolved: _ } = dialed;
        let (send, recv) = connection.open_bi().await?;
        let mut link = Self::over(Carrier::Quic { connection, endpoint }, Box::new(send), Box::new(recv))?;
        // The answer brings the time.
        link.start_test(HEARTBEAT_TIMEOUT)?;
        Ok(link)
    }

    /// Says Hello in a byte pipe, which a task carries until this link is dropped.
    pub(super) fn open_pipe(dialed: StreamDialed, tracker: &TaskTracker) -> Result<Self, LinkError> {
        let StreamDialed { pipe, remote, url: _, proxy, fingerprint: certificate } = dialed;
        let (near, control) = duplex(CONTROL_ROOM);
        let (relay, outbound, inbound) = RelayPipe::new();
        let ends = Ends { control, outbound, inbound };
        let task = tracker.spawn(async move {
            if let Err(error) = carry(pipe, ends, PIPE_IDLE, |train| train).await {
                debug!(%error, "the byte pipe ended");
            }
        });
        let (recv, send) = split(near);
        let rtt = Arc::new(Rtt::default());
        let carrier = Carrier::Pipe { remote, rtt, certificate, proxy, relay: Some(relay), task };
        let mut link = Self::over(carrier, Box::new(send), Box::new(recv))?;
        // The first measurement.
        link.start_test(HEARTBEAT_TIMEOUT)?;
        Ok(link)
    }

    fn over(
        carrier: Carrier,
        send: Box<dyn AsyncWrite + Send + Sync + Unpin>,
        recv: Box<dyn AsyncRead + Send + Sync + Unpin>,
    ) -> Result<Self, LinkError> {
        let mut link = Self {
            carrier,
            send,
            recv,
            chunk: BytesMut::new(),
            decoder: Decoder::default(),
            outgoing: Vec::new(),
            test: None,
            tests: 0,
            heartbeat: Instant::now() + HEARTBEAT,
            clock: Arc::default(),
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        link.queue(&ClientMessage::Hello(Hello { version, features: Vec::new() }))?;
        Ok(link)
    }

    /// Returns the other side's address, or that of the proxy that leads to it.
    pub(super) fn remote(&self) -> SocketAddr {
        match &self.carrier {
            Carrier::Quic { connection, .. } => connection.remote_address(),
            Carrier::Pipe { remote, .. } => *remote,
        }
    }

    /// Returns what others may see of it.
    pub(super) fn view(&self) -> LinkView {
        let carrier = match &self.carrier {
            Carrier::Quic { connection, .. } => CarrierView::Quic(connection.clone()),
            Carrier::Pipe { remote, rtt, certificate, proxy, .. } => CarrierView::Pipe {
                remote: *remote,
                rtt: rtt.clone(),
                certificate: certificate.clone(),
                proxy: proxy.clone(),
            },
        };
        LinkView { carrier, clock: self.clock.clone() }
    }

    /// Returns the proxy that it leads through.
    pub(super) fn proxy(&self) -> Option<&Proxy> {
        match &self.carrier {
            Carrier::Quic { .. } => None,
            Carrier::Pipe { proxy, .. } => proxy.as_ref(),
        }
    }

    /// Whether it is in a byte pipe.
    pub(super) fn is_pipe(&self) -> bool {
        match self.carrier {
            Carrier::Quic { .. } => false,
            Carrier::Pipe { .. } => true,
        }
    }

    /// Takes the driver's ends of the pipe, once.
    pub(super) fn take_relay_pipe(&mut self) -> Option<RelayPipe> {
        match &mut self.carrier {
            Carrier::Quic { .. } => None,
            Carrier::Pipe { relay, .. } => relay.take(),
        }
    }

    /// Returns the smoothed round-trip time; zero while there is none.
    pub(super) fn rtt(&self) -> Duration {
        match &self.carrier {
            Carrier::Quic { connection, .. } => connection.rtt(),
            Carrier::Pipe { rtt, .. } => rtt.get().unwrap_or_default(),
        }
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

    /// As [`Self::test`], but there is less time than usual.
    pub(super) fn test_urgently(&mut self) -> Result<(), LinkError> {
        self.start_test(URGENT_TIMEOUT)
    }

    /// The host has slept: as [`Self::test`], unless there is nothing left to be tested.
    pub(super) fn wake(&mut self, away: Duration) -> Result<(), LinkError> {
        if away >= MEMORY { Err(LinkError::Slept) } else { self.test() }
    }

    /// As [`Self::test_urgently`], if a name that led to the other side leads elsewhere now. While the other side answers
    /// it is not left: nothing proves better where it is.
    pub(super) fn test_if_left(&mut self, news: &News) -> Result<(), LinkError> {
        if news.addresses.iter().any(|address| address.ip() == self.remote().ip().to_canonical()) {
            return Ok(());
        }
        debug!("the name of the other side leads elsewhere: the connection is tested");
        self.test_urgently()
    }

    fn start_test(&mut self, timeout: Duration) -> Result<(), LinkError> {
        self.tests += 1;
        self.queue(&ClientMessage::Ping { id: self.tests })?;
        let patience = timeout.max(self.rtt() * 3);
        let sent = Instant::now();
        self.test = Some(Test { id: self.tests, sent, deadline: sent + patience });
        Ok(())
    }

    fn handle_pong(&mut self, id: u64, time_ms: Option<u64>) {
        if let Some(test) = self.test.filter(|test| test.id == id) {
            let took = test.sent.elapsed();
            if let Carrier::Pipe { rtt, .. } = &self.carrier {
                rtt.add(took);
            }
            if let Some(time_ms) = time_ms {
                self.clock.add(time_ms, took, SystemTime::now());
            }
            self.test = None;
            self.heartbeat = Instant::now() + HEARTBEAT;
        }
    }

    /// Sends what is queued, and waits for a message. Cancel-safe.
    pub(super) async fn recv(&mut self) -> Result<ServerMessage, LinkError> {
        loop {
            match self.decoder.poll_message()? {
                Some(ServerMessage::Pong { id, time_ms }) => self.handle_pong(id, time_ms),
                Some(message) => return Ok(message),
                None => self.exchange().await?,
            }
        }
    }

    /// Sends or receives some bytes. Cancel-safe.
    async fn exchange(&mut self) -> Result<(), LinkError> {
        let wakeup = self.test.map_or(self.heartbeat, |test| test.deadline);
        self.chunk.reserve(READ_CHUNK);
        tokio::select! {
            // An answer that is there already is read before the deadline is looked at.
            biased;
            len = self.recv.read_buf(&mut self.chunk) => {
                if len? == 0 {
                    return Err(LinkError::Closed);
                }
                self.decoder.handle_bytes(&self.chunk);
                self.chunk.clear();
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

    /// Moves the connection to a new socket: the host's network is another one. A byte pipe cannot be moved: it is
    /// tested, and dialled again.
    pub(super) fn rebind(&self) -> io::Result<()> {
        match &self.carrier {
            Carrier::Quic { endpoint, .. } => endpoint.rebind(bind_for(self.remote())?),
            Carrier::Pipe { .. } => Ok(()),
        }
    }

    /// Leaves it to a task to say goodbye in a moment: another link takes this one's place, and what is under way arrives.
    pub(super) fn close_later(self, tracker: &TaskTracker, cancel: CancellationToken) {
        tracker.spawn(async move {
            cancel.run_until_cancelled(tokio::time::sleep(REPLACED_LIFETIME)).await;
            self.close().await;
        });
    }

    /// Says goodbye, so that the other side need not wait for a timeout.
    pub(super) async fn close(mut self) {
        // Whether it arrives does not matter here.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, async {
            match self.carrier {
                Carrier::Quic { connection, endpoint } => {
                    connection.close(VarInt::from_u32(0), b"");
                    endpoint.wait_idle().await;
                }
                Carrier::Pipe { task, .. } => {
                    let _ = self.send.shutdown().await;
                    let _ = task.await;
                }
            }
        })
        .await;
    }
}
