//! An engine with a UDP socket in the lab, and packets made by hand instead of a TUN.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::{Duration, Instant},
};

use mesh_engine::{
    Engine,
    batch::{Offload, RxBatch, RxTrain, TunFrame, TxArena, Via},
    command::Command,
    config::{Config, PeerConfig, PrivateKey, PunchLimits},
    drops::DropReason,
    event::PathAddress,
    snapshot::PeerSnapshot,
};
use mesh_lab::{Host, nat::probe::socket_in};
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    key::PublicKey,
    netmap::NodeId,
};

use crate::{
    MTU,
    packet::{self, Seen},
    stock::{SERVICE, Stock},
};

/// The engine's number of its only peer.
const STOCK_ID: NodeId = NodeId(2);
/// How long an answer may take when the machine is busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait in one read: what else is to be done is looked at after that.
const TICK: Duration = Duration::from_millis(20);
/// Between two rounds of [`Peer::talk_until`].
const ROUND: Duration = Duration::from_millis(200);

/// Who an engine is.
pub(crate) struct Identity {
    pub(crate) number: u8,
    pub(crate) addresses: Vec<IpAddr>,
}

/// An engine and its socket.
pub(crate) struct Peer {
    engine: Engine,
    socket: UdpSocket,
    arena: TxArena,
    public_key: PublicKey,
    addresses: Vec<IpAddr>,
    /// Replies that came, by sequence number, and the payloads of UDP datagrams.
    replies: BTreeMap<u16, Vec<u8>>,
    datagrams: Vec<Vec<u8>>,
    sequence: u16,
}

impl Peer {
    pub(crate) fn new(identity: &Identity, host: &Host, stock: PeerConfig) -> anyhow::Result<Self> {
        let secret = [identity.number; 32];
        let public = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(secret));
        let config = Config {
            id: NodeId(identity.number.into()),
            private_key: PrivateKey(secret.into()),
            addresses: identity.addresses.clone(),
            allowed_ips: identity.addresses.iter().map(|address| (*address).into()).collect(),
            mtu: MTU,
            punch: PunchLimits::default(),
            real_time: 0,
        };
        let now = Instant::now();
        let mut engine = Engine::new(config, [identity.number; 32], now);
        engine.handle_command(Command::SetPeers(vec![stock]), now);
        Ok(Self {
            engine,
            socket: open(host)?,
            arena: TxArena::new(Engine::MAX_TUN_ROOM),
            public_key: PublicKey(public.to_bytes()),
            addresses: identity.addresses.clone(),
            replies: BTreeMap::new(),
            datagrams: Vec::new(),
            sequence: 0,
        })
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        self.public_key
    }

    pub(crate) fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    pub(crate) fn port(&self) -> u16 {
        self.socket.local_addr().unwrap().port()
    }

    /// Tells the engine where its peer is: one candidate, no relay.
    pub(crate) fn know(&mut self, address: SocketAddr) {
        let candidates = vec![Candidate { address, kind: CandidateKind::Host }];
        let state = Command::PeerState {
            id: STOCK_ID,
            online: false,
            candidates,
            relays: vec![],
            home: None,
            observed: None,
        };
        self.engine.handle_command(state, Instant::now());
        self.drain();
    }

    /// Goes on with another socket, as after a change of network.
    pub(crate) fn rebind(&mut self, host: &Host) -> anyhow::Result<()> {
        self.socket = open(host)?;
        Ok(())
    }

    /// Sends echo requests and waits until every one is answered with its own bytes.
    pub(crate) fn echo_all(&mut self, to: Ipv4Addr, count: u16, interval: Duration) {
        let mut sent = BTreeMap::new();
        for _ in 0..count {
            self.sequence += 1;
            let payload = pattern(self.sequence);
            self.send(&packet::echo_request(self.own_v4(), to, self.sequence, &payload));
            sent.insert(self.sequence, payload);
            self.turn(interval);
        }
        let deadline = Instant::now() + PATIENCE;
        while self.replies.len() < sent.len() && Instant::now() < deadline {
            self.turn(TICK);
        }
        assert!(std::mem::take(&mut self.replies) == sent, "all echoes come back as they were sent");
    }

    /// Sends an echo request and a UDP datagram at a time; all come back as they were sent.
    pub(crate) fn talk_until(&mut self, until: Instant, stock: &Stock<'_>) {
        let from = (self.own_v4(), 4000);
        while Instant::now() < until {
            let round = Instant::now();
            self.echo_all(crate::STOCK, 1, Duration::ZERO);
            let payload = pattern(self.sequence);
            self.send(&packet::udp(from, (crate::STOCK, SERVICE), &payload));
            assert_eq!(stock.serve_one().unwrap(), payload, "what comes out of wireguard-go");
            let deadline = Instant::now() + PATIENCE;
            while self.datagrams.is_empty() && Instant::now() < deadline {
                self.turn(TICK);
            }
            assert_eq!(std::mem::take(&mut self.datagrams), [payload], "what wireguard-go sends back");
            while round.elapsed() < ROUND {
                self.turn(TICK);
            }
        }
    }

    /// Answers echo requests until something is over.
    pub(crate) fn serve_until(&mut self, is_over: impl Fn() -> bool) {
        while !is_over() {
            self.turn(TICK);
        }
    }

    /// Reasons for which the engine dropped something, but for what IPv6 hosts multicast on their own.
    pub(crate) fn drops(&self) -> Vec<(DropReason, u64)> {
        let snapshot = self.engine.snapshot(Instant::now());
        let all = snapshot.drops.iter().chain(snapshot.peers[0].drops.iter());
        all.filter(|(reason, _)| *reason != DropReason::WrongDestination).collect()
    }

    pub(crate) fn handshake_age(&self) -> Option<Duration> {
        self.snapshot().last_handshake.map(|at| at.elapsed())
    }

    /// Where the engine sends to.
    pub(crate) fn path(&self) -> Option<SocketAddr> {
        match self.snapshot().path?.address {
            PathAddress::Direct(address) | PathAddress::Punched { remote: address, .. } => Some(address),
            PathAddress::Relay(_) => None,
        }
    }

    fn snapshot(&self) -> PeerSnapshot {
        self.engine.snapshot(Instant::now()).peers.remove(0)
    }

    fn own_v4(&self) -> Ipv4Addr {
        let v4 = |address: &IpAddr| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        };
        self.addresses.iter().find_map(v4).unwrap()
    }

    fn send(&mut self, packet: &[u8]) {
        let frame = TunFrame { packet, offload: Offload::None };
        self.engine.handle_tun(frame, Instant::now(), &mut self.arena);
        self.drain();
    }

    /// Waits for a datagram, at most `patience` or until the engine wants to be woken, and has it handled.
    fn turn(&mut self, patience: Duration) {
        let due =
            self.engine.poll_timeout().map(|wakeup| wakeup.at.saturating_duration_since(Instant::now()));
        // A socket takes no timeout of nothing.
        let wait = due.map_or(patience, |due| due.min(patience)).max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(wait)).unwrap();
        let mut buffer = [0; 2000];
        if let Ok((length, remote)) = self.socket.recv_from(&mut buffer) {
            let bytes = &mut buffer[..length];
            let mut batch = RxBatch::default();
            let via = Via::Udp { remote, local: None };
            let mut train = RxTrain { via, stride: length, bytes };
            self.engine.handle_datagrams(&mut train, Instant::now(), &mut self.arena, &mut batch);
            for range in batch.packets() {
                self.take(&buffer[range.clone()]);
            }
        }
        if self.engine.poll_timeout().is_some_and(|wakeup| wakeup.at <= Instant::now()) {
            self.engine.handle_timeout(Instant::now());
        }
        self.drain();
    }

    fn take(&mut self, packet: &[u8]) {
        match packet::read(packet) {
            Seen::Reply(sequence, payload) => {
                assert_eq!(self.replies.insert(sequence, payload), None, "a reply comes once");
            }
            Seen::Request(reply) => self.send(&reply),
            Seen::Udp(payload) => self.datagrams.push(payload),
            Seen::Other => {}
        }
    }

    fn drain(&mut self) {
        loop {
            let is_more = self.engine.poll_transmit(Instant::now(), &mut self.arena);
            for transmit in self.arena.transmits() {
                let Via::Udp { remote, .. } = transmit.via else { panic!("there is no relay") };
                for datagram in transmit.bytes.chunks(transmit.stride) {
                    self.socket.send_to(datagram, remote).unwrap();
                }
            }
            self.arena.clear();
            if !is_more {
                break;
            }
        }
        while self.engine.poll_event().is_some() {}
    }
}

/// A payload of a length of its own, from nothing to what fills the tunnel's MTU, with bytes of its own.
fn pattern(number: u16) -> Vec<u8> {
    let length = usize::from(number) * 271 % (crate::FULL + 1);
    (0..length).map(|at| u8::try_from((at * 7 + usize::from(number)) % 256).unwrap()).collect()
}

fn open(host: &Host) -> anyhow::Result<UdpSocket> {
    socket_in(host.netns(), SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))
}
