//! Inner packets to and from a peer: the hot path.

use std::time::Instant;

use super::Peer;
use crate::{
    batch::TxArena,
    drops::DropReason,
    engine::{Local, Route, Scratch},
    event::PathAddress,
    packet::Header,
    path::Targets,
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
        if !self.is_established(now) || !self.queue.is_empty() {
            let Self { queue, drops, .. } = self;
            for index in 0..segments.count() {
                let mut packet = Vec::with_capacity(segments.max_len());
                segments.write(index, &mut packet);
                queue.push(packet, now, &mut local.budget, |reason| drops.count(reason));
            }
            self.ensure_session(local, now);
            return;
        }
        for index in 0..segments.count() {
            segments.write(index, &mut scratch.packet);
            match self.send_packet(local, scratch, now, out) {
                Ok(Room::Left) => {}
                Ok(Room::None) => self.drops.count(DropReason::ArenaFull),
                Err(reason) => self.drops.count(reason),
            }
        }
        self.rekey_if_due(local, now);
    }

    /// Whether packets wait that can go now.
    pub(crate) fn has_ready_packets(&self, now: Instant) -> bool {
        !self.queue.is_empty() && self.is_established(now)
    }

    /// Sends the packets that have waited, oldest first, as far as there is room.
    pub(crate) fn send_waiting(
        &mut self,
        local: &mut Local,
        scratch: &mut Scratch,
        now: Instant,
        out: &mut TxArena,
    ) -> Room {
        while self.is_established(now) {
            let Some(packet) = self.queue.peek() else { break };
            scratch.packet.clear();
            scratch.packet.extend_from_slice(packet);
            match self.send_packet(local, scratch, now, out) {
                Ok(Room::Left) => {}
                Ok(Room::None) => return Room::None,
                Err(reason) => self.drops.count(reason),
            }
            self.queue.pop(&mut local.budget);
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

    fn rekey_if_due(&mut self, local: &mut Local, now: Instant) {
        if self.session.as_ref().is_some_and(|session| session.is_rekey_due()) {
            self.initiate(local, now);
        }
    }

    /// Seals `scratch.packet` into the arena.
    fn send_packet(
        &mut self,
        local: &Local,
        scratch: &mut Scratch,
        now: Instant,
        out: &mut TxArena,
    ) -> Result<Room, DropReason> {
        let session = self.session.as_mut().ok_or(DropReason::NoPath)?;
        let Scratch { packet, datagram } = scratch;
        let len = packet.len();
        // Padding ends at the MTU (whitepaper, section 5.4.6; wireguard-go does the same).
        let padded = len.next_multiple_of(PADDING).min(usize::from(local.mtu)).max(len);
        packet.resize(padded, 0);
        let sealed_len = padded + OVERHEAD;
        let id = self.config.id;
        let (first, second) = match self.paths.targets(now) {
            Targets::None => return Err(DropReason::NoPath),
            Targets::One(path) => (local.route(id, path), None),
            Targets::Two(first, second) => (local.route(id, first), local.route(id, second)),
        };
        let sent = match (first.or(second), first.and(second)) {
            (None, _) => return Err(DropReason::NoPath),
            (Some(route), None) => push(out, route, sealed_len, |slot| session.seal(packet, slot, now)),
            (Some(route), Some(also)) => {
                // The same message on both: the peer takes the one that comes first.
                datagram.resize(sealed_len, 0);
                if out.room() < 2 * (sealed_len + mesh_proto::relay::HEADER_LEN) {
                    return Ok(Room::None);
                }
                let sealed = session.seal(packet, datagram, now).ok_or(DropReason::NoPath)?;
                let copy = |slot: &mut [u8]| {
                    slot[..sealed].copy_from_slice(&datagram[..sealed]);
                    Some(sealed)
                };
                push(out, route, sealed, copy);
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
