//! `make bench-core`: what a packet costs in the engine, without IO, beside the bare AEAD.
//!
//! ring's ChaCha20-Poly1305 is what the session's library calls; what the engine adds is the distance to it. With 1,000
//! peers each packet (or received train) is another peer's, so that nothing of it is left in the caches.
//!
//! Criterion says everything; the table at the end has the medians that belong together. Any arguments of criterion's
//! can be given: `cargo bench -p mesh-engine --bench core -- seal`.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use criterion::{BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use ipnet::{IpNet, Ipv4Net};
// `segment` looks for them in its crate.
use mesh_engine::{
    Engine,
    batch::{self, RxBatch, TxArena},
    drops,
};
use mesh_proto::netmap::NodeId;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

// These are private, and stay so: their source is compiled in here.
mod cut;
#[path = "../../src/packet/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "what segments need of it is a part")]
mod packet;
#[path = "../../src/router/mod.rs"]
#[expect(dead_code, reason = "only lookups are measured")]
mod router;
#[path = "../../src/segment/mod.rs"]
#[allow(dead_code, unused_imports, reason = "only cutting is measured")]
mod segment;
mod star;
mod summary;

use self::{
    router::{Claim, Own, Router},
    star::{SEGMENTS, Star},
};

/// Lengths of inner packets: the least that TCP sends, a middle one, and the largest at the usual MTU.
const LENGTHS: [usize; 3] = [64, 512, 1420];
const PEERS: [usize; 2] = [1, 1000];
const ROUTES: [u32; 2] = [10, 1000];
/// A superpacket's payload per segment: TCP over IPv4 with timestamps at MTU 1420.
const SEGMENT_LEN: u16 = 1368;
/// Datagrams in a received train.
const TRAIN: usize = 32;
/// Trains that are sealed ahead of each measurement of opening.
const TRAINS: usize = 64;
/// Where criterion keeps its figures.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench/core");

fn main() {
    let quick = Criterion::default().warm_up_time(Duration::from_millis(500));
    let mut criterion = quick
        .measurement_time(Duration::from_secs(2))
        .output_directory(FOLDER.as_ref())
        .without_plots()
        .configure_from_args();
    seal(&mut criterion);
    open(&mut criterion);
    route(&mut criterion);
    cut::cut(&mut criterion);
    criterion.final_summary();
    summary::print(FOLDER.as_ref());
}

fn seal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    bare(&mut group, |key, template, bencher| {
        let mut packet = template.to_vec();
        bencher.iter(|| key.seal_in_place_separate_tag(nonce(), Aad::empty(), black_box(&mut packet)));
    });
    for peers in PEERS {
        let mut star = Star::new(peers);
        let mut arena = TxArena::new(Engine::MAX_TUN_ROOM * 2);
        for len in LENGTHS {
            let packets = star.packets_to_spokes(len);
            let id = BenchmarkId::new(format!("peers-{peers}"), len);
            group.throughput(Throughput::Bytes(len as u64)).bench_function(id, |bencher| {
                let mut turn = packets.iter().cycle();
                bencher.iter(|| star.seal(turn.next().expect("there is a spoke"), &mut arena));
            });
        }
    }
    superpacket(&mut group);
    group.finish();
}

/// Cuts a superpacket, as TCP fills it, and seals the segments.
fn superpacket(group: &mut BenchmarkGroup<'_, WallTime>) {
    let mut star = Star::new(1);
    let mut arena = TxArena::new(Engine::MAX_TUN_ROOM * 2);
    let superpacket = star.superpacket(SEGMENT_LEN);
    group.throughput(Throughput::Bytes(SEGMENTS as u64 * u64::from(SEGMENT_LEN)));
    group.bench_function("superpacket", |bencher| {
        bencher.iter(|| star.seal_superpacket(&superpacket, SEGMENT_LEN, &mut arena));
    });
}

fn open(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    bare(&mut group, |key, template, bencher| {
        let mut sealed = template.to_vec();
        key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed).expect("it is short enough");
        bencher.iter_batched_ref(
            || sealed.clone(),
            |sealed| key.open_in_place(nonce(), Aad::empty(), sealed).is_ok(),
            BatchSize::LargeInput,
        );
    });
    for peers in PEERS {
        let mut star = Star::new(peers);
        for len in LENGTHS {
            let id = BenchmarkId::new(format!("peers-{peers}"), len);
            group.throughput(Throughput::Bytes(len as u64)).bench_function(id, |bencher| {
                bencher.iter_custom(|packets| open_packets(&mut star, len, packets));
            });
        }
    }
    group.finish();
}

/// Opens at least so many packets and returns how long that many take.
fn open_packets(star: &mut Star, len: usize, packets: u64) -> Duration {
    let (mut spent, mut opened) = (Duration::ZERO, 0);
    let mut batch = RxBatch::default();
    while opened < packets {
        let trains = (packets - opened).div_ceil(TRAIN as u64).min(TRAINS as u64);
        let mut trains: Vec<_> = (0..trains).map(|_| star.train_to_hub(len, TRAIN)).collect();
        let started = Instant::now();
        for train in &mut trains {
            batch.clear();
            star.open(train, &mut batch);
            assert_eq!(batch.packets().len(), TRAIN, "everything is opened");
        }
        spent += started.elapsed();
        opened += (trains.len() * TRAIN) as u64;
    }
    spent.mul_f64(packets as f64 / opened.max(1) as f64)
}

/// Measures ring at each length.
fn bare(
    group: &mut BenchmarkGroup<'_, WallTime>,
    measure: impl Fn(&LessSafeKey, &[u8], &mut criterion::Bencher<'_>),
) {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("the key has the right length");
    let key = LessSafeKey::new(key);
    for len in LENGTHS {
        let template = vec![1; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("ring", len), |bencher| measure(&key, &template, bencher));
    }
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key(black_box([0; 12]))
}

fn route(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for peers in ROUTES {
        // Each has its address and the pods behind it.
        let pods = |peer: u32| Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0a80_0000 + (peer << 8)), 24);
        let own_address = |peer: u32| Ipv4Net::from(Ipv4Addr::from_bits(0x0a5a_0000 + peer));
        let prefixes: Vec<_> =
            (1..=peers).map(|peer| [IpNet::V4(pods(peer)), IpNet::V4(own_address(peer))]).collect();
        let claims: Vec<_> = (1..=peers)
            .zip(&prefixes)
            .map(|(peer, allowed_ips)| Claim { id: NodeId(peer), slot: peer, allowed_ips })
            .collect();
        let (router, refusals) = Router::new(Own { id: NodeId(0), allowed_ips: &[] }, &claims);
        assert!(refusals.is_empty(), "no two prefixes overlap");
        let addresses: Vec<IpAddr> =
            (1..=peers).map(|peer| Ipv4Addr::from_bits(pods(peer).addr().to_bits() + 9).into()).collect();
        group.throughput(Throughput::Elements(1)).bench_function(
            BenchmarkId::new("lookup", peers),
            |bencher| {
                // A stride that is coprime to both counts: neighbours in time are none in the table.
                let mut at = 0;
                bencher.iter(|| {
                    at = (at + 7) % addresses.len();
                    router.lookup(black_box(addresses[at]))
                });
            },
        );
    }
    group.finish();
}
