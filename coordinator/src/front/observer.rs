//! A second UDP port, from which nodes learn what the first one cannot tell them.
//!
//! It answers STUN like the first: two ports of one address that see a node at different ports tell of a NAT that maps
//! by port (RFC 5780, section 4.3). And it knocks: one datagram to an address of the node's that asks for it, from a port
//! that the node has never sent to; whether it arrives tells how the NAT filters. Nothing is sent without being asked for
//! by a node that has proved its key, and only to where that node is.
//!
//! The port is the one that was configured, which nodes are told of then; or else any, which is good enough to knock.
//!
//! The task ends when it is cancelled; all it waits for is cancel-safe.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_proto::{control::Knock, stun};
use tokio_util::sync::CancellationToken;

use super::{ERROR_PAUSE, FrontSocket, RecvBuffers, STUN_RATE, Source};
use crate::limit::{Rate, SourceLimiter};

/// A request is of 20 bytes; one that looks for the path's MTU is of up to an Ethernet frame, or a jumbo one.
const RECV_BUFFER: usize = 10_000;
/// Requests to one source: those of [`STUN_RATE`].
const RATE: Rate = STUN_RATE;

/// The task that owns the port.
pub struct Observer {
    socket: Arc<FrontSocket>,
    limiter: SourceLimiter,
}

/// Knocks from the port. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Knocker {
    socket: Arc<FrontSocket>,
}

impl Observer {
    /// Makes the observer of a bound socket.
    #[must_use]
    pub fn new(socket: FrontSocket) -> Self {
        Self { socket: Arc::new(socket), limiter: SourceLimiter::new(Instant::now(), RATE) }
    }

    /// Returns what knocks.
    #[must_use]
    pub fn knocker(&self) -> Knocker {
        Knocker { socket: self.socket.clone() }
    }

    /// Serves the port until it is cancelled.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut buffers = RecvBuffers::new(RECV_BUFFER);
        let socket = self.socket.clone();
        loop {
            let ready = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                ready = socket.readable() => ready,
            };
            if ready.and_then(|()| self.receive(&mut buffers)).is_err() {
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }

    fn receive(&mut self, buffers: &mut RecvBuffers) -> io::Result<()> {
        let now = Instant::now();
        for (meta, train) in self.socket.receive(buffers)? {
            let source = Source { address: meta.addr, local: meta.dst_ip };
            for datagram in train.chunks(meta.stride.max(1)) {
                if let Some((to, answer)) = answer(source, datagram)
                    && self.limiter.try_take(now, source.address.ip()).is_ok()
                {
                    // An answer that cannot be sent is lost like any datagram: the node asks again.
                    let _ = self.socket.try_answer(to, &answer);
                }
            }
        }
        Ok(())
    }
}

impl Knocker {
    /// Returns the port that knocks come from.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.socket.local_addr().port()
    }

    /// Knocks once.
    pub fn knock(&self, knock: &Knock) {
        let Knock { to, transaction } = *knock;
        let message = stun::Message::BindingSuccess { transaction, mapped: to }.encode();
        // One that cannot be sent is lost like any datagram: the node asks again.
        let _ = self.socket.try_answer(Source { address: to, local: None }, &message);
    }
}

/// Binds the port that was configured, or any at the same address as the first one.
///
/// # Errors
/// When there is none.
pub fn bind(configured: Option<SocketAddr>, first: SocketAddr) -> io::Result<FrontSocket> {
    FrontSocket::bind(configured.unwrap_or_else(|| SocketAddr::new(first.ip(), 0)))
}

/// Returns what a datagram is answered with, and where: where it came from, if it is a request. The answer goes there, or
/// to another port of the same address, if that is asked for.
pub(super) fn answer(source: Source, datagram: &[u8]) -> Option<(Source, Vec<u8>)> {
    let mapped = source.address;
    let (transaction, port) = match stun::Message::decode(datagram).ok()? {
        stun::Message::BindingRequest { transaction } => (transaction, mapped.port()),
        stun::Message::BindingRequestFor { transaction, port } => (transaction, port.get()),
        stun::Message::BindingSuccess { .. } => return None,
    };
    let to = Source { address: SocketAddr::new(mapped.ip(), port), ..source };
    Some((to, stun::Message::BindingSuccess { transaction, mapped }.encode()))
}

/// Knocks from a port that is used for nothing else. For whoever else was asked to knock.
///
/// # Errors
/// When the system has no such port, or does not send.
pub async fn knock_from_anywhere(knock: &Knock) -> io::Result<()> {
    let Knock { to, transaction } = *knock;
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = tokio::net::UdpSocket::bind(any).await?;
    let message = stun::Message::BindingSuccess { transaction, mapped: to }.encode();
    let sent = tokio::time::timeout(Duration::from_secs(1), socket.send_to(&message, to)).await;
    sent.map_err(io::Error::from)?.map(drop)
}
