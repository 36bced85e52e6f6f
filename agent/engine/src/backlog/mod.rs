//! What waits because more comes than can go: short, and fair between flows (RFC 8290, FQ-CoDel).
//!
//! Usually nothing does. Where a socket is full, or there is more than one turn of the driver can seal, packets wait here
//! instead of in the interface's own queue, which has one order for all. Each flow (a peer's, with one pair of
//! addresses and ports) has a queue of its own:
//!
//! ```text
//! new flows ->  each sends up to a quantum, then goes to the end of the old ones
//! old flows ->  take turns, a quantum of bytes each; one that has run empty is forgotten
//! ```
//!
//! New flows go first. A flow that sends little is new whenever it sends, so neither an echo to another peer nor a new
//! connection to the same one waits behind a bulk transfer. Each queue is kept short by [`codel`].
//!
//! Everything together is bounded by [`CAPACITY`]. When it is full the driver stops reading, so that senders are pushed
//! back; what waits in the interface's queue then is not seen here, so a long backlog counts as late.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hasher},
    net::IpAddr,
    time::Instant,
};

use crate::{
    batch::{Offload, TunFrame},
    packet::{PROTOCOL_TCP, PROTOCOL_UDP},
    queue::trim,
    segment::Segments,
};

mod codel;

use codel::{Codel, TARGET};

/// Most bytes that wait: 2 ms at 4 Gbit/s, and what TCP needs to fill 100 Mbit/s over 80 ms.
const CAPACITY: usize = 1024 * 1024;
/// Most memory that it takes: the last frame may go beyond, of the smallest packets what counts is not theirs, and a
/// long one lies in a buffer for the longest.
pub(crate) const MAX_MEMORY: usize = 2 * CAPACITY + BUFFER_LEN + MAX_SPARE * BUFFER_LEN;
/// Frames from this length on lie in buffers that are used again: under a bulk transfer the allocator would give their
/// memory back to the system and ask for it anew, over and over (4.5 % of an agent's CPU).
const LONG_FRAME: usize = BUFFER_LEN / 2;
/// Length of such a buffer: the longest frame.
const BUFFER_LEN: usize = 64 * 1024;
/// Such buffers that are kept for later.
const MAX_SPARE: usize = 8;
/// From this length on it counts as late. A turn of the driver takes a quarter, and fills it up again as long as the
/// interface's queue has more.
const LONG: usize = CAPACITY / 2;
/// What a packet costs beside its bytes, about.
const PACKET_COST: usize = 128;
/// Queues: flows that share one share its fate, and a node speaks to tens at a time (RFC 8290, section 5.2.1, has 1024
/// for a router).
const FLOWS: usize = 256;
/// Bytes that a flow may send in one turn: a full packet (RFC 8290, section 5.2.3).
const QUANTUM: isize = 1514;

/// The packets that wait.
#[derive(Debug)]
pub(crate) struct Backlog {
    flows: Vec<Flow>,
    new: VecDeque<usize>,
    old: VecDeque<usize>,
    /// Keeps a sender from choosing whose queue it shares.
    key: u64,
    bytes: usize,
    spare: Vec<Vec<u8>>,
}

/// A frame of the TUN that waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Whose it was when it came.
    pub(crate) slot: u32,
    /// How many packets it stands for.
    pub(crate) packets: usize,
    packet: Vec<u8>,
    offload: Offload,
    since: Instant,
}

#[derive(Debug, Default)]
struct Flow {
    queue: VecDeque<Waiting>,
    codel: Codel,
    /// What it may still send in this turn.
    deficit: isize,
    is_listed: bool,
}

impl Waiting {
    /// Returns it as it came.
    pub(crate) fn frame(&self) -> TunFrame<'_> {
        TunFrame { packet: &self.packet, offload: self.offload }
    }

    fn cost(&self) -> usize {
        self.packet.len() + PACKET_COST
    }
}

impl Backlog {
    pub(crate) fn new(key: u64) -> Self {
        let flows = std::iter::repeat_with(Flow::default).take(FLOWS).collect();
        Self { flows, new: VecDeque::new(), old: VecDeque::new(), key, bytes: 0, spare: Vec::new() }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether nothing more should be read.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= CAPACITY
    }

    /// Keeps a frame for the peer in `slot`.
    pub(crate) fn push(&mut self, slot: u32, segments: &Segments<'_>, offload: Offload, now: Instant) {
        let index = self.flow_of(slot, segments);
        let mut packet = self.buffer(segments.packet().len());
        packet.extend_from_slice(segments.packet());
        let waiting = Waiting { slot, packets: segments.count(), packet, offload, since: now };
        self.bytes += waiting.cost();
        let flow = &mut self.flows[index];
        flow.queue.push_back(waiting);
        if !flow.is_listed {
            flow.is_listed = true;
            flow.deficit = QUANTUM;
            self.new.push_back(index);
        }
    }

    /// Takes what is next; `dropped` is told of what goes because its flow sends too much.
    pub(crate) fn pop(&mut self, now: Instant, mut dropped: impl FnMut(&Waiting)) -> Option<Waiting> {
        loop {
            let is_new = !self.new.is_empty();
            let list = if is_new { &mut self.new } else { &mut self.old };
            let index = list.pop_front()?;
            let is_long = self.bytes >= LONG;
            let flow = &mut self.flows[index];
            if flow.deficit <= 0 {
                flow.deficit += QUANTUM;
                self.old.push_back(index);
                continue;
            }
            let taken = flow.pop(is_long, now, |waiting| {
                self.bytes -= waiting.cost();
                dropped(waiting);
            });
            let Some(waiting) = taken else {
                // A new flow goes through the old ones once: else it could go first for ever, a packet at a time.
                if is_new && !self.old.is_empty() {
                    self.old.push_back(index);
                } else {
                    flow.is_listed = false;
                    flow.queue.shrink_to_fit();
                }
                continue;
            };
            trim(&mut flow.queue);
            self.bytes -= waiting.cost();
            flow.deficit -= isize::try_from(waiting.packet.len()).unwrap_or(isize::MAX);
            if is_new { &mut self.new } else { &mut self.old }.push_front(index);
            return Some(waiting);
        }
    }

    /// Takes back what [`Backlog::pop`] gave.
    pub(crate) fn recycle(&mut self, waiting: Waiting) {
        let mut buffer = waiting.packet;
        if buffer.capacity() >= BUFFER_LEN && self.spare.len() < MAX_SPARE {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// Returns an empty buffer that so many bytes fit in.
    fn buffer(&mut self, len: usize) -> Vec<u8> {
        if len < LONG_FRAME {
            return Vec::with_capacity(len);
        }
        self.spare.pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_LEN))
    }

    fn flow_of(&self, slot: u32, segments: &Segments<'_>) -> usize {
        let header = segments.header();
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.key);
        hasher.write_u32(slot);
        for address in [header.source, header.destination] {
            match address {
                IpAddr::V4(v4) => hasher.write(&v4.octets()),
                IpAddr::V6(v6) => hasher.write(&v6.octets()),
            }
        }
        hasher.write_u8(header.protocol);
        if matches!(header.protocol, PROTOCOL_TCP | PROTOCOL_UDP) {
            // In a later fragment other bytes stand there: it is of another flow then, which does no harm.
            hasher.write(segments.packet().get(header.header_len..header.header_len + 4).unwrap_or_default());
        }
        // Below FLOWS.
        (hasher.finish() % FLOWS as u64) as usize
    }
}

impl Flow {
    /// Takes what is next, after what CoDel has lost.
    fn pop(&mut self, is_long: bool, now: Instant, mut dropped: impl FnMut(&Waiting)) -> Option<Waiting> {
        loop {
            let waiting = self.queue.pop_front()?;
            let is_late = is_long || now.saturating_duration_since(waiting.since) > TARGET;
            // A loss tells a sender only if something follows it.
            if !self.codel.drops(is_late && !self.queue.is_empty(), now) {
                return Some(waiting);
            }
            dropped(&waiting);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::packet::tests::ipv4;

    const PEER: u32 = 1;

    fn packet(from_port: u16, len: usize) -> Vec<u8> {
        let mut udp = from_port.to_be_bytes().to_vec();
        udp.resize(len - 20, 0);
        ipv4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_UDP, &udp)
    }

    fn push(backlog: &mut Backlog, from_port: u16, len: usize, now: Instant) {
        let packet = packet(from_port, len);
        let frame = TunFrame { packet: &packet, offload: Offload::None };
        backlog.push(PEER, &Segments::new(frame).unwrap(), Offload::None, now);
    }

    fn port(waiting: &Waiting) -> u16 {
        u16::from_be_bytes([waiting.packet[20], waiting.packet[21]])
    }

    /// Takes everything; returns the ports in order. Nothing may be lost.
    fn drain(backlog: &mut Backlog, now: Instant) -> Vec<u16> {
        std::iter::from_fn(|| backlog.pop(now, |_| panic!("lost")).as_ref().map(port)).collect()
    }

    /// Ports whose flows are apart from each other.
    fn ports(backlog: &Backlog, count: usize) -> Vec<u16> {
        let mut seen = std::collections::BTreeMap::new();
        for port in 1..1000 {
            let packet = packet(port, 100);
            let frame = TunFrame { packet: &packet, offload: Offload::None };
            seen.entry(backlog.flow_of(PEER, &Segments::new(frame).unwrap())).or_insert(port);
        }
        seen.into_values().take(count).collect()
    }

    #[test]
    fn what_comes_later_but_seldom_goes_before_a_bulk_transfer() {
        let (mut backlog, now) = (Backlog::new(1), Instant::now());
        let [bulk, echo] = ports(&backlog, 2)[..] else { panic!() };
        for _ in 0..20 {
            push(&mut backlog, bulk, 1400, now);
        }
        assert_eq!(backlog.pop(now, |_| ()).as_ref().map(port), Some(bulk));
        for round in 0..3 {
            push(&mut backlog, echo, 100, now);
            let next: Vec<_> = (0..3).filter_map(|_| backlog.pop(now, |_| ()).as_ref().map(port)).collect();
            let place = next.iter().position(|port| *port == echo);
            assert!(place.is_some_and(|place| place <= 2), "round {round}: {next:?}");
        }
    }

    #[test]
    fn bulk_transfers_get_equal_shares_in_bytes() {
        let (mut backlog, now) = (Backlog::new(2), Instant::now());
        let [large, small] = ports(&backlog, 2)[..] else { panic!() };
        for _ in 0..100 {
            push(&mut backlog, large, 1400, now);
        }
        for _ in 0..700 {
            push(&mut backlog, small, 200, now);
        }
        let mut bytes = [0, 0];
        while bytes[0] + bytes[1] < 100_000 {
            let waiting = backlog.pop(now, |_| ()).unwrap();
            bytes[usize::from(port(&waiting) == small)] += waiting.packet.len();
        }
        assert!(bytes[0].abs_diff(bytes[1]) <= 2 * 1514, "{bytes:?}");
    }

    #[test]
    fn a_flow_keeps_its_order_and_everything_comes_out() {
        let (mut backlog, now) = (Backlog::new(3), Instant::now());
        for round in 0..50 {
            for port in 1..=8 {
                push(&mut backlog, port, 100 + round, now);
            }
        }
        let mut next = [100; 9];
        while let Some(waiting) = backlog.pop(now, |_| panic!("lost")) {
            let len = &mut next[usize::from(port(&waiting))];
            assert_eq!(waiting.packet.len(), *len);
            *len += 1;
        }
        assert_eq!(next[1..], [150; 8]);
        assert!(backlog.is_empty());
        assert!(backlog.flows.iter().all(|flow| !flow.is_listed && flow.queue.is_empty()));
        push(&mut backlog, 5, 100, now);
        assert_eq!(drain(&mut backlog, now), [5]);
    }

    #[test]
    fn a_flow_that_stands_loses_packets_and_one_that_does_not_loses_none() {
        let (mut backlog, start) = (Backlog::new(4), Instant::now());
        let [bulk, echo] = ports(&backlog, 2)[..] else { panic!() };
        let mut lost = Vec::new();
        for ms in 0..1000 {
            let now = start + Duration::from_millis(ms);
            // Two come for each that can go, so the queue grows.
            push(&mut backlog, bulk, 1400, now);
            push(&mut backlog, bulk, 1400, now);
            if ms % 50 == 0 {
                push(&mut backlog, echo, 100, now);
                backlog.pop(now, |waiting| lost.push(port(waiting)));
            }
            backlog.pop(now, |waiting| lost.push(port(waiting)));
        }
        assert!(lost.len() > 5 && lost.iter().all(|port| *port == bulk), "{lost:?}");
    }

    #[test]
    fn a_long_backlog_counts_as_late() {
        let (mut backlog, start) = (Backlog::new(5), Instant::now());
        let mut lost = 0;
        for ms in 0..300 {
            let now = start + Duration::from_millis(ms);
            while !backlog.is_full() {
                push(&mut backlog, 1, 60_000, now);
            }
            // All of it goes within 2 ms: nothing waits for long here.
            for _ in 0..10 {
                backlog.pop(now, |_| lost += 1);
            }
        }
        assert!((2..10).contains(&lost), "{lost}");
    }
}
