//! The engine: the shell around peers, relays and address discovery.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use mesh_proto::status::FamilyState;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

mod commands;
mod inbound;
mod lending;
mod outbound;
mod passing;
mod sharing;
mod slots;

pub(crate) use self::lending::{channel_at, relay_id};
use self::slots::Slots;
use crate::{
    backlog::{Backlog, MAX_MEMORY},
    batch::{MAX_TRAIN_BYTES, SocketId},
    config::{Config, RelayConfig},
    drops::DropCounters,
    event::{Event, Wakeup, WakeupReason},
    lend::Lending,
    local::{Local, Outbox},
    netcheck::NetCheck,
    packet::icmp::IcmpLimit,
    pass::Passing,
    path::translation::Translation,
    peer::{Parting, Peer, Scratch},
    punch::Punching,
    queue::{Budget, MAX_TOTAL_BYTES},
    rate::Allowance,
    relay::{RelayClient, home},
    router::{Own, Refusal, Router},
    session::Keys,
    shard::{Shard, Sharing, handover},
    snapshot::{HandedOver, RelaySnapshot, Snapshot},
    timer::Wakeups,
};

/// A mesh node without IO and without a clock.
///
/// | kind | methods | contract |
/// |---|---|---|
/// | input | [`handle_tun`], [`handle_backlog`], [`handle_datagrams`], [`handle_timeout`], [`handle_command`] | in any order, `now` never goes back |
/// | output | [`poll_transmit`], [`poll_packet`], [`poll_event`], [`poll_sockets`], [`poll_timeout`] | after every input: the first three until they have nothing left, then the others |
/// | | [`poll_backlog`] | while it has something, frames go to [`handle_backlog`] only |
/// | shards | [`poll_handover`], [`handle_handover`] | where a node has several engines: an output of one is an input of another |
/// | view | [`snapshot`] | at any time; changes nothing |
///
/// Calling an input too often is a no-op: a timeout before it is due, a command that wants what is there already.
/// No input fails: what is wrong with a packet is counted (see [`DropReason`]).
///
/// [`handle_tun`]: Engine::handle_tun
/// [`handle_backlog`]: Engine::handle_backlog
/// [`poll_backlog`]: Engine::poll_backlog
/// [`poll_handover`]: Engine::poll_handover
/// [`handle_handover`]: Engine::handle_handover
/// [`handle_datagrams`]: Engine::handle_datagrams
/// [`handle_timeout`]: Engine::handle_timeout
/// [`handle_command`]: Engine::handle_command
/// [`poll_transmit`]: Engine::poll_transmit
/// [`poll_packet`]: Engine::poll_packet
/// [`poll_event`]: Engine::poll_event
/// [`poll_sockets`]: Engine::poll_sockets
/// [`poll_timeout`]: Engine::poll_timeout
/// [`snapshot`]: Engine::snapshot
/// [`DropReason`]: crate::drops::DropReason
pub struct Engine {
    local: Local,
    peers: Slots,
    wakeups: Wakeups,
    scratch: Scratch,
    backlog: Backlog,
    /// Slots of peers whose waiting packets can go.
    ready: BTreeSet<u32>,
    /// The slot of the peer that data passed to or from last, until its wakeups are armed: once for many packets.
    touched: Option<u32>,
    own_allowed_ips: Vec<ipnet::IpNet>,
    /// As they were told.
    servers: Servers,
    refusals: Vec<Refusal>,
}

/// Whom this node asks, where they were said to be.
#[derive(Debug, Default)]
struct Servers {
    observers: Vec<SocketAddr>,
    relays: Vec<RelayConfig>,
}

/// With what an engine begins.
#[derive(Clone, Copy)]
struct Start {
    seed: [u8; 32],
    now: Instant,
}

impl Engine {
    /// Most bytes that one [`Engine::handle_tun`] lays out: the driver leaves this much room in the arena.
    ///
    /// A superpacket of 64 KiB, cut into the smallest segments that TCP makes (536 bytes), each with its own headers,
    /// padding, tag and relay header, and all of it twice while a path is doubted.
    pub const MAX_TUN_ROOM: usize = 4 * MAX_TRAIN_BYTES;

    /// Most memory that packets take inside an engine, whatever comes: those that wait for sessions, those of the
    /// backlog, its own that wait for the driver, and those that belong to other shards. All others lie in buffers that
    /// the driver lends it.
    pub const MAX_PACKET_BYTES: usize =
        Self::MAX_WAITING_BYTES + MAX_MEMORY + Outbox::MAX_BYTES + handover::MAX_MEMORY;

    /// What those of them take that wait for sessions.
    pub const MAX_WAITING_BYTES: usize = MAX_TOTAL_BYTES;

    /// Makes an engine without peers and relays. The seed makes everything random in it but session keys.
    #[must_use]
    pub fn new(config: Config, seed: [u8; 32], now: Instant) -> Self {
        let keys = Keys::new(&config.private_key, now);
        Self::shard(Shard::ONLY, config, keys, Start { seed, now })
    }

    /// Makes the engines of a node that has so many, in order of their numbers (see [`crate::shard`]). Every one is to be
    /// given every command.
    #[must_use]
    pub fn shards(config: &Config, seed: [u8; 32], count: NonZeroU32, now: Instant) -> Vec<Self> {
        let keys = Keys::new(&config.private_key, now);
        let start = Start { seed, now };
        Shard::all(count).map(|shard| Self::shard(shard, config.clone(), keys.share(), start)).collect()
    }

    fn shard(shard: Shard, config: Config, keys: Keys, start: Start) -> Self {
        let Start { seed, now } = start;
        let own_allowed_ips = config.allowed_ips;
        let mut rng = ChaCha8Rng::from_seed(seed);
        rng.set_stream(shard.index().into());
        let backlog = Backlog::new(rng.next_u64());
        let (router, _) = Router::new(Own { id: config.id, allowed_ips: &own_allowed_ips }, &[]);
        Self {
            local: Local {
                id: config.id,
                keys,
                mtu: config.mtu,
                rng,
                router,
                relays: BTreeMap::new(),
                home: None,
                lending: Lending::default(),
                passing: Passing::new(config.real_time, now),
                netcheck: NetCheck::default(),
                outbox: Outbox::default(),
                budget: Budget::shared_by(shard.count()),
                drops: DropCounters::default(),
                icmp: IcmpLimit::default(),
                punching: Punching::new(config.punch, shard),
                sharing: Sharing::new(shard),
                holding: Allowance::default(),
                translation: Translation::default(),
                parting: Parting::default(),
                unsettled: false,
            },
            peers: Slots::new(shard),
            wakeups: Wakeups::default(),
            scratch: Scratch::default(),
            backlog,
            ready: BTreeSet::new(),
            touched: None,
            own_allowed_ips,
            servers: Servers::default(),
            refusals: Vec::new(),
        }
    }

    /// Does what is due at `now`; the next wakeup is later than `now` then.
    pub fn handle_timeout(&mut self, now: Instant) {
        for reason in self.wakeups.take_due(now) {
            match reason {
                WakeupReason::Session(id) => {
                    self.with_peer(id, now, |peer, local| peer.handle_session_timeout(local, now));
                }
                WakeupReason::Paths(id) => {
                    self.with_peer(id, now, |peer, local| peer.handle_paths_timeout(local, now));
                }
                WakeupReason::Relay(id) => self.bind_relay(id, now),
                WakeupReason::NetCheck if !self.local.sharing.is_home() => self.handle_report_due(now),
                // Settling plans anew.
                WakeupReason::Lending => {}
                WakeupReason::NetCheck => {
                    let active = self.local.sharing.is_active_elsewhere(now)
                        || self.peers.iter().any(|peer| peer.is_active(now));
                    let Local { netcheck, rng, outbox, .. } = &mut self.local;
                    netcheck.handle_timeout(now, active, rng, |remote, datagram| {
                        outbox.push_datagram(crate::batch::Via::Udp { remote, local: None }, datagram);
                    });
                    let lifetime = &mut self.local.netcheck.lifetime;
                    let open = || self.local.punching.open_socket();
                    if let Some((via, request)) = lifetime.handle_timeout(now, &mut self.local.rng, open) {
                        self.local.outbox.push_datagram(via, request);
                    }
                }
            }
        }
        self.settle(now);
    }

    /// Returns a packet of the engine's own for the TUN.
    pub fn poll_packet(&mut self) -> Option<Vec<u8>> {
        self.local.outbox.packets.pop_front()
    }

    /// Returns something that the driver should know or do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.local.outbox.events.pop_front()
    }

    /// Returns the sockets beside the main one that are to be open, all of them, if they are others than the last time.
    ///
    /// Each is opened, on a port of its own, when something is sent through it. To be asked after every input, before what
    /// was laid out is sent; a datagram for a socket that is not named any more goes nowhere.
    pub fn poll_sockets(&mut self) -> Option<&BTreeSet<SocketId>> {
        self.local.punching.take_sockets()
    }

    /// Returns when [`Engine::handle_timeout`] wants to be called, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Wakeup> {
        self.wakeups.next()
    }

    /// Shows the engine as it is.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let relays = self.local.relays.iter().map(|(id, relay)| RelaySnapshot {
            id: *id,
            address: relay.address(),
            up: relay.is_up(),
            rtt: relay.rtt(),
        });
        Snapshot {
            peers: self.peers.iter().map(|peer| peer.snapshot(now)).collect(),
            relays: relays.collect(),
            home: self.local.home,
            candidates: self.local.netcheck.candidates(),
            mapping: self.local.netcheck.mapping(),
            ipv4: self.family(SocketAddr::is_ipv4),
            ipv6: self.family(SocketAddr::is_ipv6),
            udp_blocked: self.is_udp_blocked(),
            drops: self.local.drops.clone(),
            engines: 1,
            handed_over: HandedOver {
                frames: self.local.sharing.handovers.frames,
                datagrams: self.local.sharing.handovers.datagrams,
            },
            nat_lifetime: self.local.netcheck.lifetime.known(),
            keepalive: self.keepalive(),
        }
    }

    /// How often the mapping towards the home relay is refreshed, if it is reached over UDP.
    fn keepalive(&self) -> Option<Duration> {
        let home = self.local.relays.get(&self.local.home?)?;
        home.address().map(|_| home.interval())
    }

    /// Has relays bound as often as mappings need it, as far as that is known now. The home shard does.
    fn keep_mappings(&mut self, now: Instant) {
        if !self.local.sharing.is_home() {
            return;
        }
        let Local { netcheck, relays, outbox, sharing, .. } = &mut self.local;
        netcheck.choose_lifetime_target(now);
        for relay in relays.values_mut() {
            if let Some(address) = relay.address() {
                relay.set_keepalive(netcheck.lifetime.interval(address.ip()));
            }
        }
        if netcheck.lifetime.take_changed() {
            sharing.relays_changed = true;
            outbox.push_event(Event::NatLifetime(netcheck.lifetime.known()));
        }
    }

    /// Returns which of its node's shards it is.
    #[must_use]
    pub fn shard_number(&self) -> u32 {
        self.local.sharing.shard.index()
    }

    /// Whether what is asked over an address family is answered: by observers, or by a relay.
    fn family(&self, is_of: impl Fn(&SocketAddr) -> bool) -> FamilyState {
        let mut relays =
            self.local.relays.values().filter(|relay| relay.is_up()).filter_map(RelayClient::address);
        if relays.any(|address| is_of(&address)) {
            return FamilyState::Works;
        }
        self.local.netcheck.family(is_of)
    }

    /// Chooses the relay that is this node's home, and tells if it is another one now. The home shard does.
    fn judge_home(&mut self) {
        if !self.local.sharing.is_home() {
            return;
        }
        let views: Vec<_> = self.local.relays.values().filter_map(RelayClient::home_view).collect();
        let home = home::choose(&views, self.local.home);
        if std::mem::replace(&mut self.local.home, home) != home {
            tracing::debug!(relay = home.map(|home| home.0), "the home is another relay now");
            self.local.outbox.push_event(Event::HomeChanged(home));
        }
    }

    /// Whether nothing is answered over UDP that should be.
    fn is_udp_blocked(&self) -> bool {
        let udp_relay_is_up =
            self.local.relays.values().any(|relay| relay.is_up() && relay.address().is_some());
        let answers = self.peers.iter().any(Peer::has_direct_answer);
        if !self.local.sharing.is_home() {
            // The home shard says whether there is anything else; see `Snapshot::merge`.
            return !answers;
        }
        // Behind a proxy, names do not resolve: there is nobody to ask, and a relay is reached all the same.
        let stream_is_up = self.local.relays.values().any(|relay| relay.is_up() && relay.is_stream());
        let is_unanswered =
            self.local.netcheck.is_unanswered() || (stream_is_up && self.local.netcheck.has_no_observers());
        is_unanswered && !udp_relay_is_up && !answers
    }

    /// Data passes to or from the peer in `slot`.
    fn touch(&mut self, slot: u32, now: Instant) {
        if self.touched != Some(slot) {
            self.see_to_touched(now);
            self.touched = Some(slot);
        }
    }

    /// Arms the wakeups of the peer that data passed to or from last, and has its waiting packets sent.
    fn see_to_touched(&mut self, now: Instant) {
        if let Some(peer) = self.touched.take().and_then(|slot| self.peers.get_mut(slot)) {
            peer.arm_loosely(&mut self.wakeups, now);
            if peer.has_ready_packets(now) {
                self.ready.insert(peer.slot());
            }
        }
    }

    /// Runs `act` on a peer and re-arms its wakeups.
    fn with_peer(
        &mut self,
        id: mesh_proto::netmap::NodeId,
        now: Instant,
        act: impl FnOnce(&mut Peer, &mut Local),
    ) -> bool {
        let Some(peer) = self.peers.by_id_mut(id) else { return false };
        act(peer, &mut self.local);
        peer.arm(&mut self.wakeups, now);
        if peer.has_ready_packets(now) {
            self.ready.insert(peer.slot());
        }
        true
    }

    /// Runs `act` on every peer and re-arms their wakeups.
    fn with_all_peers(&mut self, now: Instant, mut act: impl FnMut(&mut Peer, &mut Local)) {
        let Self { peers, local, wakeups, ready, .. } = self;
        peers.for_each(|peer| {
            act(peer, local);
            peer.arm(wakeups, now);
            if peer.has_ready_packets(now) {
                ready.insert(peer.slot());
            }
        });
    }

    /// Tells of changed candidates and arms the wakeups that belong to no peer.
    fn settle(&mut self, now: Instant) {
        self.local.unsettled = false;
        if self.local.translation.set_silent(self.local.netcheck.is_ipv4_silent()) {
            self.translate(now);
        }
        if let Some(candidates) = self.local.netcheck.take_changed() {
            self.local.outbox.push_event(Event::CandidatesChanged(candidates));
            self.with_all_peers(now, |peer, local| peer.on_own_candidates_changed(local, now));
        }
        self.judge_home();
        self.borrow_relays(now);
        self.pass_on(now);
        self.keep_mappings(now);
        if self.local.punching.has_sockets() {
            let silent = self.local.netcheck.lifetime.socket();
            let used = self.peers.iter().flat_map(Peer::sockets).chain(silent).collect();
            self.local.punching.retain_sockets(&used);
        }
        self.local.unsettled = false;
        self.wakeups.set_after(WakeupReason::NetCheck, self.local.netcheck.poll_timeout(), now);
        if self.local.sharing.is_several() {
            self.tell_others(now);
        }
        for (id, relay) in &self.local.relays {
            self.wakeups.set_after(WakeupReason::Relay(*id), relay.poll_timeout(), now);
        }
    }
}
