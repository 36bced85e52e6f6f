//! The engine and a peer that speaks WireGuard and nothing else.
#![expect(clippy::unwrap_used, reason = "a test may fail that way")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use boringtun::{
    noise::{Tunn, TunnResult},
    x25519::{PublicKey as X25519Public, StaticSecret},
};
use mesh_engine::{
    Engine,
    batch::{Offload, RxBatch, RxTrain, TunFrame, TxArena, Via},
    command::Command,
    config::{Config, PeerConfig, PrivateKey, PunchLimits},
    event::PathAddress,
};
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    demux::{DatagramKind, classify},
    key::PublicKey,
    netmap::NodeId,
};

const ENGINE: [u8; 4] = [10, 90, 0, 1];
const STOCK: [u8; 4] = [10, 90, 0, 2];

struct Link {
    now: Instant,
    engine: Engine,
    tunn: Tunn,
    /// Where the stock peer is now.
    address: SocketAddr,
    engine_got: Vec<Vec<u8>>,
    stock_got: Vec<Vec<u8>>,
    handshakes: usize,
}

fn packet(source: [u8; 4], destination: [u8; 4], number: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source);
    packet.extend(destination);
    packet.extend([number; 40]);
    packet
}

impl Link {
    fn new() -> Self {
        let now = Instant::now();
        let (own, theirs) = ([1; 32], [2; 32]);
        let public = |secret: [u8; 32]| X25519Public::from(&StaticSecret::from(secret));
        let config = Config {
            id: NodeId(1),
            private_key: PrivateKey(own.into()),
            addresses: vec![ENGINE.into()],
            allowed_ips: vec!["10.90.0.1/32".parse().unwrap()],
            mtu: 1280,
            punch: PunchLimits::default(),
            real_time: 0,
        };
        let mut engine = Engine::new(config, [1; 32], now);
        let peer = PeerConfig {
            id: NodeId(2),
            public_key: PublicKey(public(theirs).to_bytes()),
            allowed_ips: vec!["10.90.0.2/32".parse().unwrap()],
        };
        engine.handle_command(Command::SetPeers(vec![peer]), now);
        let tunn = Tunn::new(StaticSecret::from(theirs), public(own), None, None, 9, None);
        let address = "203.0.113.2:51820".parse().unwrap();
        Self { now, engine, tunn, address, engine_got: vec![], stock_got: vec![], handshakes: 0 }
    }

    fn tell_of_stock(&mut self) {
        let candidate = Candidate { address: self.address, kind: CandidateKind::Host };
        let state = Command::PeerState {
            id: NodeId(2),
            online: false,
            candidates: vec![candidate],
            relays: vec![],
            home: None,
            observed: None,
        };
        self.engine.handle_command(state, self.now);
    }

    fn engine_sends(&mut self, number: u8) {
        let packet = packet(ENGINE, STOCK, number);
        let mut arena = TxArena::new(Engine::MAX_TUN_ROOM);
        let frame = TunFrame { packet: &packet, offload: Offload::None };
        self.engine.handle_tun(frame, self.now, &mut arena);
        self.deliver(&arena);
        self.drain();
    }

    fn stock_sends(&mut self, number: u8) {
        let mut out = [0; 2000];
        if let TunnResult::WriteToNetwork(bytes) =
            self.tunn.encapsulate(&packet(STOCK, ENGINE, number), &mut out)
        {
            let bytes = bytes.to_vec();
            self.reach_engine(bytes);
        }
    }

    fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now += Duration::from_millis(50);
            if self.engine.poll_timeout().is_some_and(|wakeup| wakeup.at <= self.now) {
                self.engine.handle_timeout(self.now);
                self.drain();
            }
            let mut out = [0; 2000];
            if let TunnResult::WriteToNetwork(bytes) = self.tunn.update_timers(&mut out) {
                let bytes = bytes.to_vec();
                self.reach_engine(bytes);
            }
        }
    }

    fn drain(&mut self) {
        let mut arena = TxArena::new(Engine::MAX_TUN_ROOM);
        self.engine.poll_transmit(self.now, &mut arena);
        self.deliver(&arena);
        while self.engine.poll_event().is_some() {}
    }

    fn deliver(&mut self, arena: &TxArena) {
        let mut answers = Vec::new();
        for transmit in arena.transmits() {
            let Via::Udp { remote, .. } = transmit.via else { panic!("no streams here") };
            for bytes in transmit.bytes.chunks(transmit.stride) {
                if remote != self.address || classify(bytes) != DatagramKind::WireGuard {
                    continue;
                }
                self.handshakes += usize::from(bytes[0] == 1);
                let mut out = [0; 2000];
                let mut result = self.tunn.decapsulate(None, bytes, &mut out);
                while let TunnResult::WriteToNetwork(answer) = result {
                    answers.push(answer.to_vec());
                    result = self.tunn.decapsulate(None, &[], &mut out);
                }
                if let TunnResult::WriteToTunnelV4(packet, _) = result {
                    self.stock_got.push(packet.to_vec());
                }
            }
        }
        for answer in answers {
            self.reach_engine(answer);
        }
    }

    fn reach_engine(&mut self, mut bytes: Vec<u8>) {
        let mut arena = TxArena::new(Engine::MAX_TUN_ROOM);
        let mut batch = RxBatch::default();
        let via = Via::Udp { remote: self.address, local: None };
        let stride = bytes.len();
        let mut train = RxTrain { via, stride, bytes: &mut bytes };
        self.engine.handle_datagrams(&mut train, self.now, &mut arena, &mut batch);
        self.engine_got.extend(batch.packets().iter().map(|range| bytes[range.clone()].to_vec()));
        self.deliver(&arena);
        self.drain();
    }

    fn path(&self) -> Option<PathAddress> {
        self.engine.snapshot(self.now).peers[0].path.as_ref().map(|path| path.address)
    }
}

#[test]
fn a_configured_endpoint_is_enough_and_sessions_are_renewed() {
    let mut link = Link::new();
    link.tell_of_stock();
    for number in 0..200 {
        link.engine_sends(number);
        link.stock_sends(number);
        link.run_for(Duration::from_millis(2500));
    }
    assert_eq!(link.stock_got.len(), 200);
    assert_eq!(link.engine_got.len(), 200);
    assert!((4..=8).contains(&link.handshakes), "{}", link.handshakes);
    assert_eq!(link.path(), Some(PathAddress::Direct(link.address)));
    let peer = link.engine.snapshot(link.now).peers.remove(0);
    assert_eq!(peer.reason, "direct: the peer was heard from there");
}

#[test]
fn a_peer_that_begins_is_answered_where_it_is_and_followed_when_it_moves() {
    let mut link = Link::new();
    link.stock_sends(1);
    link.run_for(Duration::from_secs(1));
    assert_eq!(link.engine_got.len(), 1);
    link.engine_sends(2);
    assert_eq!(link.stock_got.len(), 1);
    link.address = "198.51.100.2:4000".parse().unwrap();
    link.stock_sends(3);
    link.engine_sends(4);
    assert_eq!((link.engine_got.len(), link.stock_got.len()), (2, 2));
    assert_eq!(link.path(), Some(PathAddress::Direct(link.address)));
}
