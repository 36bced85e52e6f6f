//! First packets: what waits for a session that is being made, or for a path's MTU.
//!
//! Each peer has a [`Queue`]; when it is full, the oldest packet goes. All queues together are bounded by a
//! [`Budget`], so that traffic to many unreachable peers can't take the memory. What is counted is what a packet
//! really takes ([`footprint`]): of small packets most of that is not the packet.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{drops::DropReason, segment::Segments};

/// Most packets that wait for one peer: the beginning of several TCP connections, or a burst of a stream.
const MAX_PACKETS: usize = 128;
/// Most memory that the packets for one peer take: [`MAX_PACKETS`] of full size.
const MAX_BYTES: usize = 208 * 1024;
/// Most memory that all queues of a node take: a fourth of what an agent may take at all.
pub(crate) const MAX_TOTAL_BYTES: usize = 4 * 1024 * 1024;
/// A packet is of no use after this long: its sender has sent it again. As long as the first handshake
/// initiations of an attempt take through a lossy relay.
const MAX_AGE: Duration = Duration::from_secs(5);

/// A queue has room for at most so many times the entries that it holds: half of that after it has grown or shrunk.
const MAX_SPARE: usize = 4;
/// What an allocator adds to each allocation.
const ALLOCATOR_OVERHEAD: usize = 16;

/// What all queues of an engine take.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: usize,
    most: usize,
}

impl Budget {
    /// The budget of each of so many engines that share a node's.
    pub(crate) fn shared_by(engines: u32) -> Self {
        Self { bytes: 0, most: MAX_TOTAL_BYTES / (engines.max(1) as usize) }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::shared_by(1)
    }
}

/// The packets that wait for one peer's session, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    packets: VecDeque<Waiting>,
    bytes: usize,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    packet: Vec<u8>,
}

impl Queue {
    /// Whether no packet waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Appends a packet. `dropped` is told of every packet that went for it, or that had waited too long.
    pub(crate) fn push(
        &mut self,
        packet: Vec<u8>,
        now: Instant,
        budget: &mut Budget,
        mut dropped: impl FnMut(DropReason),
    ) {
        self.expire(now, budget, &mut dropped);
        let taken = footprint::<Waiting>(&packet);
        self.bytes += taken;
        budget.bytes += taken;
        self.packets.push_back(Waiting { since: now, packet });
        while self.packets.len() > MAX_PACKETS || self.bytes > MAX_BYTES || budget.bytes > budget.most {
            if self.pop(budget).is_none() {
                break;
            }
            dropped(DropReason::QueueFull);
        }
    }

    /// Appends the packets of a frame, as [`Queue::push`] does.
    pub(crate) fn push_all(
        &mut self,
        segments: &Segments<'_>,
        now: Instant,
        budget: &mut Budget,
        mut dropped: impl FnMut(DropReason),
    ) {
        for index in 0..segments.count() {
            let mut packet = Vec::with_capacity(segments.max_len());
            segments.write(index, &mut packet);
            self.push(packet, now, budget, &mut dropped);
        }
    }

    /// Takes the oldest packet.
    pub(crate) fn pop(&mut self, budget: &mut Budget) -> Option<Vec<u8>> {
        let waiting = self.packets.pop_front()?;
        let taken = footprint::<Waiting>(&waiting.packet);
        self.bytes -= taken;
        budget.bytes -= taken;
        trim(&mut self.packets);
        Some(waiting.packet)
    }

    /// Returns the oldest packet.
    pub(crate) fn peek(&self) -> Option<&[u8]> {
        self.packets.front().map(|waiting| waiting.packet.as_slice())
    }

    /// Drops what has waited too long.
    pub(crate) fn expire(&mut self, now: Instant, budget: &mut Budget, mut dropped: impl FnMut(DropReason)) {
        while self.poll_timeout().is_some_and(|at| at <= now) {
            self.pop(budget);
            dropped(DropReason::QueueExpired);
        }
    }

    /// Drops everything, uncounted: the peer is gone.
    pub(crate) fn clear(&mut self, budget: &mut Budget) {
        while self.pop(budget).is_some() {}
    }

    /// Returns when the oldest packet has waited too long.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.packets.front().map(|waiting| waiting.since + MAX_AGE)
    }
}

/// Returns how much memory a packet takes in a queue of such entries that is kept [trim](trim()).
pub(crate) fn footprint<Entry>(packet: &Vec<u8>) -> usize {
    packet.capacity() + ALLOCATOR_OVERHEAD + MAX_SPARE * size_of::<Entry>()
}

/// Gives back room that a queue has for far more entries than it holds.
pub(crate) fn trim<Entry>(queue: &mut VecDeque<Entry>) {
    if queue.is_empty() || queue.len() * MAX_SPARE < queue.capacity() {
        queue.shrink_to(queue.len() * MAX_SPARE / 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_leave_in_order_and_the_oldest_goes_when_it_is_full() {
        let now = Instant::now();
        let (mut queue, mut budget, mut drops) = (Queue::default(), Budget::default(), Vec::new());
        for number in 0..=MAX_PACKETS {
            queue.push(vec![u8::try_from(number).unwrap(); 3], now, &mut budget, |reason| drops.push(reason));
        }
        assert_eq!(drops, [DropReason::QueueFull]);
        assert_eq!(queue.pop(&mut budget), Some(vec![1; 3]));
        assert_eq!(queue.pop(&mut budget), Some(vec![2; 3]));
        queue.clear(&mut budget);
        assert_eq!(budget.bytes, 0);
    }

    #[test]
    fn bytes_are_bounded_per_peer_and_in_all() {
        let now = Instant::now();
        let mut budget = Budget::default();
        let mut queues: Vec<Queue> = (0..40).map(|_| Queue::default()).collect();
        for queue in &mut queues {
            for _ in 0..4 {
                queue.push(vec![0; 60_000], now, &mut budget, |_| {});
            }
            assert!(queue.bytes <= MAX_BYTES);
        }
        assert!(budget.bytes <= MAX_TOTAL_BYTES);
        assert_eq!(budget.bytes, queues.iter().map(|queue| queue.bytes).sum::<usize>());
    }

    #[test]
    fn the_smallest_packets_are_counted_for_what_they_take() {
        let now = Instant::now();
        let (mut queue, mut budget) = (Queue::default(), Budget::default());
        let mut packet = Vec::with_capacity(1420);
        packet.push(1);
        queue.push(packet, now, &mut budget, |_| {});
        assert!(budget.bytes > 1420);
        queue.push(vec![1], now, &mut budget, |_| {});
        assert!(budget.bytes > 1420 + 2 * size_of::<Waiting>());
        queue.clear(&mut budget);
        assert_eq!((queue.bytes, budget.bytes), (0, 0));
        for _ in 0..MAX_PACKETS {
            queue.push(vec![0; 1420], now, &mut budget, |reason| panic!("{reason:?}"));
        }
    }

    #[test]
    fn old_packets_go() {
        let now = Instant::now();
        let (mut queue, mut budget, mut drops) = (Queue::default(), Budget::default(), Vec::new());
        queue.push(vec![1], now, &mut budget, |_| {});
        queue.push(vec![2], now + Duration::from_secs(1), &mut budget, |_| {});
        assert_eq!(queue.poll_timeout(), Some(now + MAX_AGE));
        queue.expire(now + MAX_AGE, &mut budget, |reason| drops.push(reason));
        assert_eq!(drops, [DropReason::QueueExpired]);
        assert_eq!(queue.peek(), Some(&[2][..]));
    }
}
