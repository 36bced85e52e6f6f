//! Getting through pairs of NATs that plain probing does not get through: both filter by port, and at least one maps
//! every destination to another port.
//!
//! ```text
//!   idle --- relayed with traffic for a second ---> observing --- own ports seen ---> offered
//!    ^                                                  ^  |                            |
//!    |                                 peer's offer ----+  +---- peer's offer ---+      | peer's answer
//!    |                                                                           v      v
//!    +--- a direct path answers, or time or budget is used up: back-off ------- running
//! ```
//!
//! Both sides say what their NATs do ([`mesh_proto::punch`]) and each works out its part ([`plan`]):
//!
//! - *Birthday*: the side whose ports vary opens many sockets and sends from each to the other side's mapped address;
//!   the other side, whose port stays, probes random ports. With 256 of 64,512 ports open, each probe hits with a
//!   chance of 1/252: 1,200 probes find one in 99 % of cases.
//! - *Prediction*: where the ports of new mappings keep a constant distance ([`predict`]), the other side knows them. If
//!   both are predicted, both open sockets and aim all of them at one port in the middle of the other's: however far
//!   each allocator has moved on, one of the sockets is at the port that the other side aims at.
//! - Two sides whose ports vary at random are left to the relay: it would take 54,000 probes each for an even chance.
//!
//! What is sent are Pings. Whatever answers is a path like any other, through the socket that it came to; the first
//! socket that is hit wins, and the others are closed.
//!
//! # Limits
//! Each probe costs the routers on its way an entry in a table, and goes to a port that nobody has asked to be sent to.
//! So a node sends them at a bounded rate, whatever the number of peers: attempts that send at the same time share it, and
//! one that has nothing more to send leaves its share to the others. No attempt waits for another one's failure that way.
//! Shares change with every attempt that begins or ends; what
//! holds at every moment is an allowance of the node's that each probe is taken from. Where several engines share a node's
//! peers, one engine at a time does so ([`crate::shard`]), and its allowance begins empty. Each attempt has a budget, and
//! after a failure there is none with that peer for a minute, then two, up to an hour ([`PunchLimits`]); and ports are
//! probed only at the address at which the coordinator sees the peer, whatever the peer says.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

pub(crate) mod attempt;
pub(crate) mod plan;
pub(crate) mod predict;

use mesh_proto::netmap::NodeId;

use crate::{batch::SocketId, shard::Shard};

/// Bounds of what is done to get through hard pairs of NATs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PunchLimits {
    /// Probes per second, to all peers together; 0 does without.
    pub rate: u16,
    /// Probes in one attempt.
    pub budget: u16,
    /// Sockets that are opened where this side's ports vary.
    pub sockets: u16,
    /// How long a pair with traffic stays relayed before it is attempted.
    pub wait: Duration,
    /// Pause after the first attempt that failed; it doubles with each further one.
    pub min_backoff: Duration,
    /// Longest pause between attempts.
    pub max_backoff: Duration,
}

impl Default for PunchLimits {
    fn default() -> Self {
        Self {
            // Finds a port in 6 s in all but 1 of 100,000 cases, at 70 KB/s.
            rate: 500,
            // Cheap routers have 2,000 to 4,000 entries; more probes than this hardly ever help.
            budget: 4096,
            sockets: 256,
            // Plain probing takes a few round trips where it works at all.
            wait: Duration::from_secs(1),
            min_backoff: Duration::from_secs(60),
            max_backoff: Duration::from_secs(3600),
        }
    }
}

/// Peers with which attempts may be under way at once: with more, each one's share of the rate finds too little.
const MAX_ATTEMPTS: usize = 4;
/// Sockets beside the main one with which no further attempt begins: with those that it opens, the descriptors that every
/// process may have are enough.
const MAX_SOCKETS: usize = 512;

/// What the rate has allowed for longer than this, and was not sent, is not made up for: so much more than the rate a
/// node sends in a burst at most.
const MAX_SAVED: Duration = Duration::from_millis(60);

/// Whether an attempt sends probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sends {
    /// It does, and takes its share of the rate.
    Probes,
    /// It agrees on something, or waits for answers.
    Nothing,
}

/// What the attempts of all peers share.
#[derive(Debug, Default)]
pub(crate) struct Punching {
    pub(crate) limits: PunchLimits,
    /// The peers with which attempts are under way.
    attempts: BTreeMap<NodeId, Sends>,
    /// Probes that all of them together may send, and when that was worked out.
    allowance: Option<(f64, Instant)>,
    next_socket: u32,
    shards: u32,
    open: BTreeSet<SocketId>,
    changed: bool,
}

impl Punching {
    /// The shards of a node number their sockets by turns.
    pub(crate) fn new(limits: PunchLimits, shard: Shard) -> Self {
        Self { limits, next_socket: shard.index(), shards: shard.count(), ..Self::default() }
    }

    /// Whether an attempt with a peer may begin, or go on, beside those with others.
    pub(crate) fn has_room_for(&self, peer: NodeId) -> bool {
        let has_room = self.attempts.len() < MAX_ATTEMPTS && self.open.len() < MAX_SOCKETS;
        self.attempts.contains_key(&peer) || self.attempts.is_empty() || has_room
    }

    /// Begins an attempt with a peer. The first one finds nothing saved: another shard may have sent until now.
    pub(crate) fn begin(&mut self, peer: NodeId, now: Instant) {
        if self.attempts.is_empty() {
            self.allowance = Some((0.0, now));
        }
        self.attempts.insert(peer, Sends::Nothing);
    }

    /// Ends the attempt with a peer.
    pub(crate) fn end(&mut self, peer: NodeId) {
        self.attempts.remove(&peer);
    }

    /// Says whether the attempt with a peer sends probes.
    pub(crate) fn set_sends(&mut self, peer: NodeId, sends: Sends) {
        if let Some(attempt) = self.attempts.get_mut(&peer) {
            *attempt = sends;
        }
    }

    /// Returns how many probes in a second an attempt with a peer may send, if it is one of those that send.
    pub(crate) fn share(&self, peer: NodeId) -> u16 {
        let others =
            self.attempts.iter().filter(|(id, sends)| **id != peer && **sends == Sends::Probes).count();
        let senders = u16::try_from(others + 1).unwrap_or(u16::MAX);
        (self.limits.rate / senders).max(1)
    }

    /// Returns how many of so many probes may be sent now, and takes them from what the node may send.
    pub(crate) fn take_probes(&mut self, wanted: u32, now: Instant) -> u32 {
        let rate = f64::from(self.limits.rate);
        let (saved, since) = self.allowance.unwrap_or((0.0, now));
        let elapsed = now.saturating_duration_since(since);
        let saved = (saved + elapsed.as_secs_f64() * rate).min(MAX_SAVED.as_secs_f64() * rate);
        let taken = wanted.min(saved as u32);
        self.allowance = Some((saved - f64::from(taken), now.max(since)));
        taken
    }

    /// Whether any attempt is under way.
    pub(crate) fn is_busy(&self) -> bool {
        !self.attempts.is_empty()
    }

    /// Returns the peers with which attempts are under way.
    pub(crate) fn peers(&self) -> Vec<NodeId> {
        self.attempts.keys().copied().collect()
    }

    /// Opens another socket.
    pub(crate) fn open_socket(&mut self) -> SocketId {
        let socket = SocketId(self.next_socket);
        self.next_socket = self.next_socket.wrapping_add(self.shards);
        self.open.insert(socket);
        self.changed = true;
        socket
    }

    /// Whether any socket is open beside the main one.
    pub(crate) fn has_sockets(&self) -> bool {
        !self.open.is_empty()
    }

    /// Closes all sockets but these.
    pub(crate) fn retain_sockets(&mut self, used: &BTreeSet<SocketId>) {
        let before = self.open.len();
        self.open.retain(|socket| used.contains(socket));
        self.changed |= self.open.len() != before;
    }

    /// Returns the sockets that are to be open, all of them, if they are others than the last time.
    pub(crate) fn take_sockets(&mut self) -> Option<&BTreeSet<SocketId>> {
        std::mem::take(&mut self.changed).then_some(&self.open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_that_come_and_go_send_no_more_than_the_rate_and_one_burst() {
        let start = Instant::now();
        let mut punching = Punching::new(PunchLimits::default(), Shard::ONLY);
        let (rate, tick) = (u32::from(punching.limits.rate), Duration::from_millis(10));
        let mut sent = Vec::new();
        for step in 0..1000_u32 {
            let now = start + tick * step;
            // One begins every 70 ms and lasts 230 ms; sometimes there is none, or the engine is woken late.
            let number = step / 7;
            if step % 7 == 0 && number % 20 < 15 {
                punching.begin(NodeId(number), now);
                punching.set_sends(NodeId(number), Sends::Probes);
            }
            if step % 7 == 2 {
                punching.end(NodeId(number.saturating_sub(3)));
            }
            let wanted = if step % 150 < 12 { 0 } else { 20 };
            sent.push(punching.peers().iter().map(|_| punching.take_probes(wanted, now)).sum::<u32>());
        }
        let burst = 30;
        let most = sent.windows(100).map(|second| second.iter().sum::<u32>()).max().unwrap();
        assert!((rate..=rate + burst).contains(&most), "{most} in a second");
    }

    #[test]
    fn a_shard_begins_with_nothing_saved() {
        let start = Instant::now();
        let mut punching = Punching::new(PunchLimits::default(), Shard::ONLY);
        let later = start + Duration::from_secs(60);
        punching.begin(NodeId(1), later);
        assert_eq!(punching.take_probes(100, later), 0);
        assert_eq!(punching.take_probes(100, later + Duration::from_millis(40)), 20);
        assert_eq!(punching.take_probes(100, later + Duration::from_secs(9)), 30);
    }
}
