//! What goes from one shard to another, and waits for the driver to take it there.
//!
//! Packets wait in one bounded queue, in order; datagrams of one train that come one after the other for one shard are
//! one entry. What shards tell each other of themselves is never lost and does not pile up: of each kind there
//! is one, made when it is taken.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};

use mesh_proto::netmap::RelayId;

use super::TurnNews;
use crate::{
    batch::{MAX_TRAIN_BYTES, Offload, TunFrame, Via},
    event::PathAddress,
    netcheck::{NetCheck, Observer},
    pass::{Ask, Wish},
    queue::{footprint, trim},
    relay::RelayClient,
    session::Initiation,
};

/// Bytes from which on nothing more is taken: what one read of a full socket gives, eight trains. The driver takes what
/// waits after every read.
const CAPACITY: usize = 512 * 1024;
/// Most memory that it takes: the last packet may go beyond, and a growing train has up to twice its room.
pub(crate) const MAX_MEMORY: usize = CAPACITY + 256 * 1024;
/// Most addresses that one report holds; the home shard remembers no more of them.
const MAX_OBSERVED: usize = 32;

/// Something that belongs to another shard.
#[derive(Debug)]
pub struct Handover(pub(crate) Item);

#[derive(Debug)]
pub(crate) enum Item {
    /// What one read of the TUN gave.
    Frame { packet: Vec<u8>, offload: Offload },
    /// Datagrams.
    Train { via: Via, stride: usize, bytes: Vec<u8> },
    /// A handshake initiation that was admitted.
    Initiation { from: PathAddress, message: Vec<u8>, initiation: Initiation },
    /// Something that peers of both shards have to do with.
    Wish(Wish),
    /// What the home shard tells the others.
    Mirror(Box<Mirror>),
    /// What another shard tells the home shard.
    Report(Report),
}

impl Handover {
    /// Returns what was read from the TUN, if it is that.
    #[must_use]
    pub fn frame(&self) -> Option<TunFrame<'_>> {
        match &self.0 {
            Item::Frame { packet, offload } => Some(TunFrame { packet, offload: *offload }),
            Item::Train { .. }
            | Item::Initiation { .. }
            | Item::Wish(_)
            | Item::Mirror(_)
            | Item::Report(_) => None,
        }
    }

    /// Returns the bytes in which inner packets lie once [`crate::Engine::handle_handover`] has noted them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Item::Train { bytes, .. } => bytes,
            Item::Frame { .. }
            | Item::Initiation { .. }
            | Item::Wish(_)
            | Item::Mirror(_)
            | Item::Report(_) => &mut [],
        }
    }

    /// Returns how many bytes of packets it holds: 0 for what shards tell each other, which must not be lost.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.packet().map_or(0, Vec::len)
    }

    /// Whether it holds no packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Item {
    fn packet(&self) -> Option<&Vec<u8>> {
        match self {
            Self::Frame { packet: bytes, .. }
            | Self::Train { bytes, .. }
            | Self::Initiation { message: bytes, .. }
            | Self::Wish(
                Wish::Ask(Ask { sealed: bytes, .. })
                | Wish::Carry { sealed: bytes, .. }
                | Wish::Open { sealed: bytes, .. },
            ) => Some(bytes),
            Self::Mirror(_) | Self::Report(_) => None,
        }
    }

    fn footprint(&self) -> usize {
        self.packet().map_or(0, footprint::<(u32, Self)>)
    }
}

/// The home shard as the others see it.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) relays: BTreeMap<RelayId, RelayClient>,
    pub(crate) netcheck: NetCheck,
    pub(crate) turn: TurnNews,
}

/// What the home shard should know of another one.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) from: u32,
    /// There is traffic with a peer.
    pub(crate) active: bool,
    /// A relay may be gone.
    pub(crate) check_relays: bool,
    /// Peers, what they are as observers, and where they see this node.
    pub(crate) observed: BTreeMap<SocketAddr, (Observer, SocketAddr)>,
    /// It wants to punch.
    pub(crate) wants_turn: bool,
    /// The turn that it gives back.
    pub(crate) given_back: Option<u64>,
}

impl Report {
    pub(crate) fn new(from: u32) -> Self {
        Self {
            from,
            active: false,
            check_relays: false,
            observed: BTreeMap::new(),
            wants_turn: false,
            given_back: None,
        }
    }

    /// Notes where a peer sees this node.
    pub(crate) fn note_observed(&mut self, observer: Observer, peer: SocketAddr, mapped: SocketAddr) {
        if self.observed.len() < MAX_OBSERVED || self.observed.contains_key(&peer) {
            self.observed.insert(peer, (observer, mapped));
        }
    }

    fn is_empty(&self) -> bool {
        !(self.active || self.check_relays || self.wants_turn)
            && self.observed.is_empty()
            && self.given_back.is_none()
    }

    /// Takes what is to be told, if anything.
    pub(crate) fn take(&mut self) -> Option<Self> {
        let from = self.from;
        (!self.is_empty()).then(|| std::mem::replace(self, Self::new(from)))
    }
}

/// What waits to be handed over, and what was.
#[derive(Debug, Default)]
pub(crate) struct Handovers {
    packets: VecDeque<(u32, Item)>,
    bytes: usize,
    mirror_to: BTreeSet<u32>,
    /// Frames from the TUN that were handed over.
    pub(crate) frames: u64,
    /// Datagrams that were.
    pub(crate) datagrams: u64,
}

impl Handovers {
    /// Whether packets are refused.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= CAPACITY
    }

    /// Appends a packet for a shard; whether there was room.
    pub(crate) fn push(&mut self, to: u32, item: Item) -> bool {
        if self.is_full() {
            return false;
        }
        match item {
            Item::Frame { .. } => self.frames += 1,
            Item::Train { .. } | Item::Initiation { .. } => self.datagrams += 1,
            Item::Wish(_) | Item::Mirror(_) | Item::Report(_) => {}
        }
        self.bytes += item.footprint();
        self.packets.push_back((to, item));
        true
    }

    /// Appends a datagram for a shard, to the train of those before it if it can; whether there was room.
    pub(crate) fn push_datagram(&mut self, to: u32, via: Via, datagram: &[u8]) -> bool {
        if let Some((last_to, item)) = self.packets.back_mut()
            && let Item::Train { via: last_via, stride, bytes } = item
            && (*last_to, *last_via) == (to, via)
            && bytes.len().is_multiple_of(*stride)
            && datagram.len() <= *stride
            && bytes.len() + datagram.len() <= MAX_TRAIN_BYTES
            && self.bytes < CAPACITY
        {
            let before = footprint::<(u32, Item)>(bytes);
            bytes.extend_from_slice(datagram);
            self.bytes += footprint::<(u32, Item)>(bytes) - before;
            self.datagrams += 1;
            return true;
        }
        let stride = datagram.len().max(1);
        self.push(to, Item::Train { via, stride, bytes: datagram.to_vec() })
    }

    /// These shards are to be told what the home shard is like.
    pub(crate) fn mirror_to(&mut self, shards: impl Iterator<Item = u32>) {
        self.mirror_to.extend(shards);
    }

    /// Takes a shard that is to be told.
    pub(crate) fn take_mirror(&mut self) -> Option<u32> {
        self.mirror_to.pop_first()
    }

    /// Takes the oldest packet.
    pub(crate) fn pop(&mut self) -> Option<(u32, Item)> {
        let (to, item) = self.packets.pop_front()?;
        self.bytes -= item.footprint();
        trim(&mut self.packets);
        Some((to, item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via(port: u16) -> Via {
        Via::Udp { remote: SocketAddr::from(([192, 0, 2, 1], port)), local: None }
    }

    #[test]
    fn what_is_handed_over_keeps_its_order_and_datagrams_of_a_train_stay_together() {
        let mut handovers = Handovers::default();
        for (to, port, len) in [(1, 1, 100), (1, 1, 100), (1, 1, 40), (1, 1, 40), (2, 1, 40), (2, 2, 40)] {
            assert!(handovers.push_datagram(to, via(port), &vec![7; len]));
        }
        assert!(handovers.push(1, Item::Frame { packet: vec![1; 9], offload: Offload::None }));
        let taken: Vec<_> =
            std::iter::from_fn(|| handovers.pop()).map(|(to, item)| (to, Handover(item).len())).collect();
        assert_eq!(taken, [(1, 240), (1, 40), (2, 40), (2, 40), (1, 9)]);
        assert_eq!((handovers.frames, handovers.datagrams, handovers.bytes), (1, 6, 0));
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        for len in [0, 1, 100, 1452, 65_000] {
            let mut handovers = Handovers::default();
            let mut count = 0_u32;
            while handovers.push_datagram(1 + count % 2, via(1), &vec![0; len]) {
                count += 1;
            }
            assert!(handovers.is_full() && handovers.bytes <= MAX_MEMORY, "{len}: {}", handovers.bytes);
            while handovers.push_datagram(1, via(1), &vec![0; len]) {}
            assert!(handovers.bytes <= MAX_MEMORY, "{len}: {}", handovers.bytes);
            while handovers.pop().is_some() {}
            assert_eq!(handovers.bytes, 0);
        }
    }

    #[test]
    fn a_report_is_taken_once() {
        let mut report = Report::new(1);
        assert!(report.take().is_none());
        report.active = true;
        assert!(report.take().is_some_and(|report| report.active && report.from == 1));
        assert!(report.take().is_none());
    }
}
