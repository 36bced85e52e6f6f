//! The world: nodes, servers and the underlay between them, under one virtual clock.
//!
//! [`World::run_until`] takes events in order of their due times and hands each to whom it concerns. After everything
//! that an engine is given it is drained as its contract asks (transmits, packets, events, then the wakeup), and what
//! came out is checked at once ([`check`]); see [`World::violation`].

mod check;
mod control;
mod disk;
mod map;
mod node;
mod stream;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use mesh_engine::{
    batch::{Offload, RxTrain, TunFrame, Via},
    command::Command,
    event::{Event as EngineEvent, PathAddress},
    snapshot::{PeerSnapshot, Snapshot},
};
use mesh_proto::{
    demux::{DatagramKind, classify},
    netmap::RelayId,
};

pub(crate) use self::node::{MTU, NODE_PORT, Node};
use self::{control::Message, node::Input};
use crate::{
    coordinator::{Coordinator, answer_stun},
    engines::Engines,
    ledger::{Ledger, Receiver, Role, Sent},
    net::{Flight, HostId, Net, Outgoing},
    packet,
    queue::EventQueue,
    relay::Relay,
    rng::Rng,
    trace::{Line, Trace},
};

/// Most timeouts that an engine may need in a second, and as many more for each of its peers.
const TIMEOUTS_PER_SECOND: u32 = 40;
/// An engine that has still more to transmit after this many arenas is in a loop.
const MAX_DRAINS: u32 = 64;
/// Real time at the beginning, in milliseconds.
const REAL_EPOCH: u64 = 1_790_000_000_000;
/// Length of pings and their answers.
pub(crate) const PING_LEN: usize = 100;

/// Everything there is.
pub(crate) struct World {
    pub(crate) net: Net,
    pub(crate) coordinator: Coordinator,
    pub(crate) relays: Vec<Relay>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) ledger: Ledger,
    pub(crate) trace: Trace,
    pub(crate) rng: Rng,
    pub(crate) now: Duration,
    epoch: Instant,
    queue: EventQueue<Event>,
    hosts: BTreeMap<HostId, usize>,
    /// Which node owns which range, as the coordinator has it.
    ranges: Vec<(IpNet, usize)>,
    events: u64,
    violation: Option<String>,
}

/// What can happen.
enum Event {
    Arrive(Flight),
    Wake(usize),
    Control(Message),
    Send(Sending),
    Map(usize),
    Stream(stream::Message),
}

/// An inner packet that an application sends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sending {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) len: usize,
    pub(crate) role: Role,
    pub(crate) ends: Ends,
}

/// What an inner packet goes from and to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// The nodes' own addresses.
    Nodes,
    /// Something in the ranges behind the nodes, as far as they have any.
    Ranges,
    /// The sending node's address, and something in the range with this number, whoever owns it.
    Into(usize),
}

impl World {
    /// Makes a world in which nothing runs yet. The first relay stands where the coordinator is.
    pub(crate) fn new(net: Net, coordinator: Coordinator, relays: Vec<Relay>, rng: Rng) -> Self {
        Self {
            net,
            coordinator,
            relays,
            nodes: Vec::new(),
            ledger: Ledger::default(),
            trace: Trace::new(),
            rng,
            now: Duration::ZERO,
            epoch: Instant::now(),
            queue: EventQueue::new(),
            hosts: BTreeMap::new(),
            ranges: Vec::new(),
            events: 0,
            violation: None,
        }
    }

    /// Adds a node on a host.
    pub(crate) fn add_node(&mut self, host: HostId) {
        let number = u32::try_from(self.nodes.len() + 1).expect("few nodes");
        let index = self.nodes.len();
        self.hosts.insert(host, index);
        let node = Node::new(number, host, &mut self.rng);
        self.ranges.extend(node.ranges.iter().map(|range| (*range, index)));
        self.nodes.push(node);
    }

    /// Starts a node's process: a new engine, with what the last one had on disk.
    pub(crate) fn start(&mut self, node: usize) {
        self.note(format!("node {node} starts"));
        let seed = self.rng.bytes();
        self.nodes[node].real_time = self.real_time(node);
        self.nodes[node].life += 1;
        let engine = self.nodes[node].make_engine(seed, self.instant(node));
        self.nodes[node].engine = Some(engine);
        self.nodes[node].armed = None;
        let peers = self.nodes[node].peers.clone();
        let mut observers = vec![self.coordinator.address];
        observers.extend(self.relays.iter().map(|relay| relay.address));
        observers.sort_unstable();
        observers.dedup();
        let states = self.nodes[node].disk.to_states();
        self.command(node, Command::SetPeers(peers));
        self.command(node, Command::SetObservers(observers));
        self.set_host_candidates(node);
        let allowed = self.nodes[node].lends;
        self.command(node, Command::SetLending { allowed });
        for state in states {
            self.nodes[node].states.insert(state.id, state.clone());
            self.tell_state(node, state);
        }
        self.dial_soon(node, Duration::ZERO);
        self.open_relays_alone(node);
    }

    /// Kills a node's process. Its relay channels are gone with it.
    pub(crate) fn kill(&mut self, node: usize) {
        self.note(format!("node {node} is killed"));
        self.nodes[node].engine = None;
        self.nodes[node].states.clear();
        self.nodes[node].relays.clear();
        self.nodes[node].home = None;
        self.nodes[node].sockets.clear();
        self.nodes[node].candidates.clear();
        self.drop_control(node);
    }

    /// A node's host sleeps: nothing runs, its monotonic clock stands still, and what comes to it is lost.
    pub(crate) fn fall_asleep(&mut self, node: usize) {
        self.note(format!("node {node} sleeps"));
        self.nodes[node].asleep_since = self.now;
        self.nodes[node].asleep = true;
        self.nodes[node].armed = None;
        self.drop_control(node);
    }

    /// It wakes, which it notices by its clocks.
    pub(crate) fn wake_up(&mut self, node: usize) {
        let sleeper = &mut self.nodes[node];
        sleeper.slept += self.now - sleeper.asleep_since;
        sleeper.asleep = false;
        self.ledger.sleep(node, self.now);
        self.host_moved(node);
    }

    /// Moves a node's host, which it notices.
    pub(crate) fn host_moved(&mut self, node: usize) {
        self.note(format!("node {node} is at {:?}", self.net.place(self.nodes[node].host)));
        self.set_host_candidates(node);
        self.command(node, Command::NetworkChanged);
        self.drop_control(node);
        self.dial_soon(node, Duration::from_millis(100));
    }

    /// Has an application send a packet.
    pub(crate) fn send_at(&mut self, at: Duration, sending: Sending) {
        self.queue.push(at, Event::Send(sending));
    }

    /// Sends a packet now and returns its number; `None` if the node is not running.
    pub(crate) fn send(&mut self, sending: Sending) -> Option<u64> {
        let Sending { from, to, len, role, ends } = sending;
        let (source, destination, receiver) = match ends {
            Ends::Nodes => (self.nodes[from].address, self.nodes[to].address, Receiver::Node(to)),
            Ends::Into(range) => (self.nodes[from].address, self.destination_in(range), Receiver::Owner),
            Ends::Ranges => (self.source_in_range(from), self.destination_in_range(to), Receiver::Owner),
        };
        self.send_raw((source, destination), len, Sent { from, to: receiver, at: self.now, role })
    }

    /// Sends a packet that no node may get.
    pub(crate) fn send_forbidden(
        &mut self,
        from: usize,
        source: Ipv4Addr,
        destination: Ipv4Addr,
    ) -> Option<u64> {
        let sent = Sent { from, to: Receiver::Nobody, at: self.now, role: Role::OneWay };
        self.send_raw((source, destination), PING_LEN, sent)
    }

    /// Pings, and returns the ping's number.
    pub(crate) fn ping(&mut self, from: usize, to: usize) -> Option<u64> {
        self.send(Sending { from, to, len: PING_LEN, role: Role::Ping, ends: Ends::Nodes })
    }

    /// Gives a command to a node's engine, if it runs.
    pub(crate) fn command(&mut self, node: usize, command: Command) {
        self.drive(node, Input::Command(command));
    }

    /// Runs until a time, or until something is wrong.
    pub(crate) fn run_until(&mut self, until: Duration) {
        while self.violation.is_none() {
            let Some((due, event)) = self.queue.pop_until(until) else { break };
            assert!(due >= self.now, "time goes forward");
            self.now = due;
            self.events += 1;
            self.handle(event);
        }
        self.now = self.now.max(until);
    }

    /// Runs for a time.
    pub(crate) fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// Returns how many events there were.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// Returns what was seen first that must not be.
    pub(crate) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// Notes that something is wrong.
    pub(crate) fn fail(&mut self, what: String) {
        self.note(format!("VIOLATION {what}"));
        self.violation.get_or_insert(what);
    }

    /// Adds a note to the trace.
    pub(crate) fn note(&mut self, text: String) {
        self.trace.add(self.now, Line::Note(text));
    }

    /// Returns a node's view of itself.
    pub(crate) fn snapshot(&self, node: usize) -> Option<Snapshot> {
        self.nodes[node].engine.as_ref().map(|engine| engine.snapshot(self.instant(node)))
    }

    /// Returns a node's view of a peer.
    pub(crate) fn peer(&self, node: usize, peer: usize) -> Option<PeerSnapshot> {
        let id = self.nodes[peer].id;
        self.snapshot(node)?.peers.into_iter().find(|snapshot| snapshot.id == id)
    }

    /// Returns the primary path of a node to a peer.
    pub(crate) fn path(&self, node: usize, peer: usize) -> Option<PathAddress> {
        self.peer(node, peer)?.path.map(|path| path.address)
    }

    /// Returns which of the relays has this number.
    pub(crate) fn relay_index(&self, id: RelayId) -> usize {
        self.relays.iter().position(|relay| relay.id == id).expect("a relay of this world")
    }

    /// Whether the primary path of a node to a peer is a direct one.
    pub(crate) fn is_direct(&self, node: usize, peer: usize) -> bool {
        self.path(node, peer).is_some_and(PathAddress::is_direct)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive(flight) => self.arrive(flight),
            Event::Wake(node) => self.wake(node),
            Event::Control(message) => self.handle_control(message),
            Event::Send(sending) => {
                self.send(sending);
            }
            Event::Map(node) => self.apply_map(node),
            Event::Stream(message) => self.handle_stream(message),
        }
    }

    fn send_raw(&mut self, addresses: (Ipv4Addr, Ipv4Addr), len: usize, sent: Sent) -> Option<u64> {
        let Sent { from, to, .. } = sent;
        self.nodes[from].engine.as_ref().filter(|_| !self.nodes[from].asleep)?;
        let number = self.ledger.enter(sent);
        self.trace.add(self.now, Line::PacketIn { node: from, to, number });
        self.nodes[from].meter.packets += 1;
        self.nodes[from].note_traffic(self.now);
        self.drive(from, Input::Tun(packet::build(addresses.0, addresses.1, number, len)));
        Some(number)
    }

    fn arrive(&mut self, flight: Flight) {
        let delivery = match self.net.arrive(flight, self.now) {
            Ok(delivery) => delivery,
            Err(why) => return self.trace.add(self.now, Line::Lost { node: None, why }),
        };
        let (source, bytes) = (delivery.source, delivery.bytes);
        if let Some(node) = self.hosts.get(&delivery.host).copied() {
            let line = Line::Arrived { node, from: source, len: bytes.len(), first: first(&bytes) };
            self.trace.add(self.now, line);
            if let Some(via) =
                self.nodes[node].listener(delivery.port, source).filter(|_| !self.nodes[node].blocked)
            {
                self.drive(node, Input::Datagram { via, bytes });
            }
            return;
        }
        let answer = match classify(&bytes) {
            DatagramKind::Stun if self.observes(delivery.host) => answer_stun(source, &bytes),
            DatagramKind::Relay => {
                let relay = self.relays.iter_mut().find(|relay| relay.host == delivery.host && relay.up);
                relay.and_then(|relay| relay.handle_frame(source, &bytes))
            }
            DatagramKind::Stun
            | DatagramKind::WireGuard
            | DatagramKind::Disco
            | DatagramKind::Quic
            | DatagramKind::Unknown => None,
        };
        if let Some((destination, bytes)) = answer {
            if let Some(node) = stream::node_of(destination) {
                return self.stream_down(node, delivery.host, bytes);
            }
            self.launch(Outgoing { host: delivery.host, port: delivery.port, destination, bytes });
        }
    }

    /// Whether a server that answers STUN runs on a host.
    fn observes(&self, host: HostId) -> bool {
        (self.coordinator.host == host && self.coordinator.up)
            || self.relays.iter().any(|relay| relay.host == host && relay.up)
    }

    fn launch(&mut self, outgoing: Outgoing) {
        let node = self.hosts.get(&outgoing.host).copied();
        match self.net.send(outgoing, self.now) {
            Ok((due, flight)) => self.queue.push(due, Event::Arrive(flight)),
            Err(why) => self.trace.add(self.now, Line::Lost { node, why }),
        }
    }

    fn wake(&mut self, node: usize) {
        if self.nodes[node].armed != Some(self.now) || self.nodes[node].asleep {
            return;
        }
        self.nodes[node].armed = None;
        let Some(wakeup) = self.nodes[node].engine.as_ref().and_then(Engines::poll_timeout) else {
            return;
        };
        if wakeup.at > self.instant(node) {
            return self.arm(node);
        }
        self.trace.add(self.now, Line::Woke { node, why: wakeup.reason });
        let now = self.now;
        let count = self.nodes[node].count_timeout(now);
        let most = TIMEOUTS_PER_SECOND * u32::try_from(self.nodes.len()).expect("few nodes");
        if count > most {
            self.fail(format!("node {node} handled {count} timeouts in a second, now {:?}", wakeup.reason));
        }
        self.drive(node, Input::Timeout);
        let next = self.nodes[node].engine.as_ref().and_then(Engines::poll_timeout);
        if let Some(next) = next.filter(|next| next.at <= self.instant(node)) {
            self.fail(format!("node {node} handled {:?} and wants {:?} at once", wakeup.reason, next.reason));
        }
    }

    /// Has a node woken when its engine wants it. An earlier Wake that is queued already finds out by itself.
    fn arm(&mut self, node: usize) {
        let Some(wakeup) = self.nodes[node].engine.as_ref().and_then(Engines::poll_timeout) else {
            return;
        };
        let since = wakeup.at.saturating_duration_since(self.epoch);
        let at = (since + self.nodes[node].slept).max(self.now);
        if self.nodes[node].armed.is_none_or(|armed| armed > at) {
            self.nodes[node].armed = Some(at);
            self.queue.push(at, Event::Wake(node));
        }
    }

    /// Gives something to a node's engine and drains it.
    fn drive(&mut self, node: usize, input: Input) {
        let now = self.instant(node);
        let Node { engine, arena, asleep, .. } = &mut self.nodes[node];
        let Some(engine) = engine.as_mut().filter(|_| !*asleep) else { return };
        arena.clear();
        let mut packets = Vec::new();
        match input {
            Input::Tun(packet) => {
                engine.handle_tun(TunFrame { packet: &packet, offload: Offload::None }, now, arena);
            }
            Input::Datagram { via, mut bytes } => {
                let stride = bytes.len();
                let train = RxTrain { via, stride, bytes: &mut bytes };
                packets.extend(engine.handle_datagrams(train, now, arena));
            }
            Input::Timeout => engine.handle_timeout(now, arena),
            Input::Command(command) => engine.handle_command(&command, now, arena),
        }
        let mut datagrams = Vec::new();
        let mut drains = 0;
        loop {
            for transmit in arena.transmits() {
                let chunks = transmit.bytes.chunks(transmit.stride);
                datagrams.extend(chunks.map(|datagram| (transmit.via, datagram.to_vec())));
            }
            arena.clear();
            let more = engine.poll_transmit(now, arena);
            drains += 1;
            if (!more && arena.is_empty()) || drains > MAX_DRAINS {
                break;
            }
        }
        let own: Vec<_> = std::iter::from_fn(|| engine.poll_packet()).collect();
        let events: Vec<_> = std::iter::from_fn(|| engine.poll_event()).collect();
        let sockets = engine.poll_sockets();
        if drains > MAX_DRAINS {
            self.fail(format!("node {node} never stops transmitting"));
        }
        if !own.is_empty() {
            self.note(format!("node {node} answers its own host {} times", own.len()));
        }
        for packet in own {
            match packet::parse_too_big(&packet) {
                Some((mtu, number)) => self.ledger.refuse(number, mtu),
                None => self.fail(format!("node {node} tells its host something else than an MTU")),
            }
        }
        for (via, bytes) in datagrams {
            self.transmit(node, via, bytes);
        }
        if let Some(open) = sockets {
            self.nodes[node].sockets.retain(|_, socket| open.contains(socket));
        }
        for packet in packets {
            self.deliver(node, &packet);
        }
        for event in events {
            self.handle_engine_event(node, event);
        }
        self.arm(node);
    }

    fn transmit(&mut self, node: usize, via: Via, bytes: Vec<u8>) {
        let (to, port) = match via {
            Via::Udp { remote, .. } => (remote, NODE_PORT),
            Via::Punched { socket, remote } => (remote, self.nodes[node].open_socket(socket)),
            Via::Stream(relay) => return self.stream_up(node, relay, bytes),
        };
        let line = Line::Sent { node, to, len: bytes.len(), first: first(&bytes) };
        self.trace.add(self.now, line);
        match self.check_transmit(node, to, &bytes) {
            Ok(()) if self.nodes[node].blocked => {}
            Ok(()) => {
                let host = self.nodes[node].host;
                self.launch(Outgoing { host, port, destination: to, bytes });
            }
            Err(why) => self.fail(why),
        }
    }

    fn deliver(&mut self, node: usize, packet: &[u8]) {
        match self.check_delivery(node, packet) {
            Ok((number, Sent { from, role: Role::Ping, .. })) => {
                let (to, role) = (from, Role::Answer(number));
                self.send(Sending { from: node, to, len: PING_LEN, role, ends: Ends::Nodes });
            }
            Ok(_) => {}
            Err(why) => self.fail(why),
        }
    }

    fn handle_engine_event(&mut self, node: usize, event: EngineEvent) {
        self.note(format!("node {node}: {event:?}"));
        match event {
            EngineEvent::CandidatesChanged(candidates) => self.publish(node, candidates),
            EngineEvent::CallMeMaybe { to, candidates } => self.forward_call(node, to, candidates),
            EngineEvent::RelayLost(relay) => self.reopen_relay(node, relay),
            EngineEvent::PathChanged { peer, path } => {
                self.nodes[node].meter.path_changes += 1;
                if let Some(PathAddress::Direct(address)) = path {
                    self.nodes[node].disk.set_worked(peer, address);
                }
            }
            EngineEvent::PrefixRefused { .. } => self.fail(format!("node {node} refuses a prefix")),
            EngineEvent::HomeChanged(home) => self.publish_home(node, home),
            // Told to nobody: what a process has measured ends with it.
            EngineEvent::NatLifetime(_) => {}
            EngineEvent::RelayUp(_) | EngineEvent::Pong { .. } => {}
        }
    }

    /// What a node's clock shows, in milliseconds.
    fn real_time(&self, node: usize) -> u64 {
        let since = u64::try_from(self.now.as_millis()).expect("a simulation is short");
        (REAL_EPOCH + since).saturating_add_signed(self.nodes[node].clock_offset)
    }

    /// What a node's monotonic clock shows: it stands still while the node sleeps.
    fn instant(&self, node: usize) -> Instant {
        self.epoch + (self.now - self.nodes[node].slept)
    }
}

fn first(bytes: &[u8]) -> u8 {
    bytes.first().copied().unwrap_or_default()
}
