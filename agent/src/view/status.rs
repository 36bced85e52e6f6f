//! Builds the status document.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use mesh_engine::{
    drops::DropCounters,
    event::PathAddress,
    snapshot::{PathSnapshot, PeerSnapshot, RelaySnapshot, Snapshot},
};
use mesh_proto::{
    kubernetes::KubernetesStatus,
    nat64::Nat64Prefix,
    netmap::{NetworkMap, Node, RelayId},
    route::{RouteAnswer, RouteState},
    status::{
        CoordinatorStatus, EnginesStatus, FamilyState, NatLifetime, NatStatus, PathKind, PathReason,
        PathStatus, PeerStatus, PortMapping, RelayStatus, RelayTransport, SelfStatus, Status, Timestamp,
    },
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{explain, netcheck::clock_warning};
use crate::{
    driver::Counters,
    os::Family,
    portmap::{Counts, Mapped, Report},
};

/// What the daemon knows at one moment.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// The engine.
    pub snapshot: &'a Snapshot,
    /// What the driver counted.
    pub counters: &'a Counters,
    /// The moment of the snapshot, by the engine's clock.
    pub now: Instant,
    /// The same moment, by the wall clock.
    pub wall: OffsetDateTime,
    /// The network map.
    pub map: &'a NetworkMap,
    /// The control connection.
    pub coordinator: CoordinatorStatus,
    /// The coordinator's clock less this host's, in milliseconds.
    pub clock_offset_ms: Option<f64>,
    /// The TUN interface.
    pub interface: &'a str,
    /// Its MTU, in bytes.
    pub mtu: u16,
    /// The router's mapping of the UDP port.
    pub port_mapping: Report,
    /// The prefixes behind which the network translates to IPv4.
    pub nat64: Vec<Nat64Prefix>,
    /// Address families for which this host has no route.
    pub absent: &'a [Family],
    /// Whether interface, addresses and routes are up.
    pub ready: bool,
    /// The routes that are installed for peers, beyond their mesh addresses.
    pub routes: &'a [IpNet],
    /// What became of the routes that this node offers.
    pub advertised: Vec<RouteAnswer>,
    /// What a person should know, worst first.
    pub warnings: Vec<String>,
    /// The pod network, if it is on.
    pub kubernetes: Option<KubernetesStatus>,
}

/// Builds the status document; peers are in order of their names.
#[must_use]
pub fn status(input: &Input<'_>) -> Status {
    let mut peers: Vec<_> = input
        .map
        .peers
        .iter()
        .map(|node| {
            let peer = input.snapshot.peers.iter().find(|peer| peer.id == node.id);
            peer_status(input, node, peer)
        })
        .collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    Status { this: self_status(input), peers }
}

fn self_status(input: &Input<'_>) -> SelfStatus {
    let this = &input.map.this;
    let home = |relay: &&RelaySnapshot| Some(relay.id) == input.snapshot.home;
    let relay = input.snapshot.relays.iter().find(home).map(|relay| RelayStatus {
        name: input.relay_name(relay.id),
        transport: if relay.address.is_some() { RelayTransport::Udp } else { RelayTransport::Websocket },
        rtt_ms: relay.rtt.map(millis),
    });
    let mapped = input.port_mapping.mapped;
    SelfStatus {
        name: this.name.to_string(),
        node_key: this.node_key,
        public_key: this.public_key,
        addresses: this.addresses.clone(),
        interface: input.interface.to_owned(),
        mtu: input.mtu,
        candidates: input.snapshot.candidates.clone(),
        nat: NatStatus {
            mapping: input.snapshot.mapping,
            port_mapping: mapped.map_or(PortMapping::None, |mapped| mapped.protocol.into()),
            udp_blocked: input.snapshot.udp_blocked,
            mapped_address: mapped.map(|mapped| mapped.external.into()),
            ipv4: family(input, Family::V4),
            ipv6: family(input, Family::V6),
            nat64: input.nat64.clone(),
            lifetime: lifetime(input.snapshot),
        },
        coordinator: input.coordinator.clone(),
        relay,
        routes: input.routes.to_vec(),
        advertised: input.advertised.clone(),
        ready: input.ready,
        warnings: warnings(input),
        drops: own_drops(input),
        engines: engines(input),
        ranges: [input.map.mesh.ipv4.into(), input.map.mesh.ipv6.into()]
            .into_iter()
            .filter(is_range)
            .collect(),
        kubernetes: input.kubernetes.clone(),
    }
}

fn lifetime(snapshot: &Snapshot) -> NatLifetime {
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs());
    NatLifetime {
        outlived_s: seconds(snapshot.nat_lifetime.outlived),
        exceeded_s: seconds(snapshot.nat_lifetime.exceeded),
        keepalive_s: seconds(snapshot.keepalive),
    }
}

/// What becomes of packets of an address family. Only what is not answered is for want of a route.
fn family(input: &Input<'_>, family: Family) -> FamilyState {
    let found = match family {
        Family::V4 => input.snapshot.ipv4,
        Family::V6 => input.snapshot.ipv6,
    };
    match found {
        FamilyState::Silent | FamilyState::Unknown if input.absent.contains(&family) => FamilyState::None,
        FamilyState::Works | FamilyState::Silent | FamilyState::None | FamilyState::Unknown => found,
    }
}

/// Before the first map, the ranges of the mesh are not known.
fn is_range(range: &IpNet) -> bool {
    range.prefix_len() > 0
}

/// What a person should know: a mapping that only those beside the router reach comes last, for there is the relay.
fn warnings(input: &Input<'_>) -> Vec<String> {
    let mapped = input.port_mapping.mapped.filter(Mapped::is_behind_another_nat);
    let double = mapped.map(|mapped| {
        let address = mapped.external.ip();
        format!("the port is mapped at {address} only: there is another NAT before the router")
    });
    // What became of the pods' ranges is among the pod network's own problems.
    let pods = input.kubernetes.as_ref().map_or(&[][..], |kubernetes| &kubernetes.problems);
    let is_said = |route: &&RouteAnswer| {
        let prefix = route.prefix.to_string();
        pods.iter().any(|problem| problem.contains(&prefix))
    };
    let open = |route: &&RouteAnswer| route.state != RouteState::Approved && !is_said(route);
    let refused = input.advertised.iter().filter(open).map(|route| {
        let reason = route.reason.as_deref().unwrap_or("the coordinator does not say why");
        format!("the route {} is {}: {reason}", route.prefix, route.state)
    });
    let clock = clock_warning(input.clock_offset_ms);
    input.warnings.iter().chain(pods).cloned().chain(clock).chain(refused).chain(double).collect()
}

fn peer_status(input: &Input<'_>, node: &Node, peer: Option<&PeerSnapshot>) -> PeerStatus {
    let counters = peer.map_or((0, 0), |peer| (peer.tx_bytes, peer.rx_bytes));
    let path = peer.and_then(|peer| peer.path.as_ref());
    let reason = match peer {
        Some(peer) => explain::reason(input, node.name.as_str(), peer),
        None => (PathReason::Unknown, "not taken up yet".to_owned()),
    };
    PeerStatus {
        name: node.name.to_string(),
        node_key: node.node_key,
        public_key: node.public_key,
        addresses: node.addresses.clone(),
        allowed_ips: node.allowed_ips.clone(),
        online: peer.is_some_and(|peer| peer.online),
        path: path_status(input, path, reason),
        last_handshake: peer.and_then(|peer| peer.last_handshake).map(|at| input.timestamp(at)),
        tx_bytes: counters.0,
        rx_bytes: counters.1,
        loss: path.and_then(|path| path.loss).unwrap_or(0.0),
        loss_measured: path.is_some_and(|path| path.loss.is_some()),
        drops: peer.map_or_else(Default::default, |peer| drops(&peer.drops)),
    }
}

fn path_status(
    input: &Input<'_>,
    path: Option<&PathSnapshot>,
    (code, reason): (PathReason, String),
) -> PathStatus {
    let (kind, address, relay) = match path.map(|path| path.address) {
        Some(PathAddress::Direct(remote) | PathAddress::Punched { remote, .. }) => {
            (PathKind::Direct, Some(remote), None)
        }
        Some(PathAddress::Relay(relay)) => (PathKind::Relay, None, Some(input.relay_name(relay))),
        None => (PathKind::None, None, None),
    };
    PathStatus {
        kind,
        address,
        relay,
        rtt_ms: path.and_then(|path| path.rtt).map(millis),
        mtu: path.map(|path| path.mtu),
        since: path.and_then(|path| path.since).map(|at| input.timestamp(at)),
        code,
        reason,
    }
}

fn drops(counters: &DropCounters) -> BTreeMap<String, u64> {
    counters.iter().map(|(reason, count)| (reason.name().to_owned(), count)).collect()
}

/// What several engines had to hand over to each other of what came to them.
fn engines(input: &Input<'_>) -> Option<EnginesStatus> {
    let (handed_over, arrivals) = (input.snapshot.handed_over, input.counters.arrivals);
    (input.snapshot.engines > 1).then_some(EnginesStatus {
        count: input.snapshot.engines,
        tun_reads: arrivals.frames,
        tun_reads_handed_over: handed_over.frames,
        datagrams: arrivals.datagrams,
        datagrams_handed_over: handed_over.datagrams,
    })
}

/// What belongs to no peer: the engine's drops, the driver's and the port mapping's, whose names are all different.
fn own_drops(input: &Input<'_>) -> BTreeMap<String, u64> {
    let driver = input.counters.iter().map(|(counter, count)| (counter.name().to_owned(), count));
    let Counts { refused, garbage } = input.port_mapping.counts;
    let port_mapping = [("port-mapping-refused", refused), ("port-mapping-garbage", garbage)];
    let port_mapping = port_mapping.into_iter().filter(|(_, count)| *count > 0);
    let port_mapping = port_mapping.map(|(reason, count)| (reason.to_owned(), count));
    drops(&input.snapshot.drops).into_iter().chain(driver).chain(port_mapping).collect()
}

pub(super) fn millis(duration: Duration) -> f64 {
    // Microseconds are as fine as it gets; more digits would only be noise to read.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

impl Input<'_> {
    /// The wall-clock time of an instant, as text.
    pub(super) fn timestamp(&self, at: Instant) -> Timestamp {
        let wall = if at <= self.now { self.wall - (self.now - at) } else { self.wall + (at - self.now) };
        let rounded = wall.replace_nanosecond(wall.millisecond() as u32 * 1_000_000).unwrap_or(wall);
        rounded.format(&Rfc3339).expect("times near now have an RFC 3339 form")
    }

    /// A relay's name, that of the node that relays, or its number if the map has neither (any more).
    pub(super) fn relay_name(&self, id: RelayId) -> String {
        let relay = self.map.relays.iter().find(|relay| relay.id == id).map(|relay| relay.name.clone());
        let node = self.map.peers.iter().find(|node| node.id.0 == id.0).map(|node| node.name.to_string());
        relay.or(node).unwrap_or_else(|| format!("#{}", id.0))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use mesh_engine::{drops::DropReason, snapshot::HandedOver};
    use mesh_proto::{
        key::{NodeKey, PublicKey},
        netmap::{Mesh, NodeId, Relay, Version},
        status::{ConnectionState, ControlTransport, Mapping},
    };

    use super::*;
    use crate::{driver::Counter, portmap::Protocol};

    pub(in crate::view) fn node(id: u32, name: &str) -> Node {
        let address = std::net::IpAddr::from([10, 90, 0, u8::try_from(id).unwrap()]);
        Node {
            id: NodeId(id),
            name: name.parse().unwrap(),
            node_key: NodeKey([1; 32]),
            public_key: PublicKey([2; 32]),
            addresses: vec![address],
            allowed_ips: vec![address.into()],
            tags: vec![],
        }
    }

    pub(in crate::view) fn map() -> NetworkMap {
        NetworkMap {
            version: Version { epoch: 1, serial: 1 },
            mesh: Mesh {
                ipv4: "10.90.0.0/16".parse().unwrap(),
                ipv6: "fd00::/48".parse().unwrap(),
                coordinators: vec![],
            },
            this: node(1, "pi"),
            peers: vec![node(2, "office"), node(3, "country")],
            relays: vec![Relay { id: RelayId(0), name: "pi".into(), key: None, addresses: vec![] }],
        }
    }

    fn path(address: PathAddress, now: Instant) -> PathSnapshot {
        PathSnapshot {
            address,
            since: Some(now - Duration::from_secs(90)),
            rtt: Some(Duration::from_micros(18_234)),
            loss: Some(0.0),
            mtu: 1280,
            last_answer: Some(now),
        }
    }

    pub(in crate::view) fn snapshot(now: Instant) -> Snapshot {
        let peer = |id, address, reason: &str| PeerSnapshot {
            id: NodeId(id),
            online: true,
            path: Some(path(address, now)),
            code: PathReason::NoAnswer,
            reason: reason.into(),
            mapping: None,
            last_handshake: Some(now - Duration::from_secs(61)),
            tx_bytes: 123_456,
            rx_bytes: 52,
            drops: DropCounters::default(),
            paths: vec![path(address, now)],
            decisions: vec![],
        };
        let mut relayed = peer(2, PathAddress::Relay(RelayId(0)), "relayed: no direct path has answered");
        relayed.drops.count(DropReason::WrongSource);
        let mut drops = DropCounters::default();
        drops.count(DropReason::MalformedDatagram);
        let direct = PathAddress::Direct("198.51.100.7:51820".parse().unwrap());
        Snapshot {
            peers: vec![relayed, peer(3, direct, "direct: answered in 18 ms")],
            relays: vec![RelaySnapshot {
                id: RelayId(0),
                address: Some("203.0.113.1:7443".parse().unwrap()),
                up: true,
                rtt: Some(Duration::from_millis(8)),
            }],
            home: Some(RelayId(0)),
            candidates: vec![],
            mapping: Mapping::Eim,
            nat_lifetime: mesh_engine::snapshot::NatLifetime {
                outlived: Some(Duration::from_secs(100)),
                exceeded: Some(Duration::from_secs(160)),
            },
            keepalive: Some(Duration::from_secs(80)),
            ipv4: FamilyState::Works,
            ipv6: FamilyState::Silent,
            udp_blocked: false,
            drops,
            engines: 1,
            handed_over: HandedOver::default(),
        }
    }

    /// Has something done with a whole input around a snapshot.
    pub(in crate::view) fn input_of<T>(
        snapshot: &Snapshot,
        now: Instant,
        act: impl FnOnce(&Input<'_>) -> T,
    ) -> T {
        let map = map();
        let mut counters = Counters::default();
        counters.count(Counter::UdpUnreachable, 2);
        act(&Input {
            snapshot,
            counters: &counters,
            now,
            wall: OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap(),
            map: &map,
            coordinator: CoordinatorStatus {
                state: ConnectionState::Connected,
                address: Some("203.0.113.1:7443".into()),
                transport: Some(ControlTransport::Quic),
                rtt_ms: Some(8.5),
                error: None,
                outer_certificate: None,
            },
            clock_offset_ms: Some(12.0),
            interface: "mesh0",
            mtu: 1280,
            port_mapping: Report::default(),
            nat64: Vec::new(),
            absent: &[],
            ready: true,
            routes: &[],
            advertised: vec![],
            warnings: vec![],
            kubernetes: None,
        })
    }

    pub(crate) fn document() -> Status {
        let now = Instant::now() + Duration::from_secs(1000);
        input_of(&snapshot(now), now, status)
    }

    #[test]
    fn peers_are_sorted_and_their_paths_named() {
        let document = document();
        let names: Vec<_> = document.peers.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["country", "office"]);
        let [country, office] = &document.peers[..] else { panic!("two peers") };
        assert_eq!(country.path.kind, PathKind::Direct);
        assert_eq!(country.path.rtt_ms, Some(18.234));
        assert_eq!(country.path.since.as_deref(), Some("2027-01-15T07:58:30Z"));
        assert_eq!(country.last_handshake.as_deref(), Some("2027-01-15T07:58:59Z"));
        assert_eq!(office.path.relay.as_deref(), Some("pi"));
        assert_eq!(office.drops["wrong-source"], 1);
        let own = [("malformed-datagram", 1), ("udp-unreachable", 2)];
        assert_eq!(document.this.drops, own.map(|(reason, count)| (reason.to_owned(), count)).into());
        assert_eq!(document.this.relay.as_ref().unwrap().name, "pi");
        assert!(!document.this.nat.udp_blocked);
    }

    #[test]
    fn a_mapping_behind_another_nat_is_shown_as_such() {
        let mapped = Mapped { protocol: Protocol::NatPmp, external: "192.168.0.2:51820".parse().unwrap() };
        let counts = Counts { refused: 1, garbage: 0 };
        let port_mapping = Report { mapped: Some(mapped), counts };
        let now = Instant::now();
        let this =
            input_of(&snapshot(now), now, |input| status(&Input { port_mapping, ..input.clone() })).this;
        assert_eq!(this.drops["port-mapping-refused"], 1);
        assert_eq!(this.nat.port_mapping, PortMapping::NatPmp);
        assert_eq!(this.nat.mapped_address, Some("192.168.0.2:51820".parse().unwrap()));
        assert!(this.warnings.iter().any(|warning| warning.contains("another NAT")), "{:?}", this.warnings);
    }

    #[test]
    fn a_clock_that_is_far_off_is_among_the_warnings() {
        let now = Instant::now();
        let warnings = |clock_offset_ms| {
            input_of(&snapshot(now), now, |input| status(&Input { clock_offset_ms, ..input.clone() }))
                .this
                .warnings
        };
        assert_eq!(warnings(Some(500.0)), [] as [String; 0]);
        assert!(warnings(Some(7_200_000.0))[0].contains("2h behind the coordinator's"));
    }
}
