//! Which router is asked: the one that this host's traffic takes, if it can stand before a NAT.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
};

use crate::os::{DefaultRoute, HostNetworks};

/// Where the system is asked the way to; nothing is sent there (RFC 5737).
const SOMEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// The router, and this host's address on its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Router {
    pub(super) gateway: Ipv4Addr,
    pub(super) local: Ipv4Addr,
}

/// Returns which of the host's addresses the system sends from.
///
/// # Errors
/// When there is no way out.
pub(super) fn local_address() -> io::Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SOMEWHERE)?;
    match socket.local_addr()?.ip() {
        std::net::IpAddr::V4(address) => Ok(address),
        std::net::IpAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}

/// Returns the router of the interface that has this address.
///
/// Whoever has a public address itself, or a router with one, has no NAT to ask; and nothing but private networks is
/// ever spoken to.
pub(super) fn router(networks: &HostNetworks, local: Ipv4Addr) -> Option<Router> {
    let underlay = networks.underlay();
    let interface = underlay
        .interfaces
        .iter()
        .find(|interface| interface.addresses.iter().any(|net| net.addr() == std::net::IpAddr::V4(local)))?;
    let gateways = underlay.default_routes.iter().filter(|route| route.interface == interface.index);
    let gateway =
        gateways.filter_map(|DefaultRoute { gateway, .. }| *gateway).find_map(|gateway| match gateway {
            std::net::IpAddr::V4(v4) => Some(v4),
            std::net::IpAddr::V6(_) => None,
        })?;
    (is_private(gateway) && is_private(local)).then_some(Router { gateway, local })
}

/// Whether an address is not of the internet: RFC 1918, RFC 3927 and the carriers' RFC 6598.
pub(crate) fn is_private(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    address.is_private() || address.is_link_local() || (first == 100 && second & 0xc0 == 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::HostInterface;

    fn networks(gateway: Option<&str>) -> HostNetworks {
        let interface = |index, name: &str, net: &str| HostInterface {
            index,
            name: name.to_owned(),
            up: true,
            addresses: [net.parse().unwrap()].into(),
        };
        let route = |interface, gateway| DefaultRoute { interface, gateway };
        HostNetworks {
            interfaces: vec![
                interface(2, "eth0", "192.168.1.7/24"),
                interface(3, "cni0", "10.244.1.1/24"),
                interface(4, "wlan0", "10.0.0.9/24"),
            ],
            default_routes: [
                route(2, gateway.map(|gateway| gateway.parse().unwrap())),
                route(2, Some("fe80::1".parse().unwrap())),
                route(3, Some("10.244.1.2".parse().unwrap())),
                route(4, Some("10.0.0.1".parse().unwrap())),
            ]
            .into(),
            ..HostNetworks::default()
        }
    }

    #[test]
    fn the_router_is_on_the_way_out() {
        let found = |gateway, local: &str| {
            router(&networks(gateway), local.parse().unwrap()).map(|router| router.gateway.to_string())
        };
        assert_eq!(found(Some("192.168.1.1"), "192.168.1.7").as_deref(), Some("192.168.1.1"));
        assert_eq!(found(Some("192.168.1.1"), "10.0.0.9").as_deref(), Some("10.0.0.1"));
        assert_eq!(found(Some("192.168.1.1"), "10.244.1.1"), None, "not an underlay");
        assert_eq!(found(Some("203.0.113.1"), "192.168.1.7"), None, "not a private router");
        assert_eq!(found(None, "192.168.1.7"), None, "a line without a router");
        assert_eq!(found(Some("192.168.1.1"), "192.168.1.8"), None, "not an address of this host");
    }

    #[test]
    fn carriers_and_homes_are_private() {
        for (address, private) in [
            ("10.1.2.3", true),
            ("172.16.0.1", true),
            ("192.168.0.1", true),
            ("100.64.0.1", true),
            ("100.127.255.255", true),
            ("100.128.0.1", false),
            ("169.254.1.1", true),
            ("8.8.8.8", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(is_private(address.parse().unwrap()), private, "{address}");
        }
    }
}
