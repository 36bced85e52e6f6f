//! Candidates: addresses at which a node may be reached on the underlay.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Most candidates of one node that are sent or accepted; what goes beyond is cut.
pub const MAX_CANDIDATES: usize = 32;

/// How a candidate address was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CandidateKind {
    /// An address of one of the node's own interfaces.
    Host,
    /// A mapping that a NAT was asked for (PCP, NAT-PMP, UPnP-IGD) or that a person forwarded.
    PortMapped,
    /// What an observer (STUN, a relay, a peer's Pong) saw datagrams come from.
    Reflexive,
    /// A guess that probing has to confirm, such as the coordinator's public address with the node's own port.
    Guess,
    /// A kind that this version does not know: may be probed, ranks last.
    #[serde(other)]
    Unknown,
}

/// One address at which a node may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Candidate {
    /// The socket address.
    pub address: SocketAddr,
    /// How it was learned.
    pub kind: CandidateKind,
}
