//! Mesh addresses: which node gets which.
//!
//! Addresses follow from the node's id, so they are stable and two coordinators give the same. In IPv6 every
//! id has its own address. IPv4 ranges are smaller than the space of ids: ids wrap around the range, and
//! where the address is in use by a node that lives long, the next free one is taken.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use mesh_proto::netmap::NodeId;

/// Prefix length of a unique local /48 (RFC 4193, section 3.1).
const ULA_PREFIX_LEN: u8 = 48;

/// First octet of a unique local address that is made locally (RFC 4193, section 3.1).
const ULA_OCTET: u8 = 0xfd;

/// Ranges that hold addresses for nodes and can be meant: at least two hosts, at most one class A.
const IPV4_PREFIX_LENS: std::ops::RangeInclusive<u8> = 8..=30;

/// Makes a mesh's own IPv6 range of 40 random bits.
pub(super) fn ula(random: [u8; 5]) -> Ipv6Net {
    let mut octets = [0; 16];
    octets[0] = ULA_OCTET;
    octets[1..6].copy_from_slice(&random);
    Ipv6Net::new_assert(octets.into(), ULA_PREFIX_LEN)
}

/// Returns the IPv6 address of a node.
pub(super) fn ipv6(range: Ipv6Net, id: NodeId) -> Ipv6Addr {
    (u128::from(range.network()) | u128::from(id.0)).into()
}

/// Says whether a range can be given to nodes.
pub(super) fn usable(range: Ipv4Net) -> bool {
    IPV4_PREFIX_LENS.contains(&range.prefix_len())
}

/// Returns the IPv4 address of a node, if nobody else has it.
pub(super) fn ipv4(range: Ipv4Net, id: NodeId) -> Ipv4Addr {
    let (first, count) = hosts(range);
    (first + id.0.wrapping_sub(1) % count).into()
}

/// Returns the first address from the node's own on that is not in use; `None` when all are.
pub(super) fn free_ipv4(range: Ipv4Net, id: NodeId, in_use: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let (first, count) = hosts(range);
    let own = id.0.wrapping_sub(1) % count;
    (own..count)
        .chain(0..own)
        .map(|host| Ipv4Addr::from(first + host))
        .find(|address| !in_use.contains(address))
}

/// Returns the first address and the number of addresses between network and broadcast address.
fn hosts(range: Ipv4Net) -> (u32, u32) {
    let network = u32::from(range.network());
    let broadcast = u32::from(range.broadcast());
    (network + 1, (broadcast - network).saturating_sub(1).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: &str = "10.90.0.0/29";

    #[test]
    fn addresses_follow_from_the_id() {
        let range: Ipv4Net = "10.90.0.0/16".parse().unwrap();
        assert_eq!(ipv4(range, NodeId(1)), Ipv4Addr::new(10, 90, 0, 1));
        assert_eq!(ipv4(range, NodeId(256)), Ipv4Addr::new(10, 90, 1, 0));
        assert_eq!(ipv4(range, NodeId(65_534)), Ipv4Addr::new(10, 90, 255, 254));
        assert_eq!(
            ipv4(range, NodeId(65_535)),
            Ipv4Addr::new(10, 90, 0, 1),
            "network and broadcast are skipped"
        );
        let range = ula([1, 2, 3, 4, 5]);
        assert_eq!(range.to_string(), "fd01:203:405::/48");
        assert_eq!(ipv6(range, NodeId(70_000)).to_string(), "fd01:203:405::1:1170");
    }

    #[test]
    fn a_full_range_gives_every_host_once_and_then_none() {
        let range: Ipv4Net = RANGE.parse().unwrap();
        let mut in_use = BTreeSet::new();
        for id in 4..10 {
            let address = free_ipv4(range, NodeId(id), &in_use).unwrap();
            assert!(in_use.insert(address));
        }
        let expected: BTreeSet<_> = range.hosts().collect();
        assert_eq!(in_use, expected);
        assert_eq!(free_ipv4(range, NodeId(10), &in_use), None);
    }
}
