//! Two engines, a relay that is also their STUN observer, and links with a delay, in virtual time.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use mesh_engine::{
    Engine,
    batch::{Offload, RxTrain, TunFrame, TxArena, Via},
    command::Command,
    config::{Config, PeerConfig, PrivateKey, PunchLimits, RelayCarrier, RelayConfig},
    event::Event,
    snapshot::PeerSnapshot,
};
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    demux::{DatagramKind, classify},
    key::PublicKey,
    netmap::{NodeId, RelayId},
    relay::{ChannelId, Frame},
    stun,
};

use crate::{engines::Engines, frame::mesh_address_v6};

/// One way between the nodes.
pub(crate) const DIRECT: Duration = Duration::from_millis(20);
/// One way between a node and the relay.
pub(crate) const TO_RELAY: Duration = Duration::from_millis(15);

/// What an engine is lent at least for one frame, and as much for what it hands over to another.
const ARENA_LEN: usize = 2 * Engine::MAX_TUN_ROOM;
/// IPv4 and UDP header.
const IP_AND_UDP: usize = 28;

const RELAY: RelayId = RelayId(0);

thread_local! {
    /// How many engines the nodes of a new world have.
    pub(crate) static SHARDS: Cell<u32> = const { Cell::new(1) };
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    pub(crate) nodes: Vec<Node>,
    pub(crate) relay_up: bool,
    /// Whether datagrams between the nodes arrive.
    pub(crate) direct_up: bool,
    /// Largest IP packet between the nodes, and between them and the relay.
    pub(crate) direct_mtu: usize,
    pub(crate) relay_mtu: usize,
    /// Datagrams that went through, by kind: direct WireGuard, direct disco, relayed.
    pub(crate) direct_wireguard: usize,
    pub(crate) direct_disco: usize,
    pub(crate) relayed: usize,
    /// Everything that was sent: by whom, to whom, what.
    pub(crate) captured: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    flying: BTreeMap<(Instant, u64), Flying>,
    sent: u64,
    bound: BTreeMap<NodeId, SocketAddr>,
    /// What is added to the keys of each node.
    key_versions: [u8; 2],
    /// How many engines a node that is made has.
    shards: u32,
}

pub(crate) struct Node {
    pub(crate) engine: Engines,
    pub(crate) address: SocketAddr,
    pub(crate) received: Vec<Vec<u8>>,
    pub(crate) events: Vec<Event>,
    /// What the engine gave the TUN by itself.
    pub(crate) told: Vec<Vec<u8>>,
    pub(crate) wakeups: usize,
    /// What has arrived while nobody reads its sockets.
    unread: Option<Vec<Flying>>,
}

struct Flying {
    to: SocketAddr,
    from: SocketAddr,
    bytes: Vec<u8>,
}

pub(crate) fn relay_address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 7443))
}

pub(crate) fn address(node: u32) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, u8::try_from(node).unwrap()], 51820))
}

pub(crate) fn mesh_address(node: u32) -> [u8; 4] {
    [10, 90, 0, u8::try_from(node).unwrap()]
}

/// An IPv4 UDP packet of `len` payload bytes from one node to another, numbered.
pub(crate) fn packet(from: u32, to: u32, number: u8, len: usize) -> Vec<u8> {
    let total = u16::try_from(28 + len).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend(mesh_address(from));
    packet.extend(mesh_address(to));
    packet.extend([0, 1, 0, 2]);
    packet.extend(u16::try_from(8 + len).unwrap().to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(vec![number; len]);
    packet
}

fn private_key(node: u32, version: u8) -> PrivateKey {
    let mut bytes = [u8::try_from(node).unwrap(); 32];
    bytes[30] = version;
    bytes[31] = 0x40;
    PrivateKey(bytes.into())
}

fn public_key(node: u32, version: u8) -> PublicKey {
    let secret = x25519_dalek::StaticSecret::from(*private_key(node, version).0);
    PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
}

fn allowed_ips(node: u32) -> Vec<ipnet::IpNet> {
    let v6 = IpAddr::from(mesh_address_v6(node));
    vec![ipnet::IpNet::from(IpAddr::from(mesh_address(node))), v6.into()]
}

impl World {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let mut world = Self {
            now,
            start: now,
            nodes: Vec::new(),
            relay_up: true,
            direct_up: true,
            direct_mtu: 1500,
            relay_mtu: 1500,
            direct_wireguard: 0,
            direct_disco: 0,
            relayed: 0,
            captured: Vec::new(),
            flying: BTreeMap::new(),
            sent: 0,
            bound: BTreeMap::new(),
            key_versions: [0; 2],
            shards: SHARDS.get(),
        };
        for id in [1, 2] {
            world.nodes.push(world.node(id));
        }
        world
    }

    /// Makes a node as after its agent's start.
    pub(crate) fn node(&self, id: u32) -> Node {
        let config = Config {
            id: NodeId(id),
            private_key: private_key(id, self.key_versions[index(id)]),
            addresses: vec![mesh_address(id).into()],
            allowed_ips: allowed_ips(id),
            mtu: 1420,
            punch: PunchLimits::default(),
            real_time: 0,
        };
        let mut engine = Engines::new(&config, self.shards, [u8::try_from(id).unwrap(); 32], self.now);
        engine.handle_command(&self.peers_of(id), self.now, &mut TxArena::new(ARENA_LEN));
        Node {
            engine,
            address: address(id),
            received: Vec::new(),
            events: Vec::new(),
            told: Vec::new(),
            wakeups: 0,
            unread: None,
        }
    }

    /// Restarts a node with a new WireGuard key, and tells the other one.
    pub(crate) fn change_key(&mut self, id: u32) {
        self.key_versions[index(id)] += 1;
        self.nodes[index(id)] = self.node(id);
        self.open_relay(id);
        self.set_candidates(id);
        self.command(3 - id, self.peers_of(3 - id));
    }

    fn peers_of(&self, id: u32) -> Command {
        let peer = 3 - id;
        let peer = PeerConfig {
            id: NodeId(peer),
            public_key: public_key(peer, self.key_versions[index(peer)]),
            allowed_ips: allowed_ips(peer),
        };
        Command::SetPeers(vec![peer])
    }

    pub(crate) fn command(&mut self, node: u32, command: Command) {
        let now = self.now;
        let mut arena = TxArena::new(ARENA_LEN);
        self.nodes[index(node)].engine.handle_command(&command, now, &mut arena);
        self.launch(node, &arena);
        self.drain(node);
    }

    /// Opens relay channels and tells everyone everything, as a coordinator would.
    pub(crate) fn introduce(&mut self) {
        for id in [1, 2] {
            self.open_relay(id);
            self.set_candidates(id);
        }
        for id in [1, 2] {
            self.tell_of_peer(id);
        }
    }

    pub(crate) fn open_relay(&mut self, id: u32) {
        let relay = RelayConfig {
            id: RELAY,
            carrier: RelayCarrier::Udp(vec![relay_address()]),
            channel: ChannelId(u64::from(id)),
            key: [7; 32],
            bind_lifetime: Duration::from_secs(900),
        };
        self.command(id, Command::SetRelays(vec![relay]));
    }

    pub(crate) fn set_candidates(&mut self, id: u32) {
        self.command(id, Command::SetCandidates(vec![host(id)]));
    }

    pub(crate) fn tell_of_peer(&mut self, id: u32) {
        let state = Command::PeerState {
            id: NodeId(3 - id),
            online: true,
            candidates: vec![host(3 - id)],
            relays: vec![RELAY],
            home: None,
            observed: None,
        };
        self.command(id, state);
    }

    /// Hands a node's TUN a packet for the other node.
    pub(crate) fn send(&mut self, from: u32, packet: &[u8]) {
        self.send_frame(from, TunFrame { packet, offload: Offload::None });
    }

    /// Hands a node's TUN a frame for the other node.
    pub(crate) fn send_frame(&mut self, from: u32, frame: TunFrame<'_>) {
        let now = self.now;
        let mut arena = TxArena::new(ARENA_LEN);
        self.nodes[index(from)].engine.handle_tun(frame, now, &mut arena);
        self.launch(from, &arena);
        self.drain(from);
    }

    /// Lets time pass.
    pub(crate) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let datagram = self.flying.keys().next().map(|(at, _)| *at);
            let wakeup = self.nodes.iter().filter_map(|node| node.engine.poll_timeout()).map(|w| w.at).min();
            let next = datagram.into_iter().chain(wakeup).min().filter(|at| *at <= end);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let flying = entry.remove();
                self.arrive(flying);
            }
            for id in [1, 2] {
                let now = self.now;
                let node = &mut self.nodes[index(id)];
                if node.engine.poll_timeout().is_some_and(|wakeup| wakeup.at <= now) {
                    node.wakeups += 1;
                    let mut arena = TxArena::new(ARENA_LEN);
                    node.engine.handle_timeout(now, &mut arena);
                    let later = node.engine.poll_timeout().is_none_or(|wakeup| wakeup.at > now);
                    assert!(later, "handling a timeout moves the next one forward");
                    self.launch(id, &arena);
                    self.drain(id);
                }
            }
        }
        self.now = end;
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// What a node thinks of the other one.
    pub(crate) fn peer(&self, node: u32) -> PeerSnapshot {
        self.nodes[index(node)].engine.snapshot(self.now).peers.remove(0)
    }

    /// Delivers bytes to a node as if they came from an address.
    pub(crate) fn inject(&mut self, node: u32, from: SocketAddr, bytes: Vec<u8>) {
        let to = self.nodes[index(node)].address;
        self.arrive(Flying { to, from, bytes });
    }

    fn drain(&mut self, id: u32) {
        let now = self.now;
        let mut more = true;
        while more {
            let mut arena = TxArena::new(ARENA_LEN);
            more = self.nodes[index(id)].engine.poll_transmit(now, &mut arena);
            self.launch(id, &arena);
        }
        let node = &mut self.nodes[index(id)];
        node.events.extend(std::iter::from_fn(|| node.engine.poll_event()));
        node.told.extend(std::iter::from_fn(|| node.engine.poll_packet()));
        assert_eq!(node.engine.poll_sockets(), None, "nothing is punched here");
    }

    fn launch(&mut self, from: u32, arena: &TxArena) {
        let from = self.nodes[index(from)].address;
        for transmit in arena.transmits() {
            let Via::Udp { remote, .. } = transmit.via else { panic!("no streams here") };
            for bytes in transmit.bytes.chunks(transmit.stride) {
                self.fly(from, remote, bytes.to_vec());
            }
        }
    }

    fn fly(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.captured.push((from, to, bytes.clone()));
        let relay = relay_address();
        let (delay, up, mtu) = match from == relay || to == relay {
            true => (TO_RELAY, self.relay_up, self.relay_mtu),
            false => (DIRECT, self.direct_up, self.direct_mtu),
        };
        if up && bytes.len() + IP_AND_UDP <= mtu {
            self.sent += 1;
            self.flying.insert((self.now + delay, self.sent), Flying { to, from, bytes });
        }
    }

    /// Leaves what arrives at a node in its sockets, or hands it over.
    pub(crate) fn set_away(&mut self, id: u32, is_away: bool) {
        let unread = std::mem::replace(&mut self.nodes[index(id)].unread, is_away.then(Vec::new));
        unread.into_iter().flatten().for_each(|flying| self.arrive(flying));
    }

    fn arrive(&mut self, flying: Flying) {
        let node = self.nodes.iter_mut().find(|node| node.address == flying.to);
        if let Some(unread) = node.and_then(|node| node.unread.as_mut()) {
            return unread.push(flying);
        }
        let Flying { to, from, mut bytes } = flying;
        if to == relay_address() {
            return self.relay(from, &bytes);
        }
        let Some(found) = self.nodes.iter().position(|node| node.address == to) else { return };
        if self.nodes.iter().any(|node| node.address == from) {
            match classify(&bytes) {
                DatagramKind::WireGuard => self.direct_wireguard += 1,
                _ => self.direct_disco += 1,
            }
        }
        let id = u32::try_from(found).unwrap() + 1;
        let now = self.now;
        let mut arena = TxArena::new(ARENA_LEN);
        let stride = bytes.len();
        let via = Via::Udp { remote: from, local: None };
        let train = RxTrain { via, stride, bytes: &mut bytes };
        let node = &mut self.nodes[found];
        let packets = node.engine.handle_datagrams(train, now, &mut arena);
        node.received.extend(packets);
        self.launch(id, &arena);
        self.drain(id);
    }

    fn relay(&mut self, from: SocketAddr, bytes: &[u8]) {
        if let Ok(stun::Message::BindingRequest { transaction }) = stun::Message::decode(bytes) {
            let answer = stun::Message::BindingSuccess { transaction, mapped: from };
            return self.fly(relay_address(), from, answer.encode());
        }
        match Frame::decode(bytes) {
            Ok(Frame::Bind { channel, counter, .. }) => {
                self.bound.insert(NodeId(u32::try_from(channel.0).unwrap()), from);
                let bound = Frame::Bound { channel, counter, observed: from };
                self.fly(relay_address(), from, bound.encode());
            }
            Ok(Frame::Data { peer, channel, payload }) => {
                let sender = NodeId(u32::try_from(channel.0).unwrap());
                if self.bound.get(&sender) != Some(&from) {
                    return;
                }
                self.relayed += 1;
                if let Some(to) = self.bound.get(&peer).copied() {
                    let channel = ChannelId(u64::from(peer.0));
                    self.fly(relay_address(), to, Frame::Data { peer: sender, channel, payload }.encode());
                }
            }
            other => panic!("no frame for a relay: {other:?}"),
        }
    }

    /// Addresses that a node's engine was told of or has found.
    pub(crate) fn candidates(&self, node: u32) -> BTreeSet<SocketAddr> {
        let snapshot = self.nodes[index(node)].engine.snapshot(self.now);
        snapshot.candidates.iter().map(|candidate| candidate.address).collect()
    }
}

fn index(node: u32) -> usize {
    node as usize - 1
}

fn host(node: u32) -> Candidate {
    Candidate { address: address(node), kind: CandidateKind::Host }
}
