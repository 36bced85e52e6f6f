//! From the underlay to the TUN.

use std::{net::SocketAddr, time::Instant};

use mesh_proto::{
    demux::{DatagramKind, classify},
    disco,
    netmap::{NodeId, RelayId},
    relay::{Frame, HEADER_LEN},
};

use super::Engine;
use crate::{
    batch::{RxBatch, RxTrain, SocketId, TxArena, Via},
    drops::DropReason,
    event::PathAddress,
    session::{Admission, Session, Source, TYPE_COOKIE, TYPE_DATA, TYPE_INITIATION, TYPE_RESPONSE},
};

/// Where a message came from.
#[derive(Debug, Clone, Copy)]
struct Origin {
    path: PathAddress,
    /// Who sent it, as the relay says: good for sending something back through it, and for nothing else.
    sender: NodeId,
}

impl Engine {
    /// Takes a train of datagrams. Data is opened in place; where the inner packets lie in it is noted in `packets`.
    ///
    /// Answers are laid out in `out` as far as there is room; the rest waits for [`Engine::poll_transmit`].
    pub fn handle_datagrams(
        &mut self,
        train: &mut RxTrain<'_>,
        now: Instant,
        out: &mut TxArena,
        packets: &mut RxBatch,
    ) {
        self.open_train(train, now, packets);
        self.poll_transmit(now, out);
    }

    /// Opens a train's datagrams, except those that belong to other shards.
    pub(super) fn open_train(&mut self, train: &mut RxTrain<'_>, now: Instant, packets: &mut RxBatch) {
        let stride = train.stride.max(1);
        let via = canonical(train.via);
        let may_be_foreign = self.local.sharing.may_hand_over();
        let mut start = 0;
        if train.bytes.is_empty() {
            self.local.drops.count(DropReason::MalformedDatagram);
        }
        for datagram in train.bytes.chunks_mut(stride) {
            let len = datagram.len();
            if may_be_foreign && self.hand_over_datagram(via, datagram) {
                start += len;
                continue;
            }
            if let Some(range) = self.handle_datagram(via, datagram, now) {
                packets.push(start + range.start..start + range.end);
            }
            start += len;
        }
        self.see_to_touched(now);
        if self.local.unsettled {
            self.settle(now);
        }
    }

    /// Takes one datagram; returns where in it an inner packet lies.
    fn handle_datagram(
        &mut self,
        via: Via,
        datagram: &mut [u8],
        now: Instant,
    ) -> Option<std::ops::Range<usize>> {
        match (classify(datagram), via) {
            (DatagramKind::WireGuard, Via::Udp { remote, .. }) => {
                let len = self.handle_wireguard(Origin::direct(remote), datagram, now)?;
                Some(0..len)
            }
            (DatagramKind::WireGuard, Via::Punched { socket, remote }) => {
                let origin = Origin { path: PathAddress::Punched { socket, remote }, sender: NodeId(0) };
                let len = self.handle_wireguard(origin, datagram, now)?;
                Some(0..len)
            }
            (DatagramKind::Disco, Via::Udp { remote, .. }) => {
                self.handle_disco(PathAddress::Direct(remote), datagram, now);
                None
            }
            (DatagramKind::Disco, Via::Punched { socket, remote }) => {
                self.handle_disco(PathAddress::Punched { socket, remote }, datagram, now);
                None
            }
            (DatagramKind::Stun, Via::Udp { remote, .. }) => {
                if !self.local.netcheck_mut().handle_stun(remote, datagram, now) {
                    self.local.drops.count(DropReason::UnknownSession);
                }
                None
            }
            (DatagramKind::Stun, Via::Punched { socket, remote }) => {
                self.handle_observation(socket, remote, datagram, now);
                None
            }
            (DatagramKind::Relay, _) => self.handle_relay(via, datagram, now),
            (DatagramKind::WireGuard | DatagramKind::Disco | DatagramKind::Stun, Via::Stream(_))
            | (DatagramKind::Quic | DatagramKind::Unknown, _) => {
                self.local.drops.count(DropReason::MalformedDatagram);
                None
            }
        }
    }

    fn handle_relay(
        &mut self,
        via: Via,
        datagram: &mut [u8],
        now: Instant,
    ) -> Option<std::ops::Range<usize>> {
        let Ok(frame) = Frame::decode(datagram) else {
            self.local.drops.count(DropReason::MalformedDatagram);
            return None;
        };
        let found = self.local.relays.iter_mut().find(|(_, relay)| relay.is_from(via) && relay.owns(&frame));
        let Some((id, relay)) = found else {
            self.relay_for_others(via, datagram, now);
            return None;
        };
        let id: RelayId = *id;
        let Frame::Data { peer: sender, .. } = frame else {
            if !self.local.sharing.is_home() {
                self.local.drops.count(DropReason::UnknownSession);
                return None;
            }
            let outcome = relay.handle_frame(&frame, via, now);
            self.apply_relay(id, outcome, now);
            return None;
        };
        let from = PathAddress::Relay(id);
        let payload = datagram.get_mut(HEADER_LEN..)?;
        match classify(payload) {
            DatagramKind::WireGuard => {
                let len = self.handle_wireguard(Origin { path: from, sender }, payload, now)?;
                Some(HEADER_LEN..HEADER_LEN + len)
            }
            DatagramKind::Disco => {
                self.handle_disco(from, payload, now);
                None
            }
            DatagramKind::Stun | DatagramKind::Relay | DatagramKind::Quic | DatagramKind::Unknown => {
                self.local.drops.count(DropReason::MalformedDatagram);
                None
            }
        }
    }

    /// Takes a WireGuard message; returns the length of the inner packet at its beginning, if it held one.
    fn handle_wireguard(&mut self, origin: Origin, message: &mut [u8], now: Instant) -> Option<usize> {
        let from = origin.path;
        match message.first().copied() {
            Some(TYPE_DATA) => {
                let Some(peer) = Session::receiver(message).and_then(|slot| self.peers.get_mut(slot)) else {
                    self.local.drops.count(DropReason::UnknownSession);
                    return None;
                };
                let slot = peer.slot();
                let len = peer.open(from, message, &mut self.local, &mut self.scratch, now);
                self.touch(slot, now);
                return len;
            }
            Some(TYPE_INITIATION) => {
                let address = self.local.limit_address(origin.path);
                let source = match origin.path {
                    PathAddress::Direct(_) | PathAddress::Punched { .. } => Source::Direct(address),
                    PathAddress::Relay(_) => Source::Relay(address),
                };
                match self.local.keys.admit(source, message, now) {
                    Ok(Admission::Admitted(initiation)) => {
                        self.route_admitted(origin.path, message, initiation, now);
                    }
                    Ok(Admission::Challenge(cookie)) => {
                        self.local.drops.count(DropReason::RateLimited);
                        self.local.send(origin.sender, origin.path, &cookie);
                    }
                    Err(reason) => self.local.drops.count(reason),
                }
            }
            Some(TYPE_RESPONSE | TYPE_COOKIE) => {
                let peer = Session::receiver(message).and_then(|slot| self.peers.get_mut(slot));
                match peer.map(|peer| (peer.id(), peer.has_session())) {
                    Some((id, true)) => {
                        self.with_peer(id, now, |peer, local| {
                            peer.handle_handshake(from, message, local, now);
                        });
                    }
                    Some((_, false)) | None => self.local.drops.count(DropReason::UnknownSession),
                }
            }
            _ => self.local.drops.count(DropReason::MalformedDatagram),
        }
        None
    }

    /// Takes an observer's answer that came to a socket beside the main one.
    fn handle_observation(&mut self, socket: SocketId, from: SocketAddr, datagram: &[u8], now: Instant) {
        if self.local.netcheck_mut().lifetime.handle_answer(socket, from, datagram, now) {
            return;
        }
        let mut taken = false;
        for peer in self.local.punching.peers() {
            self.with_peer(peer, now, |peer, local| {
                taken |= peer.handle_observation(socket, from, datagram, local, now);
            });
        }
        if !taken {
            self.local.drops.count(DropReason::UnknownSession);
        }
    }

    fn handle_disco(&mut self, from: PathAddress, datagram: &[u8], now: Instant) {
        let Ok((header, sealed)) = disco::Header::decode(datagram) else {
            return self.local.drops.count(DropReason::MalformedDatagram);
        };
        let peer = self.peers.slot_of_key(&header.sender).and_then(|slot| self.peers.get_mut(slot));
        let Some(id) = peer.map(|peer| peer.id()) else {
            return self.local.drops.count(DropReason::UnknownSession);
        };
        self.with_peer(id, now, |peer, local| peer.handle_disco(from, &header, sealed, local, now));
    }
}

impl Origin {
    fn direct(remote: SocketAddr) -> Self {
        Self { path: PathAddress::Direct(remote), sender: NodeId(0) }
    }
}

/// An IPv4 address that an IPv6 socket shows mapped is the IPv4 address.
fn canonical(via: Via) -> Via {
    match via {
        Via::Udp { remote: SocketAddr::V6(v6), local } => {
            let remote = match v6.ip().to_ipv4_mapped() {
                Some(v4) => SocketAddr::from((v4, v6.port())),
                None => SocketAddr::V6(v6),
            };
            Via::Udp { remote, local }
        }
        Via::Udp { remote: SocketAddr::V4(_), .. } | Via::Punched { .. } | Via::Stream(_) => via,
    }
}
