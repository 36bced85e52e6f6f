//! The UDP socket itself: batched, with segment offload both ways, and one family of addresses inside.
//!
//! Addresses above this file are canonical: what arrives from an IPv4-mapped address is reported as IPv4,
//! and is mapped again on the way out.

use std::{
    array,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, SocketAddrV6},
};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use tokio::{io::Interest, net::UdpSocket};

/// Longest segment that is sent with GSO. The kernel refuses a whole train whose segments are longer than
/// the outgoing interface's MTU (and quinn-udp then stops using GSO for good), so what does not fit into
/// Ethernet's 1,500 bytes is sent one by one.
const MAX_GSO_SEGMENT: usize = 1472;
/// Most bytes of one GSO send: what an IPv4 datagram can carry (65,535 less two headers).
const MAX_GSO_BYTES: usize = 65_507;
/// Socket buffers that are asked for: 20 ms at 1 Gbit/s. The kernel may give less.
const SOCKET_BUFFER: usize = 2 << 20;

/// Trains that are read at once: enough to make system calls rare, few enough for the cache.
const RECV_BATCH: usize = 8;

/// Room for the trains of one read.
pub struct RecvBuffers {
    bytes: Vec<u8>,
    /// Of each train.
    len: usize,
}

impl RecvBuffers {
    /// Makes room for trains of so many bytes; what is longer is cut off.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self { bytes: vec![0; RECV_BATCH * len], len }
    }
}

/// Where a datagram came from, and to which of our own addresses: an answer goes back the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The other side's address, canonical.
    pub address: SocketAddr,
    /// Our own address, as the kernel said it; `None` where it did not.
    pub local: Option<IpAddr>,
}

/// A bound UDP socket.
#[derive(Debug)]
pub struct FrontSocket {
    io: UdpSocket,
    /// For trains that are forwarded. Separate from quinn's, as it remembers failures of GSO.
    relay: UdpSocketState,
    quic: UdpSocketState,
    /// For answers, with the same reason: one to a broadcast cannot come from where the question went.
    answers: UdpSocketState,
    local: SocketAddr,
}

impl FrontSocket {
    /// Binds the socket: dual-stack when the address is an unspecified IPv6 address.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let io = UdpSocket::from_std(bind_std(address)?)?;
        let relay = UdpSocketState::new((&io).into())?;
        let quic = UdpSocketState::new((&io).into())?;
        let answers = UdpSocketState::new((&io).into())?;
        // Best effort: a smaller buffer costs packets under load, nothing else.
        let _ = relay.set_recv_buffer_size((&io).into(), SOCKET_BUFFER);
        let _ = relay.set_send_buffer_size((&io).into(), SOCKET_BUFFER);
        let local = io.local_addr()?;
        Ok(Self { io, relay, quic, answers, local })
    }

    /// Returns the bound address.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Waits until something can be read. Cancel-safe.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn readable(&self) -> io::Result<()> {
        self.io.readable().await
    }

    /// Waits until something can be sent. Cancel-safe.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn writable(&self) -> io::Result<()> {
        self.io.writable().await
    }

    /// Reads trains, without waiting; none if nothing is there.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn receive<'b>(
        &self,
        buffers: &'b mut RecvBuffers,
    ) -> io::Result<impl ExactSizeIterator<Item = (RecvMeta, &'b mut [u8])> + use<'b>> {
        let mut metas = [RecvMeta::default(); RECV_BATCH];
        let RecvBuffers { bytes, len } = buffers;
        let mut parts = bytes.chunks_mut(*len);
        let mut slices: [_; RECV_BATCH] =
            array::from_fn(|_| IoSliceMut::new(parts.next().unwrap_or_default()));
        let count = match self.try_recv(&mut slices, &mut metas) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            received => received?,
        };
        let trains = metas.into_iter().take(count).zip(bytes.chunks_mut(*len));
        Ok(trains.map(|(meta, bytes)| (meta, &mut bytes[..meta.len])))
    }

    /// Reads as many trains as there are buffers for, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there.
    pub fn try_recv(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> io::Result<usize> {
        let count =
            self.io.try_io(Interest::READABLE, || self.relay.recv((&self.io).into(), buffers, metas))?;
        for meta in &mut metas[..count] {
            meta.addr = canonical(meta.addr);
        }
        Ok(count)
    }

    /// Sends a train of datagrams of `stride` bytes each (the last may be shorter), without waiting.
    ///
    /// # Errors
    /// When nothing of the train was sent: `WouldBlock` when the socket's buffer is full. A train that
    /// does not fit into one send and is cut in its middle counts as sent.
    pub fn try_send_train(&self, to: Source, train: &[u8], stride: usize) -> io::Result<()> {
        let segments = match stride {
            0 => return Ok(()),
            1..=MAX_GSO_SEGMENT => self.relay.max_gso_segments().min(MAX_GSO_BYTES / stride).max(1),
            _ => 1,
        };
        for (index, part) in train.chunks(segments * stride).enumerate() {
            let transmit = Transmit {
                destination: self.outgoing(to.address),
                ecn: None,
                contents: part,
                segment_size: (part.len() > stride).then_some(stride),
                src_ip: to.local,
            };
            let sent =
                self.io.try_io(Interest::WRITABLE, || self.relay.try_send((&self.io).into(), &transmit));
            match sent {
                Ok(()) => {}
                Err(error) if index == 0 => return Err(error),
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Answers with one datagram, without waiting; from the address that was asked, if it is one of ours.
    ///
    /// # Errors
    /// When the answer was not sent.
    pub fn try_answer(&self, to: Source, answer: &[u8]) -> io::Result<()> {
        let send = |src_ip: Option<IpAddr>| {
            let destination = self.outgoing(to.address);
            let transmit = Transmit { destination, ecn: None, contents: answer, segment_size: None, src_ip };
            self.io.try_io(Interest::WRITABLE, || self.answers.try_send((&self.io).into(), &transmit))
        };
        match send(to.local) {
            Err(error) if to.local.is_some() && error.kind() != io::ErrorKind::WouldBlock => send(None),
            sent => sent,
        }
    }

    /// Sends what quinn wants to send, without waiting.
    ///
    /// # Errors
    /// As [`Self::try_send_train`].
    pub fn try_send_quic(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let transmit = Transmit { destination: self.outgoing(transmit.destination), ..transmit.clone() };
        self.io.try_io(Interest::WRITABLE, || self.quic.try_send((&self.io).into(), &transmit))
    }

    /// Returns how many segments quinn may send at once.
    #[must_use]
    pub fn max_gso_segments(&self) -> usize {
        self.quic.max_gso_segments()
    }

    /// Says whether the network may cut datagrams into fragments.
    #[must_use]
    pub fn may_fragment(&self) -> bool {
        self.quic.may_fragment()
    }

    fn outgoing(&self, address: SocketAddr) -> SocketAddr {
        match (self.local, address) {
            (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            (_, same) => same,
        }
    }
}

/// Makes a socket that, when it is IPv6, takes IPv4 too, whatever the system's default is.
fn bind_std(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket.into())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => match v6.ip().to_canonical() {
            IpAddr::V4(v4) => (v4, v6.port()).into(),
            IpAddr::V6(_) => address,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn read_one(socket: &FrontSocket) -> (Vec<u8>, RecvMeta) {
        let mut bytes = vec![0; 65_536];
        let mut metas = [RecvMeta::default()];
        loop {
            socket.readable().await.unwrap();
            match socket.try_recv(&mut [IoSliceMut::new(&mut bytes)], &mut metas) {
                Ok(_) => return (bytes[..metas[0].len].to_vec(), metas[0]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    #[tokio::test]
    async fn a_train_crosses_a_dual_stack_socket_both_ways() {
        let server = FrontSocket::bind("[::]:0".parse().unwrap()).unwrap();
        let client = FrontSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = Source { address: ([127, 0, 0, 1], server.local_addr().port()).into(), local: None };
        client.writable().await.unwrap();
        client.try_send_train(to, &[7; 2500], 1000).unwrap();
        let (mut got, mut from) = (0, None);
        while got < 2500 {
            let (bytes, meta) =
                tokio::time::timeout(Duration::from_secs(5), read_one(&server)).await.unwrap();
            got += bytes.len();
            from = Some(Source { address: meta.addr, local: meta.dst_ip });
        }
        let from = from.unwrap();
        assert_eq!(from.address, client.local_addr(), "canonical");
        server.writable().await.unwrap();
        server.try_send_train(from, b"back", 4).unwrap();
        let (bytes, _) = tokio::time::timeout(Duration::from_secs(5), read_one(&client)).await.unwrap();
        assert_eq!(bytes, b"back");
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error() {
        let first = FrontSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = FrontSocket::bind(first.local_addr()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
