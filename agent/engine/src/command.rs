//! What the driver asks of the engine.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use mesh_proto::{
    candidate::Candidate,
    netmap::{NodeId, RelayId},
};

use crate::{
    config::{Nat64, PeerConfig, RelayConfig},
    snapshot::NatLifetime,
};

/// A command. The `Set*` ones carry the whole desired state and are idempotent.
#[derive(Debug, Clone)]
pub enum Command {
    /// These are the peers, all of them. Peers that stay keep their sessions and paths.
    SetPeers(Vec<PeerConfig>),
    /// These are this node's own prefixes, all of them: its addresses and what lies behind it. Packets from peers that go
    /// elsewhere are dropped.
    SetAllowedIps(Vec<IpNet>),
    /// These are the relays at which a channel is open, all of them.
    SetRelays(Vec<RelayConfig>),
    /// These are the addresses of this node's own interfaces (with the port of the UDP socket), and what was mapped or
    /// guessed for it. Reflexive candidates are found by the engine.
    SetCandidates(Vec<Candidate>),
    /// These answer STUN, all of them: where this node's reflexive addresses are learned.
    SetObservers(Vec<SocketAddr>),
    /// This is how IPv4 is reached where there is none.
    SetNat64(Nat64),
    /// Whether this node relays between its peers. At first it does not.
    SetLending {
        /// Its operator allows it.
        allowed: bool,
    },
    /// News of a peer from the coordinator.
    PeerState {
        /// The peer.
        id: NodeId,
        /// Whether the coordinator sees it.
        online: bool,
        /// Where it may be reached.
        candidates: Vec<Candidate>,
        /// The relays at which it has a channel.
        relays: Vec<RelayId>,
        /// Of them, the one that is nearest to it.
        home: Option<RelayId>,
        /// Where the coordinator sees it: the only address of its at which ports that nobody has named are probed.
        observed: Option<IpAddr>,
    },
    /// A peer asked, through the coordinator, to be probed now.
    CallMeMaybe {
        /// The peer.
        from: NodeId,
        /// Its candidates.
        candidates: Vec<Candidate>,
    },
    /// Pings a peer on its primary path (and has it look for a better one): answered by [`crate::event::Event::Pong`].
    Ping {
        /// The peer.
        peer: NodeId,
        /// Repeated by the event.
        token: u64,
    },
    /// Makes sessions with these peers at once, and looks for paths to them: this node had sessions with them before it was
    /// started again, and they send on those.
    Resume(Vec<NodeId>),
    /// This process ends, and another one is about to go on for this node: peers with whom there is traffic are told to keep
    /// what is for it until then. What they have sent before is still on its way.
    Pause {
        /// For how long this one stays to open that. It takes no part in handshakes any more.
        stays: Duration,
    },
    /// This is what was found out, the last time, of how long mappings live in the network in which this node is now:
    /// nothing, if it never was there. To be told after [`Command::NetworkChanged`].
    SetNatLifetime(NatLifetime),
    /// The host's network changed: every path is suspect, every mapping is old.
    NetworkChanged,
    /// The host has slept, or this process has stood still. As after a change of the network nothing is to be trusted;
    /// besides, sessions are older than they seem.
    Woke {
        /// How much time has gone by that the engine's clock has not seen.
        unseen: Duration,
    },
}
