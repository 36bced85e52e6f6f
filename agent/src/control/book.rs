//! The address book: where coordinator and relays are, from all that was said and seen. No IO.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use mesh_proto::netmap::{NetworkMap, Relay};

use super::address::{HostPort, Resolved, is_public, is_usable};
use crate::netmap::KnownAddresses;

/// Observers that the engine is told of; two are enough to tell mapping types apart.
const MAX_OBSERVERS: usize = 8;
/// Further ports of the coordinator's that are asked; one is enough to tell NATs that map by port.
const MAX_OBSERVER_PORTS: usize = 2;
/// Addresses of one relay that the engine is told of.
const MAX_RELAY_ADDRESSES: usize = 4;

/// What is left of an IPv6 address without what tells the hosts of a link apart, which have 64 bits.
const LINK_SHIFT: u32 = 64;

/// Where everybody is.
#[derive(Debug, Default)]
pub(super) struct AddressBook {
    /// What the node joined with.
    joined: Vec<HostPort>,
    /// Servers elsewhere that answer STUN, as a person has named them.
    stun: Vec<HostPort>,
    known: KnownAddresses,
    resolved: Resolved,
    /// Where the coordinator is reached now.
    connected: Option<SocketAddr>,
    /// Where the coordinator sees this node.
    observed: Option<IpAddr>,
    /// Further UDP ports of the coordinator's that answer STUN, where it is reached now.
    observer_ports: Vec<u16>,
}

impl AddressBook {
    pub(super) fn new(joined: Vec<HostPort>, known: KnownAddresses) -> Self {
        Self { joined, known, ..Self::default() }
    }

    /// Returns the book with servers elsewhere that answer STUN.
    pub(super) fn with_stun(self, stun: Vec<HostPort>) -> Self {
        Self { stun, ..self }
    }

    /// Returns the names of these servers.
    pub(super) fn stun(&self) -> &[HostPort] {
        &self.stun
    }

    /// Returns the coordinator's names: what it says of itself, then what the node joined with.
    pub(super) fn names(&self, map: Option<&NetworkMap>) -> Vec<HostPort> {
        let mut names = map.map(|map| HostPort::parse_all(&map.mesh.coordinators)).unwrap_or_default();
        for name in &self.joined {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// Returns where the coordinator was, the last place first.
    pub(super) fn known(&self) -> &KnownAddresses {
        &self.known
    }

    /// Takes what names resolved to.
    pub(super) fn handle_resolved(&mut self, resolved: Resolved) {
        self.resolved.extend(resolved);
    }

    /// Takes where the coordinator answered and what is meant by it in every network, and returns whether that is to be
    /// remembered.
    pub(super) fn handle_connected(&mut self, remote: SocketAddr, meant: SocketAddr) -> bool {
        self.connected = Some(remote);
        self.observed = None;
        self.observer_ports.clear();
        // What only the link knows is found anew.
        let is_link_local = matches!(meant.ip(), IpAddr::V6(v6) if v6.is_unicast_link_local());
        !is_link_local && self.known.set_worked(meant)
    }

    /// Takes that the coordinator is reached in a byte pipe: what is at its other end says nothing about UDP.
    pub(super) fn handle_pipe(&mut self) {
        self.connected = None;
        self.observed = None;
        self.observer_ports.clear();
    }

    /// Takes where the coordinator sees this node.
    pub(super) fn handle_observed(&mut self, observed: SocketAddr) {
        self.observed = Some(observed.ip().to_canonical());
    }

    /// Takes which further ports of the coordinator's answer STUN.
    pub(super) fn set_observer_ports(&mut self, mut ports: Vec<u16>) {
        ports.truncate(MAX_OBSERVER_PORTS);
        self.observer_ports = ports;
    }

    /// Returns who can answer STUN: the coordinator where it is reached, the relays, servers elsewhere, and where else the
    /// coordinator is.
    pub(super) fn observers(
        &self,
        map: Option<&NetworkMap>,
        relays: impl IntoIterator<Item = SocketAddr>,
    ) -> Vec<SocketAddr> {
        let names = self.names(map);
        let resolved = names.iter().flat_map(|name| self.lookup(name));
        let known = self.known.as_slice().iter().copied().filter(|_| self.connected.is_none());
        let seconds = self
            .connected
            .into_iter()
            .flat_map(|at| self.observer_ports.iter().map(move |port| SocketAddr::new(at.ip(), *port)));
        // One address of each: the others are the same server's.
        let stun = self.stun.iter().filter_map(|name| self.lookup(name).into_iter().next());
        let servers = relays.into_iter().chain(stun).chain(resolved).chain(known);
        let all = self.connected.into_iter().chain(seconds).chain(servers);
        distinct(all, &mesh_ranges(map), MAX_OBSERVERS)
    }

    /// Returns where a relay is reached, the place where it was met first.
    pub(super) fn relay_addresses(&self, relay: &Relay, met: SocketAddr, mesh: &[IpNet]) -> Vec<SocketAddr> {
        let names = HostPort::parse_all(&relay.addresses);
        let others = names.iter().flat_map(|name| self.lookup(name));
        distinct(std::iter::once(met).chain(others), mesh, MAX_RELAY_ADDRESSES)
    }

    /// Returns where a node that stands beside the coordinator may be reached from outside: where the
    /// coordinator's name leads everybody else.
    pub(super) fn guess(&self, map: Option<&NetworkMap>) -> Option<IpAddr> {
        if !self.is_beside() {
            return None;
        }
        let names = self.names(map);
        let resolved = names.iter().flat_map(|name| self.lookup(name));
        // Over IPv6 there is nothing to guess.
        resolved.map(|address| address.ip()).find(|ip| ip.is_ipv4() && is_public(*ip))
    }

    /// Whether the coordinator is on a network of this node's: it sees an address that means nothing elsewhere, or one of
    /// its own link.
    fn is_beside(&self) -> bool {
        let link = |ip: IpAddr| match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(v6.to_bits() >> LINK_SHIFT),
        };
        let Some(observed) = self.observed else { return false };
        let met = self.connected.and_then(|address| link(address.ip()));
        !is_public(observed) || (met.is_some() && met == link(observed))
    }

    fn lookup(&self, name: &HostPort) -> Vec<SocketAddr> {
        match name.literal() {
            Some(address) => vec![address],
            None => self.resolved.get(name).cloned().unwrap_or_default(),
        }
    }
}

/// Returns the ranges through which nothing of the underlay is reached.
pub(super) fn mesh_ranges(map: Option<&NetworkMap>) -> Vec<IpNet> {
    map.map(|map| vec![map.mesh.ipv4.into(), map.mesh.ipv6.into()]).unwrap_or_default()
}

fn distinct(all: impl Iterator<Item = SocketAddr>, mesh: &[IpNet], max: usize) -> Vec<SocketAddr> {
    let mut kept = Vec::new();
    for address in all {
        let address = match address {
            // The link is a part of it.
            SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => address,
            SocketAddr::V4(_) | SocketAddr::V6(_) => {
                SocketAddr::new(address.ip().to_canonical(), address.port())
            }
        };
        if kept.len() < max && is_usable(address, mesh) && !kept.contains(&address) {
            kept.push(address);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use mesh_proto::netmap::RelayId;

    use super::*;
    use crate::netmap::fixtures::map;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn book() -> AddressBook {
        let mut book = AddressBook::new(vec!["home.example".parse().unwrap()], KnownAddresses::default());
        let resolved = [
            ("home.example", vec![at("192.168.1.2:7443")]),
            ("pi.example", vec![at("203.0.113.1:7443"), at("[2001:db8::1]:7443")]),
        ];
        book.handle_resolved(resolved.map(|(name, found)| (name.parse().unwrap(), found)).into());
        book
    }

    #[test]
    fn a_node_beside_the_coordinator_guesses_its_outside() {
        let map = map(1, []);
        let mut book = book();
        assert_eq!(book.guess(Some(&map)), None, "not known where it is seen");
        book.handle_connected(at("192.168.1.2:7443"), at("192.168.1.2:7443"));
        book.handle_observed(at("192.168.1.7:999"));
        assert_eq!(book.guess(Some(&map)), Some("203.0.113.1".parse().unwrap()));
        book.handle_observed(at("198.51.100.7:999"));
        assert_eq!(book.guess(Some(&map)), None, "it has an outside observer");
    }

    #[test]
    fn a_node_on_the_coordinators_link_guesses_its_outside_too() {
        let map = map(1, []);
        let mut book = book();
        book.handle_connected(at("[2001:db8::1]:7443"), at("[2001:db8::1]:7443"));
        book.handle_observed(at("[2001:db8::7]:999"));
        assert_eq!(book.guess(Some(&map)), Some("203.0.113.1".parse().unwrap()));
        book.handle_observed(at("[2001:db8:1::7]:999"));
        assert_eq!(book.guess(Some(&map)), None, "it is elsewhere");
    }

    #[test]
    fn the_coordinator_in_use_is_the_first_observer() {
        let map = map(1, []);
        let mut book = book();
        book.handle_connected(at("192.168.1.2:7443"), at("192.168.1.2:7443"));
        let relay = at("198.51.100.5:7443");
        let want = ["192.168.1.2:7443", "198.51.100.5:7443", "203.0.113.1:7443", "[2001:db8::1]:7443"];
        assert_eq!(book.observers(Some(&map), [relay]), want.map(at));
    }

    #[test]
    fn servers_elsewhere_are_observers_too() {
        let names = ["192.0.2.9:3478", "stun.example:3478"].map(|name| name.parse().unwrap());
        let mut book = AddressBook::new(vec![], KnownAddresses::default()).with_stun(names.to_vec());
        book.handle_connected(at("192.168.1.2:7443"), at("192.168.1.2:7443"));
        assert_eq!(book.observers(None, []), ["192.168.1.2:7443", "192.0.2.9:3478"].map(at));
        let addresses = ["192.0.2.10:3478", "192.0.2.11:3478"].map(at).to_vec();
        book.handle_resolved(Resolved::from([(names[1].clone(), addresses)]));
        let want = ["192.168.1.2:7443", "192.0.2.9:3478", "192.0.2.10:3478"];
        assert_eq!(book.observers(None, []), want.map(at));
    }

    #[test]
    fn a_second_port_is_an_observer_where_the_coordinator_is_reached() {
        let mut book = AddressBook::new(vec![], KnownAddresses::default());
        book.handle_connected(at("192.0.2.1:7443"), at("192.0.2.1:7443"));
        book.set_observer_ports(vec![7444, 0, 1, 2]);
        assert_eq!(book.observers(None, []), ["192.0.2.1:7443", "192.0.2.1:7444"].map(at));
        book.handle_pipe();
        assert_eq!(book.observers(None, []), [at("192.0.2.1:7443")], "only where it was");
    }

    #[test]
    fn without_a_connection_the_last_good_addresses_are_observers() {
        let mut known = KnownAddresses::default();
        known.set_worked(at("203.0.113.1:7443"));
        known.set_worked(at("10.90.0.1:7443"));
        let book = AddressBook::new(vec![], known);
        let map = map(1, []);
        assert_eq!(book.observers(Some(&map), []), [at("203.0.113.1:7443")], "not through the mesh");
    }

    #[test]
    fn a_relay_is_reached_first_where_it_was_met() {
        let map = map(1, []);
        let addresses =
            vec!["pi.example:7443".to_owned(), "192.0.2.9:1".to_owned(), "10.90.0.1:1".to_owned()];
        let relay = Relay { id: RelayId(0), name: "pi".to_owned(), key: None, addresses };
        let got = book().relay_addresses(&relay, at("192.168.1.2:7443"), &mesh_ranges(Some(&map)));
        let want = ["192.168.1.2:7443", "203.0.113.1:7443", "[2001:db8::1]:7443", "192.0.2.9:1"];
        assert_eq!(got, want.map(at));
    }
}
