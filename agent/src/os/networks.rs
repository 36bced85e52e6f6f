//! The host's own networks: where this node can be reached, and which prefixes it must not take over.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Net};
use mesh_proto::candidate::{Candidate, CandidateKind, MAX_CANDIDATES};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Interfaces that container runtimes, network plugins, virtual machines and other overlays make: what is reached
/// through them is reached through the host's real ones too, or is another overlay. `*` stands for any ending.
const NOT_UNDERLAY: &[&str] = &[
    "lo",
    "cni*",
    "flannel*",
    "cali*",
    "vxlan.calico",
    "tunl*",
    "cilium*",
    "lxc*",
    "docker*",
    "podman*",
    "veth*",
    "br-*",
    "virbr*",
    "vnet*",
    "vmnet*",
    "kube-*",
    "nodelocaldns",
    "weave*",
    "antrea-*",
    "ovs-*",
    "genev_sys*",
    "dummy*",
    "tailscale*",
    "zt*",
    "mesh*",
];

/// Addresses that are offered to peers. With those that are learned elsewhere there is still room for what an observer
/// or the router names: a peer reads no more than [`MAX_CANDIDATES`].
const MAX_HOST_CANDIDATES: usize = MAX_CANDIDATES / 2;

/// IPv6 addresses of one interface that are offered: a stable and a temporary one (RFC 8981) in each of two prefixes, as
/// where a router announces a global and a unique local one.
const MAX_V6_OF_INTERFACE: usize = 4;

/// The addresses that a host has towards its own translator (RFC 7335, 464XLAT and DS-Lite): the same on every host.
const TRANSLATOR: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 0, 0), 29);

/// Bytes of a network's name: enough to tell the networks of one host apart.
const ID_LEN: usize = 8;

/// The host's interfaces but the agent's own, and where its traffic goes by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostNetworks {
    /// The interfaces, by index.
    pub interfaces: Vec<HostInterface>,
    /// The default routes.
    pub default_routes: BTreeSet<DefaultRoute>,
    /// The addresses that the system sends from to the internet, one of each family at most. A peer behind a stateful
    /// filter hears this host only from addresses that it was told of.
    pub sources: BTreeSet<IpAddr>,
}

/// An interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInterface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// Its addresses that may be used, with the prefix that is connected there.
    pub addresses: BTreeSet<IpNet>,
}

/// A default route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultRoute {
    /// The index of the interface that it leads to.
    pub interface: u32,
    /// The router, where there is one.
    pub gateway: Option<IpAddr>,
}

/// Names the network that a host is in, as far as it can be told from inside: by its routers and prefixes. Two homes with
/// the same factory settings are one network by it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetworkId(pub String);

impl HostInterface {
    /// Whether peers may be reached through it.
    #[must_use]
    pub fn is_underlay(&self) -> bool {
        self.up && is_underlay(&self.name)
    }
}

/// Whether peers may be reached through an interface of this name.
#[must_use]
pub fn is_underlay(interface: &str) -> bool {
    let matches = |pattern: &&str| match pattern.strip_suffix('*') {
        Some(start) => interface.starts_with(start),
        None => interface == *pattern,
    };
    !NOT_UNDERLAY.iter().any(matches)
}

impl HostNetworks {
    /// Returns only what peers are reached through: while this stays the same, the network has not changed.
    #[must_use]
    pub fn underlay(&self) -> Self {
        let interfaces: Vec<_> =
            self.interfaces.iter().filter(|interface| interface.is_underlay()).cloned().collect();
        let here = |route: &&DefaultRoute| {
            interfaces.iter().any(|interface: &HostInterface| interface.index == route.interface)
        };
        let default_routes = self.default_routes.iter().filter(here).cloned().collect();
        let is_here = |source: &&IpAddr| {
            interfaces.iter().any(|interface| interface.addresses.iter().any(|net| net.addr() == **source))
        };
        let sources = self.sources.iter().filter(is_here).copied().collect();
        Self { interfaces, default_routes, sources }
    }

    /// Returns whether there is a default route of a family.
    #[must_use]
    pub fn has_way_out(&self, family: Family) -> bool {
        self.underlay().sources.iter().any(|source| Family::of(*source) == family)
    }

    /// Returns which network this is; `None` while there is no way out.
    #[must_use]
    pub fn id(&self) -> Option<NetworkId> {
        let underlay = self.underlay();
        let gateways: BTreeSet<_> = underlay.default_routes.iter().map(|route| route.gateway).collect();
        let ways_out: BTreeSet<_> = underlay.default_routes.iter().map(|route| route.interface).collect();
        let interfaces = underlay.interfaces.iter().filter(|interface| ways_out.contains(&interface.index));
        let prefixes: BTreeSet<_> =
            interfaces.flat_map(|interface| &interface.addresses).map(IpNet::trunc).collect();
        if ways_out.is_empty() {
            return None;
        }
        let digest = Sha256::digest(format!("{gateways:?} {prefixes:?}"));
        Some(NetworkId(hex::encode(&digest[..ID_LEN])))
    }

    /// Returns the prefixes that are connected to the host: none of them may be led into the mesh.
    pub fn connected(&self) -> impl Iterator<Item = IpNet> {
        self.interfaces
            .iter()
            .filter(|interface| interface.up)
            .flat_map(|interface| interface.addresses.iter().map(IpNet::trunc))
    }

    /// Returns the addresses at which peers on the same network, or without any NAT, reach a socket on `port`: those that
    /// the system sends from first, then those of interfaces with a default route, for they are the most useful, cut at
    /// sixteen.
    #[must_use]
    pub fn candidates(&self, port: u16) -> Vec<Candidate> {
        let underlay = self.underlay();
        let is_source = |net: &IpNet| underlay.sources.contains(&net.addr());
        let mut found = Vec::new();
        for interface in &underlay.interfaces {
            let is_routed = underlay.default_routes.iter().any(|route| route.interface == interface.index);
            let usable = interface.addresses.iter().copied().filter(|net| is_candidate(net.addr()));
            let (v4, mut v6): (Vec<_>, Vec<_>) = usable.partition(|net| net.addr().is_ipv4());
            v6.sort_by_key(|net| !is_source(net));
            v6.truncate(MAX_V6_OF_INTERFACE);
            let rank = |net: &IpNet| (!is_source(net), !is_routed, interface.index);
            found.extend(v4.into_iter().chain(v6).map(|net| (rank(&net), net.addr())));
        }
        // Stable: addresses of one interface stay in their order.
        found.sort_by_key(|(rank, _)| *rank);
        let candidate = |ip| Candidate { address: SocketAddr::new(ip, port), kind: CandidateKind::Host };
        found.into_iter().map(|(_, ip)| candidate(ip)).take(MAX_HOST_CANDIDATES).collect()
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Returns the family of an address.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Whether others can send to an address: neither this host itself nor bound to a link, nor to the host's own translator.
fn is_candidate(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || TRANSLATOR.contains(&v4),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str, addresses: &[&str]) -> HostInterface {
        HostInterface {
            index,
            name: name.to_owned(),
            up: true,
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        }
    }

    fn networks() -> HostNetworks {
        let down = HostInterface { up: false, ..interface(5, "eth1", &["198.51.100.1/24"]) };
        HostNetworks {
            interfaces: vec![
                interface(1, "lo", &["127.0.0.1/8", "::1/128"]),
                interface(2, "eth0", &["10.0.0.5/24"]),
                interface(3, "cni0", &["10.244.1.1/24"]),
                interface(4, "wlan0", &["192.168.1.7/24", "fe80::1/64", "2001:db8::7/64"]),
                down,
            ],
            default_routes: [
                DefaultRoute { interface: 4, gateway: Some([192, 168, 1, 1].into()) },
                DefaultRoute { interface: 3, gateway: None },
            ]
            .into(),
            sources: BTreeSet::new(),
        }
    }

    fn addresses(networks: &HostNetworks) -> Vec<String> {
        networks.candidates(7).iter().map(|candidate| candidate.address.ip().to_string()).collect()
    }

    #[test]
    fn what_the_system_sends_from_is_offered_however_many_addresses_there_are() {
        let temporary = "2001:db8::ffff:7";
        let many: Vec<String> = (1..60).map(|number| format!("2001:db8::{number:x}/64")).collect();
        let mut all: Vec<&str> = many.iter().map(String::as_str).collect();
        all.extend(["2001:db8::ffff:7/64", "fd00::7/64", "192.168.1.7/24", "192.0.0.4/32"]);
        let mut networks = networks();
        networks.interfaces[3] = interface(4, "wlan0", &all);
        networks.sources = [temporary.parse().unwrap(), "10.99.0.1".parse().unwrap()].into();
        let found = addresses(&networks);
        assert_eq!(found[0], temporary);
        assert_eq!(found.iter().filter(|text| text.contains(':')).count(), MAX_V6_OF_INTERFACE);
        assert!(found.contains(&"192.168.1.7".to_owned()) && found.contains(&"10.0.0.5".to_owned()));
        assert!(!found.contains(&"192.0.0.4".to_owned()), "every host with a translator has that one");
        let many: Vec<String> = (1..60).map(|number| format!("192.168.1.{number}/24")).collect();
        networks.interfaces[3] = interface(4, "wlan0", &many.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(addresses(&networks).len(), MAX_HOST_CANDIDATES);
    }

    #[test]
    fn a_way_out_is_a_source_on_the_underlay() {
        let mut networks = networks();
        networks.sources = ["10.244.1.1".parse().unwrap(), "2001:db8::7".parse().unwrap()].into();
        assert!(!networks.has_way_out(Family::V4), "that is a container network");
        assert!(networks.has_way_out(Family::V6));
    }

    #[test]
    fn candidates_are_the_reachable_addresses_with_the_default_route_first() {
        let candidates: Vec<_> =
            networks().candidates(7).iter().map(|candidate| candidate.address.to_string()).collect();
        assert_eq!(candidates, ["192.168.1.7:7", "[2001:db8::7]:7", "10.0.0.5:7"]);
    }

    #[test]
    fn a_network_is_known_by_its_ways_out() {
        let id = networks().id();
        let mut same = networks();
        same.interfaces[1] = interface(2, "eth0", &["10.0.0.99/24"]);
        same.interfaces[3].name = "wlan1".to_owned();
        assert_eq!(same.id(), id, "other interfaces and names do not matter");
        let mut other = networks();
        other.interfaces[3] = interface(4, "wlan0", &["192.168.2.7/24"]);
        assert_ne!(other.id(), id);
        assert_eq!(HostNetworks::default().id(), None);
    }

    #[test]
    fn container_interfaces_are_connected_but_no_underlay() {
        let connected: Vec<_> = networks().connected().map(|net| net.to_string()).collect();
        assert!(connected.contains(&"10.244.1.0/24".to_owned()));
        assert!(!connected.contains(&"198.51.100.0/24".to_owned()), "that one is down");
        let underlay = networks().underlay();
        let names: Vec<_> = underlay.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(names, ["eth0", "wlan0"]);
        assert_eq!(underlay.default_routes.len(), 1);
    }
}
