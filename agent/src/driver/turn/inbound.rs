//! From the underlay to the TUN.

use std::{
    io::{self, IoSliceMut},
    time::Instant,
};

use mesh_engine::batch::{RxBatch, RxTrain, Via};
use quinn_udp::RecvMeta;

use super::{
    Driver, Queue,
    sharing::{hand_over, note_received},
};
use crate::{
    driver::{
        counters::{Counter, Counters},
        poller::Source,
        sending::Outlet,
    },
    io::{
        tun::Tun,
        udp::{RECV_BATCH, RECV_BUFFER_LEN},
    },
};

/// Trains of byte streams per turn.
const STREAM_TRAINS: usize = 64;

impl<T: Tun> Driver<T> {
    /// Gives the engine what a socket has, and the TUN what comes of it.
    pub(super) fn receive(&mut self, outlet: Outlet, now: Instant) {
        let Some(socket) = self.sending.socket(outlet) else { return self.ready.clear(Source::Udp(outlet)) };
        let mut meta = [RecvMeta::default(); RECV_BATCH];
        let mut chunks = self.udp_buffer.chunks_exact_mut(RECV_BUFFER_LEN);
        let mut buffers = std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let count = match socket.try_recv(&mut buffers, &mut meta) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            // It may have more.
            Err(_) => return self.counters.count(Counter::UdpReceive, 1),
        };
        // Fewer than it could have been: the socket is empty, and need not be asked once more to say so.
        if count < RECV_BATCH.min(quinn_udp::BATCH_SIZE) {
            self.ready.clear(Source::Udp(outlet));
        }
        for (meta, bytes) in meta[..count].iter().zip(self.udp_buffer.chunks_exact_mut(RECV_BUFFER_LEN)) {
            if meta.dst_ip.is_some_and(|address| self.overlay.contains(&address)) {
                self.counters.count(Counter::UdpLoop, 1);
                continue;
            }
            self.moved.add(meta.len, meta.stride);
            if self.crossing.is_some() {
                self.counters.arrivals.datagrams += meta.len.div_ceil(meta.stride.max(1)) as u64;
            }
            let mut train = RxTrain {
                via: match outlet {
                    Outlet::V4 | Outlet::V6 => Via::Udp { remote: meta.addr, local: meta.dst_ip },
                    Outlet::Punched(socket) => Via::Punched { socket, remote: meta.addr },
                },
                stride: meta.stride.max(1),
                bytes: &mut bytes[..meta.len],
            };
            self.engine.handle_datagrams(&mut train, now, &mut self.sending.arena, &mut self.packets);
            note_received(&mut self.silence, self.crossing.as_ref(), &self.packets);
            write_inner(&self.tun, train.bytes, &mut self.packets, &mut self.counters);
            hand_over(&mut self.engine, self.crossing.as_ref(), &mut self.counters);
        }
    }

    /// Gives the engine what byte streams have, and the TUN what comes of it.
    pub(super) fn receive_streams(&mut self, now: Instant) {
        for _ in 0..STREAM_TRAINS {
            let Some((relay, mut train)) = self.streams.take() else { return };
            self.moved.add(train.bytes.len(), train.stride);
            let (via, stride) = (Via::Stream(relay), train.stride.max(1));
            let mut train = RxTrain { via, stride, bytes: &mut train.bytes };
            self.engine.handle_datagrams(&mut train, now, &mut self.sending.arena, &mut self.packets);
            note_received(&mut self.silence, self.crossing.as_ref(), &self.packets);
            write_inner(&self.tun, train.bytes, &mut self.packets, &mut self.counters);
            self.hand_over();
        }
    }
}

/// Writes the inner packets of an opened train, which lie in these bytes, to the TUN, and forgets them.
pub(super) fn write_inner<T: Tun>(
    tun: &Option<Queue<T>>,
    bytes: &mut [u8],
    packets: &mut RxBatch,
    counters: &mut Counters,
) {
    match tun {
        Some(Queue { tun, .. }) => {
            let refused = tun.write_batch(bytes, packets.packets());
            counters.count(Counter::TunWrite, refused);
        }
        None => counters.count(Counter::TunAway, packets.packets().len() as u64),
    }
    packets.clear();
}
