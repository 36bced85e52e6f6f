//! The coordinator's one UDP port: what arrives is told apart by its first bytes and handed on.
//!
//! ```text
//!                     +-- relay frame --> RelayCore --> the same socket, as the train it came in
//!   recv (GRO train) -+-- STUN request -> answered at once
//!     per segment     +-- QUIC ---------> ring of fixed slots --> quinn
//!                     +-- anything else -> counted, no reply
//! ```
//!
//! Relay frames come and go through the byte streams of nodes without UDP, too: their trains are handled like those of
//! the socket, and both have their turn.
//!
//! One task owns the socket's receiving side and the relay. Nothing that an unauthenticated sender can do
//! makes it allocate or log: buffers, the QUIC ring and the tables of the rate limits have fixed sizes.
//! quinn sends from its own tasks through the same socket.
//!
//! The task ends when it is cancelled. All it waits for (the socket's readiness, a command, a time) is
//! cancel-safe.

pub mod observer;
mod quic;
mod socket;
mod stats;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_pipe::TrainSender;
use mesh_proto::demux::{DatagramKind, classify};
use quinn_udp::RecvMeta;
use tokio_util::sync::CancellationToken;

use self::quic::{MAX_QUIC_DATAGRAM, VirtualSocket};
pub use self::{
    socket::{FrontSocket, RecvBuffers, Source},
    stats::FrontStats,
};
use crate::{
    limit::{Rate, SourceLimiter},
    relay::{Outbound, RelayCommand, RelayCore, RelayInbox, StreamId, StreamTrain, TrainMut, Way},
};

/// A train that GRO put together is no longer than an IP datagram.
const RECV_BUFFER: usize = 1 << 16;
/// Batches that are read before others have their turn.
const BATCHES_PER_TURN: usize = 16;
/// Trains of byte streams that are handled before others have their turn.
const STREAM_TRAINS_PER_TURN: usize = 64;
/// Trains that are sent from the relay's queues before others have their turn.
const TRANSMITS_PER_TURN: usize = 64;
/// STUN answers per source. An answer is twice as long as its request: enough for a house full of agents
/// that start, too little to be worth reflecting.
const STUN_RATE: Rate = Rate { per_second: 20, burst: 100 };
/// Pause after an error of the socket itself, so that an error that stays does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// The task that owns the port. Made by [`Front::new`], driven by [`Front::run`].
pub struct Front {
    socket: Arc<FrontSocket>,
    quic: Arc<VirtualSocket>,
    relay: RelayCore,
    inbox: RelayInbox,
    /// What goes to the byte streams of nodes.
    streams: BTreeMap<StreamId, TrainSender>,
    stun_limiter: SourceLimiter,
    stats: Arc<FrontStats>,
    out: Outbound,
}

impl Front {
    /// Makes the front of a bound socket.
    #[must_use]
    pub fn new(socket: FrontSocket, relay: RelayCore, inbox: RelayInbox) -> Self {
        let socket = Arc::new(socket);
        Self {
            quic: VirtualSocket::new(socket.clone()),
            socket,
            relay,
            inbox,
            streams: BTreeMap::new(),
            stun_limiter: SourceLimiter::new(Instant::now(), STUN_RATE),
            stats: Arc::default(),
            out: Outbound::default(),
        }
    }

    /// Returns the bound address.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr()
    }

    /// Returns the counters.
    #[must_use]
    pub fn stats(&self) -> Arc<FrontStats> {
        self.stats.clone()
    }

    /// Makes a QUIC endpoint on the port. Its packets keep QUIC's fixed bit, by which they are told apart.
    ///
    /// # Errors
    /// When quinn refuses the configuration.
    pub fn endpoint(&self, config: quinn::ServerConfig) -> io::Result<quinn::Endpoint> {
        let mut endpoint_config = quinn::EndpointConfig::default();
        endpoint_config.grease_quic_bit(false);
        let max_len = u16::try_from(MAX_QUIC_DATAGRAM).map_err(io::Error::other)?;
        endpoint_config.max_udp_payload_size(max_len).map_err(io::Error::other)?;
        quinn::Endpoint::new_with_abstract_socket(
            endpoint_config,
            Some(config),
            self.quic.clone(),
            Arc::new(quinn::TokioRuntime),
        )
    }

    /// Serves the port until it is cancelled.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut buffers = RecvBuffers::new(RECV_BUFFER);
        let socket = self.socket.clone();
        loop {
            let timeout = self.relay.poll_timeout();
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                command = self.inbox.commands.recv() => match command {
                    Some(command) => self.handle_command(command),
                    None => return,
                },
                () = sleep_until(timeout) => self.relay.handle_timeout(Instant::now()),
                ready = socket.writable(), if self.relay.has_queued() => match ready {
                    Ok(()) => self.send_queued(),
                    Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
                },
                Some(train) = self.inbox.trains.recv() => {
                    self.handle_streams(Some(train));
                    // What the socket has is not made to wait; errors are met below.
                    let _ = self.receive(&mut buffers);
                }
                ready = socket.readable() => {
                    if ready.is_err() || self.receive(&mut buffers).is_err() {
                        self.stats.count_socket_error();
                        tokio::time::sleep(ERROR_PAUSE).await;
                    }
                }
            }
        }
    }

    fn handle_command(&mut self, command: RelayCommand) {
        match command {
            RelayCommand::AddStream { id, trains } => {
                self.streams.insert(id, trains);
            }
            RelayCommand::RemoveStream(id) => {
                self.streams.remove(&id);
                self.relay.handle_stream_ended(id);
            }
            RelayCommand::Relay(order) => order.apply(Instant::now(), &mut self.relay),
        }
    }

    /// Handles trains of byte streams until none waits, or until it is the others' turn.
    fn handle_streams(&mut self, mut next: Option<StreamTrain>) {
        let now = Instant::now();
        for _ in 0..STREAM_TRAINS_PER_TURN {
            let Some(StreamTrain { way, mut train }) = next else { return };
            self.handle_relay(now, way, &mut train.bytes, train.stride);
            next = self.inbox.trains.try_recv().ok();
        }
        if let Some(StreamTrain { way, mut train }) = next {
            self.handle_relay(now, way, &mut train.bytes, train.stride);
        }
    }

    /// Reads until nothing is left, or until it is the others' turn.
    fn receive(&mut self, buffers: &mut RecvBuffers) -> io::Result<()> {
        let socket = self.socket.clone();
        for _ in 0..BATCHES_PER_TURN {
            let trains = socket.receive(buffers)?;
            if trains.len() == 0 {
                break;
            }
            let now = Instant::now();
            for (meta, train) in trains {
                self.handle_train(now, &meta, train);
            }
        }
        Ok(())
    }

    /// Cuts a train into runs of one kind and hands each on.
    fn handle_train(&mut self, now: Instant, meta: &RecvMeta, train: &mut [u8]) {
        let stride = meta.stride.max(1);
        if train.is_empty() {
            self.stats.count_datagrams(DatagramKind::Unknown, 1);
        }
        let mut rest = train;
        while !rest.is_empty() {
            let kind = classify(&rest[..stride.min(rest.len())]);
            let same = rest.chunks(stride).take_while(|segment| classify(segment) == kind).count();
            let (run, others) = rest.split_at_mut((same * stride).min(rest.len()));
            self.stats.count_datagrams(kind, same as u64);
            self.handle_run(now, meta, kind, run);
            rest = others;
        }
    }

    fn handle_run(&mut self, now: Instant, meta: &RecvMeta, kind: DatagramKind, run: &mut [u8]) {
        let source = Source { address: meta.addr, local: meta.dst_ip };
        match kind {
            DatagramKind::Relay => self.handle_relay(now, source.into(), run, meta.stride),
            DatagramKind::Quic => {
                for datagram in run.chunks(meta.stride) {
                    if self.quic.handle_datagram(meta, datagram).is_err() {
                        self.stats.count_quic_drop();
                    }
                }
            }
            DatagramKind::Stun => {
                for datagram in run.chunks(meta.stride) {
                    self.handle_stun(now, source, datagram);
                }
            }
            DatagramKind::WireGuard | DatagramKind::Disco | DatagramKind::Unknown => {}
        }
    }

    fn handle_relay(&mut self, now: Instant, way: Way, run: &mut [u8], stride: usize) {
        self.relay.handle_train(now, TrainMut { way, bytes: &mut *run, stride }, &mut self.out);
        for reply in &self.out.replies {
            let bytes = reply.as_bytes();
            // A reply that cannot be sent is lost like any datagram: the agent asks again.
            match way {
                Way::Udp(source) => {
                    let _ = self.socket.try_answer(source, bytes);
                }
                Way::Stream { id, .. } => {
                    let _ = self.streams.get(&id).map(|trains| trains.push(bytes, bytes.len()));
                }
            }
        }
        for forward in &self.out.forwards {
            let train = &run[forward.range.clone()];
            let packets = train.len().div_ceil(stride.max(1)) as u64;
            let to = match forward.to {
                Way::Udp(to) => to,
                Way::Stream { id, .. } => {
                    let dropped = self.streams.get(&id).map_or(packets, |trains| trains.push(train, stride));
                    self.relay.handle_stream_full(dropped);
                    continue;
                }
            };
            // What waits already goes first, or packets would overtake each other.
            let sent = if self.relay.has_queued() {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                self.socket.try_send_train(to, train, stride)
            };
            match sent {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.relay.handle_blocked(forward.channel, train, stride);
                }
                Err(_) => self.relay.handle_send_failed(packets),
            }
        }
    }

    fn handle_stun(&mut self, now: Instant, source: Source, datagram: &[u8]) {
        let Some((to, answer)) = observer::answer(source, datagram) else {
            self.stats.count_stun_drop();
            return;
        };
        if self.stun_limiter.try_take(now, source.address.ip()).is_err() {
            self.stats.count_stun_drop();
            return;
        }
        match self.socket.try_answer(to, &answer) {
            Ok(()) => self.stats.count_stun_answer(),
            Err(_) => self.stats.count_stun_drop(),
        }
    }

    /// Sends what waits in the relay's queues, until the socket is full or it is the others' turn.
    fn send_queued(&mut self) {
        let now = Instant::now();
        for _ in 0..TRANSMITS_PER_TURN {
            let Some((to, train, stride)) = self.relay.poll_transmit(now) else { return };
            let packets = train.len().div_ceil(stride.max(1)) as u64;
            let to = match to {
                Way::Udp(to) => to,
                // The receiver has moved to a stream since.
                Way::Stream { id, .. } => {
                    let dropped = self.streams.get(&id).map_or(packets, |trains| trains.push(train, stride));
                    self.relay.handle_transmitted();
                    self.relay.handle_stream_full(dropped);
                    continue;
                }
            };
            match self.socket.try_send_train(to, train, stride) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(()) => self.relay.handle_transmitted(),
                Err(_) => {
                    self.relay.handle_transmitted();
                    self.relay.handle_send_failed(packets);
                }
            }
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
