//! Which families of addresses a cluster has, and which of them is its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The first addresses of the ranges of Services, which the API server gives to itself.
const SERVICE_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 1))];
/// The Services by which pods ask for names.
const CLUSTER_DNS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xa)),
];

/// Which addresses pods, Services and Nodes have. The first family is the cluster's own: in it are the API server's Service
/// and the cluster's DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    Ipv4,
    /// IPv6 alone.
    Ipv6,
    /// Both, IPv4 first.
    DualStack,
    /// Both, IPv6 first.
    Ipv6First,
}

impl Families {
    /// Of something that there is once in IPv4 and once in IPv6, what is there, in the cluster's order.
    pub fn pick<T>(self, [v4, v6]: [T; 2]) -> Vec<T> {
        match self {
            Self::Ipv4 => vec![v4],
            Self::Ipv6 => vec![v6],
            Self::DualStack => vec![v4, v6],
            Self::Ipv6First => vec![v6, v4],
        }
    }

    /// The same of texts, as programs of Kubernetes take it.
    pub fn list(self, both: [&str; 2]) -> String {
        self.pick(both).join(",")
    }

    /// Of a node's addresses, those that its Node has.
    pub fn of_node(self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| address.is_ipv4());
        self.pick([v4, v6]).concat()
    }

    /// Whether there is IPv6.
    pub fn has_ipv6(self) -> bool {
        match self {
            Self::Ipv4 => false,
            Self::Ipv6 | Self::DualStack | Self::Ipv6First => true,
        }
    }

    /// Where pods ask for names.
    pub fn dns(self) -> IpAddr {
        self.own(CLUSTER_DNS)
    }

    /// Where pods ask the API server.
    pub(super) fn api_service(self) -> IpAddr {
        self.own(SERVICE_ADDRESSES)
    }

    /// Of something that there is in either family, what is in the cluster's own.
    fn own<T>(self, [v4, v6]: [T; 2]) -> T {
        match self {
            Self::Ipv4 | Self::DualStack => v4,
            Self::Ipv6 | Self::Ipv6First => v6,
        }
    }
}
