//! What happens when: events in the order of their due times, and of their arrival where those are equal.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

/// A queue of events with due times, counted from the start of the simulation.
pub(crate) struct EventQueue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    sequence: u64,
}

struct Entry<E> {
    due: Duration,
    sequence: u64,
    event: E,
}

impl<E> EventQueue<E> {
    /// Makes an empty queue.
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), sequence: 0 }
    }

    /// Has an event happen at a time.
    pub(crate) fn push(&mut self, due: Duration, event: E) {
        self.sequence += 1;
        self.heap.push(Reverse(Entry { due, sequence: self.sequence, event }));
    }

    /// Takes the next event, if it is due until `limit`.
    pub(crate) fn pop_until(&mut self, limit: Duration) -> Option<(Duration, E)> {
        if self.heap.peek()?.0.due > limit {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| (entry.due, entry.event))
    }
}

impl<E> Entry<E> {
    fn key(&self) -> (Duration, u64) {
        (self.due, self.sequence)
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

#[test]
fn events_come_by_due_time_then_in_order_of_arrival() {
    let mut queue = EventQueue::new();
    for (due, event) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b'), (9, 'e')] {
        queue.push(Duration::from_secs(due), event);
    }
    let until = Duration::from_secs(2);
    let order: String = std::iter::from_fn(|| queue.pop_until(until)).map(|(_, event)| event).collect();
    assert_eq!(order, "abcd");
}
