//! Peers of an agent that cost little: engines of this program, each with its own key and socket.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use mesh_engine::{
    Engine,
    batch::{Offload, RxBatch, RxTrain, TunFrame, TxArena, Via},
    command::Command,
    config::{Config, PeerConfig, PrivateKey, PunchLimits},
};
use mesh_lab::Host;
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    key::{NodeKey, PublicKey},
    netmap::{Mesh, Node, NodeId, RelayId},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;

/// Numbers of the spokes: far from those that the coordinator gives.
const FIRST_ID: u32 = 10_000;
/// Their addresses: far from those that the coordinator gives, too.
const FIRST_ADDRESS: u32 = 0x4000;
const MTU: u16 = 1420;
/// So many start to talk at once; then the agent gets time to answer, as it would from peers far apart.
const TOGETHER: usize = 20;
const PAUSE: Duration = Duration::from_millis(5);
/// Descriptors beyond the spokes' own.
const OTHER_DESCRIPTORS: u64 = 256;

/// All of them.
pub(super) struct Spokes {
    spokes: Vec<Spoke>,
    /// The agent.
    hub: (PublicKey, SocketAddr),
    hub_address: IpAddr,
}

struct Spoke {
    engine: Engine,
    socket: UdpSocket,
    public_key: PublicKey,
    address: Ipv4Addr,
}

/// What an agent remembers of a peer.
#[derive(Debug, Serialize)]
pub(super) struct PeerOnDisk {
    id: NodeId,
    candidates: Vec<Candidate>,
    relays: Vec<RelayId>,
}

impl Spokes {
    /// Opens the sockets on a host; the engines are made by [`Spokes::introduce`].
    pub(super) fn open(host: &Host, count: usize, hub: (PublicKey, SocketAddr)) -> anyhow::Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, soft.max(count as u64 + OTHER_DESCRIPTORS), hard)?;
        let bind = || -> io::Result<Vec<UdpSocket>> {
            let open = |_| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            };
            (0..count).map(open).collect()
        };
        let sockets = host.netns().enter(bind)?.context("sockets of the spokes")?;
        let now = Instant::now();
        let spoke = |(index, socket)| {
            let index = u32::try_from(index).expect("there are few");
            let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 90, 0, 0).to_bits() + FIRST_ADDRESS + index);
            let private_key = private_key(index);
            let secret = x25519_dalek::StaticSecret::from(*private_key.0);
            let config = Config {
                id: NodeId(FIRST_ID + index),
                private_key,
                addresses: vec![address.into()],
                allowed_ips: vec![IpAddr::from(address).into()],
                mtu: MTU,
                punch: PunchLimits::default(),
                // A spoke is never restarted.
                real_time: 0,
            };
            let seed = [index.to_le_bytes()[0]; 32];
            Spoke {
                engine: Engine::new(config, seed, now),
                socket,
                public_key: PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes()),
                address,
            }
        };
        let spokes = sockets.into_iter().enumerate().map(spoke).collect();
        Ok(Self { spokes, hub, hub_address: Ipv4Addr::UNSPECIFIED.into() })
    }

    /// Tells the engines of the agent.
    pub(super) fn introduce(&mut self, this: &Node) {
        let (public_key, address) = self.hub;
        self.hub_address = this.addresses.first().copied().unwrap_or(self.hub_address);
        let peer = PeerConfig { id: this.id, public_key, allowed_ips: this.allowed_ips.clone() };
        let candidates = vec![Candidate { address, kind: CandidateKind::Host }];
        let now = Instant::now();
        for spoke in &mut self.spokes {
            spoke.engine.handle_command(Command::SetPeers(vec![peer.clone()]), now);
            let candidates = candidates.clone();
            let state = Command::PeerState {
                id: this.id,
                online: true,
                candidates,
                relays: Vec::new(),
                home: None,
                observed: None,
            };
            spoke.engine.handle_command(state, now);
        }
    }

    /// Returns them as a map has them.
    pub(super) fn nodes(&self, mesh: &Mesh) -> Vec<Node> {
        debug_assert!(
            self.spokes.iter().all(|spoke| mesh.ipv4.contains(&spoke.address)),
            "of the mesh's range"
        );
        let node = |(id, spoke): (u32, &Spoke)| {
            // Nobody proves it here: it only has to be another for each.
            let mut node_key = [0x5a; 32];
            node_key[..4].copy_from_slice(&id.to_le_bytes());
            Node {
                id: NodeId(id),
                name: format!("spoke-{id}").parse().expect("a valid name"),
                node_key: NodeKey(node_key),
                public_key: spoke.public_key,
                addresses: vec![spoke.address.into()],
                allowed_ips: vec![IpAddr::from(spoke.address).into()],
                tags: Vec::new(),
            }
        };
        (FIRST_ID..).zip(&self.spokes).map(node).collect()
    }

    /// Returns where they are, as an agent remembers it.
    pub(super) fn on_disk(&self, host: Ipv4Addr) -> anyhow::Result<Vec<PeerOnDisk>> {
        let peer = |(id, spoke): (u32, &Spoke)| {
            let address = SocketAddr::from((host, spoke.socket.local_addr()?.port()));
            let candidates = vec![Candidate { address, kind: CandidateKind::Host }];
            Ok(PeerOnDisk { id: NodeId(id), candidates, relays: Vec::new() })
        };
        (FIRST_ID..).zip(&self.spokes).map(peer).collect()
    }

    /// Has every one send a packet to the agent.
    pub(super) fn talk(&mut self) -> anyhow::Result<()> {
        let IpAddr::V4(to) = self.hub_address else { anyhow::bail!("the agent has no IPv4 address") };
        for first in (0..self.spokes.len()).step_by(TOGETHER) {
            for spoke in self.spokes.iter_mut().skip(first).take(TOGETHER) {
                spoke.send(&datagram(spoke.address, to))?;
            }
            self.turn()?;
        }
        Ok(())
    }

    /// Has the engines do what is due, and lets a little time pass.
    pub(super) fn turn(&mut self) -> anyhow::Result<()> {
        self.spokes.iter_mut().try_for_each(Spoke::turn)?;
        std::thread::sleep(PAUSE);
        Ok(())
    }

    /// Whether each has a session and a direct path.
    pub(super) fn all_connected(&self) -> bool {
        let now = Instant::now();
        self.spokes.iter().all(|spoke| {
            let snapshot = spoke.engine.snapshot(now);
            snapshot.peers.iter().all(|peer| peer.path.is_some() && peer.last_handshake.is_some())
        })
    }
}

impl Spoke {
    fn send(&mut self, packet: &[u8]) -> anyhow::Result<()> {
        let mut arena = TxArena::new(Engine::MAX_TUN_ROOM);
        self.engine.handle_tun(TunFrame { packet, offload: Offload::None }, Instant::now(), &mut arena);
        self.flush(&mut arena)
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 2048];
        loop {
            let (len, remote) = match self.socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The agent has not opened its port yet.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error).context("a spoke's socket"),
            };
            let via = Via::Udp { remote, local: None };
            let mut train = RxTrain { via, stride: len.max(1), bytes: &mut buffer[..len] };
            let (mut arena, mut batch) = (TxArena::new(Engine::MAX_TUN_ROOM), RxBatch::default());
            self.engine.handle_datagrams(&mut train, Instant::now(), &mut arena, &mut batch);
            self.flush(&mut arena)?;
        }
        if self.engine.poll_timeout().is_some_and(|wakeup| wakeup.at <= Instant::now()) {
            self.engine.handle_timeout(Instant::now());
            self.flush(&mut TxArena::new(Engine::MAX_TUN_ROOM))?;
        }
        Ok(())
    }

    fn flush(&mut self, arena: &mut TxArena) -> anyhow::Result<()> {
        loop {
            let more = self.engine.poll_transmit(Instant::now(), arena);
            for transmit in arena.transmits() {
                let Via::Udp { remote, .. } = transmit.via else { continue };
                for datagram in transmit.bytes.chunks(transmit.stride) {
                    self.socket.send_to(datagram, remote).context("a spoke sends")?;
                }
            }
            arena.clear();
            if !more {
                break;
            }
        }
        while self.engine.poll_event().is_some() {}
        while self.engine.poll_packet().is_some() {}
        Ok(())
    }
}

fn private_key(index: u32) -> PrivateKey {
    let mut bytes = [0x40; 32];
    // Not at an end, where X25519 ignores some bits.
    bytes[8..12].copy_from_slice(&index.to_le_bytes());
    PrivateKey(bytes.into())
}

/// An empty UDP datagram over IPv4, to the port that discards; without a checksum for its payload.
fn datagram(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend([0, 9, 0, 9, 0, 8, 0, 0]);
    let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet
}
