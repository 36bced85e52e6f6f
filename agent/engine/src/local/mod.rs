//! This node as its peers' state machines need it: keys, relays, candidates, and what goes out.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

use mesh_proto::{
    candidate::Candidate,
    netmap::{NodeId, RelayId},
    relay::HEADER_LEN,
};
use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;

use crate::{
    batch::{TxArena, Via},
    drops::{DropCounters, DropReason},
    event::{Event, PathAddress},
    lend::Lending,
    netcheck::{NetCheck, Observer},
    packet::{
        IPV4_HEADER_LEN, IPV6_HEADER_LEN, UDP_HEADER_LEN,
        icmp::{self, IcmpLimit},
    },
    pass::{Passing, Wish},
    path::{guess::guesses, is_probable, mtu::Bounds, translation::Translation},
    peer::{EXCHANGE_BYTES, HOLD_RATE, Parting},
    punch::Punching,
    queue::{Budget, footprint, trim},
    rate::{Allowance, Rate},
    relay::RelayClient,
    router::Router,
    session::{Keys, OVERHEAD},
    shard::Sharing,
};

/// Most memory that datagrams of the engine's own take that wait for the driver: handshakes, probes, Binds. They are
/// made in answer to what came in, which the driver hands over a batch at a time: 2,000 handshakes.
const MAX_DATAGRAM_BYTES: usize = 768 * 1024;
/// The same for padded probes, of which a search makes one at a time per peer: 150.
const MAX_PROBE_BYTES: usize = 256 * 1024;
/// Most events that wait for the driver.
const MAX_EVENTS: usize = 4096;
/// Most packets for the TUN of the engine's own that wait for the driver.
const MAX_PACKETS: usize = 64;
/// The longest of them: an ICMP error.
const MAX_PACKET_LEN: usize = 1280;

/// Entries that even an empty queue keeps room for: else each datagram would cost an allocation more.
const KEPT_ENTRIES: usize = 32;

/// What peers share.
pub(crate) struct Local {
    pub(crate) id: NodeId,
    pub(crate) keys: Keys,
    pub(crate) mtu: u16,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) router: Router,
    pub(crate) relays: BTreeMap<RelayId, RelayClient>,
    /// The nearest of them.
    pub(crate) home: Option<RelayId>,
    /// This node as a relay, and peers that relay for it.
    pub(crate) lending: Lending,
    /// What peers carry for each other.
    pub(crate) passing: Passing,
    pub(crate) netcheck: NetCheck,
    pub(crate) outbox: Outbox,
    pub(crate) budget: Budget,
    pub(crate) drops: DropCounters,
    /// How many ICMP errors may still be sent.
    pub(crate) icmp: IcmpLimit,
    /// What is done to get through hard pairs of NATs.
    pub(crate) punching: Punching,
    /// What there is between this engine and others of the same node.
    pub(crate) sharing: Sharing,
    /// What may still be sent to keep holes open.
    pub(crate) holding: Allowance,
    /// How IPv4 is reached where there is none.
    pub(crate) translation: Translation,
    /// Whether this process is about to end.
    pub(crate) parting: Parting,
    /// Something changed that [`crate::Engine::settle`] is to see to.
    pub(crate) unsettled: bool,
}

/// What waits for the driver. Each part is bounded; what goes beyond is dropped, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    datagrams: Datagrams,
    /// Padded probes, which the system may refuse for their length.
    probes: Datagrams,
    pub(crate) events: VecDeque<Event>,
    pub(crate) packets: VecDeque<Vec<u8>>,
}

/// Datagrams that wait, and the memory that they take.
#[derive(Debug, Default)]
struct Datagrams {
    queue: VecDeque<Datagram>,
    bytes: usize,
}

type Datagram = (Via, Vec<u8>);

/// What a message to a peer goes through, and what stands before it there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    pub(crate) via: Via,
    pub(crate) header: Option<[u8; HEADER_LEN]>,
}

impl Route {
    /// Returns the length of what stands before a message.
    pub(crate) fn header_len(&self) -> usize {
        self.header.map_or(0, |header| header.len())
    }

    fn wrap(&self, message: &[u8]) -> Vec<u8> {
        match self.header {
            Some(header) => [&header[..], message].concat(),
            None => message.to_vec(),
        }
    }
}

impl Local {
    /// Returns what a path leads through now.
    pub(crate) fn route(&self, peer: NodeId, path: PathAddress) -> Option<Route> {
        match path {
            PathAddress::Direct(remote) => {
                Some(Route { via: Via::Udp { remote, local: None }, header: None })
            }
            PathAddress::Punched { socket, remote } => {
                Some(Route { via: Via::Punched { socket, remote }, header: None })
            }
            PathAddress::Relay(id) => {
                let (via, header) = self.relays.get(&id)?.route(peer)?;
                Some(Route { via, header: Some(header) })
            }
        }
    }

    /// Sends a message of the engine's own to a peer; whether there was a way.
    pub(crate) fn send(&mut self, peer: NodeId, path: PathAddress, message: &[u8]) -> bool {
        let Some(route) = self.route(peer, path) else { return false };
        self.outbox.push_datagram(route.via, route.wrap(message));
        true
    }

    /// Sends a padded probe to a peer, in no train with anything else: if the system refuses it, nothing else is lost.
    pub(crate) fn send_probe(&mut self, peer: NodeId, path: PathAddress, message: &[u8]) {
        if let Some(route) = self.route(peer, path) {
            self.outbox.probes.push((route.via, route.wrap(message)), MAX_PROBE_BYTES);
        }
    }

    /// Returns between what a path's MTU is to be searched for; `None` while it leads nowhere.
    pub(crate) fn mtu_bounds(&self, peer: NodeId, path: PathAddress) -> Option<Bounds> {
        let route = self.route(peer, path)?;
        let outside = match route.via {
            Via::Udp { remote: SocketAddr::V4(_), .. } | Via::Punched { .. } => {
                IPV4_HEADER_LEN + UDP_HEADER_LEN
            }
            // A stream has no size of its own; its other end may be a socket.
            Via::Udp { remote: SocketAddr::V6(_), .. } | Via::Stream(_) => IPV6_HEADER_LEN + UDP_HEADER_LEN,
        };
        let overhead = u16::try_from(outside + route.header_len() + OVERHEAD).ok()?;
        Some(Bounds { most: self.mtu, overhead })
    }

    /// Tells the sender of a packet how large it may be.
    pub(crate) fn answer_too_big(&mut self, packet: &[u8], mtu: u16, now: Instant) {
        if let Some(answer) = icmp::too_big(packet, mtu).filter(|_| self.icmp.admit(now)) {
            self.outbox.push_packet(answer);
        }
    }

    /// Returns the address that handshakes on a path are limited by.
    pub(crate) fn limit_address(&self, path: PathAddress) -> IpAddr {
        match path {
            PathAddress::Direct(remote) | PathAddress::Punched { remote, .. } => remote.ip(),
            PathAddress::Relay(id) => {
                self.relays.get(&id).map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), RelayClient::limit_address)
            }
        }
    }

    /// Returns the candidates of a peer that may be probed: no special addresses, none inside the mesh, none of
    /// this node's own. Where they are of no use from here, guesses are added, and what leads there through a translator.
    pub(crate) fn filter_candidates(&self, candidates: &[Candidate]) -> Vec<Candidate> {
        let own = self.netcheck.candidates();
        let is_fine = |candidate: &Candidate| {
            let is_outside = |ip| self.router.lookup(ip).is_none() && !self.router.is_own(ip);
            let meant = self.translation.meant(candidate.address.ip());
            let address = meant.map_or(candidate.address, |ip| (ip, candidate.address.port()).into());
            is_probable(candidate.address)
                && is_probable(address)
                && is_outside(candidate.address.ip())
                && is_outside(address.ip())
                && !own.iter().any(|own| own.address == address)
        };
        let guesses = guesses(candidates, self.netcheck.observers());
        let all: Vec<Candidate> = candidates.iter().chain(&guesses).copied().collect();
        self.translation.candidates(&all).into_iter().filter(is_fine).collect()
    }

    /// Tells whether the relays answer, soon.
    pub(crate) fn check_relays(&mut self, now: Instant) {
        self.unsettled = true;
        if !self.sharing.is_home() {
            self.sharing.report.check_relays = true;
            return;
        }
        for relay in self.relays.values_mut() {
            relay.check(now);
        }
    }

    /// A peer, which is the observer, sees this node there.
    pub(crate) fn on_observed_by_peer(
        &mut self,
        observer: Observer,
        peer: SocketAddr,
        mapped: SocketAddr,
        now: Instant,
    ) {
        if self.sharing.is_home() {
            self.netcheck_mut().on_observed(observer, peer, mapped, now);
        } else if !self.netcheck.knows(observer, peer, mapped) {
            self.sharing.report.note_observed(observer, peer, mapped);
        }
    }

    /// Takes what one probe of a hole that is kept costs; whether there was as much. Shards share what a node may send.
    pub(crate) fn take_hold(&mut self, now: Instant) -> bool {
        let shards = f64::from(self.sharing.shard.count());
        let rate = Rate { per_second: HOLD_RATE.per_second / shards, burst: HOLD_RATE.burst / shards };
        self.holding.take(EXCHANGE_BYTES, rate, now)
    }

    /// A peer has become active: what is known of the network must be fresh.
    pub(crate) fn on_active(&mut self, now: Instant) {
        if self.sharing.is_home() {
            self.netcheck_mut().on_active(now);
        } else {
            self.unsettled = true;
            self.sharing.report_active(now);
        }
    }

    /// Whether this node is not at it with another peer already, in another shard.
    pub(crate) fn take_punch_turn(&mut self, now: Instant) -> bool {
        self.unsettled = true;
        self.sharing.turn.take(self.sharing.shard, now)
    }

    /// Returns the relays that are up, and what they are reached through.
    pub(crate) fn usable_relays(&self) -> Vec<(RelayId, Via)> {
        self.relays.iter().filter_map(|(id, relay)| Some((*id, relay.via()?))).collect()
    }

    /// Notes something that concerns two peers, which the engine will see to.
    pub(crate) fn wish(&mut self, wish: Wish) {
        self.unsettled = true;
        if !self.passing.push(wish) {
            self.drops.count(DropReason::RelayRate);
        }
    }

    /// Address discovery, which the engine will look after.
    pub(crate) fn netcheck_mut(&mut self) -> &mut NetCheck {
        self.unsettled = true;
        &mut self.netcheck
    }

    /// Returns random bytes.
    pub(crate) fn random<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.rng.fill_bytes(&mut out);
        out
    }

    /// Returns a random number from 0 to 1.
    pub(crate) fn random_fraction(&mut self) -> f64 {
        f64::from(self.rng.next_u32()) / f64::from(u32::MAX)
    }
}

impl Datagrams {
    /// Appends one; the oldest go if they take more than `most` together.
    fn push(&mut self, datagram: Datagram, most: usize) {
        self.bytes += footprint::<Datagram>(&datagram.1);
        self.queue.push_back(datagram);
        while self.bytes > most && self.queue.len() > 1 {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some((_, datagram)) = self.queue.pop_front() {
            self.bytes -= footprint::<Datagram>(&datagram);
        }
        if self.queue.capacity() > KEPT_ENTRIES {
            trim(&mut self.queue);
        }
    }
}

impl Outbox {
    /// Most memory that packets take here.
    pub(crate) const MAX_BYTES: usize = MAX_DATAGRAM_BYTES + MAX_PROBE_BYTES + MAX_PACKETS * MAX_PACKET_LEN;

    pub(crate) fn push_datagram(&mut self, via: Via, datagram: Vec<u8>) {
        self.datagrams.push((via, datagram), MAX_DATAGRAM_BYTES);
    }

    /// Whether half of the memory for datagrams is taken.
    pub(crate) fn is_half_full(&self) -> bool {
        self.datagrams.bytes >= MAX_DATAGRAM_BYTES / 2
    }

    pub(crate) fn push_event(&mut self, event: Event) {
        push_bounded(&mut self.events, event, MAX_EVENTS);
    }

    pub(crate) fn push_packet(&mut self, packet: Vec<u8>) {
        push_bounded(&mut self.packets, packet, MAX_PACKETS);
    }

    /// Moves waiting datagrams into an arena; whether it was too small for all.
    pub(crate) fn flush(&mut self, out: &mut TxArena) -> bool {
        while let Some((via, datagram)) = self.datagrams.queue.front() {
            if !out.push(*via, datagram) {
                return true;
            }
            self.datagrams.pop();
        }
        while let Some((via, probe)) = self.probes.queue.front() {
            if !out.push_alone(*via, probe) {
                return true;
            }
            self.probes.pop();
        }
        false
    }
}

fn push_bounded<T>(queue: &mut VecDeque<T>, item: T, capacity: usize) {
    if queue.len() >= capacity {
        queue.pop_front();
    }
    queue.push_back(item);
}
