//! What goes to other shards and comes from them (see [`crate::shard`]).

use std::time::Instant;

use mesh_proto::{
    demux::{DatagramKind, classify},
    disco,
    relay::Frame,
};

use super::Engine;
use crate::{
    batch::{RxBatch, RxTrain, TunFrame, TxArena, Via},
    drops::DropReason,
    event::{PathAddress, WakeupReason},
    session::{Initiation, Session, TYPE_COOKIE, TYPE_DATA, TYPE_RESPONSE},
    shard::{
        HOME, Handover, foreign_shard,
        handover::{Item, Mirror, Report},
    },
};

impl Engine {
    /// Returns something that belongs to another shard, and that shard's number: give it to
    /// [`Engine::handle_handover`] there.
    ///
    /// What is [empty](Handover::is_empty) is no packet, but what shards tell each other: it must not be lost.
    pub fn poll_handover(&mut self) -> Option<(u32, Handover)> {
        let sharing = &mut self.local.sharing;
        if let Some(report) = sharing.report.take() {
            return Some((HOME, Handover(Item::Report(report))));
        }
        if let Some(to) = sharing.handovers.take_mirror() {
            let relays = self.local.relays.iter().map(|(id, relay)| (*id, relay.mirror())).collect();
            let mirror = Mirror {
                relays,
                netcheck: self.local.netcheck.mirror(),
                turn: self.local.sharing.turn.news(),
            };
            return Some((to, Handover(Item::Mirror(Box::new(mirror)))));
        }
        sharing.handovers.pop().map(|(to, item)| (to, Handover(item)))
    }

    /// Whether so much waits to be handed over that no more is taken. Who reads the TUN all the same loses packets.
    #[must_use]
    pub fn is_handover_full(&self) -> bool {
        self.local.sharing.handovers.is_full()
    }

    /// Takes what another shard hands over, as [`Engine::handle_tun`] and [`Engine::handle_datagrams`] would take it from the
    /// system: the ranges that are noted in `packets` lie in [`Handover::bytes_mut`]. A packet from the TUN goes to
    /// the backlog if something waits there already, or if `out` has not [`Engine::MAX_TUN_ROOM`].
    pub fn handle_handover(
        &mut self,
        handover: &mut Handover,
        now: Instant,
        out: &mut TxArena,
        packets: &mut RxBatch,
    ) {
        self.local.sharing.is_taking = true;
        match &mut handover.0 {
            Item::Frame { packet, offload } => {
                let frame = TunFrame { packet, offload: *offload };
                if self.has_backlog() || out.room() < Self::MAX_TUN_ROOM {
                    self.handle_backlog(frame, now);
                } else {
                    self.handle_tun(frame, now, out);
                }
            }
            Item::Train { via, stride, bytes } => {
                let mut train = RxTrain { via: *via, stride: *stride, bytes };
                self.open_train(&mut train, now, packets);
                self.poll_transmit(now, out);
            }
            Item::Initiation { from, message, initiation } => {
                self.handle_admitted(*from, message, initiation, now);
                self.poll_transmit(now, out);
            }
            Item::Wish(wish) => {
                self.fulfil(wish.clone(), now);
                self.settle(now);
                self.poll_transmit(now, out);
            }
            Item::Mirror(mirror) => self.follow(mirror, now),
            Item::Report(report) => self.handle_report(report, now),
        }
        self.local.sharing.is_taking = false;
    }

    /// Hands a frame from the TUN over to the shard of a foreign slot; `false` if the slot is none.
    pub(super) fn hand_over_frame(&mut self, slot: u32, frame: TunFrame<'_>) -> bool {
        let Some(shard) = foreign_shard(slot).filter(|_| self.local.sharing.may_hand_over()) else {
            return false;
        };
        let item = Item::Frame { packet: frame.packet.to_vec(), offload: frame.offload };
        self.count_refused(shard, |engine| engine.local.sharing.handovers.push(shard, item));
        true
    }

    /// Hands a datagram over to the shard that it belongs to; `false` if that is this one, as far as is known.
    pub(super) fn hand_over_datagram(&mut self, via: Via, datagram: &[u8]) -> bool {
        match self.owner_of(via, datagram) {
            Some(shard) if shard != self.local.sharing.shard.index() => {
                self.count_refused(shard, |engine| {
                    engine.local.sharing.handovers.push_datagram(shard, via, datagram)
                });
                true
            }
            Some(_) | None => false,
        }
    }

    /// Gives an initiation that was admitted to its peer, or to its peer's shard.
    pub(super) fn route_admitted(
        &mut self,
        from: PathAddress,
        message: &[u8],
        initiation: Initiation,
        now: Instant,
    ) {
        match self.peers.slot_of_key(&initiation.peer).and_then(foreign_shard) {
            Some(shard) => {
                let item = Item::Initiation { from, message: message.to_vec(), initiation };
                self.count_refused(shard, |engine| engine.local.sharing.handovers.push(shard, item));
            }
            None => self.handle_admitted(from, message, &initiation, now),
        }
    }

    /// Tells the other shards what has changed here, at the home shard.
    pub(super) fn tell_others(&mut self, now: Instant) {
        let busy = self.local.punching.is_busy();
        let sharing = &mut self.local.sharing;
        if !sharing.is_home() {
            sharing.report.wants_turn |= sharing.turn.take_wish();
            self.wakeups.set_after(WakeupReason::NetCheck, sharing.next_report, now);
            return;
        }
        let mut has_news = std::mem::take(&mut sharing.relays_changed) | self.local.netcheck.take_news();
        if sharing.turn.take_wish() {
            sharing.turn.on_wish(HOME, busy, now);
            has_news = true;
        }
        if has_news {
            sharing.mirror();
        }
    }

    /// Tells the home shard again that there is traffic, while there is.
    pub(super) fn handle_report_due(&mut self, now: Instant) {
        self.local.sharing.next_report = None;
        if self.peers.iter().any(|peer| peer.is_active(now)) {
            self.local.sharing.report_active(now);
        }
    }

    fn handle_admitted(&mut self, from: PathAddress, message: &[u8], initiation: &Initiation, now: Instant) {
        let peer = self.peers.slot_of_key(&initiation.peer).and_then(|slot| self.peers.get_mut(slot));
        match peer.map(|peer| peer.id()) {
            Some(id) => {
                self.with_peer(id, now, |peer, local| {
                    peer.handle_initiation(from, message, initiation, local, now);
                });
            }
            None => self.local.drops.count(DropReason::UnknownSession),
        }
    }

    /// Returns the shard that a datagram belongs to; `None` if it does not say so, or nobody's.
    fn owner_of(&self, via: Via, datagram: &[u8]) -> Option<u32> {
        if matches!(via, Via::Punched { .. }) {
            // The socket is this shard's own: no other could answer through it.
            return None;
        }
        match classify(datagram) {
            DatagramKind::WireGuard | DatagramKind::Disco => self.owner_of_message(datagram),
            DatagramKind::Stun => Some(HOME),
            DatagramKind::Relay => match Frame::decode(datagram) {
                Ok(Frame::Data { payload, .. }) => self.owner_of_message(payload),
                Ok(Frame::Bind { .. } | Frame::Bound { .. } | Frame::UnknownChannel { .. }) => Some(HOME),
                Err(_) => None,
            },
            DatagramKind::Quic | DatagramKind::Unknown => None,
        }
    }

    fn owner_of_message(&self, message: &[u8]) -> Option<u32> {
        let shard = self.local.sharing.shard;
        match classify(message) {
            DatagramKind::WireGuard => match message.first().copied() {
                Some(TYPE_RESPONSE | TYPE_COOKIE | TYPE_DATA) => {
                    Session::receiver(message).map(|slot| shard.of_slot(slot))
                }
                _ => None,
            },
            DatagramKind::Disco => {
                let (header, _) = disco::Header::decode(message).ok()?;
                self.peers.slot_of_key(&header.sender).map(|slot| shard.of_slot(slot))
            }
            DatagramKind::Stun | DatagramKind::Relay | DatagramKind::Quic | DatagramKind::Unknown => None,
        }
    }

    pub(super) fn count_refused(&mut self, shard: u32, push: impl FnOnce(&mut Self) -> bool) {
        if !push(self) {
            tracing::trace!(shard, "too much waits to be handed over");
            self.local.drops.count(DropReason::HandoverFull);
        }
    }

    /// Takes over what the home shard tells.
    fn follow(&mut self, mirror: &mut Mirror, now: Instant) {
        if self.local.sharing.is_home() {
            return;
        }
        let before = (self.local.usable_relays(), self.local.netcheck.candidates());
        std::mem::swap(&mut self.local.relays, &mut mirror.relays);
        std::mem::swap(&mut self.local.netcheck, &mut mirror.netcheck);
        let busy = self.local.punching.is_busy();
        let sharing = &mut self.local.sharing;
        let given_back = sharing.turn.follow(mirror.turn, sharing.shard, busy, now);
        sharing.report.given_back = given_back.or(sharing.report.given_back);
        if self.local.usable_relays() != before.0 {
            self.with_all_peers(now, |peer, local| peer.update_relays(local, now));
        }
        if self.local.netcheck.candidates() != before.1 {
            self.with_all_peers(now, |peer, local| peer.on_own_candidates_changed(local, now));
        }
        self.settle(now);
    }

    /// Does what another shard asks of the home shard.
    fn handle_report(&mut self, report: &Report, now: Instant) {
        if !self.local.sharing.is_home() {
            return;
        }
        if report.check_relays {
            self.local.check_relays(now);
        }
        if report.active {
            self.local.sharing.on_active_elsewhere(now);
            self.local.netcheck.on_active(now);
        }
        for (peer, (observer, mapped)) in &report.observed {
            self.local.netcheck.on_observed(*observer, *peer, *mapped, now);
        }
        let busy = self.local.punching.is_busy();
        let sharing = &mut self.local.sharing;
        if let Some(number) = report.given_back {
            sharing.turn.on_given_back(number, now);
            sharing.mirror();
        }
        if report.wants_turn {
            sharing.turn.on_wish(report.from, busy, now);
            sharing.mirror();
        }
        self.settle(now);
    }
}
