//! Between drivers: what one engine hands over to another goes into that driver's inbox.
//!
//! An inbox has two bounded queues. Packets from the TUN wait in one: when it is full, nobody reads the TUN any more, so
//! senders are pushed back as they are by a full backlog. In the other wait datagrams, of which those are lost that find
//! it full, as they would at a full socket; and what shards tell each other of themselves, which always has room.
//! Whoever puts something into an inbox that was empty rings its driver's doorbell, and whoever takes something out
//! of a full one rings everybody's.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
};

use mesh_engine::shard::Handover;

/// Bytes from which on a queue is full: two reads of a full socket.
const CAPACITY: usize = 1024 * 1024;
/// What an entry costs beside its bytes, about.
const ENTRY_COST: usize = 256;
/// Entries that an empty queue keeps room for: as many full trains.
const KEPT_ENTRIES: usize = 64;

/// One driver's way to the others.
pub(super) struct Crossing {
    own: usize,
    shared: Arc<Shared>,
}

struct Shared {
    inboxes: Vec<Inbox>,
    /// Inner packets that came out of the mesh, at whichever driver.
    received: AtomicU64,
}

struct Inbox {
    frames: Queue,
    others: Queue,
    doorbell: Waker,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<VecDeque<Handover>>,
    /// What they take; changed with the lock held.
    bytes: AtomicUsize,
}

impl Crossing {
    /// Makes the ways between drivers with these doorbells, in order of the drivers.
    pub(super) fn between(doorbells: Vec<Waker>) -> impl Iterator<Item = Self> {
        let inbox = |doorbell| Inbox { frames: Queue::default(), others: Queue::default(), doorbell };
        let inboxes: Vec<_> = doorbells.into_iter().map(inbox).collect();
        let shared = Arc::new(Shared { inboxes, received: AtomicU64::new(0) });
        (0..shared.inboxes.len()).map(move |own| Self { own, shared: Arc::clone(&shared) })
    }

    /// Puts something into another driver's inbox; `false` if there was no room, and it is lost.
    pub(super) fn send(&self, to: u32, handover: Handover) -> bool {
        let Some(inbox) = self.shared.inboxes.get(to as usize) else { return false };
        let is_frame = handover.frame().is_some();
        let queue = if is_frame { &inbox.frames } else { &inbox.others };
        // A reader of the TUN has looked before, so a frame may go beyond.
        if !is_frame && !handover.is_empty() && queue.is_full() {
            return false;
        }
        if queue.push(handover) {
            inbox.doorbell.wake_by_ref();
        }
        true
    }

    /// Whether a driver has so many packets from the TUN before it that no more should be read.
    pub(super) fn is_congested(&self) -> bool {
        self.others().any(|inbox| inbox.frames.is_full())
    }

    /// Whether something waits here; packets from the TUN count if they are wanted.
    pub(super) fn has_waiting(&self, wants_frames: bool) -> bool {
        let inbox = self.inbox();
        !inbox.others.is_empty() || (wants_frames && !inbox.frames.is_empty())
    }

    /// Takes the next packet from the TUN.
    pub(super) fn take_frame(&self) -> Option<Handover> {
        let queue = &self.inbox().frames;
        let was_full = queue.is_full();
        let handover = queue.pop();
        if was_full && !queue.is_full() {
            self.others().for_each(|inbox| inbox.doorbell.wake_by_ref());
        }
        handover
    }

    /// Takes the next of everything else.
    pub(super) fn take_other(&self) -> Option<Handover> {
        self.inbox().others.pop()
    }

    /// So many packets came out of the mesh.
    pub(super) fn note_received(&self, packets: usize) {
        if packets > 0 {
            self.shared.received.fetch_add(packets as u64, Ordering::Relaxed);
        }
    }

    /// Returns how many packets came out of the mesh, at whichever driver.
    pub(super) fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    fn inbox(&self) -> &Inbox {
        &self.shared.inboxes[self.own]
    }

    fn others(&self) -> impl Iterator<Item = &Inbox> {
        self.shared.inboxes.iter().enumerate().filter(|(index, _)| *index != self.own).map(|(_, inbox)| inbox)
    }
}

impl Queue {
    fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Acquire) >= CAPACITY
    }

    fn is_empty(&self) -> bool {
        self.bytes.load(Ordering::Acquire) == 0
    }

    /// Appends; whether the queue was empty before.
    fn push(&self, handover: Handover) -> bool {
        let mut waiting = self.lock();
        let was_empty = waiting.is_empty();
        self.bytes.fetch_add(cost(&handover), Ordering::AcqRel);
        waiting.push_back(handover);
        was_empty
    }

    fn pop(&self) -> Option<Handover> {
        if self.is_empty() {
            return None;
        }
        let mut waiting = self.lock();
        let handover = waiting.pop_front()?;
        self.bytes.fetch_sub(cost(&handover), Ordering::AcqRel);
        if waiting.is_empty() {
            // A burst of small packets leaves no room behind that nobody needs.
            waiting.shrink_to(KEPT_ENTRIES);
        }
        Some(handover)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Handover>> {
        // The queue is whole after every statement, so a panic elsewhere has not broken it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(handover: &Handover) -> usize {
    handover.len() + ENTRY_COST
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, task::Wake, time::Instant};

    use mesh_engine::{
        Engine,
        batch::{Offload, RxBatch, RxTrain, TunFrame, TxArena, Via},
        command::Command,
        config::{Config, PeerConfig, PrivateKey, PunchLimits},
    };
    use mesh_proto::{key::PublicKey, netmap::NodeId};

    use super::*;

    #[derive(Default)]
    struct Rings(AtomicUsize);

    impl Wake for Rings {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What the first of two engines hands over: a packet from the TUN, or a datagram.
    fn handed_over(frame: bool) -> impl FnMut() -> Handover {
        let now = Instant::now();
        let config = Config {
            id: NodeId(2),
            private_key: PrivateKey([0x40; 32].into()),
            addresses: vec![],
            allowed_ips: vec![],
            mtu: 1420,
            punch: PunchLimits::default(),
            real_time: 0,
        };
        let two = std::num::NonZeroU32::new(2).unwrap();
        let mut engine = Engine::shards(&config, [1; 32], two, now).remove(0);
        let allowed_ips = vec!["10.90.0.1/32".parse().unwrap()];
        let peer = PeerConfig { id: NodeId(1), public_key: PublicKey([7; 32]), allowed_ips };
        engine.handle_command(Command::SetPeers(vec![peer]), now);
        while engine.poll_handover().is_some() {}
        move || {
            let mut arena = TxArena::new(Engine::MAX_TUN_ROOM);
            if frame {
                let mut packet = vec![0x45, 0, 4, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 90, 0, 2, 10, 90, 0, 1];
                packet.resize(1024, 0);
                engine.handle_tun(TunFrame { packet: &packet, offload: Offload::None }, now, &mut arena);
            } else {
                let mut bytes = vec![0; 1024];
                (bytes[0], bytes[5]) = (4, 1);
                let via = Via::Udp { remote: "192.0.2.1:1".parse().unwrap(), local: None };
                let mut train = RxTrain { via, stride: bytes.len(), bytes: &mut bytes };
                engine.handle_datagrams(&mut train, now, &mut arena, &mut RxBatch::default());
            }
            engine.poll_handover().expect("it is the other's").1
        }
    }

    #[test]
    fn an_inbox_rings_once_and_a_full_one_pushes_back() {
        let rings: Vec<_> = (0..2).map(|_| Arc::new(Rings::default())).collect();
        let rung = |index: usize| rings[index].0.swap(0, Ordering::Relaxed);
        let crossings: Vec<_> =
            Crossing::between(rings.iter().map(|rings| Waker::from(Arc::clone(rings))).collect()).collect();
        let (mut frame, mut datagram) = (handed_over(true), handed_over(false));
        assert!(!crossings[1].has_waiting(true));
        let mut frames = 0;
        while !crossings[0].is_congested() {
            assert!(crossings[0].send(1, frame()));
            frames += 1;
        }
        assert!(frames >= CAPACITY / (1024 + ENTRY_COST));
        assert_eq!((rung(0), rung(1)), (0, 1));
        assert!(!crossings[1].has_waiting(false) && crossings[1].has_waiting(true));
        let mut datagrams = 0;
        while crossings[0].send(1, datagram()) {
            datagrams += 1;
        }
        assert!(datagrams >= CAPACITY / (1024 + ENTRY_COST));
        assert!(crossings[1].has_waiting(false));
        assert_eq!((rung(0), rung(1)), (0, 1));
        assert!(crossings[1].take_frame().is_some_and(|frame| frame.len() == 1024));
        assert_eq!((rung(0), crossings[0].is_congested()), (1, false));
        while crossings[1].take_frame().is_some() {}
        while crossings[1].take_other().is_some() {}
        assert!(!crossings[1].has_waiting(true));
        assert_eq!(rung(0), 0);
    }
}
