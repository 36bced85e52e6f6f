//! Cutting a superpacket into segments and completing a checksum, without sealing.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use mesh_engine::batch::{Offload, SegmentProtocol, TunFrame};

use crate::{
    SEGMENT_LEN,
    segment::Segments,
    star::{SEGMENTS, Star},
};

/// Payload of the smallest pieces: small datagrams that were sent with one call.
pub(crate) const SMALL: u16 = 100;
const START: u16 = 20;

/// Measures.
pub(crate) fn cut(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cut");
    let star = Star::new(1);
    for segment_len in [SMALL, SEGMENT_LEN] {
        let packet = star.superpacket(segment_len);
        let offload =
            Offload::Segment { protocol: SegmentProtocol::Tcp, segment_len, start: START, offset: 16 };
        group.throughput(Throughput::Elements(SEGMENTS as u64));
        group.bench_function(BenchmarkId::new("superpacket", segment_len), |bencher| {
            let mut out = Vec::new();
            bencher.iter(|| write(black_box(&packet), offload, &mut out));
        });
    }
    let single = star.packets_to_spokes(usize::from(SEGMENT_LEN)).swap_remove(0);
    group.throughput(Throughput::Elements(1));
    group.bench_function(BenchmarkId::new("checksum", SEGMENT_LEN), |bencher| {
        let mut out = Vec::new();
        let offload = Offload::Checksum { start: START, offset: 6 };
        bencher.iter(|| write(black_box(&single), offload, &mut out));
    });
    group.finish();
}

fn write(packet: &[u8], offload: Offload, out: &mut Vec<u8>) -> usize {
    let segments = Segments::new(TunFrame { packet, offload }).expect("the frame is whole");
    let count = segments.count();
    for index in 0..count {
        segments.write(index, out);
        black_box(&out);
    }
    count
}
