//! The UDP sockets of the underlay: one for IPv4, one for IPv6, on one port; and as many again for each further engine.
//!
//! A train leaves with one system call (`UDP_SEGMENT`) and arrives with one (`UDP_GRO`), where the system and the
//! device can; quinn-udp turns segmentation off for good when a device refuses it, and the train is sent again
//! cut up. The sockets are bound to no interface: no route that this agent installs ever covers more than mesh
//! and pod ranges, so what is sent here cannot enter the tunnel; what arrives here *through* the tunnel is dropped
//! by the driver.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    num::NonZeroU32,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use super::offload::Offloads;
use mesh_engine::batch::{Transmit, Via};
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};

/// Messages that one system call receives, each up to a whole train.
pub const RECV_BATCH: usize = 8;

/// Room for one received train.
pub const RECV_BUFFER_LEN: usize = 65_535;

/// What the kernel may keep for this program to read: a train is one unit of up to 64 KiB that is dropped whole, so there
/// must be room for tens of them. Without the right to force it, it is what the system allows (`net.core.rmem_max`).
const RECEIVE_BUFFER_LEN: usize = 4 << 20;

/// What the kernel may keep to be sent; it doubles the number. Where this host's own interface is the bottleneck, all of
/// it stands before every packet: at 100 Mbit/s under TCP (cubic) a ping took 31 ms with this, 230 ms with 4 MiB, and
/// on a fast link the throughput was the same (`make bench-links`, link `uplink`). What waits longer waits in the
/// engine's backlog, which is fair. Every system allows this much.
const SEND_BUFFER_LEN: usize = 128 << 10;

/// How often a port is drawn again that is free for IPv4 and taken for IPv6.
const PORT_DRAWS: usize = 16;

/// Why the sockets could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has the port.
    #[error(
        "UDP port {port} is taken by another program: stop that program or choose another port with --listen-port"
    )]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// The port is reserved for the superuser.
    #[error("no permission to use UDP port {port}: choose a port above 1023 with --listen-port")]
    Permission {
        /// The port.
        port: u16,
    },
    /// Anything else.
    #[error("no UDP socket can be opened on port {port}")]
    Io {
        /// The port.
        port: u16,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The sockets of one agent: at least one of the two is there.
pub struct UdpSockets {
    /// The socket for IPv4, where the system has it.
    pub v4: Option<Socket>,
    /// The socket for IPv6, where the system has it.
    pub v6: Option<Socket>,
    /// The port of both.
    pub port: u16,
    /// What they may use.
    pub offloads: Offloads,
}

/// One socket.
pub struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Whether segmentation may be used, where the system has it.
    sends_trains: bool,
}

/// Whose a socket's port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Own,
    /// Other sockets of this agent have it, too.
    Shared,
}

/// How far the sending of a train came.
#[derive(Debug)]
pub enum Sent {
    /// All of it is out.
    All,
    /// The socket is full: go on at this byte when it is writable.
    Blocked(usize),
    /// The system refused it, or the part from this byte on.
    Refused(io::Error),
}

impl UdpSockets {
    /// Binds both sockets to the same port of all addresses; port 0 lets the system draw one.
    ///
    /// # Errors
    /// When the port is taken or forbidden, or the system has neither IPv4 nor IPv6.
    pub fn bind(port: u16, offloads: Offloads) -> Result<Self, BindError> {
        let draws = if port == 0 { PORT_DRAWS } else { 1 };
        let mut outcome = Self::bind_once(port, offloads);
        for _ in 1..draws {
            if !matches!(outcome, Err(BindError::PortTaken { .. })) {
                break;
            }
            outcome = Self::bind_once(port, offloads);
        }
        outcome
    }

    /// Binds the sockets of so many engines to the same port. The first ones are bound as if they were alone, so a port
    /// that another program has is found out.
    ///
    /// # Errors
    /// As [`UdpSockets::bind`]; or the system does not let several sockets have a port.
    #[cfg(target_os = "linux")]
    pub fn bind_group(port: u16, offloads: Offloads, engines: NonZeroU32) -> Result<Vec<Self>, BindError> {
        let first = Self::bind(port, offloads)?;
        let (port, count) = (first.port, engines.get());
        let explain = |source| BindError::Io { port, source };
        let mut group = vec![first];
        if count == 1 {
            return Ok(group);
        }
        let first = &group[0];
        for socket in [&first.v4, &first.v6].into_iter().flatten() {
            sockopt::set_socket_reuseport(&socket.socket, true).map_err(|errno| explain(errno.into()))?;
        }
        let addresses: [Option<SocketAddr>; 2] = [
            first.v4.as_ref().map(|_| (Ipv4Addr::UNSPECIFIED, port).into()),
            first.v6.as_ref().map(|_| (Ipv6Addr::UNSPECIFIED, port).into()),
        ];
        for _ in 1..count {
            let [v4, v6] = addresses.map(|address| {
                address.map(|address| Socket::bind(address, offloads, Port::Shared)).transpose()
            });
            group.push(Self { v4: v4.map_err(explain)?, v6: v6.map_err(explain)?, port, offloads });
        }
        if offloads.steering {
            for socket in [&group[0].v4, &group[0].v6].into_iter().flatten() {
                if let Err(error) = super::steering::attach(&socket.socket, count) {
                    tracing::debug!(%error, "the system chooses the socket of a datagram by its addresses");
                }
            }
        }
        Ok(group)
    }

    /// Binds the sockets of the only engine: here, ports are not shared.
    ///
    /// # Errors
    /// As [`UdpSockets::bind`].
    #[cfg(not(target_os = "linux"))]
    pub fn bind_group(port: u16, offloads: Offloads, _engines: NonZeroU32) -> Result<Vec<Self>, BindError> {
        Self::bind(port, offloads).map(|only| vec![only])
    }

    /// Takes over sockets that somebody else has kept open: one for IPv4 or IPv6, or one for each, as
    /// [`UdpSockets::bind_group`] would have made them.
    ///
    /// # Errors
    /// When one is no UDP socket, or they are not on one port.
    pub fn adopt(v4: Option<OwnedFd>, v6: Option<OwnedFd>, offloads: Offloads) -> io::Result<Self> {
        let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
        let mut ports = Vec::new();
        let mut adopt = |fd: Option<OwnedFd>, is_ipv4: bool| -> io::Result<Option<Socket>> {
            let Some(fd) = fd else { return Ok(None) };
            if sockopt::socket_type(&fd)? != SocketType::DGRAM {
                return Err(wrong());
            }
            let socket = UdpSocket::from(fd);
            let address = socket.local_addr()?;
            if address.is_ipv4() != is_ipv4 {
                return Err(wrong());
            }
            ports.push(address.port());
            Socket::new(socket, offloads).map(Some)
        };
        let (v4, v6) = (adopt(v4, true)?, adopt(v6, false)?);
        let port =
            *ports.first().filter(|port| ports.iter().all(|other| other == *port)).ok_or_else(wrong)?;
        Ok(Self { v4, v6, port, offloads })
    }

    fn bind_once(port: u16, offloads: Offloads) -> Result<Self, BindError> {
        let explain = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::PortTaken { port },
            io::ErrorKind::PermissionDenied => BindError::Permission { port },
            _ => BindError::Io { port, source },
        };
        let bind = |address| present(Socket::bind(address, offloads, Port::Own)).map_err(explain);
        let v4 = bind((Ipv4Addr::UNSPECIFIED, port).into())?;
        let port_of = |socket: &Option<Socket>| -> io::Result<Option<u16>> {
            socket.as_ref().map(|socket| socket.socket.local_addr().map(|addr| addr.port())).transpose()
        };
        let port = port_of(&v4).map_err(explain)?.unwrap_or(port);
        let v6 = bind((Ipv6Addr::UNSPECIFIED, port).into())?;
        let port = port_of(&v6).map_err(explain)?.unwrap_or(port);
        if v4.is_none() && v6.is_none() {
            return Err(explain(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)));
        }
        Ok(Self { v4, v6, port, offloads })
    }
}

impl Socket {
    /// Binds a socket for IPv4 to any port.
    ///
    /// # Errors
    /// When the system has no more.
    pub fn bind_any_v4(offloads: Offloads) -> io::Result<Self> {
        Self::bind((Ipv4Addr::UNSPECIFIED, 0).into(), offloads, Port::Own)
    }

    fn bind(address: SocketAddr, offloads: Offloads, port: Port) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(ipproto::UDP))?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&fd, true)?;
        }
        if port == Port::Shared {
            sockopt::set_socket_reuseport(&fd, true)?;
        }
        // The FORCE option needs CAP_NET_ADMIN; without it the plain one is cut to the system's limit.
        if sockopt::set_socket_recv_buffer_size_force(&fd, RECEIVE_BUFFER_LEN).is_err() {
            sockopt::set_socket_recv_buffer_size(&fd, RECEIVE_BUFFER_LEN)?;
        }
        sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER_LEN)?;
        bind(&fd, &address)?;
        Self::new(UdpSocket::from(fd), offloads)
    }

    fn new(socket: UdpSocket, offloads: Offloads) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        if !offloads.udp_receive {
            // The state above asked for trains.
            allow_trains(&socket, false)?;
        }
        Ok(Self { socket, state, sends_trains: offloads.udp_send })
    }

    /// Sends a train from its byte `offset` on, in as few system calls as the socket allows.
    pub fn try_send(&mut self, train: &Transmit<'_>, offset: usize) -> Sent {
        let (remote, mut local) = match train.via {
            Via::Udp { remote, local } => (remote, local),
            Via::Punched { remote, .. } => (remote, None),
            Via::Stream(_) => return Sent::Refused(io::Error::from(io::ErrorKind::Unsupported)),
        };
        let mut offset = offset;
        while offset < train.bytes.len() {
            let segments = if self.sends_trains { self.state.max_gso_segments() } else { 1 };
            let end = train.bytes.len().min(offset + segments * train.stride);
            let contents = &train.bytes[offset..end];
            let message = quinn_udp::Transmit {
                destination: remote,
                ecn: None,
                contents,
                segment_size: (contents.len() > train.stride).then_some(train.stride),
                src_ip: local,
            };
            match self.state.try_send(UdpSockRef::from(&self.socket), &message) {
                Ok(()) => offset = end,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Sent::Blocked(offset),
                // The address that the peer used is no longer this host's. The system's answer (EINVAL) also made
                // quinn-udp give up segmentation, for a reason that was not there: begin afresh.
                Err(error) if local.is_some() && is_stale_source(&error) => {
                    local = None;
                    if let Ok(state) = UdpSocketState::new(UdpSockRef::from(&self.socket)) {
                        self.state = state;
                    }
                }
                // Segmentation was just found not to work: the rest goes out one by one.
                Err(_) if segments > 1 && self.state.max_gso_segments() < segments => {}
                Err(error) => return Sent::Refused(error),
            }
        }
        Sent::All
    }

    /// Receives up to [`RECV_BATCH`] trains, one into each buffer, and returns how many came.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; anything else is to be counted.
    pub fn try_recv(
        &self,
        buffers: &mut [IoSliceMut<'_>; RECV_BATCH],
        meta: &mut [RecvMeta; RECV_BATCH],
    ) -> io::Result<usize> {
        self.state.recv(UdpSockRef::from(&self.socket), buffers, meta)
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Has the system merge what it receives of one sender into trains, or not.
#[cfg(target_os = "linux")]
fn allow_trains(socket: &UdpSocket, allow: bool) -> io::Result<()> {
    nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::UdpGroSegment, &allow).map_err(Into::into)
}

/// Here every datagram comes alone.
#[cfg(not(target_os = "linux"))]
fn allow_trains(_socket: &UdpSocket, _allow: bool) -> io::Result<()> {
    Ok(())
}

/// Turns "the system does not have this address family" into `None`.
fn present(bound: io::Result<Socket>) -> io::Result<Option<Socket>> {
    match bound {
        Ok(socket) => Ok(Some(socket)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT) => Ok(None),
            _ => Err(error),
        },
    }
}

fn is_stale_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::ENODEV)
    )
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn receive(socket: &Socket) -> Vec<(usize, usize)> {
        let mut memory = vec![0; RECV_BATCH * RECV_BUFFER_LEN];
        let mut chunks = memory.chunks_exact_mut(RECV_BUFFER_LEN);
        let mut buffers = std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap()));
        let mut meta = [RecvMeta::default(); RECV_BATCH];
        let count = socket.try_recv(&mut buffers, &mut meta).unwrap();
        meta[..count].iter().map(|meta| (meta.len, meta.stride)).collect()
    }

    #[test]
    fn a_train_crosses_loopback_whole_even_from_an_address_that_is_gone() {
        let mut a = UdpSockets::bind(0, Offloads::ALL).unwrap().v4.unwrap();
        let b = UdpSockets::bind(0, Offloads::ALL).unwrap();
        let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, b.port));
        let b = b.v4.unwrap();
        let bytes = vec![7; 4 * 1000 + 200];
        for local in [None, Some(IpAddr::from([127, 0, 0, 1])), Some(IpAddr::from([192, 0, 2, 77]))] {
            let train = Transmit { via: Via::Udp { remote, local }, stride: 1000, bytes: &bytes };
            assert!(matches!(a.try_send(&train, 0), Sent::All), "{local:?}");
            let received = receive(&b);
            assert_eq!(received.iter().map(|(len, _)| len).sum::<usize>(), bytes.len());
            assert!(received.iter().all(|(_, stride)| *stride == 1000), "{received:?}");
            assert!(a.state.max_gso_segments() > 1, "segmentation survives {local:?}");
        }
    }

    #[test]
    fn sockets_that_were_kept_open_go_on_where_they_were() {
        let first = UdpSockets::bind(0, Offloads::ALL).unwrap();
        let kept = |socket: &Option<Socket>| socket.as_ref().map(|socket| socket.socket.try_clone().unwrap());
        let (v4, v6) = (kept(&first.v4).map(OwnedFd::from), kept(&first.v6).map(OwnedFd::from));
        let port = first.port;
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"while nobody read", ("127.0.0.1", port)).unwrap();
        drop(first);
        let second = UdpSockets::adopt(v4, v6, Offloads::NONE).unwrap();
        assert_eq!(second.port, port);
        assert_eq!(receive(&second.v4.unwrap()), [(17, 17)]);
        let other = UdpSockets::bind(0, Offloads::ALL).unwrap();
        let v4 = other.v4.map(|socket| socket.socket.into());
        let v6 = UdpSockets::bind(0, Offloads::ALL).unwrap().v6.map(|socket| socket.socket.into());
        assert!(UdpSockets::adopt(v4, v6, Offloads::ALL).is_err(), "two ports");
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(UdpSockets::adopt(Some(tcp.into()), None, Offloads::ALL).is_err());
        assert!(UdpSockets::adopt(None, None, Offloads::ALL).is_err());
    }

    #[test]
    fn a_taken_port_is_named() {
        let first = UdpSockets::bind(0, Offloads::ALL).unwrap();
        match UdpSockets::bind(first.port, Offloads::ALL) {
            Err(error @ BindError::PortTaken { .. }) => {
                assert!(error.to_string().contains(&first.port.to_string()));
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("one port for two"),
        }
    }

    #[test]
    fn a_datagram_that_is_too_large_is_refused_and_nothing_else() {
        let mut sockets = UdpSockets::bind(0, Offloads::ALL).unwrap();
        let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, sockets.port));
        let bytes = vec![0; 65_530];
        let via = Via::Udp { remote, local: None };
        let v4 = sockets.v4.as_mut().unwrap();
        let sent = v4.try_send(&Transmit { via, stride: bytes.len(), bytes: &bytes }, 0);
        assert!(matches!(sent, Sent::Refused(error) if error.raw_os_error() == Some(libc::EMSGSIZE)));
        let sent = v4.try_send(&Transmit { via, stride: 100, bytes: &bytes[..100] }, 0);
        assert!(matches!(sent, Sent::All));
    }
}
