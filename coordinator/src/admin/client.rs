//! The client side, in the commands.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::{Method, body::Bytes};
use mesh_proto::name::NodeName;
use mesh_unixapi::{Failure, Outgoing};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    ApiError, HOST, NodeEntry, RenameRequest, RouteEntry, RouteRequest, TokenReply, TokenRequest, socket_path,
};

/// How long the coordinator may take for an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Speaks to the coordinator of a state directory.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Why there was no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error(
        "cannot reach the coordinator at {}: is `mesh-coordinator serve` running with this --state-dir? ({cause})",
        socket.display()
    )]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// This user may not use the socket.
    #[error("no permission to use {}: run this as root or as the coordinator's user", socket.display())]
    Permission {
        /// The socket.
        socket: PathBuf,
    },
    /// Something answered, but not as a coordinator does.
    #[error("the coordinator's answer makes no sense: {0}")]
    Malformed(String),
    /// The coordinator did not answer in time.
    #[error("the coordinator does not answer")]
    Timeout,
    /// The coordinator refused, or failed.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl Client {
    /// Makes a client of the coordinator that runs with a state directory.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { socket: socket_path(state_dir) }
    }

    /// Asks for all nodes, by ascending id.
    ///
    /// # Errors
    /// When there is no good answer.
    pub async fn nodes(&self) -> Result<Vec<NodeEntry>, ClientError> {
        parse(&self.request(Method::GET, "/v1/nodes", Bytes::new()).await?)
    }

    /// Asks for a join token.
    ///
    /// # Errors
    /// When there is no good answer.
    pub async fn create_token(&self, request: &TokenRequest) -> Result<TokenReply, ClientError> {
        parse(&self.request(Method::POST, "/v1/tokens", json(request)?).await?)
    }

    /// Asks for a backup.
    ///
    /// # Errors
    /// When there is no good answer.
    pub async fn backup(&self) -> Result<Bytes, ClientError> {
        self.request(Method::GET, "/v1/backup", Bytes::new()).await
    }

    /// Removes a node.
    ///
    /// # Errors
    /// When there is no good answer.
    pub async fn remove_node(&self, name: &NodeName) -> Result<(), ClientError> {
        self.request(Method::DELETE, &format!("/v1/nodes/{name}"), Bytes::new()).await.map(drop)
    }

    /// Renames a node.
    ///
    /// # Errors
    /// When there is no good answer.
    pub async fn rename_node(&self, name: &NodeName, to: NodeName) -> Result<(), ClientError> {
        let body = json(&RenameRequest { name: to })?;
        self.request(Method::PATCH, &format!("/v1/nodes/{name}"), body).await.map(drop)
    }

    /// Asks for all routes, by node and prefix.
    ///
    /// # Errors
    /// When there is no good answer.
    pub async fn routes(&self) -> Result<Vec<RouteEntry>, ClientError> {
        parse(&self.request(Method::GET, "/v1/routes", Bytes::new()).await?)
    }

    /// Says what is wanted with a route of a node, and returns what came of it.
    ///
    /// # Errors
    /// When there is no good answer.
    pub async fn judge_route(
        &self,
        node: &NodeName,
        request: RouteRequest,
    ) -> Result<RouteEntry, ClientError> {
        parse(&self.request(Method::POST, &format!("/v1/routes/{node}"), json(&request)?).await?)
    }

    async fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let outgoing = Outgoing { host: HOST, method, path, body, patience: PATIENCE };
        mesh_unixapi::exchange(&self.socket, outgoing).await.map_err(|failure| match failure {
            Failure::Unreachable(cause) => self.unreachable(cause),
            Failure::Malformed(what) => ClientError::Malformed(what),
            Failure::Timeout => ClientError::Timeout,
            Failure::Refused(error) => ClientError::Api(error),
        })
    }

    fn unreachable(&self, cause: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match cause.kind() {
            ErrorKind::PermissionDenied => ClientError::Permission { socket },
            _ => ClientError::Unreachable { socket, cause },
        }
    }
}

fn json(body: &impl Serialize) -> Result<Bytes, ClientError> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| ClientError::Malformed(error.to_string()))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Malformed(error.to_string()))
}
