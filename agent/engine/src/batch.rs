//! The unit that passes through the engine: trains of segments in buffers that the IO layer owns.
//!
//! Outbound, the IO layer lends a [`TxArena`]: the engine lays sealed datagrams out in it, neighbours for one
//! destination with equal length side by side, so that a train leaves with one system call (UDP_SEGMENT).
//! Inbound, the IO layer lends the bytes of a whole UDP_GRO train as [`RxTrain`]: the engine opens its
//! datagrams in place and notes in an [`RxBatch`] where the inner packets lie.
//!
//! An IO layer that moves one packet at a time uses the same types with trains of one.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use mesh_proto::netmap::RelayId;

/// Most bytes in one train: a UDP_SEGMENT send of more is cut up by the kernel before delivery
/// (payload, IP, UDP and link header must stay below gso_max_size 65536).
pub const MAX_TRAIN_BYTES: usize = 65_430;

/// Most segments in one train: kernels before 6.9 take no more.
pub const MAX_TRAIN_SEGMENTS: usize = 64;

/// What one read of the TUN gave.
#[derive(Debug, Clone, Copy)]
pub struct TunFrame<'a> {
    /// An IP packet, from its IP header on; a superpacket if `offload` says so.
    pub packet: &'a [u8],
    /// What the kernel left undone.
    pub offload: Offload,
}

/// What the kernel left to do on a packet read from the TUN (`virtio_net_hdr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// Nothing: the packet is complete.
    #[default]
    None,
    /// The checksum from `start` to the end belongs at `start + offset`.
    Checksum {
        /// First byte that is summed, from the IP header on.
        start: u16,
        /// Where the sum goes, from `start` on.
        offset: u16,
    },
    /// A superpacket: cut it into segments of `segment_len` bytes of payload.
    Segment {
        /// What is cut.
        protocol: SegmentProtocol,
        /// Payload bytes of each segment but the last, which may be shorter.
        segment_len: u16,
        /// First byte that is summed, from the IP header on: where the transport header starts.
        start: u16,
        /// Where the sum goes, from `start` on.
        offset: u16,
    },
}

/// Transport protocols of superpackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentProtocol {
    /// TCP over either IP version.
    Tcp,
    /// UDP over either IP version.
    Udp,
}

/// Datagrams that came from one source in one read.
#[derive(Debug)]
pub struct RxTrain<'a> {
    /// What they came through.
    pub via: Via,
    /// Length of every datagram but the last, which may be shorter.
    pub stride: usize,
    /// The datagrams, one behind the other; opened in place.
    pub bytes: &'a mut [u8],
}

/// What a datagram goes or comes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// A UDP socket.
    Udp {
        /// The other side.
        remote: SocketAddr,
        /// This side's address, where known or wished for.
        local: Option<IpAddr>,
    },
    /// A UDP socket for IPv4 beside the main one, opened when something is sent through it for the first time and
    /// closed when [`crate::Engine::poll_sockets`] does not name it any more.
    Punched {
        /// Which.
        socket: SocketId,
        /// The other side.
        remote: SocketAddr,
    },
    /// A relay's byte stream, which carries relay frames in order.
    Stream(RelayId),
}

/// Names a socket beside the main one; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u32);

/// Where the inner packets of an opened train lie in its bytes.
#[derive(Debug, Default)]
pub struct RxBatch {
    packets: Vec<Range<usize>>,
}

/// A flat buffer in which datagrams are laid out, and the trains that they form.
#[derive(Debug)]
pub struct TxArena {
    buffer: Box<[u8]>,
    used: usize,
    trains: Vec<Train>,
}

/// A train in the arena, to be sent with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit<'a> {
    /// What it goes through.
    pub via: Via,
    /// Length of every datagram but the last, which may be shorter.
    pub stride: usize,
    /// The datagrams, one behind the other.
    pub bytes: &'a [u8],
}

#[derive(Debug, Clone)]
struct Train {
    via: Via,
    stride: usize,
    range: Range<usize>,
    /// Whether it stays a train of one.
    alone: bool,
}

impl Train {
    /// Whether a datagram of `len` bytes that is laid out next would continue this train.
    fn takes(&self, via: Via, len: usize) -> bool {
        let bytes = self.range.len();
        self.via == via
            && !self.alone
            && bytes.is_multiple_of(self.stride)
            && len <= self.stride
            && bytes / self.stride < MAX_TRAIN_SEGMENTS
            && bytes + len <= MAX_TRAIN_BYTES
    }
}

impl TxArena {
    /// Makes an arena of a fixed size in bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { buffer: vec![0; capacity].into_boxed_slice(), used: 0, trains: Vec::new() }
    }

    /// Returns how many bytes are free.
    #[must_use]
    pub fn room(&self) -> usize {
        self.buffer.len() - self.used
    }

    /// Whether nothing is laid out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.trains.is_empty()
    }

    /// Lays out one datagram: `write` fills up to `max_len` bytes and returns how many it used; 0 takes it back.
    ///
    /// Returns the datagram's length, or `None` when there is no room for `max_len`.
    pub fn push_with(
        &mut self,
        via: Via,
        max_len: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> Option<usize> {
        let slot = self.buffer.get_mut(self.used..self.used.checked_add(max_len)?)?;
        let len = write(slot);
        assert!(len <= max_len, "a datagram stays in its slot");
        if len == 0 {
            return Some(0);
        }
        match self.trains.last_mut() {
            Some(train) if train.takes(via, len) => train.range.end += len,
            _ => {
                self.trains.push(Train { via, stride: len, range: self.used..self.used + len, alone: false })
            }
        }
        self.used += len;
        Some(len)
    }

    /// Lays out a datagram that is complete; `false` when there is no room for it.
    pub fn push(&mut self, via: Via, datagram: &[u8]) -> bool {
        self.push_with(via, datagram.len(), |slot| {
            slot.copy_from_slice(datagram);
            datagram.len()
        })
        .is_some()
    }

    /// Like [`TxArena::push`], in a train of its own: a system that refuses this datagram refuses no other with it.
    pub fn push_alone(&mut self, via: Via, datagram: &[u8]) -> bool {
        let (start, len) = (self.used, datagram.len());
        let Some(slot) = self.buffer.get_mut(start..start + len) else { return false };
        slot.copy_from_slice(datagram);
        self.trains.push(Train { via, stride: len, range: start..start + len, alone: true });
        self.used += len;
        true
    }

    /// Returns the trains in the order in which they were laid out.
    pub fn transmits(&self) -> impl Iterator<Item = Transmit<'_>> {
        self.trains.iter().map(|train| Transmit {
            via: train.via,
            stride: train.stride,
            bytes: &self.buffer[train.range.clone()],
        })
    }

    /// Empties the arena.
    pub fn clear(&mut self) {
        self.used = 0;
        self.trains.clear();
    }
}

impl RxBatch {
    /// Notes an inner packet.
    pub fn push(&mut self, packet: Range<usize>) {
        self.packets.push(packet);
    }

    /// Returns where the packets lie, in order of arrival.
    #[must_use]
    pub fn packets(&self) -> &[Range<usize>] {
        &self.packets
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.packets.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via(port: u16) -> Via {
        Via::Udp { remote: SocketAddr::from(([192, 0, 2, 1], port)), local: None }
    }

    #[test]
    fn neighbours_of_equal_length_form_a_train_and_a_shorter_one_ends_it() {
        let mut arena = TxArena::new(1000);
        for (port, len) in [(1, 100), (1, 100), (1, 40), (1, 40), (2, 40), (2, 50)] {
            assert!(arena.push(via(port), &vec![7; len]));
        }
        let trains: Vec<_> = arena.transmits().map(|t| (t.via, t.stride, t.bytes.len())).collect();
        assert_eq!(trains, [(via(1), 100, 240), (via(1), 40, 40), (via(2), 40, 40), (via(2), 50, 50)]);
    }

    #[test]
    fn what_is_to_be_alone_joins_no_train_and_none_joins_it() {
        let mut arena = TxArena::new(1000);
        assert!(arena.push(via(1), &[0; 100]));
        assert!(arena.push_alone(via(1), &[0; 100]));
        assert!(arena.push(via(1), &[0; 50]));
        assert!(!arena.push_alone(via(1), &[0; 751]));
        let lens: Vec<_> = arena.transmits().map(|t| t.bytes.len()).collect();
        assert_eq!(lens, [100, 100, 50]);
    }

    #[test]
    fn a_train_is_bounded_in_segments_and_bytes() {
        let mut arena = TxArena::new(1 << 20);
        for _ in 0..=MAX_TRAIN_SEGMENTS {
            assert!(arena.push(via(1), &[0; 10]));
        }
        for _ in 0..50 {
            assert!(arena.push(via(2), &[0; 1452]));
        }
        let lens: Vec<_> = arena.transmits().map(|t| t.bytes.len()).collect();
        assert_eq!(lens, [640, 10, 45 * 1452, 5 * 1452]);
    }

    #[test]
    fn a_full_arena_takes_nothing_and_a_datagram_can_be_taken_back() {
        let mut arena = TxArena::new(100);
        assert_eq!(arena.push_with(via(1), 60, |_| 0), Some(0));
        assert!(arena.is_empty());
        assert!(arena.push(via(1), &[0; 60]));
        assert!(!arena.push(via(1), &[0; 60]));
        assert_eq!(arena.room(), 40);
        arena.clear();
        assert_eq!(arena.room(), 100);
    }
}
