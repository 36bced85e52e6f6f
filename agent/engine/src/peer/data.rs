//! Inner packets to and from a peer: the hot path.

use std::time::Instant;

use super::Peer;
use crate::{
    batch::TxArena,
    drops::DropReason,
    event::PathAddress,
    local::{Local, Route},
    packet::{Header, fragment, mss},
    path::{Targets, mtu::Carries},
    segment::Segments,
    session::{OVERHEAD, Opened, PADDING},
};

/// Whether there is room for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Yes.
    Left,
    /// The arena is full.
    None,
}

/// Buffers that are used again and again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// A cut or complete inner packet.
    pub(crate) packet: Vec<u8>,
    /// A sealed message.
    pub(crate) datagram: Vec<u8>,
}

/// Where packets go at one moment.
struct Way {
    now: Instant,
    first: Route,
    /// Where they go as well, while the first is in doubt.
    second: Option<Route>,
    carries: Carries,
    /// What the MSS is clamped to: the interface's MTU.
    mss: u16,
}

impl Peer {
    /// Sends the packets of a frame, or keeps them until there is a session.
    pub(crate) fn send(
        &mut self,
        segments: &Segments<'_>,
        local: &mut Local,
        scratch: &mut Scratch,
        now: Instant,
        out: &mut TxArena,
    ) {
        self.note_traffic(local, now);
        if !self.may_send(now) || !self.queue.is_empty() {
            let Self { queue, drops, .. } = self;
            queue.push_all(segments, now, &mut local.budget, |reason| drops.count(reason));
            self.ensure_session(local, now);
            return;
        }
        match self.way(local, now) {
            Some(way) => self.send_frame(segments, &way, local, scratch, out),
            None => self.drops.count(DropReason::NoPath),
        }
        self.rekey_if_due(local, now);
    }

    /// Whether packets wait that can go now.
    pub(crate) fn has_ready_packets(&self, now: Instant) -> bool {
        (!self.queue.is_empty() || self.has_measured_oversize(now)) && self.may_send(now)
    }

    /// Sends the packets that have waited, oldest first, as far as there is room.
    pub(crate) fn send_waiting(
        &mut self,
        local: &mut Local,
        scratch: &mut Scratch,
        now: Instant,
        out: &mut TxArena,
    ) -> Room {
        let way = self.way(local, now);
        while self.may_send(now) {
            // What was too large for what was known came before what waits for keys.
            let is_oversize =
                !self.oversize.is_empty() && way.as_ref().is_none_or(|way| way.carries.is_measured);
            let queue = if is_oversize { &mut self.oversize } else { &mut self.queue };
            let Some(packet) = queue.peek() else { break };
            scratch.packet.clear();
            scratch.packet.extend_from_slice(packet);
            let sent = match &way {
                Some(way) => self.send_packet(way, scratch, out),
                None => Err(DropReason::NoPath),
            };
            if sent == Ok(Room::None) {
                return Room::None;
            }
            let queue = if is_oversize { &mut self.oversize } else { &mut self.queue };
            let packet = queue.pop(&mut local.budget);
            match (sent, &way, packet) {
                (Err(DropReason::TooBig), Some(Way { carries, .. }), Some(packet)) => {
                    self.refuse_oversize(packet, *carries, local, now);
                }
                (Err(reason), ..) => self.drops.count(reason),
                (Ok(_), ..) => {}
            }
        }
        Room::Left
    }

    /// Opens a data message in place and checks what was in it.
    ///
    /// Returns the length of the inner packet that is for this node, if there is one.
    pub(crate) fn open(
        &mut self,
        from: PathAddress,
        datagram: &mut [u8],
        local: &mut Local,
        scratch: &mut Scratch,
        now: Instant,
    ) -> Option<usize> {
        let opened = match self.session.as_mut() {
            Some(session) => session.open(datagram, &mut scratch.datagram, now),
            None => Err(DropReason::UnknownSession),
        };
        let len = match opened {
            Ok(Opened::Packet(len)) => Some(len),
            Ok(Opened::Keepalive) => None,
            Err(reason) => {
                self.drops.count(reason);
                return None;
            }
        };
        if self.paths.on_wireguard(from, now) {
            self.judge(local, now);
        }
        let len = len?;
        self.note_traffic(local, now);
        self.rekey_if_due(local, now);
        match check(&datagram[..len], self.slot, local) {
            Ok(()) => {
                mss::clamp(&mut datagram[..len], local.mtu);
                self.rx_bytes += len as u64;
                Some(len)
            }
            Err(reason) => {
                self.drops.count(reason);
                None
            }
        }
    }

    /// Sends a sealed message wherever packets go now.
    pub(super) fn send_on_targets(&mut self, message: &[u8], local: &mut Local, now: Instant) {
        let id = self.config.id;
        match self.paths.targets(now) {
            Targets::None => {}
            Targets::One(path) => {
                local.send(id, path, message);
            }
            Targets::Two(first, second) => {
                local.send(id, first, message);
                local.send(id, second, message);
            }
        }
    }

    fn is_established(&self, now: Instant) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_established(now))
    }

    /// Whether packets can go now: there are keys, and the peer is there to open what they seal.
    fn may_send(&self, now: Instant) -> bool {
        self.is_established(now) && !self.is_paused(now)
    }

    fn rekey_if_due(&mut self, local: &mut Local, now: Instant) {
        if self.session.as_ref().is_some_and(|session| session.is_rekey_due()) {
            self.initiate(local, now);
        }
    }

    /// Returns where packets go now; `None` if nowhere.
    fn way(&self, local: &Local, now: Instant) -> Option<Way> {
        self.way_to(self.paths.targets(now), local, now)
    }

    /// Returns where packets of this size can go while it is not known whether the chosen path carries them: where they
    /// went before, mostly.
    fn wide_way(&self, len: usize, local: &Local, now: Instant) -> Option<Way> {
        self.way_to(Targets::One(self.paths.wide(len, now)?), local, now)
    }

    fn way_to(&self, targets: Targets, local: &Local, now: Instant) -> Option<Way> {
        let id = self.config.id;
        let (first, second) = match targets {
            Targets::None => return None,
            Targets::One(path) => (local.route(id, path), None),
            Targets::Two(first, second) => (local.route(id, first), local.route(id, second)),
        };
        let carries = self.paths.carries(targets);
        let carries = Carries { mtu: carries.mtu.min(local.mtu), ..carries };
        Some(Way { first: first.or(second)?, second: first.and(second), carries, mss: local.mtu, now })
    }

    /// Sends the packets of a frame; those that are too large are cut or answered.
    fn send_frame(
        &mut self,
        segments: &Segments<'_>,
        way: &Way,
        local: &mut Local,
        scratch: &mut Scratch,
        out: &mut TxArena,
    ) {
        let mtu = usize::from(way.carries.mtu);
        let mut segments = *segments;
        if segments.max_len() > mtu {
            let may_be_cut = fragment::may_be_cut(segments.packet());
            // While the path may prove to carry more, TCP is not told to send less: it would, for minutes.
            match segments.cut_to(mtu).filter(|_| may_be_cut || !way.carries.is_final) {
                Some(smaller) => segments = smaller,
                None if may_be_cut => {}
                None if !way.carries.is_measured => {
                    return match self.wide_way(segments.max_len(), local, way.now) {
                        Some(wide) => self.send_frame(&segments, &wide, local, scratch, out),
                        None => self.hold_oversize(&segments, local, way.now),
                    };
                }
                None => {
                    self.drops.count(DropReason::TooBig);
                    return local.answer_too_big(segments.packet(), way.carries.mtu, way.now);
                }
            }
        }
        for index in 0..segments.count() {
            segments.write(index, &mut scratch.packet);
            match self.send_packet(way, scratch, out) {
                Ok(Room::Left) => {}
                Ok(Room::None) => self.drops.count(DropReason::ArenaFull),
                Err(reason) => self.drops.count(reason),
            }
        }
    }

    /// Seals `scratch.packet` into the arena, in fragments if it is too large for one message.
    fn send_packet(
        &mut self,
        way: &Way,
        scratch: &mut Scratch,
        out: &mut TxArena,
    ) -> Result<Room, DropReason> {
        mss::clamp(&mut scratch.packet, way.mss);
        let mtu = usize::from(way.carries.mtu);
        if scratch.packet.len() <= mtu {
            return self.send_message(way, scratch, out);
        }
        let fragments = fragment::fragments(&scratch.packet, mtu);
        if fragments.is_empty() {
            return Err(DropReason::TooBig);
        }
        let room = way.room(mtu) * fragments.len();
        if out.room() < room {
            return Ok(Room::None);
        }
        for fragment in fragments {
            scratch.packet = fragment;
            self.send_message(way, scratch, out)?;
        }
        Ok(Room::Left)
    }

    /// Seals `scratch.packet`, which is not too large, into the arena.
    fn send_message(
        &mut self,
        way: &Way,
        scratch: &mut Scratch,
        out: &mut TxArena,
    ) -> Result<Room, DropReason> {
        let session = self.session.as_mut().ok_or(DropReason::NoPath)?;
        let Scratch { packet, datagram } = scratch;
        let len = packet.len();
        // Padding ends at the MTU (whitepaper, section 5.4.6; wireguard-go does the same).
        let padded = len.next_multiple_of(PADDING).min(usize::from(way.carries.mtu)).max(len);
        packet.resize(padded, 0);
        let sealed_len = padded + OVERHEAD;
        let sent = match way.second {
            None => push(out, way.first, sealed_len, |slot| session.seal(packet, slot, way.now)),
            Some(also) => {
                // The same message on both: the peer takes the one that comes first.
                datagram.resize(sealed_len, 0);
                if out.room() < way.room(padded) {
                    return Ok(Room::None);
                }
                let sealed = session.seal(packet, datagram, way.now).ok_or(DropReason::NoPath)?;
                let copy = |slot: &mut [u8]| {
                    slot[..sealed].copy_from_slice(&datagram[..sealed]);
                    Some(sealed)
                };
                push(out, way.first, sealed, copy);
                push(out, also, sealed, copy)
            }
        };
        match sent {
            Some(0) => Err(DropReason::NoPath),
            Some(_) => {
                self.tx_bytes += len as u64;
                Ok(Room::Left)
            }
            None => Ok(Room::None),
        }
    }
}

impl Way {
    /// Returns how much room a packet of `len` bytes takes at most.
    fn room(&self, len: usize) -> usize {
        let copies = if self.second.is_some() { 2 } else { 1 };
        copies * (len + OVERHEAD + mesh_proto::relay::HEADER_LEN)
    }
}

/// Lays out a message of up to `len` bytes that `write` writes, behind the route's header.
fn push(
    out: &mut TxArena,
    route: Route,
    len: usize,
    write: impl FnOnce(&mut [u8]) -> Option<usize>,
) -> Option<usize> {
    let header_len = route.header_len();
    out.push_with(route.via, header_len + len, |slot| {
        let (header, message) = slot.split_at_mut(header_len);
        if let Some(bytes) = &route.header {
            header.copy_from_slice(bytes);
        }
        write(message).map_or(0, |written| header_len + written)
    })
}

/// Checks that a packet comes from a prefix of the peer in `slot` and goes to one of this node's.
fn check(packet: &[u8], slot: u32, local: &Local) -> Result<(), DropReason> {
    let header = Header::parse(packet).ok_or(DropReason::MalformedPacket)?;
    if local.router.lookup(header.source) != Some(slot) {
        return Err(DropReason::WrongSource);
    }
    if !local.router.is_own(header.destination) {
        return Err(DropReason::WrongDestination);
    }
    Ok(())
}
