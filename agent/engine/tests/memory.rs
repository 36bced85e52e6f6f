//! Packets take so much memory and no more, as the allocator sees it.
#![expect(clippy::unwrap_used, reason = "a test may fail that way")]
#![expect(unsafe_code, reason = "an allocator that counts is made of unsafe functions")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use mesh_engine::{
    Engine,
    batch::{Offload, TunFrame, TxArena},
    command::Command,
    config::{Config, PeerConfig, PrivateKey, PunchLimits},
    drops::DropReason,
};
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    key::PublicKey,
    netmap::NodeId,
};

const PEERS: u32 = 1000;
/// What an allocator adds to each allocation.
const OVERHEAD: usize = 16;

/// Counts what is allocated and not freed yet.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is left to the system's allocator; counting changes nothing of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() + OVERHEAD, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() + OVERHEAD, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn mesh_address(peer: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 90, 0, 0).to_bits() + peer)
}

/// An engine with peers that never answer.
fn engine(now: Instant) -> Engine {
    let config = Config {
        id: NodeId(0),
        private_key: PrivateKey([0x40; 32].into()),
        addresses: vec![mesh_address(0).into()],
        allowed_ips: vec![IpNet::from(std::net::IpAddr::from(mesh_address(0)))],
        mtu: 1420,
        punch: PunchLimits::default(),
        real_time: 0,
    };
    let mut engine = Engine::new(config, [7; 32], now);
    let peer = |id: u32| {
        let mut key = [0x55; 32];
        key[..4].copy_from_slice(&id.to_le_bytes());
        let allowed_ips = vec![IpNet::from(std::net::IpAddr::from(mesh_address(id)))];
        PeerConfig { id: NodeId(id), public_key: PublicKey(key), allowed_ips }
    };
    engine.handle_command(Command::SetPeers((1..=PEERS).map(peer).collect()), now);
    for id in 1..=PEERS {
        let address = SocketAddr::from((Ipv4Addr::from_bits(0xc612_0000 + id), 51820));
        let candidates = vec![Candidate { address, kind: CandidateKind::Host }];
        let state = Command::PeerState {
            id: NodeId(id),
            online: true,
            candidates,
            relays: vec![],
            home: None,
            observed: None,
        };
        engine.handle_command(state, now);
    }
    engine
}

fn send(engine: &mut Engine, to: u32, len: usize, now: Instant) {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    packet.extend(mesh_address(0).octets());
    packet.extend(mesh_address(to).octets());
    packet.resize(len, 0);
    let frame = TunFrame { packet: &packet, offload: Offload::None };
    engine.handle_tun(frame, now, &mut TxArena::new(0));
}

/// As [`send`], while the driver cannot send.
fn keep(engine: &mut Engine, number: u32, len: usize, now: Instant) {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    packet.extend(mesh_address(0).octets());
    packet.extend(mesh_address(1 + number % PEERS).octets());
    packet.extend(number.to_be_bytes());
    packet.resize(len, 0);
    engine.handle_backlog(TunFrame { packet: &packet, offload: Offload::None }, now);
}

fn drain(engine: &mut Engine, now: Instant) {
    let mut arena = TxArena::new(1 << 20);
    while engine.poll_transmit(now, &mut arena) {
        arena.clear();
    }
    while engine.poll_event().is_some() {}
    while engine.poll_packet().is_some() {}
}

/// Returns how many packets had to go for others.
fn count_full(engine: &mut Engine, now: Instant) -> u64 {
    engine.snapshot(now).peers.iter().map(|peer| peer.drops.get(DropReason::QueueFull)).sum()
}

#[test]
fn packets_for_peers_that_never_answer_stay_within_the_cap() {
    let mut now = Instant::now();
    let mut engine = engine(now);
    // What a peer takes that one has begun to talk to is not the packets'.
    for id in 1..=PEERS {
        send(&mut engine, id, 28, now);
        drain(&mut engine, now);
    }
    let before = LIVE.load(Ordering::Relaxed);
    let taken = || LIVE.load(Ordering::Relaxed).saturating_sub(before);
    let check = |what: &str| {
        let taken = taken();
        assert!(taken <= Engine::MAX_PACKET_BYTES, "{what}: {taken} of {}", Engine::MAX_PACKET_BYTES);
    };
    // Packets that wait, and nothing beside them.
    for len in [28, 100, 1420] {
        let (most, dropped) = (Engine::MAX_WAITING_BYTES, count_full(&mut engine, now));
        for _ in 0..200 {
            for id in 1..=PEERS {
                send(&mut engine, id, len, now);
            }
            drain(&mut engine, now);
            let taken = taken();
            assert!(taken <= most, "{len}: {taken} of {most}");
        }
        let (taken, dropped) = (taken(), count_full(&mut engine, now) - dropped);
        // Of small packets, half is room that a queue may have and has not at this moment.
        assert!(
            taken > most / 3 && dropped > 100_000,
            "{len}: the queues were to be full: {taken}, {dropped}"
        );
    }
    // Handshakes and probes are made and nobody takes them.
    for _ in 0..200 {
        now += Duration::from_millis(500);
        engine.handle_timeout(now);
        for id in 1..=PEERS {
            send(&mut engine, id, 1420, now);
        }
        while engine.poll_event().is_some() {}
        check("a driver that takes nothing");
    }
    // And of all lengths more than the driver is to hand over while it can send nothing.
    for len in [28, 28, 1420, 60_000] {
        for number in 0..20_000 {
            keep(&mut engine, number, len, now);
        }
        assert!(engine.is_backlog_full());
        check("a full backlog");
        while engine.poll_backlog(now, &mut TxArena::new(0)).is_some() {}
        check("an empty backlog");
    }
}
