//! The underlay: realms of addresses, joined by NATs, with hosts in them.
//!
//! A *realm* is a set of addresses that reach each other without translation: realm 0 is the internet, every LAN and the
//! inside of every carrier-grade NAT is another. A NAT has an address in its outer realm and stands for its whole inner
//! one. A datagram climbs from its sender's realm until it finds its destination address, NAT by NAT; it crosses the
//! links at the realm where it found it; there it descends, NAT by NAT, to a host. Climbing is done when it is sent and
//! descending when it arrives, so that NAT state is read and written at the right times. Both see the mappings of the
//! way, so different realms may use the same private addresses.
//!
//! Every host or NAT that stands in the internet has an uplink; LANs have a delay and nothing else.

mod firewall;
mod link;
mod nat;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

pub(crate) use self::{
    firewall::Firewall,
    link::LinkProfile,
    nat::{EarlyProbe, Filtering, Hairpin, Mapping, NatProfile, NatType, PortChoice, Refresh},
};
use self::{
    link::{Fate, Link},
    nat::Nat,
};
use crate::rng::Rng;

/// IPv4 and UDP header: what a datagram has on top of its payload on a link.
const HEADER_V4: usize = 28;
/// IPv6 and UDP header.
const HEADER_V6: usize = 48;
/// Time that a datagram needs inside a LAN.
const LAN_DELAY: Duration = Duration::from_micros(200);

/// Names a realm; 0 is the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RealmId(pub(crate) usize);

/// Names a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostId(pub(crate) usize);

/// Names a NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NatId(pub(crate) usize);

/// Names an uplink: what partitions are made between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UplinkId(pub(crate) usize);

/// The internet's realm.
pub(crate) const INTERNET: RealmId = RealmId(0);

/// A datagram that a host sends.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) host: HostId,
    pub(crate) port: u16,
    pub(crate) destination: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// A datagram on its way.
#[derive(Debug, Clone)]
pub(crate) struct Flight {
    realm: RealmId,
    source: SocketAddr,
    destination: SocketAddr,
    bytes: Vec<u8>,
}

/// A datagram that has arrived at a host.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) host: HostId,
    pub(crate) source: SocketAddr,
    pub(crate) port: u16,
    pub(crate) bytes: Vec<u8>,
}

/// Why a datagram did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lost {
    /// The sender is attached nowhere.
    Detached,
    /// Nobody has the destination address.
    NoSuchAddress,
    /// A NAT does not hairpin.
    NoHairpin,
    /// A NAT has no mapping, or filters.
    Nat,
    /// A host's firewall.
    Firewall,
    /// A partition.
    Partition,
    /// A lossy link.
    Link,
    /// Larger than a link's MTU.
    Mtu,
}

/// The underlay.
pub(crate) struct Net {
    rng: Rng,
    realms: Vec<Realm>,
    nats: Vec<Gateway>,
    hosts: Vec<Host>,
    uplinks: Vec<Uplink>,
    cut: BTreeSet<(UplinkId, UplinkId)>,
    /// Time that it takes between two lines beside what they take themselves.
    distances: BTreeMap<(UplinkId, UplinkId), Duration>,
}

#[derive(Default)]
struct Realm {
    gateway: Option<NatId>,
    owners: BTreeMap<IpAddr, Owner>,
}

#[derive(Debug, Clone, Copy)]
enum Owner {
    Host(HostId),
    Nat(NatId),
}

struct Gateway {
    nat: Nat,
    inner: RealmId,
    outer: RealmId,
    address: IpAddr,
    uplink: Option<UplinkId>,
}

struct Host {
    place: Option<(RealmId, IpAddr)>,
    uplink: Option<UplinkId>,
    firewall: Option<Firewall>,
    v6: Option<PlaceV6>,
}

/// A global IPv6 address behind the stateful filter of a home router.
struct PlaceV6 {
    address: IpAddr,
    uplink: UplinkId,
    filter: Firewall,
}

struct Uplink {
    up: Link,
    down: Link,
}

impl Net {
    /// Makes an internet with nobody in it.
    pub(crate) fn new(rng: Rng) -> Self {
        Self {
            rng,
            realms: vec![Realm::default()],
            nats: Vec::new(),
            hosts: Vec::new(),
            uplinks: Vec::new(),
            cut: BTreeSet::new(),
            distances: BTreeMap::new(),
        }
    }

    /// Adds a line to the internet.
    pub(crate) fn add_uplink(&mut self, profile: LinkProfile) -> UplinkId {
        self.uplinks.push(Uplink { up: Link::new(profile), down: Link::new(profile) });
        UplinkId(self.uplinks.len() - 1)
    }

    /// Adds a NAT with an address in an outer realm, and returns it and its inner realm.
    pub(crate) fn add_nat(
        &mut self,
        profile: NatProfile,
        outer: RealmId,
        address: IpAddr,
        uplink: Option<UplinkId>,
    ) -> (NatId, RealmId) {
        let id = NatId(self.nats.len());
        let inner = RealmId(self.realms.len());
        self.realms.push(Realm { gateway: Some(id), owners: BTreeMap::new() });
        let nat = Nat::new(profile, self.rng.fork());
        self.nats.push(Gateway { nat, inner, outer, address, uplink });
        self.claim(outer, address, Owner::Nat(id));
        (id, inner)
    }

    /// Adds a host that is attached nowhere.
    pub(crate) fn add_host(&mut self, firewall: Option<Firewall>) -> HostId {
        self.hosts.push(Host { place: None, uplink: None, firewall, v6: None });
        HostId(self.hosts.len() - 1)
    }

    /// Attaches a host, after taking it from where it was.
    pub(crate) fn attach(&mut self, host: HostId, realm: RealmId, address: IpAddr, uplink: Option<UplinkId>) {
        self.detach(host);
        self.claim(realm, address, Owner::Host(host));
        self.hosts[host.0].place = Some((realm, address));
        self.hosts[host.0].uplink = uplink;
        if let Some(firewall) = &mut self.hosts[host.0].firewall {
            *firewall = Firewall::default();
        }
    }

    /// Takes a host off the network.
    pub(crate) fn detach(&mut self, host: HostId) {
        if let Some((realm, address)) = self.hosts[host.0].place.take() {
            self.realms[realm.0].owners.remove(&address);
        }
        if let Some(v6) = self.hosts[host.0].v6.take() {
            self.realms[INTERNET.0].owners.remove(&v6.address);
        }
    }

    /// Gives an attached host a global IPv6 address as well.
    pub(crate) fn attach_v6(&mut self, host: HostId, address: IpAddr, uplink: UplinkId) {
        self.claim(INTERNET, address, Owner::Host(host));
        self.hosts[host.0].v6 = Some(PlaceV6 { address, uplink, filter: Firewall::default() });
    }

    /// Returns a host's global IPv6 address.
    pub(crate) fn address_v6(&self, host: HostId) -> Option<IpAddr> {
        self.hosts[host.0].v6.as_ref().map(|v6| v6.address)
    }

    /// Returns where a host is.
    pub(crate) fn place(&self, host: HostId) -> Option<(RealmId, IpAddr)> {
        self.hosts[host.0].place
    }

    /// Whether a host has a firewall of its own.
    pub(crate) fn has_firewall(&self, host: HostId) -> bool {
        self.hosts[host.0].firewall.is_some()
    }

    /// Returns the NATs between a realm and the internet, from inside outwards.
    pub(crate) fn nats_above(&self, realm: RealmId) -> Vec<NatId> {
        let gateway = |realm: RealmId| self.realms[realm.0].gateway;
        std::iter::successors(gateway(realm), |nat| gateway(self.nats[nat.0].outer)).collect()
    }

    /// Returns the address by which a host is seen in the internet.
    pub(crate) fn outside_of(&self, host: HostId) -> Option<IpAddr> {
        let (realm, address) = self.place(host)?;
        Some(self.nats_above(realm).last().map_or(address, |nat| self.outer_address(*nat)))
    }

    /// Returns a NAT's configuration.
    pub(crate) fn profile(&self, nat: NatId) -> NatProfile {
        self.nats[nat.0].nat.profile
    }

    /// Returns the uplink by which a host reaches the internet.
    pub(crate) fn uplink_of(&self, host: HostId) -> Option<UplinkId> {
        let (realm, _) = self.place(host)?;
        match self.nats_above(realm).last() {
            Some(nat) => self.nats[nat.0].uplink,
            None => self.hosts[host.0].uplink,
        }
    }

    /// Returns a line's profile.
    pub(crate) fn link_profile(&self, uplink: UplinkId) -> LinkProfile {
        self.uplinks[uplink.0].up.profile
    }

    /// Has a NAT forget its mappings.
    pub(crate) fn reboot_nat(&mut self, nat: NatId) {
        self.nats[nat.0].nat.reboot();
    }

    /// Gives a NAT another outer address; mappings are lost with the old one.
    pub(crate) fn move_nat(&mut self, nat: NatId, address: IpAddr) {
        let (outer, old) = (self.nats[nat.0].outer, self.nats[nat.0].address);
        self.realms[outer.0].owners.remove(&old);
        self.nats[nat.0].address = address;
        self.claim(outer, address, Owner::Nat(nat));
        self.reboot_nat(nat);
    }

    /// Returns a NAT's outer address.
    pub(crate) fn outer_address(&self, nat: NatId) -> IpAddr {
        self.nats[nat.0].address
    }

    /// Returns the realm in which a NAT has its outer address.
    pub(crate) fn outer_realm(&self, nat: NatId) -> RealmId {
        self.nats[nat.0].outer
    }

    /// Whether a NAT lets what comes from `source` in at an address of its own.
    pub(crate) fn is_open(&self, address: SocketAddr, source: SocketAddr, now: Duration) -> bool {
        let mut nats = self.nats.iter().filter(|gateway| gateway.address == address.ip());
        nats.any(|gateway| gateway.nat.admit(address.port(), source, now).is_some())
    }

    /// Whether an address is free in a realm.
    pub(crate) fn is_free(&self, realm: RealmId, address: IpAddr) -> bool {
        !self.realms[realm.0].owners.contains_key(&address)
    }

    /// Cuts two lines off from each other.
    pub(crate) fn cut(&mut self, a: UplinkId, b: UplinkId) {
        self.cut.insert((a.min(b), a.max(b)));
    }

    /// Joins all that is cut.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    /// Whether anything is cut.
    pub(crate) fn has_cuts(&self) -> bool {
        !self.cut.is_empty()
    }

    /// Whether two lines are cut off from each other.
    pub(crate) fn is_cut(&self, a: UplinkId, b: UplinkId) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// Puts two lines this far apart, each way.
    pub(crate) fn set_distance(&mut self, a: UplinkId, b: UplinkId, distance: Duration) {
        self.distances.insert((a.min(b), a.max(b)), distance);
    }

    /// Sends a datagram, as far as the realm where its destination is, and says when it arrives there.
    pub(crate) fn send(&mut self, outgoing: Outgoing, now: Duration) -> Result<(Duration, Flight), Lost> {
        if let Some(firewall) = &mut self.hosts[outgoing.host.0].firewall {
            firewall.note_outbound(outgoing.port, outgoing.destination, now);
        }
        if outgoing.destination.is_ipv6() {
            return self.send_v6(outgoing, now);
        }
        let Outgoing { host, port, destination, bytes } = outgoing;
        let (mut realm, address) = self.place(host).ok_or(Lost::Detached)?;
        let mut source = SocketAddr::new(address, port);
        let mut delay = LAN_DELAY;
        let mut uplink = self.hosts[host.0].uplink;
        loop {
            if let Some(owner) = self.realms[realm.0].owners.get(&destination.ip()).copied() {
                let flight = Flight { realm, source, destination, bytes };
                if realm != INTERNET {
                    return Ok((now + delay, flight));
                }
                let from = uplink.expect("what stands in the internet has an uplink");
                let to = match owner {
                    Owner::Host(to) => self.hosts[to.0].uplink,
                    Owner::Nat(to) => self.nats[to.0].uplink,
                };
                let to = to.expect("what stands in the internet has an uplink");
                return self.cross(from, to, flight, now + delay);
            }
            let gateway = self.realms[realm.0].gateway.ok_or(Lost::NoSuchAddress)?;
            let through = &mut self.nats[gateway.0];
            if through.address == destination.ip() && through.nat.profile.hairpin == Hairpin::Off {
                return Err(Lost::NoHairpin);
            }
            source = SocketAddr::new(through.address, through.nat.send_out(source, destination, now));
            if through.address == destination.ip() {
                // The hairpin turns inside the NAT: the flight is the NAT's own to deliver.
                let realm = through.outer;
                return Ok((now + 2 * delay, Flight { realm, source, destination, bytes }));
            }
            realm = through.outer;
            uplink = through.uplink;
            delay += LAN_DELAY;
        }
    }

    /// Brings an arrived datagram down to a host.
    pub(crate) fn arrive(&mut self, flight: Flight, now: Duration) -> Result<Delivery, Lost> {
        let Flight { mut realm, source, mut destination, bytes } = flight;
        loop {
            match self.realms[realm.0].owners.get(&destination.ip()).copied() {
                None => return Err(Lost::NoSuchAddress),
                Some(Owner::Host(host)) => {
                    let Host { firewall, v6, .. } = &mut self.hosts[host.0];
                    let router = v6.as_mut().filter(|_| destination.is_ipv6()).map(|v6| &mut v6.filter);
                    let mut filters = firewall.iter_mut().chain(router);
                    if !filters.all(|filter| filter.admits(destination.port(), source, now)) {
                        return Err(Lost::Firewall);
                    }
                    return Ok(Delivery { host, source, port: destination.port(), bytes });
                }
                Some(Owner::Nat(nat)) => {
                    let gateway = &mut self.nats[nat.0];
                    destination = gateway.nat.take_in(destination.port(), source, now).ok_or(Lost::Nat)?;
                    realm = gateway.inner;
                }
            }
        }
    }

    /// IPv6 knows no realms: the destination is in the internet or nowhere.
    fn send_v6(&mut self, outgoing: Outgoing, now: Duration) -> Result<(Duration, Flight), Lost> {
        let Outgoing { host, port, destination, bytes } = outgoing;
        let v6 = self.hosts[host.0].v6.as_mut().ok_or(Lost::Detached)?;
        v6.filter.note_outbound(port, destination, now);
        let (source, from) = (SocketAddr::new(v6.address, port), v6.uplink);
        let Some(Owner::Host(to)) = self.realms[INTERNET.0].owners.get(&destination.ip()).copied() else {
            return Err(Lost::NoSuchAddress);
        };
        let to = self.hosts[to.0].v6.as_ref().ok_or(Lost::NoSuchAddress)?.uplink;
        self.cross(from, to, Flight { realm: INTERNET, source, destination, bytes }, now + LAN_DELAY)
    }

    /// Crosses the internet between two lines; what stays on one line only turns round at its provider.
    fn cross(
        &mut self,
        from: UplinkId,
        to: UplinkId,
        flight: Flight,
        now: Duration,
    ) -> Result<(Duration, Flight), Lost> {
        if self.is_cut(from, to) {
            return Err(Lost::Partition);
        }
        let header = if flight.destination.is_ipv4() { HEADER_V4 } else { HEADER_V6 };
        let len = flight.bytes.len() + header;
        let up = self.uplinks[from.0].up.carry(to, len, now, &mut self.rng);
        let fate = match up {
            Fate::Arrives(at) => {
                let distance = self.distances.get(&(from.min(to), from.max(to))).copied().unwrap_or_default();
                self.uplinks[to.0].down.carry(from, len, at + distance, &mut self.rng)
            }
            Fate::Lost | Fate::TooBig => up,
        };
        match fate {
            Fate::Arrives(at) => Ok((at, flight)),
            Fate::Lost => Err(Lost::Link),
            Fate::TooBig => Err(Lost::Mtu),
        }
    }

    fn claim(&mut self, realm: RealmId, address: IpAddr, owner: Owner) {
        let before = self.realms[realm.0].owners.insert(address, owner);
        assert!(before.is_none(), "{address} is taken in {realm:?}");
    }
}
