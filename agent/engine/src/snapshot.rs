//! What the engine looks like from outside at one moment.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_proto::{
    candidate::Candidate,
    netmap::{NodeId, RelayId},
    status::{FamilyState, Mapping, PathReason},
};

use crate::{drops::DropCounters, event::PathAddress};

/// The whole engine.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The peers, by id.
    pub peers: Vec<PeerSnapshot>,
    /// The relays, by id.
    pub relays: Vec<RelaySnapshot>,
    /// Of them, the nearest one that is up: where peers begin.
    pub home: Option<RelayId>,
    /// This node's candidates.
    pub candidates: Vec<Candidate>,
    /// The NAT's mapping behaviour.
    pub mapping: Mapping,
    /// Whether IPv4 is answered.
    pub ipv4: FamilyState,
    /// Whether IPv6 is answered.
    pub ipv6: FamilyState,
    /// Whether UDP does not get out: observers were asked over it in vain, and nothing else answers over it.
    pub udp_blocked: bool,
    /// Datagrams and packets dropped before a peer was known.
    pub drops: DropCounters,
    /// How many engines it is.
    pub engines: u32,
    /// What came to a shard that it did not belong to.
    pub handed_over: HandedOver,
    /// How long mappings live in this network.
    pub nat_lifetime: NatLifetime,
    /// How often the mapping towards the home relay is refreshed, if it is reached over UDP.
    pub keepalive: Option<Duration>,
}

/// How long NATs and filters remember a mapping that is silent, as far as that was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NatLifetime {
    /// The longest silence that a mapping has outlived.
    pub outlived: Option<Duration>,
    /// A longer one, which it has not.
    pub exceeded: Option<Duration>,
}

/// What was handed over from one shard of a node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HandedOver {
    /// Reads of the TUN.
    pub frames: u64,
    /// Datagrams.
    pub datagrams: u64,
}

impl Snapshot {
    /// Adds what another shard of the same node looks like to what the home shard does.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.peers.extend(other.peers);
        self.peers.sort_by_key(|peer| peer.id);
        // Another shard says only whether peers of its answer.
        self.udp_blocked &= other.udp_blocked;
        for (reason, count) in other.drops.iter() {
            self.drops.count_some(reason, count);
        }
        self.engines += other.engines;
        self.handed_over.frames += other.handed_over.frames;
        self.handed_over.datagrams += other.handed_over.datagrams;
        self
    }
}

/// One peer.
#[derive(Debug, Clone)]
pub struct PeerSnapshot {
    /// Its number.
    pub id: NodeId,
    /// Whether the coordinator sees it, or a path of it has answered lately.
    pub online: bool,
    /// The primary path.
    pub path: Option<PathSnapshot>,
    /// Why it is on this path, or on none.
    pub code: PathReason,
    /// The same for people: a clause.
    pub reason: String,
    /// How its NAT maps, if it has said so.
    pub mapping: Option<Mapping>,
    /// When the last handshake was completed.
    pub last_handshake: Option<Instant>,
    /// Bytes of inner packets sent.
    pub tx_bytes: u64,
    /// Bytes of inner packets received.
    pub rx_bytes: u64,
    /// Packets dropped.
    pub drops: DropCounters,
    /// Every path that is known, the primary one first.
    pub paths: Vec<PathSnapshot>,
    /// The latest decisions, oldest first.
    pub decisions: Vec<Decision>,
}

/// One path to a peer.
#[derive(Debug, Clone)]
pub struct PathSnapshot {
    /// Where it leads.
    pub address: PathAddress,
    /// Since when it is the primary path, if it is.
    pub since: Option<Instant>,
    /// Smoothed round-trip time.
    pub rtt: Option<Duration>,
    /// Share of the last probes that stayed unanswered, 0 to 1; `None` if nothing was measured lately.
    pub loss: Option<f64>,
    /// Largest inner packet that it carries, in bytes.
    pub mtu: u16,
    /// When it last answered.
    pub last_answer: Option<Instant>,
}

/// Why a primary path was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// When.
    pub at: Instant,
    /// The path that was chosen, or none.
    pub path: Option<PathAddress>,
    /// Why: a clause for people.
    pub reason: String,
}

/// One relay.
#[derive(Debug, Clone)]
pub struct RelaySnapshot {
    /// Its number.
    pub id: RelayId,
    /// Where it answers, if it does over UDP.
    pub address: Option<SocketAddr>,
    /// Whether its channel is bound.
    pub up: bool,
    /// Smoothed round-trip time.
    pub rtt: Option<Duration>,
}
