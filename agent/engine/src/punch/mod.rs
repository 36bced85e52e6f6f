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
//! So a node tries with one peer at a time, also where several engines share its peers ([`crate::shard`]), at a bounded rate, up to a budget, and after a failure not again for a
//! minute, then two, up to an hour ([`PunchLimits`]); and ports are probed only at the address at which the coordinator
//! sees the peer, whatever the peer says.

use std::{collections::BTreeSet, time::Duration};

pub(crate) mod attempt;
pub(crate) mod plan;
pub(crate) mod predict;

use mesh_proto::netmap::NodeId;

use crate::{batch::SocketId, shard::Shard};

/// Bounds of what is done to get through hard pairs of NATs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PunchLimits {
    /// Probes per second; 0 does without.
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

/// What the attempts of all peers share.
#[derive(Debug, Default)]
pub(crate) struct Punching {
    pub(crate) limits: PunchLimits,
    /// The peer with which an attempt is under way.
    pub(crate) owner: Option<NodeId>,
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
