//! Why the registry refused or failed, and what of it a node is told.

use ipnet::Ipv4Net;
use mesh_proto::{
    control::{Refusal, RefusalCode},
    name::NodeName,
};

use crate::store::StoreError;

/// How long a node waits after a failure that may pass, in milliseconds.
const RETRY_AFTER_MS: u64 = 2_000;

/// Why the registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The join token is wrong, expired, used up or unknown: never said which.
    #[error("the join token is not valid: it may be wrong, expired, used up, or of another mesh")]
    Token,
    /// The operator removed this node, and no token of the mesh's own admits it again.
    #[error("this node was removed from the mesh: remove its state directory, or join with a new join token")]
    Removed,
    /// The name is another node's.
    #[error("the name {0} is taken by another node")]
    NameTaken(NodeName),
    /// The WireGuard key is another node's.
    #[error("the WireGuard key belongs to another node: every node needs a state directory of its own")]
    PublicKeyTaken,
    /// The node key is not registered.
    #[error("this node is not registered here, or was removed: join again")]
    NotRegistered,
    /// A node wants to be a relay and did not join as one.
    #[error("this node did not join with the tag \"relay\"")]
    NotRelay,
    /// There is no node of this name.
    #[error("there is no node named {0}")]
    UnknownNode(NodeName),
    /// The operator has said something of more prefixes of a node than a node may offer.
    #[error(
        "too many routes of {0} are known: revoked ones that it does not offer can be forgotten by removing it"
    )]
    TooManyRoutes(NodeName),
    /// A join token of this kind makes no sense.
    #[error("{0}")]
    TokenSpec(&'static str),
    /// Every address is in use.
    #[error("every address of {0} is in use")]
    AddressesExhausted(Ipv4Net),
    /// The settings name another range than the mesh has.
    #[error("the mesh has the IPv4 range {stored} since its first start; the settings say {configured}")]
    Ipv4RangeChanged {
        /// What the nodes have addresses of.
        stored: Ipv4Net,
        /// What the settings say.
        configured: Ipv4Net,
    },
    /// The settings name a range without addresses for nodes.
    #[error("the IPv4 range {0} is too small: a prefix of 8 to 30 bits is needed")]
    Ipv4RangeSize(Ipv4Net),
    /// Others changed the same things again and again meanwhile.
    #[error("too many changes at once: try again")]
    Contended,
    /// The registry is being closed.
    #[error("the registry is closed")]
    Stopped,
    /// A stored value is not what this program writes.
    #[error("the stored value of {key} cannot be understood: {reason}")]
    Corrupt {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// There is no randomness for secrets.
    #[error("the system gives no randomness: {0}")]
    Randomness(getrandom::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RegistryError {
    /// Returns what a node is told of it; `None` for what it cannot have caused and must not know.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        let (code, retry_after_ms) = match self {
            Self::Token => (RefusalCode::Token, None),
            Self::Removed => (RefusalCode::ServiceAccount, None),
            Self::NameTaken(_) => (RefusalCode::NameTaken, None),
            Self::PublicKeyTaken | Self::NotRelay => (RefusalCode::Protocol, None),
            Self::NotRegistered => (RefusalCode::NotRegistered, None),
            Self::AddressesExhausted(_) | Self::Contended => (RefusalCode::Busy, Some(RETRY_AFTER_MS)),
            Self::Stopped => (RefusalCode::ShuttingDown, Some(RETRY_AFTER_MS)),
            Self::UnknownNode(_)
            | Self::TooManyRoutes(_)
            | Self::TokenSpec(_)
            | Self::Ipv4RangeChanged { .. }
            | Self::Ipv4RangeSize(_)
            | Self::Corrupt { .. }
            | Self::Randomness(_)
            | Self::Store(_) => return None,
        };
        Some(Refusal { code, message: self.to_string(), retry_after_ms })
    }
}

pub(super) fn corrupt(key: &str, reason: &str) -> RegistryError {
    RegistryError::Corrupt { key: key.to_owned(), reason: reason.to_owned() }
}
