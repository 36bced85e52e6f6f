//! A hub and its spokes: engines with sessions and direct paths, joined by function calls.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use mesh_engine::{
    Engine,
    batch::{Offload, RxBatch, RxTrain, SegmentProtocol, TunFrame, TxArena, Via},
    command::Command,
    config::{Config, PeerConfig, PrivateKey, PunchLimits},
};
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    key::PublicKey,
    netmap::NodeId,
};

/// Segments of a superpacket: as many as TCP fills 64 KiB with.
pub(crate) const SEGMENTS: usize = 45;
const MTU: u16 = 1420;
const IPV4_HEADER_LEN: usize = 20;
/// TCP's header with timestamps.
const TCP_HEADER_LEN: usize = 32;
/// How long one step of virtual time is while sessions are made.
const STEP: Duration = Duration::from_millis(10);
/// How many steps a session and its path may take.
const MAX_STEPS: usize = 1000;
/// The hub's number; spokes are numbered from 1.
const HUB: u32 = 0;

pub(crate) struct Star {
    hub: Engine,
    spokes: Vec<Engine>,
    now: Instant,
    /// The spoke that sends the next train.
    turn: usize,
}

/// Datagrams of one spoke.
pub(crate) struct Train {
    from: SocketAddr,
    stride: usize,
    bytes: Vec<u8>,
}

impl Star {
    /// Makes engines that have all talked.
    pub(crate) fn new(spokes: usize) -> Self {
        let now = Instant::now();
        let numbers = 1..=u32::try_from(spokes).expect("there are few");
        let mut star = Self {
            hub: engine(HUB, now),
            spokes: numbers.clone().map(|id| engine(id, now)).collect(),
            now,
            turn: 0,
        };
        star.hub.handle_command(Command::SetPeers(numbers.clone().map(peer).collect()), now);
        star.hub.handle_command(Command::SetCandidates(vec![candidate(HUB)]), now);
        for id in numbers {
            star.introduce(id);
        }
        star
    }

    /// One packet for each spoke.
    pub(crate) fn packets_to_spokes(&self, len: usize) -> Vec<Vec<u8>> {
        (1..).take(self.spokes.len()).map(|spoke| packet(HUB, spoke, len)).collect()
    }

    /// A superpacket for the first spoke.
    pub(crate) fn superpacket(&self, segment_len: u16) -> Vec<u8> {
        let headers = IPV4_HEADER_LEN + TCP_HEADER_LEN;
        let mut packet = packet(HUB, 1, headers + SEGMENTS * usize::from(segment_len));
        packet[9] = 6;
        packet[IPV4_HEADER_LEN + 12] = u8::try_from(TCP_HEADER_LEN / 4).expect("it is 8") << 4;
        packet[IPV4_HEADER_LEN + 13] = 0x10;
        packet
    }

    /// Seals a packet into the arena, which is emptied when it is full.
    pub(crate) fn seal(&mut self, packet: &[u8], arena: &mut TxArena) {
        self.seal_frame(TunFrame { packet, offload: Offload::None }, arena);
    }

    /// Cuts and seals a superpacket.
    pub(crate) fn seal_superpacket(&mut self, packet: &[u8], segment_len: u16, arena: &mut TxArena) {
        let start = IPV4_HEADER_LEN as u16;
        let offload = Offload::Segment { protocol: SegmentProtocol::Tcp, segment_len, start, offset: 16 };
        self.seal_frame(TunFrame { packet, offload }, arena);
    }

    /// Seals a train for the hub; spokes take turns.
    pub(crate) fn train_to_hub(&mut self, len: usize, count: usize) -> Train {
        self.turn = (self.turn + 1) % self.spokes.len();
        let id = u32::try_from(self.turn + 1).expect("there are few");
        let packet = packet(id, HUB, len);
        let mut arena = TxArena::new(Engine::MAX_TUN_ROOM * 2);
        for _ in 0..count {
            let frame = TunFrame { packet: &packet, offload: Offload::None };
            self.spokes[self.turn].handle_tun(frame, self.now, &mut arena);
        }
        let mut trains = arena.transmits();
        let train = trains.next().expect("the spoke has a session and a path");
        assert!(trains.next().is_none(), "equal packets for one destination are one train");
        Train { from: address(id), stride: train.stride, bytes: train.bytes.to_vec() }
    }

    /// Opens a train at the hub.
    pub(crate) fn open(&mut self, train: &mut Train, batch: &mut RxBatch) {
        let via = Via::Udp { remote: train.from, local: None };
        let mut train = RxTrain { via, stride: train.stride, bytes: &mut train.bytes };
        // Data asks for no answer: there is nothing to lay out.
        self.hub.handle_datagrams(&mut train, self.now, &mut TxArena::new(0), batch);
    }

    fn seal_frame(&mut self, frame: TunFrame<'_>, arena: &mut TxArena) {
        if arena.room() < Engine::MAX_TUN_ROOM {
            arena.clear();
        }
        self.hub.handle_tun(frame, self.now, arena);
        debug_assert!(!arena.is_empty(), "the hub has sessions and paths");
    }

    /// Tells the hub and a spoke of each other and waits until data goes both ways.
    fn introduce(&mut self, id: u32) {
        let spoke = &mut self.spokes[id as usize - 1];
        spoke.handle_command(Command::SetPeers(vec![peer(HUB)]), self.now);
        spoke.handle_command(Command::SetCandidates(vec![candidate(id)]), self.now);
        spoke.handle_command(online(HUB), self.now);
        self.hub.handle_command(online(id), self.now);
        for _ in 0..MAX_STEPS {
            let there = self.carry(HUB, id);
            let back = self.carry(id, HUB);
            if there && back {
                return;
            }
            self.now += STEP;
            self.hub.handle_timeout(self.now);
            self.spokes[id as usize - 1].handle_timeout(self.now);
        }
        panic!("spoke {id} has no session within {MAX_STEPS} steps");
    }

    /// Sends one packet and everything that follows from it; returns whether it arrived.
    fn carry(&mut self, from: u32, to: u32) -> bool {
        let spoke = from.max(to);
        let mut flying = VecDeque::new();
        let mut arena = TxArena::new(Engine::MAX_TUN_ROOM * 2);
        let packet = packet(from, to, 64);
        let frame = TunFrame { packet: &packet, offload: Offload::None };
        let now = self.now;
        self.engine(from).handle_tun(frame, now, &mut arena);
        launch(from, &arena, &mut flying);
        let mut arrived = false;
        loop {
            for id in [HUB, spoke] {
                arena.clear();
                while self.engine(id).poll_transmit(now, &mut arena) {}
                launch(id, &arena, &mut flying);
                while self.engine(id).poll_event().is_some() {}
            }
            let Some((from, mut bytes)) = flying.pop_front() else { return arrived };
            let id = if from == HUB { spoke } else { HUB };
            let via = Via::Udp { remote: address(from), local: None };
            let stride = bytes.len();
            let mut batch = RxBatch::default();
            arena.clear();
            let mut train = RxTrain { via, stride, bytes: &mut bytes };
            self.engine(id).handle_datagrams(&mut train, now, &mut arena, &mut batch);
            launch(id, &arena, &mut flying);
            arrived |= id == to && batch.packets().iter().any(|range| bytes[range.clone()] == packet);
        }
    }

    fn engine(&mut self, id: u32) -> &mut Engine {
        match id {
            HUB => &mut self.hub,
            spoke => &mut self.spokes[spoke as usize - 1],
        }
    }
}

fn launch(from: u32, arena: &TxArena, flying: &mut VecDeque<(u32, Vec<u8>)>) {
    for transmit in arena.transmits() {
        flying.extend(transmit.bytes.chunks(transmit.stride).map(|bytes| (from, bytes.to_vec())));
    }
}

fn engine(id: u32, now: Instant) -> Engine {
    let config = Config {
        id: NodeId(id),
        private_key: private_key(id),
        addresses: vec![mesh_address(id).into()],
        allowed_ips: vec![IpNet::from(IpAddr::V4(mesh_address(id)))],
        mtu: MTU,
        punch: PunchLimits::default(),
        real_time: 0,
    };
    Engine::new(config, [id.to_le_bytes()[0]; 32], now)
}

fn private_key(id: u32) -> PrivateKey {
    let mut bytes = [0x40; 32];
    // Not at an end, where X25519 ignores some bits.
    bytes[8..12].copy_from_slice(&id.to_le_bytes());
    PrivateKey(bytes.into())
}

fn peer(id: u32) -> PeerConfig {
    let secret = x25519_dalek::StaticSecret::from(*private_key(id).0);
    PeerConfig {
        id: NodeId(id),
        public_key: PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes()),
        allowed_ips: vec![IpNet::from(IpAddr::V4(mesh_address(id)))],
    }
}

fn candidate(id: u32) -> Candidate {
    Candidate { address: address(id), kind: CandidateKind::Host }
}

fn online(id: u32) -> Command {
    Command::PeerState {
        id: NodeId(id),
        online: true,
        candidates: vec![candidate(id)],
        relays: vec![],
        home: None,
        observed: None,
    }
}

/// An address that an underlay could have: 198.18.0.0/15 is for benches.
fn address(id: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from_bits(0xc612_0001 + id), 51820))
}

fn mesh_address(id: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a5a_0001 + id)
}

/// An IPv4 UDP packet of this length, all in all.
fn packet(from: u32, to: u32, len: usize) -> Vec<u8> {
    let total = u16::try_from(len).expect("a packet is below 64 KiB").to_be_bytes();
    let mut packet = vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend(mesh_address(from).octets());
    packet.extend(mesh_address(to).octets());
    packet.resize(len, 1);
    packet
}
