//! The pods' bridge, and whether the node's range may be used here at all.
//!
//! The plugin makes the bridge with the first pod, and gives it the first address of each range. It refuses to work on a
//! bridge that has another address, as one has whose node was deleted and made anew with another range: such addresses
//! are removed. Only the bridge of this agent is touched.
//!
//! A range that overlaps a network that the host is connected to would take that network's addresses away, so nothing is
//! made of it. The other family's range, if there is one, has its pods all the same.

use std::collections::BTreeSet;

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::link::LinkAttribute;

use super::{Desired, Problem};
use crate::os::{Host as _, HostInterface, HostNetworks, is_underlay, linux::Netlink};

/// The host, as far as the pod network looks at it.
#[derive(Debug, Clone, Default)]
pub(super) struct Surroundings {
    /// Everything but the mesh's interface.
    networks: HostNetworks,
}

impl Surroundings {
    /// Looks around.
    pub(super) async fn read(interface: &str) -> anyhow::Result<Self> {
        Ok(Self { networks: Netlink::open(interface)?.networks().await? })
    }

    /// The names of all devices.
    pub(super) fn devices(&self) -> BTreeSet<String> {
        self.networks.interfaces.iter().map(|interface| interface.name.clone()).collect()
    }

    /// The interfaces to the world.
    pub(super) fn uplinks(&self) -> Vec<String> {
        let underlay = self.networks.underlay();
        underlay.interfaces.into_iter().map(|interface| interface.name).collect()
    }

    /// Returns what speaks against the node's ranges.
    pub(super) fn clashes(&self, desired: &Desired) -> Vec<Problem> {
        let mut problems = cluster_clashes(desired);
        let bridge = desired.bridge();
        for interface in self.networks.interfaces.iter().filter(|interface| interface.name != bridge) {
            for network in interface.addresses.iter().map(IpNet::trunc) {
                let overlaps = |range: &&IpNet| range.contains(&network) || network.contains(*range);
                for range in desired.pods.iter().filter(overlaps) {
                    problems.push(clash(*range, network, interface));
                }
            }
        }
        problems.sort();
        problems.dedup();
        problems
    }

    /// Returns what is wanted but for the ranges that something speaks against; `None` if no range is left, or the bridge has
    /// had one of them since before that was so.
    pub(super) fn without_clashes(&self, desired: &Desired) -> Option<Desired> {
        let is_free = |range: &&IpNet| {
            let alone = Desired { pods: vec![**range], ..desired.clone() };
            self.clashes(&alone).is_empty()
        };
        let (free, taken): (Vec<&IpNet>, Vec<&IpNet>) = desired.pods.iter().partition(is_free);
        let name = desired.bridge();
        let bridge = self.networks.interfaces.iter().find(|interface| interface.name == name);
        let is_there = |range: &&IpNet| {
            bridge.is_some_and(|bridge| gateway(range).is_some_and(|own| bridge.addresses.contains(&own)))
        };
        if free.is_empty() || taken.iter().any(is_there) {
            return None;
        }
        Some(Desired { pods: free.into_iter().copied().collect(), ..desired.clone() })
    }

    /// Has the bridge, if there is one, have the addresses of these ranges and no others; returns whether it changed.
    pub(super) async fn set_bridge(&self, desired: &Desired) -> anyhow::Result<bool> {
        let name = desired.bridge();
        let Some(bridge) = self.networks.interfaces.iter().find(|interface| interface.name == name) else {
            return Ok(false);
        };
        let wanted: BTreeSet<IpNet> = desired.pods.iter().filter_map(gateway).collect();
        let too_many = stale(&bridge.addresses, &wanted);
        if too_many.is_empty() && wanted.is_subset(&bridge.addresses) {
            return Ok(false);
        }
        let ranges: Vec<IpNet> = too_many.into_iter().map(|net| IpNet::from(net.addr())).collect();
        let change = Netlink::open(&name)?.set_addresses(&wanted, &ranges).await?;
        match change.refused.first() {
            Some((_, reason)) => anyhow::bail!("{reason}"),
            None => Ok(change.added + change.removed > 0),
        }
    }
}

/// Removes a bridge, if there is one of this name.
pub(super) async fn remove(name: &str) -> anyhow::Result<()> {
    let (connection, handle, _unsolicited) =
        rtnetlink::new_connection().context("no netlink socket can be opened")?;
    let carried = tokio::spawn(connection);
    let removed = async {
        let mut links = handle.link().get().execute();
        let mut found = None;
        while let Some(link) = links.try_next().await? {
            if link.attributes.contains(&LinkAttribute::IfName(name.to_owned())) {
                found = Some(link.header.index);
            }
        }
        match found {
            Some(index) => handle.link().del(index).execute().await,
            None => Ok(()),
        }
    };
    let removed = removed.await;
    carried.abort();
    Ok(removed?)
}

/// The bridge's address in a range: the first one of a host.
fn gateway(range: &IpNet) -> Option<IpNet> {
    IpNet::new(range.hosts().next()?, range.prefix_len()).ok().map(|gateway| match (range, gateway) {
        // In IPv6 the first address is that of all routers.
        (IpNet::V6(v6), _) => {
            let first = u128::from(v6.network()) + 1;
            IpNet::new_assert(std::net::Ipv6Addr::from(first).into(), range.prefix_len())
        }
        (IpNet::V4(_), gateway) => gateway,
    })
}

/// Returns the addresses that the plugin would stumble over.
fn stale(present: &BTreeSet<IpNet>, wanted: &BTreeSet<IpNet>) -> Vec<IpNet> {
    let link_local = |net: &IpNet| match net {
        IpNet::V4(_) => false,
        IpNet::V6(v6) => v6.addr().is_unicast_link_local(),
    };
    present.difference(wanted).filter(|net| !link_local(net)).copied().collect()
}

fn clash(range: IpNet, network: IpNet, interface: &HostInterface) -> Problem {
    let interface_name = interface.name.clone();
    if is_underlay(&interface.name) {
        Problem::RangeInUse { range, network, interface: interface_name }
    } else {
        Problem::RangeOfOther { range, network, interface: interface_name }
    }
}

fn cluster_clashes(desired: &Desired) -> Vec<Problem> {
    let others = desired.services.iter().map(|other| ("service", other));
    let others = others.chain(desired.mesh.iter().map(|other| ("mesh", other)));
    let mut problems = Vec::new();
    for (kind, other) in others {
        let overlaps = |range: &&IpNet| range.contains(other) || other.contains(*range);
        for range in desired.pods.iter().filter(overlaps) {
            problems.push(Problem::RangesOverlap { range: *range, kind, other: *other });
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::podnet::fixtures;

    fn surroundings(interfaces: &[(&str, &str)]) -> Surroundings {
        let interface = |(name, net): &(&str, &str)| HostInterface {
            index: 2,
            name: (*name).to_owned(),
            up: true,
            addresses: [net.parse().unwrap()].into(),
        };
        let interfaces = interfaces.iter().map(interface).collect();
        Surroundings { networks: HostNetworks { interfaces, ..HostNetworks::default() } }
    }

    #[test]
    fn a_range_that_is_in_use_is_named_with_its_user() {
        let clashes = |interfaces: &[(&str, &str)], desired: &Desired| -> Vec<String> {
            surroundings(interfaces).clashes(desired).iter().map(ToString::to_string).collect()
        };
        let desired = fixtures::desired();
        assert!(clashes(&[("eth0", "192.168.1.7/24"), ("cni-mesh0", "10.244.1.1/24")], &desired).is_empty());
        let lan = clashes(&[("eth0", "10.244.0.9/16")], &desired);
        assert_eq!(
            lan,
            [
                "the pod range 10.244.1.0/24 of this node overlaps 10.244.0.0/16, which this host reaches through eth0: \
              give the cluster another pod range"
            ]
        );
        let old = clashes(&[("cni0", "10.244.1.1/24")], &desired);
        assert!(old[0].contains("ip link delete cni0"), "{old:?}");
        let mut same = fixtures::desired();
        same.services = vec!["10.244.1.0/25".parse().unwrap()];
        assert_eq!(
            clashes(&[], &same),
            [
                "the pod range 10.244.1.0/24 of this node overlaps the service range 10.244.1.0/25 of the cluster"
            ]
        );
    }

    #[test]
    fn a_range_that_is_in_use_leaves_the_other_family_its_pods() {
        let [v4, v6] = [0, 1].map(|at| fixtures::desired().pods[at]);
        let possible = |interfaces: &[(&str, &str)]| {
            surroundings(interfaces).without_clashes(&fixtures::desired()).map(|desired| desired.pods)
        };
        assert_eq!(possible(&[("br-docker", "fd00:10:244:1::1/64")]), Some(vec![v4]));
        assert_eq!(possible(&[("eth0", "10.244.0.9/16")]), Some(vec![v6]));
        assert_eq!(possible(&[("eth0", "10.244.0.9/16"), ("eth1", "fd00:10:244:1::9/64")]), None);
        let visiting = [("eth0", "10.244.0.9/16"), ("cni-mesh0", "10.244.1.1/24")];
        assert_eq!(possible(&visiting), None, "pods have it already");
    }

    #[test]
    fn the_bridge_has_the_first_address_of_each_range_and_keeps_its_own_of_the_link() {
        let gateways: BTreeSet<IpNet> = fixtures::desired().pods.iter().filter_map(gateway).collect();
        let expected = ["10.244.1.1/24", "fd00:10:244:1::1/64"].map(|net| net.parse().unwrap());
        assert_eq!(gateways, expected.into());
        let present =
            ["10.244.1.1/24", "10.244.9.1/24", "fe80::1/64", "fd00:9::1/64"].map(|net| net.parse().unwrap());
        let stale: Vec<_> = stale(&present.into(), &gateways).iter().map(ToString::to_string).collect();
        assert_eq!(stale, ["10.244.9.1/24", "fd00:9::1/64"]);
    }
}
