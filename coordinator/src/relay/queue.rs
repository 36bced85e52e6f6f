//! What waits while the socket is full: one bounded queue per receiver, of which the oldest goes first.

use std::collections::{HashMap, VecDeque};

use mesh_proto::relay::ChannelId;

/// Bytes that may wait for one receiver: 20 ms at 100 Mbit/s. More would be delay, not throughput.
pub(super) const CLIENT_QUEUE_BYTES: usize = 256 << 10;
/// Bytes that may wait for all receivers together.
const TOTAL_QUEUE_BYTES: usize = 16 << 20;

/// A train that waits.
#[derive(Debug)]
pub(super) struct QueuedTrain {
    pub(super) bytes: Vec<u8>,
    pub(super) stride: usize,
}

/// The queues of all receivers, which take turns.
#[derive(Debug, Default)]
pub(super) struct SendQueues {
    queues: HashMap<ChannelId, ClientQueue>,
    /// The receivers with a queue; the first is served next.
    turns: VecDeque<ChannelId>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct ClientQueue {
    trains: VecDeque<QueuedTrain>,
    bytes: usize,
}

impl QueuedTrain {
    fn packets(&self) -> u64 {
        self.bytes.len().div_ceil(self.stride.max(1)) as u64
    }
}

impl SendQueues {
    /// Appends a train to a receiver's queue; returns how many packets had to go for it.
    pub(super) fn push(&mut self, receiver: ChannelId, train: QueuedTrain) -> u64 {
        if train.bytes.len() > CLIENT_QUEUE_BYTES {
            return train.packets();
        }
        let queue = self.queues.entry(receiver).or_insert_with(|| {
            self.turns.push_back(receiver);
            ClientQueue::default()
        });
        let mut dropped = 0;
        while queue.bytes + train.bytes.len() > CLIENT_QUEUE_BYTES
            || self.bytes + train.bytes.len() > TOTAL_QUEUE_BYTES
        {
            // An empty queue can give nothing: the others have filled the relay.
            let Some(oldest) = queue.trains.pop_front() else { return dropped + train.packets() };
            queue.bytes -= oldest.bytes.len();
            self.bytes -= oldest.bytes.len();
            dropped += oldest.packets();
        }
        queue.bytes += train.bytes.len();
        self.bytes += train.bytes.len();
        queue.trains.push_back(train);
        dropped
    }

    /// Returns whose turn it is, with the oldest train.
    pub(super) fn front(&self) -> Option<(ChannelId, &QueuedTrain)> {
        let receiver = *self.turns.front()?;
        Some((receiver, self.queues.get(&receiver)?.trains.front()?))
    }

    /// Removes what [`Self::front`] returned, and gives the turn to the next receiver.
    pub(super) fn pop(&mut self) {
        let Some(receiver) = self.turns.pop_front() else { return };
        let Some(queue) = self.queues.get_mut(&receiver) else { return };
        if let Some(train) = queue.trains.pop_front() {
            queue.bytes -= train.bytes.len();
            self.bytes -= train.bytes.len();
        }
        if queue.trains.is_empty() {
            self.queues.remove(&receiver);
        } else {
            self.turns.push_back(receiver);
        }
    }

    /// Drops a receiver's queue; returns how many packets were in it.
    pub(super) fn remove(&mut self, receiver: ChannelId) -> u64 {
        let Some(queue) = self.queues.remove(&receiver) else { return 0 };
        self.turns.retain(|waiting| *waiting != receiver);
        self.bytes -= queue.bytes;
        queue.trains.iter().map(QueuedTrain::packets).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ChannelId = ChannelId(1);
    const B: ChannelId = ChannelId(2);

    fn train(first: u8, len: usize) -> QueuedTrain {
        QueuedTrain { bytes: vec![first; len], stride: 1000 }
    }

    fn front(queues: &SendQueues) -> Option<(ChannelId, u8)> {
        queues.front().map(|(receiver, train)| (receiver, train.bytes[0]))
    }

    #[test]
    fn the_oldest_makes_room_and_is_counted() {
        let mut queues = SendQueues::default();
        for first in 0..5 {
            assert_eq!(queues.push(A, train(first, 50_000)), 0);
        }
        assert_eq!(queues.push(A, train(5, 50_000)), 50, "one train of 50 packets had to go");
        assert_eq!(queues.bytes(), 250_000);
        assert_eq!(front(&queues), Some((A, 1)));
        assert_eq!(queues.push(A, train(6, CLIENT_QUEUE_BYTES + 1)), 263, "longer than the queue");
        assert_eq!(queues.remove(A), 250);
        assert!(queues.is_empty());
        assert_eq!(queues.bytes(), 0);
    }

    #[test]
    fn receivers_take_turns() {
        let mut queues = SendQueues::default();
        for (receiver, first) in [(A, 0), (A, 1), (A, 2), (B, 3)] {
            queues.push(receiver, train(first, 10));
        }
        let mut order = Vec::new();
        while let Some(next) = front(&queues) {
            order.push(next);
            queues.pop();
        }
        assert_eq!(order, [(A, 0), (B, 3), (A, 1), (A, 2)]);
        assert_eq!(queues.bytes(), 0);
    }

    #[test]
    fn all_queues_together_are_bounded() {
        let mut queues = SendQueues::default();
        for receiver in 0..200 {
            queues.push(ChannelId(receiver), train(0, CLIENT_QUEUE_BYTES));
        }
        assert_eq!(queues.bytes(), TOTAL_QUEUE_BYTES);
        assert_eq!(queues.push(ChannelId(999), train(0, 1000)), 1, "a newcomer finds no room");
    }
}
