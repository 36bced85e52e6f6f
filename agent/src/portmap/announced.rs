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

/// Waits for the next announcement from `gateway`. Cancel-safe.
pub(super) async fn next(socket: Option<&UdpSocket>, gateway: Option<Ipv4Addr>) {
    let Some(socket) = socket else { return std::future::pending().await };
    let mut buffer = [0; pcp::MAX_LEN];
    loop {
        // An error of the socket is that of one datagram.
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else { continue };
        if gateway.map(IpAddr::V4) == Some(from.ip()) && is_announcement(&buffer[..len]) {
            return;
        }
    }
}

fn is_announcement(datagram: &[u8]) -> bool {
    natpmp::read_address(datagram).is_ok() || pcp::read_announce(datagram).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_news_are_understood() {
        assert!(is_announcement(&hex::decode("0080000000000003cb007101").unwrap()));
        let announce = hex::decode("028000000000000000000004000000000000000000000000").unwrap();
        assert!(is_announcement(&announce));
        assert!(!is_announcement(b"NOTIFY * HTTP/1.1"));
    }
}
