//! Entry points of the fuzz targets: what comes from the TUN, from strangers, and from a peer that means ill.
//!
//! A target takes any bytes and must not panic, and what the engine gives back must be in bounds. The corpus lies in
//! `agent/engine/fuzz/corpus/<target>/`; `cargo test -p mesh-engine` replays it, and replays it mutated. How to look
//! for more: see `proto/src/fuzz.rs`, whose shape this has.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    netmap::{NodeId, RelayId},
    relay::{ChannelId, Frame},
};
use zeroize::Zeroizing;

use crate::{
    Engine,
    batch::{Offload, RxBatch, RxTrain, SegmentProtocol, TunFrame, TxArena, Via},
    command::Command,
    config::{Config, PeerConfig, PrivateKey, PunchLimits, RelayCarrier, RelayConfig},
    packet::{Header, icmp},
    session::{Keys, OVERHEAD, Session},
};

/// Longest file of the corpus, in bytes.
pub const MAX_INPUT_LEN: usize = 1024;

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target, by the name of its binary and of its corpus.
pub const TARGETS: [(&str, Target); 3] = [("datagrams", datagrams), ("inner", inner), ("tun", tun)];

/// Room for everything that an engine may send here in one step.
const ARENA_LEN: usize = Engine::MAX_TUN_ROOM;

/// Hands an engine datagrams: `from (1) | length (2) | bytes`, one behind the other. Time passes between them.
pub fn datagrams(data: &[u8]) {
    let mut world = World::new();
    let mut rest = data;
    while let Some((&[from, high, low], tail)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes([high, low])).min(tail.len());
        let (datagram, tail) = tail.split_at(len);
        let via = match from % 3 {
            0 => udp(relay_address()),
            1 => udp(peer_address()),
            _ => Via::Stream(RelayId(1)),
        };
        world.receive(via, datagram);
        world.now += Duration::from_millis(u64::from(from) * 100);
        world.engine.handle_timeout(world.now);
        world.drain();
        rest = tail;
    }
}

/// Hands an engine any bytes as the inner packet of an authentic peer.
pub fn inner(data: &[u8]) {
    let mut world = World::new();
    let mut session = world.connect();
    let mut sealed = vec![0; data.len() + OVERHEAD];
    let len = session.seal(data, &mut sealed, world.now).expect("the handshake was completed");
    for packet in world.receive(udp(peer_address()), &sealed[..len]) {
        let header = Header::parse(&packet).expect("only packets are delivered");
        assert_eq!(header.len, packet.len());
        assert_eq!(header.source, PEER);
        assert_eq!(header.destination, OWN);
    }
}

/// Hands an engine with a session any bytes as a frame from the TUN: `offload (6) | packet`.
pub fn tun(data: &[u8]) {
    let Some((&[kind, a, b, c, d, offset], packet)) = data.split_first_chunk() else { return };
    let (first, second, offset) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]), offset.into());
    let offload = match kind % 4 {
        0 => Offload::None,
        1 => Offload::Checksum { start: first, offset },
        2 => segments(SegmentProtocol::Tcp, first, second, offset),
        _ => segments(SegmentProtocol::Udp, first, second, offset),
    };
    if let Some(answer) = icmp::too_big(packet, 1280) {
        assert_eq!(Header::parse(&answer).map(|header| header.len), Some(answer.len()));
    }
    let mut world = World::new();
    world.engine.handle_tun(TunFrame { packet, offload }, world.now, &mut TxArena::new(ARENA_LEN));
    world.connect();
    let mut out = TxArena::new(ARENA_LEN);
    world.engine.handle_tun(TunFrame { packet, offload }, world.now, &mut out);
    for transmit in out.transmits() {
        assert!(transmit.bytes.len() >= OVERHEAD && transmit.stride <= transmit.bytes.len());
    }
}

const OWN: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 90, 0, 1));
const PEER: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 90, 0, 2));

/// An engine with one peer, whose keys are known here.
struct World {
    engine: Engine,
    own_keys: Keys,
    peer_keys: Keys,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let key = |byte| PrivateKey(Zeroizing::new([byte; 32]));
        let (own_keys, peer_keys) = (Keys::new(&key(1), now), Keys::new(&key(2), now));
        let config = Config {
            id: NodeId(1),
            private_key: key(1),
            addresses: vec![OWN],
            allowed_ips: vec![OWN.into()],
            mtu: 1280,
            punch: PunchLimits::default(),
            real_time: 0,
        };
        let mut engine = Engine::new(config, [0; 32], now);
        let peer =
            PeerConfig { id: NodeId(2), public_key: peer_keys.public(), allowed_ips: vec![PEER.into()] };
        let relay = |id, carrier| RelayConfig {
            id,
            carrier,
            channel: ChannelId(1),
            key: [0; 32],
            bind_lifetime: Duration::from_secs(900),
        };
        let candidate = Candidate { address: peer_address(), kind: CandidateKind::Host };
        let commands = [
            Command::SetPeers(vec![peer]),
            Command::SetObservers(vec![relay_address()]),
            Command::SetRelays(vec![
                relay(RelayId(0), RelayCarrier::Udp(vec![relay_address()])),
                relay(RelayId(1), RelayCarrier::Stream),
            ]),
            Command::PeerState {
                id: NodeId(2),
                online: true,
                candidates: vec![candidate],
                relays: vec![RelayId(0)],
                home: None,
                observed: None,
            },
        ];
        for command in commands {
            engine.handle_command(command, now);
        }
        let mut world = Self { engine, own_keys, peer_keys, now };
        let bound = Frame::Bound {
            channel: ChannelId(1),
            counter: 1,
            observed: SocketAddr::from(([192, 0, 2, 9], 9)),
        };
        world.receive(udp(relay_address()), &bound.encode());
        world
    }

    /// Makes a session between the peer and the engine.
    fn connect(&mut self) -> Session {
        let mut session = Session::new(&self.peer_keys, &self.own_keys.public(), 7, self.now);
        let initiation = session.initiate(self.now).expect("an initiation can be made at any time");
        let mut reply = Vec::new();
        for answer in self.exchange(udp(peer_address()), &initiation) {
            if answer.first() == Some(&2) {
                session
                    .handle_handshake(peer_address().ip(), &answer, self.now, &mut reply)
                    .expect("the engine answers what is right");
            }
        }
        self.receive(udp(peer_address()), &reply);
        session
    }

    /// Hands the engine a datagram; returns the inner packets that it held.
    fn receive(&mut self, via: Via, datagram: &[u8]) -> Vec<Vec<u8>> {
        let mut bytes = datagram.to_vec();
        let mut batch = RxBatch::default();
        let mut train = RxTrain { via, stride: bytes.len(), bytes: &mut bytes };
        self.engine.handle_datagrams(&mut train, self.now, &mut TxArena::new(ARENA_LEN), &mut batch);
        self.drain();
        batch.packets().iter().map(|range| bytes[range.clone()].to_vec()).collect()
    }

    /// Hands the engine a datagram; returns what it sends then.
    fn exchange(&mut self, via: Via, datagram: &[u8]) -> Vec<Vec<u8>> {
        let mut bytes = datagram.to_vec();
        let mut out = TxArena::new(ARENA_LEN);
        let mut train = RxTrain { via, stride: bytes.len(), bytes: &mut bytes };
        self.engine.handle_datagrams(&mut train, self.now, &mut out, &mut RxBatch::default());
        out.transmits()
            .flat_map(|transmit| transmit.bytes.chunks(transmit.stride))
            .map(<[u8]>::to_vec)
            .collect()
    }

    fn drain(&mut self) {
        while self.engine.poll_transmit(self.now, &mut TxArena::new(ARENA_LEN)) {}
        while self.engine.poll_packet().is_some() {}
        while self.engine.poll_event().is_some() {}
    }
}

fn udp(remote: SocketAddr) -> Via {
    Via::Udp { remote, local: None }
}

fn relay_address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 7443))
}

fn peer_address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 2], 51820))
}

fn segments(protocol: SegmentProtocol, segment_len: u16, start: u16, offset: u16) -> Offload {
    Offload::Segment { protocol, segment_len, start, offset }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use proptest::{prelude::*, sample::Index};

    use super::*;

    fn fuzz_folder() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    /// Reads a target's corpus, in the order of its file names.
    fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let folder = fuzz_folder().join("corpus").join(target);
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "{} is empty", folder.display());
        paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    #[test]
    fn the_corpus_is_replayed() {
        for (name, target) in TARGETS {
            for (path, data) in corpus(name) {
                assert!(data.len() <= MAX_INPUT_LEN, "{} is too long", path.display());
                println!("{}", path.display());
                target(&data);
            }
        }
    }

    #[test]
    fn every_target_has_a_binary() {
        let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
        for (name, _) in TARGETS {
            assert!(manifest.contains(&format!("name = \"{name}\"\n")), "Cargo.toml does not name {name}");
            let source = fs::read_to_string(fuzz_folder().join(format!("fuzz_targets/{name}.rs"))).unwrap();
            assert!(source.contains(&format!("fuzz::{name}(data)")), "{name}.rs runs another target");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..MAX_INPUT_LEN)) {
            for (_, target) in TARGETS {
                target(&data);
            }
        }

        #[test]
        fn a_mutated_corpus_is_survived(
            target in prop::sample::select(&TARGETS[..]),
            file in any::<Index>(),
            bytes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
            cut in prop::option::of(any::<Index>()),
            tail in prop::collection::vec(any::<u8>(), 0..24),
        ) {
            let (name, target) = target;
            let (_, mut data) = file.get(&corpus(name)).clone();
            data.extend(tail);
            if let Some(cut) = cut {
                data.truncate(cut.index(data.len() + 1));
            }
            for (place, byte) in bytes {
                if !data.is_empty() {
                    let place = place.index(data.len());
                    data[place] = byte;
                }
            }
            target(&data);
        }
    }
}
