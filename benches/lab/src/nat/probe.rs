//! Measures which of the nine types a router is, as STUN clients do (RFC 5780).
//!
//! Observers with two addresses and two ports each stand on the internet side. The inside host asks all four from
//! one socket which outside endpoint they see: that gives the mapping. Then, from a fresh socket, it sends to one of
//! them only, and the others send to the mapping that this made: what arrives gives the filtering.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::{Filtering, Mapping, NatType};
use crate::netns::Netns;

/// The two ports on each of an observer's addresses.
const PORTS: [u16; 2] = [3478, 3479];
/// More than any round trip of the lab.
const PATIENCE: Duration = Duration::from_secs(2);
/// Where the inside host's sockets begin; distinct for each socket so that a router's memory of one does not touch the next.
const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);

/// What stands on the internet side: two addresses, two ports each.
#[derive(Debug)]
pub struct Observers {
    /// By address, then by port.
    sockets: [[UdpSocket; 2]; 2],
}

impl Observers {
    /// Opens the four sockets in `outside`, which must own both addresses.
    ///
    /// # Errors
    ///
    /// If an address is not there or a port is taken.
    pub fn open(outside: &Netns, addresses: [Ipv4Addr; 2]) -> anyhow::Result<Self> {
        let bind = |address, port| socket_in(outside, SocketAddrV4::new(address, port));
        let [a, b] = addresses;
        let [p, q] = PORTS;
        Ok(Self { sockets: [[bind(a, p)?, bind(a, q)?], [bind(b, p)?, bind(b, q)?]] })
    }

    /// Measures the router in front of `inside`.
    ///
    /// # Errors
    ///
    /// If an observer is not reached at all, or the answers fit no type.
    pub fn measure(&self, inside: &Netns) -> anyhow::Result<NatType> {
        Ok(NatType { mapping: self.mapping(inside)?, filtering: self.filtering(inside)? })
    }

    /// The outside endpoint that the observer at `address`, `port` (0 or 1 each) sees when `socket` sends to it.
    ///
    /// # Errors
    ///
    /// If nothing arrives.
    pub fn seen(&self, socket: &UdpSocket, address: usize, port: usize) -> anyhow::Result<SocketAddr> {
        let observer = &self.sockets[address][port];
        socket.send_to(b"probe", observer.local_addr()?)?;
        let mut buffer = [0; 16];
        let (_, from) = observer.recv_from(&mut buffer).context("a probe did not reach its observer")?;
        Ok(from)
    }

    fn mapping(&self, inside: &Netns) -> anyhow::Result<Mapping> {
        let socket = socket_in(inside, ANY)?;
        let first = self.seen(&socket, 0, 0)?;
        let other_port = self.seen(&socket, 0, 1)?;
        let other_address = self.seen(&socket, 1, 0)?;
        Ok(match (other_port == first, other_address == first) {
            (true, true) => Mapping::Eim,
            (true, false) => Mapping::Adm,
            (false, false) => Mapping::Apdm,
            (false, true) => bail!("{first}, {other_port}, {other_address}: no NAT maps by port alone"),
        })
    }

    fn filtering(&self, inside: &Netns) -> anyhow::Result<Filtering> {
        let socket = socket_in(inside, ANY)?;
        let outside = self.seen(&socket, 0, 0)?;
        self.sockets[1][0].send_to(b"address", outside)?;
        self.sockets[0][1].send_to(b"port", outside)?;
        // Links keep the order: once this one is there, the others will not come any more.
        self.sockets[0][0].send_to(b"end", outside)?;
        let (mut from_port, mut from_address) = (false, false);
        loop {
            let mut buffer = [0; 16];
            let (length, _) = socket.recv_from(&mut buffer).context("the observer's answer was lost")?;
            match &buffer[..length] {
                b"address" => from_address = true,
                b"port" => from_port = true,
                _ => break,
            }
        }
        Ok(match (from_address, from_port) {
            (true, true) => Filtering::Eif,
            (false, true) => Filtering::Adf,
            (false, false) => Filtering::Apdf,
            (true, false) => bail!("other addresses pass and other ports of a known one do not"),
        })
    }
}

/// Opens a UDP socket that lives in `netns`.
///
/// # Errors
///
/// If the address cannot be bound there.
pub fn socket_in(netns: &Netns, address: SocketAddrV4) -> anyhow::Result<UdpSocket> {
    let open = || -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    netns.enter(open)?.with_context(|| format!("UDP {address} in {}", netns.name()))
}
