//! News that routers send by themselves when they have lost their mappings: NAT-PMP (RFC 6886, section 3.2.1) and PCP
//! (RFC 6887, section 14.1), both to all hosts on port 5350.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};
use tokio::net::UdpSocket;

use super::{natpmp, pcp};

/// Where clients listen.
const PORT: u16 = 5350;
/// All hosts of a LAN.
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);

/// Listens, beside others on this host.
///
/// # Errors
/// When the system refuses: then a reboot of the router is found out by asking.
pub(super) fn listen() -> io::Result<UdpSocket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Bound to the group, it hears nothing that was sent to this host alone.
    bind(&socket, &SocketAddr::from((GROUP, PORT)))?;
    UdpSocket::from_std(socket.into())
}

/// Waits for the next datagram; the router's epoch if it is an announcement from `gateway`.
pub(super) async fn next(socket: Option<&UdpSocket>, gateway: Option<Ipv4Addr>) -> Option<u32> {
    let Some(socket) = socket else { return std::future::pending().await };
    let mut buffer = [0; pcp::MAX_LEN];
    // An error of the socket is that of one datagram.
    let (len, from) = socket.recv_from(&mut buffer).await.ok()?;
    if gateway.map(IpAddr::V4) != Some(from.ip()) {
        return None;
    }
    read(&buffer[..len])
}

fn read(datagram: &[u8]) -> Option<u32> {
    let natpmp = natpmp::read_address(datagram).ok().map(|outside| outside.epoch);
    natpmp.or_else(|| pcp::read_announce(datagram).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_news_are_understood() {
        assert_eq!(read(&hex::decode("0080000000000003cb007101").unwrap()), Some(3));
        let announce = hex::decode("028000000000000000000004000000000000000000000000").unwrap();
        assert_eq!(read(&announce), Some(4));
        assert_eq!(read(b"NOTIFY * HTTP/1.1"), None);
    }
}
