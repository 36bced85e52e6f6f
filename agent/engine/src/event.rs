//! What the engine tells the driver, and why it wants to be woken.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use mesh_proto::{
    candidate::Candidate,
    netmap::{NodeId, RelayId},
};

use crate::{batch::SocketId, snapshot::NatLifetime};

/// Something that the driver should know or do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// This node's candidates are now these: tell the coordinator.
    CandidatesChanged(Vec<Candidate>),
    /// Forward this to a peer through the coordinator.
    CallMeMaybe {
        /// The peer.
        to: NodeId,
        /// This node's candidates.
        candidates: Vec<Candidate>,
    },
    /// The primary path of a peer changed.
    PathChanged {
        /// The peer.
        peer: NodeId,
        /// The path that it has now.
        path: Option<PathAddress>,
    },
    /// A relay answers on its channel.
    RelayUp(RelayId),
    /// A relay does not know its channel (any more): open a new one.
    RelayLost(RelayId),
    /// This relay is the nearest one now: tell the coordinator.
    HomeChanged(Option<RelayId>),
    /// This is known now of how long mappings live in this network: to be remembered.
    NatLifetime(NatLifetime),
    /// A prefix of a peer was not taken over.
    PrefixRefused {
        /// The peer.
        peer: NodeId,
        /// The prefix.
        prefix: IpNet,
        /// The peer that has it, or has a part of it.
        owner: NodeId,
    },
    /// Answers [`crate::command::Command::Ping`].
    Pong {
        /// The command's.
        token: u64,
        /// The peer.
        peer: NodeId,
        /// The path on which it was answered.
        path: PathAddress,
        /// Round-trip time.
        rtt: Duration,
    },
}

/// Where a path leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathAddress {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Straight to an address as well, from another socket than the agent's main one: a hole was punched for it.
    Punched {
        /// The socket.
        socket: SocketId,
        /// The peer's address.
        remote: SocketAddr,
    },
    /// Through this relay.
    Relay(RelayId),
}

impl PathAddress {
    /// Returns the peer's address on a direct path.
    #[must_use]
    pub fn remote(self) -> Option<SocketAddr> {
        match self {
            Self::Direct(remote) | Self::Punched { remote, .. } => Some(remote),
            Self::Relay(_) => None,
        }
    }

    /// Whether it leads straight to the peer.
    #[must_use]
    pub fn is_direct(self) -> bool {
        self.remote().is_some()
    }
}

/// When the engine wants `handle_timeout` to be called, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wakeup {
    /// When.
    pub at: Instant,
    /// Why.
    pub reason: WakeupReason,
}

/// Why the engine wants to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WakeupReason {
    /// A session has a timer: handshake retry, rekey, keepalive.
    Session(NodeId),
    /// A peer's paths are to be probed or judged.
    Paths(NodeId),
    /// A relay channel is to be bound again.
    Relay(RelayId),
    /// The observers are to be asked again.
    NetCheck,
    /// Nodes that relay for others are to be looked for, asked or left.
    Lending,
}
