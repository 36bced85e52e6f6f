//! The host's own networks: where this node can be reached, and which prefixes it must not take over.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
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

/// Bytes of a network's name: enough to tell the networks of one host apart.
const ID_LEN: usize = 8;

/// The host's interfaces but the agent's own, and where its traffic goes by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostNetworks {
    /// The interfaces, by index.
    pub interfaces: Vec<HostInterface>,
    /// The default routes.
    pub default_routes: BTreeSet<DefaultRoute>,
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
        Self { interfaces, default_routes }
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

    /// Returns the addresses at which peers on the same network, or without any NAT, reach a socket on `port`:
    /// the ones on interfaces with a default route first, for they are the most useful, cut at [`MAX_CANDIDATES`].
    #[must_use]
    pub fn candidates(&self, port: u16) -> Vec<Candidate> {
        let underlay = self.underlay();
        let routed = |index: u32| underlay.default_routes.iter().any(|route| route.interface == index);
        let mut interfaces: Vec<_> = underlay.interfaces.iter().collect();
        interfaces.sort_by_key(|interface| (!routed(interface.index), interface.index));
        interfaces
            .iter()
            .flat_map(|interface| &interface.addresses)
            .filter(|net| is_candidate(net.addr()))
            .map(|net| Candidate { address: SocketAddr::new(net.addr(), port), kind: CandidateKind::Host })
            .take(MAX_CANDIDATES)
            .collect()
    }
}

/// Whether others can send to an address: neither this host itself nor bound to a link.
fn is_candidate(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
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
        }
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
