//! The sans-IO core of the relay.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    time::{Duration, Instant},
};

use mesh_proto::{
    netmap::NodeId,
    relay::{BOUND_LEN, CHANNEL_KEY_LEN, ChannelId, Frame, HEADER_LEN, data_header},
};

use super::{
    channel::{Bind, Channel},
    queue::{QueuedTrain, SendQueues},
    stats::{DropReason, RelayStats},
    way::{StreamId, Way},
};
use crate::limit::{Rate, SourceLimiter};

/// What a packet costs of its sender's rate beside its bytes: a flood of tiny packets is work, too.
const PACKET_COST: u64 = 100;
/// How often channels are looked through for those that are too old.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// UnknownChannel replies per source. An agent needs one to learn that the relay was restarted.
const UNKNOWN_REPLY_RATE: Rate = Rate { per_second: 2, burst: 8 };

/// What a relay grants.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes per second that one sender may send through the relay; each packet counts as 100 bytes more.
    pub client_rate: Rate,
}

/// Knows the channels and decides what becomes of each frame.
///
/// - Input: [`Self::handle_train`] for datagrams, [`Self::handle_blocked`] for a [`Forward`] that the socket
///   did not take, [`Self::handle_timeout`] when [`Self::poll_timeout`] says so, and [`Self::open`] and the
///   methods for nodes from the control side.
/// - Output: the [`Forward`]s and [`Reply`]s of `handle_train`, to be acted on before the train's buffer is
///   used again; [`Self::poll_transmit`] and [`Self::handle_transmitted`] while the socket is writable.
///
/// Every method may be called at any time; what refers to a channel that is gone does nothing.
pub struct RelayCore {
    limits: Limits,
    /// Every registered node is in every other's map; a node outside is nobody's peer.
    nodes: BTreeSet<NodeId>,
    channels: HashMap<ChannelId, Channel>,
    by_node: BTreeMap<NodeId, ChannelId>,
    queues: SendQueues,
    unknown_replies: SourceLimiter,
    next_sweep: Instant,
    stats: RelayStats,
}

/// Datagrams of `stride` bytes each, of which the last may be shorter, from one sender.
#[derive(Debug)]
pub struct TrainMut<'a> {
    /// What they came through.
    pub way: Way,
    /// All of them.
    pub bytes: &'a mut [u8],
    /// Length of each but the last.
    pub stride: usize,
}

/// A part of a train that is to be sent on; its headers are rewritten already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// The receiver's channel.
    pub channel: ChannelId,
    /// What the receiver is reached through.
    pub to: Way,
    /// Which bytes of the train.
    pub range: Range<usize>,
}

/// A frame of the relay's own, to be sent back to the train's sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    bytes: [u8; BOUND_LEN],
    len: usize,
}

/// What [`RelayCore::handle_train`] wants to be sent. Reused from train to train.
#[derive(Debug, Default)]
pub struct Outbound {
    /// To other nodes.
    pub forwards: Vec<Forward>,
    /// Back to the sender.
    pub replies: Vec<Reply>,
}

/// What was decided for a header; it holds for the frames behind it that have the same header.
#[derive(Debug, Clone, Copy)]
struct Route {
    sender: ChannelId,
    receiver: ChannelId,
    to: Way,
    header: [u8; HEADER_LEN],
}

impl Default for Limits {
    /// 1 Gbit/s with bursts of 4 MiB: as much as one core forwards, so that a lone sender is not held back.
    fn default() -> Self {
        Self { client_rate: Rate { per_second: 125_000_000, burst: 4 << 20 } }
    }
}

impl RelayCore {
    /// Makes a relay without nodes and channels.
    #[must_use]
    pub fn new(now: Instant, limits: Limits) -> Self {
        Self {
            limits,
            nodes: BTreeSet::new(),
            channels: HashMap::new(),
            by_node: BTreeMap::new(),
            queues: SendQueues::default(),
            unknown_replies: SourceLimiter::new(now, UNKNOWN_REPLY_RATE),
            next_sweep: now + SWEEP_INTERVAL,
            stats: RelayStats::default(),
        }
    }

    /// Sets which nodes there are; the channels of others are closed.
    pub fn set_nodes(&mut self, nodes: BTreeSet<NodeId>) {
        self.nodes = nodes;
        let gone: Vec<NodeId> = self.by_node.keys().filter(|id| !self.nodes.contains(id)).copied().collect();
        for node in gone {
            self.close(node);
        }
    }

    /// Adds a node.
    pub fn add_node(&mut self, node: NodeId) {
        self.nodes.insert(node);
    }

    /// Removes a node and closes its channel.
    pub fn remove_node(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        self.close(node);
    }

    /// Opens a channel for a node that proved its node key; its older channel is closed. Id and key are
    /// fresh and random.
    pub fn open(&mut self, now: Instant, node: NodeId, id: ChannelId, key: [u8; CHANNEL_KEY_LEN]) {
        self.close(node);
        self.by_node.insert(node, id);
        self.channels.insert(id, Channel::new(now, node, key));
        self.stats.opened += 1;
    }

    /// Closes a node's channel, if it has one.
    pub fn close(&mut self, node: NodeId) {
        if let Some(id) = self.by_node.remove(&node) {
            self.channels.remove(&id);
            let lost = self.queues.remove(id);
            self.stats.count_drop(DropReason::PeerAbsent, lost);
        }
    }

    /// Forgets a byte stream that has ended: who was reached through it is not, until another Bind.
    pub fn handle_stream_ended(&mut self, stream: StreamId) {
        for channel in self.channels.values_mut() {
            channel.handle_stream_ended(stream);
        }
    }

    /// Counts packets that a byte stream's queue had no room for.
    pub fn handle_stream_full(&mut self, packets: u64) {
        self.stats.count_drop(DropReason::QueueFull, packets);
    }

    /// Decides what becomes of each frame of a train, and rewrites the headers of those to be sent on.
    pub fn handle_train(&mut self, now: Instant, train: TrainMut<'_>, out: &mut Outbound) {
        out.forwards.clear();
        out.replies.clear();
        let mut known: Option<([u8; HEADER_LEN], Route)> = None;
        let mut end = 0;
        for frame in train.bytes.chunks_mut(train.stride.max(1)) {
            let range = end..end + frame.len();
            end = range.end;
            let route = match known {
                Some((header, route)) if frame.starts_with(&header) => Ok(Some(route)),
                _ => self.handle_frame(now, train.way, frame, out),
            };
            let charged = route.and_then(|route| self.charge(now, route, frame.len()));
            match charged {
                Ok(Some(route)) => {
                    known = frame.first_chunk().map(|header| (*header, route));
                    frame[..HEADER_LEN].copy_from_slice(&route.header);
                    out.push(route, range);
                }
                Ok(None) => known = None,
                Err(reason) => self.stats.count_drop(reason, 1),
            }
        }
    }

    /// Queues a train that the socket did not take; what waits longest for the receiver makes room for it.
    pub fn handle_blocked(&mut self, channel: ChannelId, train: &[u8], stride: usize) {
        if self.channels.contains_key(&channel) {
            let dropped = self.queues.push(channel, QueuedTrain { bytes: train.to_vec(), stride });
            self.stats.count_drop(DropReason::QueueFull, dropped);
        }
    }

    /// Counts packets that the system refused to send.
    pub fn handle_send_failed(&mut self, packets: u64) {
        self.stats.count_drop(DropReason::SendFailed, packets);
    }

    /// Says whether anything waits for the socket.
    #[must_use]
    pub fn has_queued(&self) -> bool {
        !self.queues.is_empty()
    }

    /// Returns the train that is to be sent next: where to, its bytes and its stride.
    ///
    /// It stays until [`Self::handle_transmitted`]. A receiver that is not bound any more loses what waited
    /// for it.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(Way, &[u8], usize)> {
        let to = loop {
            let (receiver, _) = self.queues.front()?;
            match self.channels.get(&receiver).and_then(|channel| channel.bound_to(now)) {
                Some(to) => break to,
                None => {
                    let lost = self.queues.remove(receiver);
                    self.stats.count_drop(DropReason::PeerAbsent, lost);
                }
            }
        };
        self.queues.front().map(|(_, train)| (to, &train.bytes[..], train.stride))
    }

    /// Removes the train that [`Self::poll_transmit`] returned; the next receiver has its turn.
    pub fn handle_transmitted(&mut self) {
        self.queues.pop();
    }

    /// Closes channels that are too old.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + SWEEP_INTERVAL;
        let is_expired = |id| self.channels.get(id).is_none_or(|channel| channel.is_expired(now));
        let expired: Vec<NodeId> =
            self.by_node.iter().filter(|(_, id)| is_expired(id)).map(|(node, _)| *node).collect();
        for node in expired {
            self.close(node);
        }
    }

    /// Returns when [`Self::handle_timeout`] has something to do; `None` while there is no channel.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        (!self.by_node.is_empty()).then_some(self.next_sweep)
    }

    /// Returns the counters.
    #[must_use]
    pub fn stats(&self) -> RelayStats {
        RelayStats {
            channels: self.channels.len() as u64,
            queued_bytes: self.queues.bytes() as u64,
            ..self.stats
        }
    }

    /// Handles one frame whose header is new in its train; returns the way of a Data frame.
    fn handle_frame(
        &mut self,
        now: Instant,
        way: Way,
        frame: &[u8],
        out: &mut Outbound,
    ) -> Result<Option<Route>, DropReason> {
        let (channel, decided) = match Frame::decode(frame).map_err(|_| DropReason::Malformed)? {
            Frame::Bind { channel, counter, mac } => {
                let bound = self.handle_bind(now, way, Bind { channel, counter, mac });
                (channel, bound.map(|reply| out.replies.push(reply)).map(|()| None))
            }
            Frame::Data { peer, channel, payload: _ } => {
                (channel, self.route(now, way, channel, peer).map(Some))
            }
            Frame::Bound { .. } | Frame::UnknownChannel { .. } => return Err(DropReason::Malformed),
        };
        if matches!(decided, Err(DropReason::UnknownChannel))
            && self.unknown_replies.try_take(now, way.remote().ip()).is_ok()
        {
            out.replies.push(Reply::new(&Frame::UnknownChannel { channel }));
        }
        decided
    }

    fn handle_bind(&mut self, now: Instant, way: Way, bind: Bind) -> Result<Reply, DropReason> {
        let channel = self.channels.get_mut(&bind.channel).ok_or(DropReason::UnknownChannel)?;
        channel.handle_bind(now, way, bind)?;
        self.stats.binds += 1;
        let Bind { channel, counter, .. } = bind;
        Ok(Reply::new(&Frame::Bound { channel, counter, observed: way.remote() }))
    }

    fn route(&self, now: Instant, way: Way, sender_id: ChannelId, peer: NodeId) -> Result<Route, DropReason> {
        let sender = self.channels.get(&sender_id).ok_or(DropReason::UnknownChannel)?;
        sender.check_sender(now, way)?;
        if sender.node == peer || !self.nodes.contains(&sender.node) || !self.nodes.contains(&peer) {
            return Err(DropReason::NotPeer);
        }
        let receiver_id = *self.by_node.get(&peer).ok_or(DropReason::PeerAbsent)?;
        let receiver = self.channels.get(&receiver_id).ok_or(DropReason::PeerAbsent)?;
        let to = receiver.bound_to(now).ok_or(DropReason::PeerAbsent)?;
        let header = data_header(sender.node, receiver_id);
        Ok(Route { sender: sender_id, receiver: receiver_id, to, header })
    }

    /// Charges a frame to its sender and counts it.
    fn charge(
        &mut self,
        now: Instant,
        route: Option<Route>,
        len: usize,
    ) -> Result<Option<Route>, DropReason> {
        let Some(route) = route else { return Ok(None) };
        let sender = self.channels.get_mut(&route.sender).ok_or(DropReason::UnknownChannel)?;
        sender
            .bucket
            .try_take(now, self.limits.client_rate, len as u64 + PACKET_COST)
            .map_err(|_| DropReason::RateLimited)?;
        self.stats.forwarded_packets += 1;
        self.stats.forwarded_bytes += (len - HEADER_LEN) as u64;
        Ok(Some(route))
    }
}

impl Reply {
    fn new(frame: &Frame<'_>) -> Self {
        let encoded = frame.encode();
        let mut bytes = [0; BOUND_LEN];
        bytes[..encoded.len()].copy_from_slice(&encoded);
        Self { bytes, len: encoded.len() }
    }

    /// Returns the frame.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Outbound {
    /// Adds a frame; one that follows another on its way to the same receiver travels in the same train.
    fn push(&mut self, route: Route, range: Range<usize>) {
        match self.forwards.last_mut() {
            Some(last) if last.channel == route.receiver && last.range.end == range.start => {
                last.range.end = range.end;
            }
            _ => self.forwards.push(Forward { channel: route.receiver, to: route.to, range }),
        }
    }
}
