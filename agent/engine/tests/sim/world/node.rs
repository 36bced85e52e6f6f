//! A node: an engine and what its driver and its control client would keep for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use mesh_engine::{
    batch::{SocketId, TxArena, Via},
    command::Command,
    config::{Config, PeerConfig, PrivateKey, PunchLimits, RelayConfig},
};
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    control::PeerState,
    key::PublicKey,
    netmap::{NodeId, RelayId},
};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::disk::Disk;
use crate::{engines::Engines, net::HostId, rng::Rng};

/// UDP port of every node's socket.
pub(crate) const NODE_PORT: u16 = 51820;
/// Ports of sockets beside the main one begin here.
const FIRST_SOCKET_PORT: u16 = 20_000;
/// They begin anew after this many.
const SOCKET_PORTS: u32 = 30_000;
/// Largest inner packet.
pub(crate) const MTU: u16 = 1420;
/// Size of the arena that a node's engine is lent.
const ARENA_LEN: usize = 512 * 1024;

/// Of 1000 nodes, those that offer the mesh's own addresses as candidates.
const CARELESS: u32 = 200;
/// A node is busy for this long after an inner packet: that is how long its engine keeps paths probed.
const BUSY: Duration = Duration::from_secs(20);

/// A node of the mesh.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) host: HostId,
    pub(crate) address: Ipv4Addr,
    /// The ranges behind the node, like pod networks, as its engine was told.
    pub(crate) ranges: Vec<IpNet>,
    /// Whether its agent takes the mesh's own addresses for addresses of the host's.
    careless: bool,
    pub(crate) public_key: PublicKey,
    pub(crate) engine: Option<Engines>,
    /// How many engines its next process has.
    pub(crate) shards: u32,
    pub(crate) arena: TxArena,
    /// When the next Wake event of this node is due, if one is queued.
    pub(crate) armed: Option<Duration>,
    /// What the engine was told of its peers. Who they are is kept on disk as it is.
    pub(crate) peers: Vec<PeerConfig>,
    pub(crate) states: BTreeMap<NodeId, PeerState>,
    /// What it keeps over restarts beside its peers' names and keys.
    pub(crate) disk: Disk,
    pub(crate) relays: BTreeMap<RelayId, RelayConfig>,
    /// The nearest of them, as the engine says.
    pub(crate) home: Option<RelayId>,
    /// Whether its operator lets it relay for others.
    pub(crate) lends: bool,
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) control: Control,
    pub(crate) meter: Meter,
    /// What its engine may do to punch.
    pub(crate) punch: PunchLimits,
    /// What its host's clock says when a process starts, in milliseconds.
    pub(crate) real_time: u64,
    /// By how much that clock is wrong.
    pub(crate) clock_offset: i64,
    /// Whether its host sleeps, since when, and for how long it did before.
    pub(crate) asleep: bool,
    pub(crate) asleep_since: Duration,
    pub(crate) slept: Duration,
    /// Whether UDP does not get in or out where it is.
    pub(crate) blocked: bool,
    /// Counts its processes.
    pub(crate) life: u64,
    /// Its sockets beside the main one, by port.
    pub(crate) sockets: BTreeMap<u16, SocketId>,
    private_key: [u8; 32],
}

/// A node's connection to the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Control {
    /// Counts connections: what belongs to an older one is dead.
    pub(crate) connection: u64,
    pub(crate) connected: bool,
    pub(crate) backoff: Duration,
}

/// What a node did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter {
    /// The virtual second that is counted, and the timeouts handled in it.
    pub(crate) second: u64,
    pub(crate) timeouts: u32,
    /// All timeouts handled.
    pub(crate) all_timeouts: u64,
    /// Most timeouts handled in one second.
    pub(crate) most_timeouts: u32,
    /// Datagrams to peers, directly or through a relay.
    pub(crate) to_peers: u64,
    /// Of those, disco messages that went directly, and where to.
    pub(crate) disco: u64,
    pub(crate) probed: BTreeSet<IpAddr>,
    /// Inner packets that applications gave it.
    pub(crate) packets: u64,
    /// Data messages to peers with something in them.
    pub(crate) data: u64,
    /// The time in which it had traffic, and until when it has.
    pub(crate) busy: Duration,
    pub(crate) busy_until: Duration,
    /// Bytes sent, with their headers.
    pub(crate) bytes: u64,
    /// STUN requests and relay binds.
    pub(crate) upkeep: u64,
    /// Changes of a peer's primary path.
    pub(crate) path_changes: u64,
}

/// What is given to an engine.
#[derive(Debug)]
pub(crate) enum Input {
    Tun(Vec<u8>),
    Datagram { via: Via, bytes: Vec<u8> },
    Timeout,
    Command(Command),
}

impl Node {
    /// Makes a node that is not started.
    pub(crate) fn new(number: u32, host: HostId, rng: &mut Rng) -> Self {
        let private_key: [u8; 32] = rng.bytes();
        let public_key = x25519_dalek::PublicKey::from(&StaticSecret::from(private_key));
        let low = u8::try_from(number).expect("a simulation has fewer than 256 nodes");
        let range = format!("10.244.{low}.0/24").parse().expect("a prefix");
        let careless = rng.chance(CARELESS);
        Self {
            id: NodeId(number),
            host,
            address: Ipv4Addr::new(10, 90, 0, low),
            ranges: vec![range],
            careless,
            public_key: PublicKey(public_key.to_bytes()),
            engine: None,
            shards: 1,
            arena: TxArena::new(ARENA_LEN),
            armed: None,
            peers: Vec::new(),
            states: BTreeMap::new(),
            disk: Disk::default(),
            relays: BTreeMap::new(),
            home: None,
            lends: false,
            candidates: Vec::new(),
            control: Control { connection: 0, connected: false, backoff: Duration::ZERO },
            meter: Meter::default(),
            punch: PunchLimits::default(),
            real_time: 0,
            clock_offset: 0,
            asleep: false,
            asleep_since: Duration::ZERO,
            slept: Duration::ZERO,
            blocked: false,
            life: 0,
            sockets: BTreeMap::new(),
            private_key,
        }
    }

    /// Describes this node to others, with these ranges.
    pub(crate) fn as_peer(&self, ranges: &[IpNet]) -> PeerConfig {
        PeerConfig { id: self.id, public_key: self.public_key, allowed_ips: self.allowed_ips_with(ranges) }
    }

    /// Returns what this node owns, as its engine was told.
    pub(crate) fn allowed_ips(&self) -> Vec<IpNet> {
        self.allowed_ips_with(&self.ranges)
    }

    /// Returns what this node owns if these are its ranges.
    pub(crate) fn allowed_ips_with(&self, ranges: &[IpNet]) -> Vec<IpNet> {
        let address = IpNet::from(IpAddr::V4(self.address));
        std::iter::once(address).chain(ranges.iter().copied()).collect()
    }

    /// Returns what a peer owns, as this node's engine was told.
    pub(crate) fn allowed_ips_of(&self, peer: NodeId) -> &[IpNet] {
        self.peers.iter().find(|config| config.id == peer).map_or(&[], |config| &config.allowed_ips)
    }

    /// Makes an engine for this node, as a process that starts does.
    pub(crate) fn make_engine(&self, seed: [u8; 32], now: Instant) -> Engines {
        let config = Config {
            id: self.id,
            private_key: PrivateKey(Zeroizing::new(self.private_key)),
            addresses: vec![IpAddr::V4(self.address)],
            allowed_ips: self.allowed_ips(),
            mtu: MTU,
            punch: self.punch,
            real_time: self.real_time,
        };
        Engines::new(&config, self.shards, seed, now)
    }

    /// Returns the candidates that the host's interfaces give.
    pub(crate) fn host_candidates(&self, addresses: impl Iterator<Item = IpAddr>) -> Vec<Candidate> {
        let inside = self.careless.then(|| self.allowed_ips().into_iter().map(|net| net.addr()));
        addresses
            .chain(inside.into_iter().flatten())
            .map(|ip| Candidate { address: SocketAddr::new(ip, NODE_PORT), kind: CandidateKind::Host })
            .collect()
    }

    /// Returns the port of a socket beside the main one, which is opened if it is not open.
    pub(crate) fn open_socket(&mut self, socket: SocketId) -> u16 {
        let offset = u16::try_from(socket.0 % SOCKET_PORTS).expect("few ports");
        self.sockets.insert(FIRST_SOCKET_PORT + offset, socket);
        FIRST_SOCKET_PORT + offset
    }

    /// Returns what a datagram from an address came through, if anything listens at the port.
    pub(crate) fn listener(&self, port: u16, remote: SocketAddr) -> Option<Via> {
        match self.sockets.get(&port) {
            Some(socket) => Some(Via::Punched { socket: *socket, remote }),
            None => (port == NODE_PORT).then_some(Via::Udp { remote, local: None }),
        }
    }

    /// Notes an inner packet.
    pub(crate) fn note_traffic(&mut self, now: Duration) {
        let meter = &mut self.meter;
        meter.busy += now + BUSY - meter.busy_until.max(now);
        meter.busy_until = now + BUSY;
    }

    /// Counts a handled timeout and returns how many there were in this second.
    pub(crate) fn count_timeout(&mut self, now: Duration) -> u32 {
        if self.meter.second != now.as_secs() {
            self.meter.second = now.as_secs();
            self.meter.timeouts = 0;
        }
        self.meter.timeouts += 1;
        self.meter.all_timeouts += 1;
        self.meter.most_timeouts = self.meter.most_timeouts.max(self.meter.timeouts);
        self.meter.timeouts
    }
}
