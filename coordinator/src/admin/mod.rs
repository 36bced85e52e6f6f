//! The administrators' API: HTTP/1 with JSON over a unix socket in the state directory, which the commands
//! `mesh-coordinator token`, `node`, `route` and `backup` speak to the running coordinator.
//!
//! | request | body | answer | who |
//! |---|---|---|---|
//! | `GET /v1/nodes` | | list of [`NodeEntry`] | anyone on this host |
//! | `POST /v1/tokens` | [`TokenRequest`] | [`TokenReply`] | operators |
//! | `DELETE /v1/nodes/NAME` | | | operators |
//! | `PATCH /v1/nodes/NAME` | [`RenameRequest`] | | operators |
//! | `GET /v1/routes` | | list of [`RouteEntry`] | anyone on this host |
//! | `POST /v1/routes/NAME` | [`RouteRequest`] | [`RouteEntry`] | operators |
//! | `GET /v1/backup` | | a [`Backup`](crate::backup::Backup), as text | operators |
//!
//! Whoever may enter the state directory may connect. The kernel tells who called (`SO_PEERCRED`), and
//! [`Caller`](mesh_unixapi::Caller) says what that is allowed. A request with `Origin`, `Referer` or a `Host` other than [`HOST`]
//! comes from a web page that was led here, and is refused. Errors are an [`ApiError`] with a fitting status
//! code.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use mesh_proto::{
    DEFAULT_COORDINATOR_PORT,
    key::KeyPin,
    name::NodeName,
    netmap::{Node, NodeId},
    token::JoinToken,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::identity::Identity;
pub use crate::registry::RouteEntry;

mod client;
mod server;
#[cfg(test)]
mod tests;

pub use self::{
    client::{Client, ClientError},
    server::AdminServer,
};

/// The `Host` of every request: a fixed name that no web page has.
pub const HOST: &str = "mesh-coordinator.sock";

/// Name of the socket in the state directory.
const SOCKET_NAME: &str = "admin.sock";

/// What the API tells beside what the registry knows.
#[derive(Debug, Clone)]
pub struct AdminInfo {
    /// The coordinator's key.
    pub identity: Identity,
    /// Names and addresses of the coordinator, `host:port`, in the order in which agents try them.
    pub coordinators: Vec<String>,
    /// Who is connected.
    pub online: watch::Receiver<BTreeSet<NodeId>>,
}

/// A node, for people and scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// As it is registered.
    #[serde(flatten)]
    pub node: Node,
    /// Whether it is connected to the coordinator.
    pub online: bool,
}

/// Asks for a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRequest {
    /// For how many seconds it is valid.
    pub ttl_s: u64,
    /// How many nodes may join with it.
    pub uses: u32,
    /// What these nodes are tagged with.
    pub tags: Vec<String>,
}

/// A join token that was made. `Debug` does not show it.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenReply {
    /// The command that joins a node, to be run there as it stands.
    pub join: String,
}

/// Asks for another name of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenameRequest {
    /// The new name.
    pub name: NodeName,
}

/// Says what the operator wants with a route of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRequest {
    /// The prefix.
    pub prefix: IpNet,
    /// What is wanted.
    pub word: RouteWord,
}

/// What an operator may want with a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteWord {
    /// The mesh may send it to the node.
    Approve,
    /// It may not.
    Revoke,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct ApiError {
    /// For people.
    pub error: String,
}

/// Returns where the socket of a state directory is.
#[must_use]
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join(SOCKET_NAME)
}

/// Makes the command that joins a node with a token.
#[must_use]
pub fn join_command(coordinator: &str, pin: &KeyPin, token: &JoinToken) -> String {
    let default_port = format!(":{DEFAULT_COORDINATOR_PORT}");
    let host = coordinator.strip_suffix(&default_port).unwrap_or(coordinator);
    format!("mesh-agent join {host} --token {} --ca-cert-hash {pin}", *token.reveal())
}

impl std::fmt::Debug for TokenReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenReply").finish_non_exhaustive()
    }
}
