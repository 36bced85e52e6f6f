//! AllowedIps: which peer owns which inner addresses.
//!
//! One table answers both questions: where an outbound packet goes, and whether a peer may send from an address.
//! The prefixes of different peers never overlap: what overlaps is refused, and the node with the lower id keeps
//! what it has. So all prefixes are disjoint ranges (those of one peer merge), the longest match is the only
//! match, and a lookup is one binary search. Never taken over: default routes (also in halves), prefixes that hold
//! an address of this node, and special ranges from which nothing may come.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh_proto::netmap::NodeId;

/// The shortest prefix that is taken over. Anything shorter holds a large part of the Internet, and two /1 are a
/// default route.
const MIN_PREFIX_LEN: u8 = 8;

/// A prefix that was not taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Refusal {
    /// The peer that it was for.
    pub(crate) peer: NodeId,
    /// The prefix.
    pub(crate) prefix: IpNet,
    /// The node that has it or a part of it; this node for what no peer may have.
    pub(crate) owner: NodeId,
}

/// This node, which owns prefixes too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own<'a> {
    pub(crate) id: NodeId,
    pub(crate) allowed_ips: &'a [IpNet],
}

/// One peer's prefixes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim<'a> {
    pub(crate) id: NodeId,
    pub(crate) slot: u32,
    pub(crate) allowed_ips: &'a [IpNet],
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Router {
    v4: Vec<Entry<u32>>,
    v6: Vec<Entry<u128>>,
    own: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry<A> {
    first: A,
    last: A,
    slot: u32,
}

impl Router {
    /// Builds the table from what this node and all peers own.
    pub(crate) fn new(own: Own<'_>, claims: &[Claim<'_>]) -> (Self, Vec<Refusal>) {
        let mut claims = claims.to_vec();
        claims.sort_by_key(|claim| claim.id);
        let mut v4 = Builder::default();
        let mut v6 = Builder::default();
        let mut refusals = Vec::new();
        for claim in &claims {
            for &prefix in claim.allowed_ips {
                let prefix = prefix.trunc();
                let taken = if is_special(prefix) || own.allowed_ips.iter().any(|own| overlap(*own, prefix)) {
                    Err(own.id)
                } else {
                    match prefix {
                        IpNet::V4(net) => v4.insert(range_v4(net), claim),
                        IpNet::V6(net) => v6.insert(range_v6(net), claim),
                    }
                };
                if let Err(owner) = taken {
                    refusals.push(Refusal { peer: claim.id, prefix, owner });
                }
            }
        }
        let own = own.allowed_ips.to_vec();
        (Self { v4: v4.finish(), v6: v6.finish(), own }, refusals)
    }

    /// Returns the slot of the peer that owns an address.
    pub(crate) fn lookup(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(v4) => find(&self.v4, u32::from(v4)),
            IpAddr::V6(v6) => find(&self.v6, u128::from(v6)),
        }
    }

    /// Whether this node owns an address.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        self.own.iter().any(|net| net.contains(&address))
    }
}

/// Collects disjoint ranges by their first address.
struct Builder<A> {
    ranges: BTreeMap<A, (A, u32, NodeId)>,
}

impl<A> Default for Builder<A> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new() }
    }
}

impl<A: Ord + Copy> Builder<A> {
    fn insert(&mut self, (first, last): (A, A), claim: &Claim<'_>) -> Result<(), NodeId> {
        // Prefixes nest or are disjoint, and so are those that were taken over.
        let holds_first = self.ranges.range(..=first).next_back().filter(|(_, (end, ..))| *end >= first);
        let inside: Vec<_> = self.ranges.range(first..=last).map(|(start, (.., id))| (*start, *id)).collect();
        let other = holds_first.map(|(_, (.., id))| *id).into_iter().chain(inside.iter().map(|(_, id)| *id));
        if let Some(owner) = other.into_iter().find(|id| *id != claim.id) {
            return Err(owner);
        }
        if holds_first.is_some_and(|(_, (end, ..))| *end >= last) {
            return Ok(());
        }
        for (start, _) in inside {
            self.ranges.remove(&start);
        }
        self.ranges.insert(first, (last, claim.slot, claim.id));
        Ok(())
    }

    fn finish(self) -> Vec<Entry<A>> {
        self.ranges.into_iter().map(|(first, (last, slot, _))| Entry { first, last, slot }).collect()
    }
}

fn find<A: Ord + Copy>(table: &[Entry<A>], address: A) -> Option<u32> {
    let behind = table.partition_point(|entry| entry.first <= address);
    let entry = table.get(behind.checked_sub(1)?)?;
    (address <= entry.last).then_some(entry.slot)
}

fn range_v4(net: Ipv4Net) -> (u32, u32) {
    (u32::from(net.network()), u32::from(net.broadcast()))
}

fn range_v6(net: Ipv6Net) -> (u128, u128) {
    (u128::from(net.network()), u128::from(net.broadcast()))
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Whether a prefix is too short to be one node's, or lies where no node's addresses are.
fn is_special(prefix: IpNet) -> bool {
    if prefix.prefix_len() < MIN_PREFIX_LEN {
        return true;
    }
    match prefix {
        IpNet::V4(net) => {
            let first: Ipv4Addr = net.network();
            first.is_loopback()
                || first.is_multicast()
                || first.is_link_local()
                || first.is_broadcast()
                || first.octets()[0] == 0
        }
        IpNet::V6(net) => {
            let first: Ipv6Addr = net.network();
            first.is_loopback()
                || first.is_multicast()
                || first.is_unspecified()
                || first.is_unicast_link_local()
                || first.to_ipv4_mapped().is_some()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn router(own: &[&str], peers: &[(u32, &[&str])]) -> (Router, Vec<Refusal>) {
        let own = nets(own);
        let prefixes: Vec<_> = peers.iter().map(|(id, texts)| (*id, nets(texts))).collect();
        let claims: Vec<_> = prefixes
            .iter()
            .map(|(id, allowed_ips)| Claim { id: NodeId(*id), slot: id * 10, allowed_ips })
            .collect();
        Router::new(Own { id: NodeId(1), allowed_ips: &own }, &claims)
    }

    fn at(router: &Router, address: &str) -> Option<u32> {
        router.lookup(address.parse().unwrap())
    }

    #[test]
    fn every_address_has_the_owner_of_its_prefix() {
        let (router, refusals) = router(
            &["10.90.0.1/32"],
            &[
                (2, &["10.90.0.2/32", "10.244.2.0/24", "fd00::2/128"]),
                (3, &["10.90.0.3/32", "10.244.3.0/24"]),
            ],
        );
        assert_eq!(refusals, []);
        assert_eq!(at(&router, "10.90.0.2"), Some(20));
        assert_eq!(at(&router, "10.244.2.0"), Some(20));
        assert_eq!(at(&router, "10.244.2.255"), Some(20));
        assert_eq!(at(&router, "10.244.3.7"), Some(30));
        assert_eq!(at(&router, "10.244.4.0"), None);
        assert_eq!(at(&router, "10.90.0.1"), None);
        assert_eq!(at(&router, "fd00::2"), Some(20));
        assert_eq!(at(&router, "fd00::3"), None);
        assert!(router.is_own("10.90.0.1".parse().unwrap()));
    }

    #[test]
    fn of_overlapping_prefixes_the_lower_node_keeps_its_own_in_any_order() {
        let expected = |refusals: &[Refusal]| {
            assert_eq!(
                refusals,
                [
                    Refusal { peer: NodeId(3), prefix: "10.1.0.0/16".parse().unwrap(), owner: NodeId(2) },
                    Refusal { peer: NodeId(3), prefix: "10.2.3.4/32".parse().unwrap(), owner: NodeId(2) },
                ]
            );
        };
        let two: (u32, &[&str]) = (2, &["10.1.2.0/24", "10.2.0.0/16"]);
        let three: (u32, &[&str]) = (3, &["10.1.0.0/16", "10.2.3.4/32", "10.3.0.0/16"]);
        let (one_way, refusals) = router(&[], &[two, three]);
        expected(&refusals);
        let (_, refusals) = router(&[], &[three, two]);
        expected(&refusals);
        assert_eq!(at(&one_way, "10.1.2.3"), Some(20));
        assert_eq!(at(&one_way, "10.1.3.3"), None);
        assert_eq!(at(&one_way, "10.2.3.4"), Some(20));
        assert_eq!(at(&one_way, "10.3.0.0"), Some(30));
    }

    #[test]
    fn prefixes_of_one_peer_may_nest() {
        for order in [&["10.1.0.0/16", "10.1.2.0/24"], &["10.1.2.0/24", "10.1.0.0/16"]] {
            let (router, refusals) = router(&[], &[(2, order)]);
            assert_eq!(refusals, []);
            assert_eq!(at(&router, "10.1.2.3"), Some(20));
            assert_eq!(at(&router, "10.1.3.3"), Some(20));
            assert_eq!(router.v4.len(), 1);
        }
    }

    #[test]
    fn default_routes_special_ranges_and_own_addresses_are_refused() {
        let refused = [
            "0.0.0.0/0",
            "128.0.0.0/1",
            "::/0",
            "8000::/1",
            "127.0.0.1/32",
            "224.0.0.0/8",
            "169.254.1.0/24",
            "255.255.255.255/32",
            "fe80::/64",
            "ff02::/16",
            "::ffff:10.0.0.0/104",
            "::1/128",
            "10.90.0.0/16",
        ];
        let (_, refusals) = router(&["10.90.0.1/32"], &[(2, &refused)]);
        assert_eq!(refusals.len(), refused.len());
        assert!(refusals.iter().all(|refusal| refusal.owner == NodeId(1)));
    }
}
