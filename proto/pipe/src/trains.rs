//! Trains that wait to be written: a bounded queue between two tasks, in which the oldest makes room.
//!
//! A packet that is late is worth less than the one after it, and who waits for a slow reader makes everybody wait:
//! so [`TrainSender::push`] never waits, and what it has to drop for the new train, it says.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Datagrams of `stride` bytes each, of which the last may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Train {
    /// All of them, one behind the other.
    pub bytes: Vec<u8>,
    /// Length of each but the last.
    pub stride: usize,
}

/// The end at which trains go in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TrainSender(Arc<Shared>);

/// The end at which they come out.
#[derive(Debug)]
pub struct TrainReceiver(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Debug)]
struct Queue {
    trains: VecDeque<Train>,
    bytes: usize,
    max_bytes: usize,
    is_open: bool,
}

/// Makes a queue that holds up to so many bytes.
#[must_use]
pub fn trains(max_bytes: usize) -> (TrainSender, TrainReceiver) {
    let queue = Queue { trains: VecDeque::new(), bytes: 0, max_bytes, is_open: true };
    let shared = Arc::new(Shared { queue: Mutex::new(queue), filled: Notify::new() });
    (TrainSender(shared.clone()), TrainReceiver(shared))
}

impl Train {
    /// Returns how many datagrams it has.
    #[must_use]
    pub fn packets(&self) -> u64 {
        packets(self.bytes.len(), self.stride)
    }
}

impl TrainSender {
    /// Appends a train; returns how many packets had to go for it, or went with it because nobody takes them.
    pub fn push(&self, bytes: &[u8], stride: usize) -> u64 {
        let mut queue = self.0.lock();
        if !queue.is_open || bytes.len() > queue.max_bytes {
            return packets(bytes.len(), stride);
        }
        let mut dropped = 0;
        while queue.bytes + bytes.len() > queue.max_bytes {
            let Some(oldest) = queue.trains.pop_front() else { break };
            queue.bytes -= oldest.bytes.len();
            dropped += oldest.packets();
        }
        queue.bytes += bytes.len();
        queue.trains.push_back(Train { bytes: bytes.to_vec(), stride });
        drop(queue);
        self.0.filled.notify_one();
        dropped
    }

    /// Says whether somebody takes what is pushed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.lock().is_open
    }
}

impl TrainReceiver {
    /// Waits until there may be a train. Cancel-safe.
    pub async fn filled(&self) {
        self.0.filled.notified().await;
    }

    /// Takes the oldest train.
    pub fn pop(&self) -> Option<Train> {
        let mut queue = self.0.lock();
        let train = queue.trains.pop_front()?;
        queue.bytes -= train.bytes.len();
        Some(train)
    }
}

impl Drop for TrainReceiver {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.is_open = false;
        queue.trains = VecDeque::new();
        queue.bytes = 0;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The queue is whole after every statement, so a panic elsewhere has not broken it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn packets(len: usize, stride: usize) -> u64 {
    len.div_ceil(stride.max(1)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_makes_room_and_is_counted() {
        let (sender, receiver) = trains(3000);
        for first in 0..3 {
            assert_eq!(sender.push(&[first; 1000], 100), 0);
        }
        assert_eq!(sender.push(&[3; 1500], 100), 20, "two trains of ten packets had to go");
        assert_eq!(sender.push(&[4; 3001], 1000), 4, "longer than the queue");
        receiver.filled().await;
        assert_eq!(receiver.pop().unwrap().bytes[0], 2);
        assert_eq!(receiver.pop().unwrap(), Train { bytes: vec![3; 1500], stride: 100 });
        assert_eq!(receiver.pop(), None);
        assert!(sender.is_open());
        drop(receiver);
        assert_eq!(sender.push(&[5; 10], 10), 1, "nobody takes it");
        assert!(!sender.is_open());
    }
}
