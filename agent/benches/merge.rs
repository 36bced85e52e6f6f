//! `make bench-core`, second part: what it costs to merge the packets of a train into one write to the TUN, without IO.
//!
//! As many segments as a train has, of one flow each: their checksums are verified, the run is found, and its headers are
//! made. Beside it the sum of the same bytes alone, which nothing that verifies can do without.

use std::{hint::black_box, ops::Range, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use mesh_engine::checksum;

// Both are private, and stay so: their source is compiled in here.
#[path = "../src/io/tun/merge.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "what the bench needs of it is a part")]
mod merge;
#[path = "../src/io/tun/vnet.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "what the bench needs of it is a part")]
mod vnet;

use merge::Merge;

/// Segments of a train of full packets, and payload of each: TCP over IPv4 with timestamps at MTU 1420.
const SEGMENTS: usize = 45;
const SEGMENT_LEN: usize = 1368;
/// Small datagrams.
const SMALL: usize = 100;
/// What stands before each packet in a train: WireGuard's header.
const BEFORE: usize = 16;
const IPV4_HEADER_LEN: usize = 20;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Where criterion keeps its figures.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench/core");

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .output_directory(FOLDER.as_ref())
        .without_plots()
        .configure_from_args();
    let mut group = criterion.benchmark_group("merge");
    for (name, protocol, payload) in [("tcp", TCP, SEGMENT_LEN), ("udp", UDP, SMALL)] {
        let (bytes, packets) = train(protocol, payload);
        assert_eq!(merge::run_len(&bytes, &packets, Merge::TcpAndUdp), SEGMENTS, "one write for all");
        group.throughput(Throughput::Elements(SEGMENTS as u64));
        group.bench_function(BenchmarkId::new(name, payload), |bencher| {
            bencher.iter_batched_ref(
                || bytes.clone(),
                |bytes| {
                    let len = merge::run_len(black_box(bytes), &packets, Merge::TcpAndUdp);
                    merge::merge_headers(bytes, &packets[..len])
                },
                BatchSize::LargeInput,
            );
        });
        group.bench_function(BenchmarkId::new(format!("{name}-sum"), payload), |bencher| {
            bencher.iter_batched_ref(
                || bytes.clone(),
                |bytes| -> u64 { packets.iter().map(|range| checksum::sum(&bytes[range.clone()], 0)).sum() },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
    criterion.final_summary();
}

/// An opened train of one flow, and where its packets lie.
fn train(protocol: u8, payload: usize) -> (Vec<u8>, Vec<Range<usize>>) {
    let (mut bytes, mut packets) = (Vec::new(), Vec::new());
    for index in 0..SEGMENTS {
        bytes.extend([0; BEFORE]);
        let start = bytes.len();
        bytes.extend(packet(protocol, index, payload));
        packets.push(start..bytes.len());
    }
    (bytes, packets)
}

fn packet(protocol: u8, index: usize, payload: usize) -> Vec<u8> {
    let wire = |value: usize| u16::try_from(value).unwrap_or_default().to_be_bytes();
    let transport = if protocol == TCP {
        let seq = u32::try_from(1000 + index * payload).unwrap_or_default().to_be_bytes();
        let mut tcp = [&[0x30, 0x39, 0, 80], &seq[..], &[0, 0, 0, 9, 0x80, 0x10, 1, 0, 0, 0, 0, 0]].concat();
        // Two no-operations and timestamps.
        tcp.extend([1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6]);
        tcp
    } else {
        [[0x30, 0x39, 0, 80], [wire(8 + payload), [0, 0]].concat().try_into().unwrap_or_default()].concat()
    };
    let total = IPV4_HEADER_LEN + transport.len() + payload;
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 90, 0, 1, 10, 90, 0, 2];
    packet[2..4].copy_from_slice(&wire(total));
    packet[4..6].copy_from_slice(&wire(index));
    let header = checksum::finish(checksum::sum(&packet, 0));
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    packet.extend(transport);
    packet.resize(total, 0x5a);
    let pseudo = checksum::sum(&packet[12..20], u64::from(protocol) + (total - IPV4_HEADER_LEN) as u64);
    let at = IPV4_HEADER_LEN + if protocol == TCP { 16 } else { 6 };
    let check = checksum::finish(checksum::sum(&packet[IPV4_HEADER_LEN..], pseudo));
    packet[at..at + 2].copy_from_slice(&check.to_be_bytes());
    packet
}
