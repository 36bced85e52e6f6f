//! The client side, in `meshctl`.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::{Method, body::Bytes};
use mesh_proto::{netreport::NetReport, status::Status};
use mesh_unixapi::{Failure, Outgoing};
use serde::de::DeserializeOwned;

use super::{ApiError, Beside, HOST, PingReply, Report, Why};

/// How long an agent may take for an answer, beyond what was asked for.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for a check of the network; another one may be under way.
const NETCHECK_PATIENCE: Duration = Duration::from_secs(25);

/// Speaks to an agent.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Why there was no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("no agent answers at {}: is `mesh-agent run` running, with this --socket? ({source})", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something answered, but not as an agent does.
    #[error("the agent's answer makes no sense: {0}")]
    Malformed(String),
    /// The agent did not answer in time.
    #[error("the agent does not answer")]
    Timeout,
    /// The agent refused, or failed.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl Client {
    /// Makes a client of the agent that listens on a socket.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks for the status document.
    ///
    /// # Errors
    /// When there is no good answer.
    pub async fn status(&self) -> Result<Status, ClientError> {
        parse(&self.request(Method::GET, "/v1/status", PATIENCE).await?)
    }

    /// Asks whether the agent lives.
    ///
    /// # Errors
    /// When there is no good answer.
    pub async fn live(&self) -> Result<(), ClientError> {
        self.request(Method::GET, "/v1/live", PATIENCE).await.map(drop)
    }

    /// Asks why a peer is on the path it is on.
    ///
    /// # Errors
    /// When there is no good answer.
    pub async fn why(&self, node: &str) -> Result<Why, ClientError> {
        let path = format!("/v1/why/{}", segment(node)?);
        parse(&self.request(Method::GET, &path, PATIENCE).await?)
    }

    /// Has the network around the node checked.
    ///
    /// # Errors
    /// When there is no good answer.
    pub async fn netcheck(&self) -> Result<NetReport, ClientError> {
        parse(&self.request(Method::POST, "/v1/netcheck", NETCHECK_PATIENCE).await?)
    }

    /// Asks for what a report of a problem needs of the process itself.
    ///
    /// # Errors
    /// When there is no good answer, or the caller may not have it.
    pub async fn report(&self) -> Result<Report, ClientError> {
        parse(&self.request(Method::GET, "/v1/report", PATIENCE).await?)
    }

    /// Pings a peer once.
    ///
    /// # Errors
    /// When there is no good answer.
    pub async fn ping(&self, node: &str, wait: Duration) -> Result<PingReply, ClientError> {
        let path = format!("/v1/ping/{}?timeout_ms={}", segment(node)?, wait.as_millis());
        parse(&self.request(Method::POST, &path, wait + PATIENCE).await?)
    }

    /// Says what a pod beside the agent does for it.
    ///
    /// # Errors
    /// When there is no good answer.
    pub async fn set_kubernetes(&self, beside: &Beside) -> Result<(), ClientError> {
        let body = serde_json::to_vec(beside).map_err(|error| ClientError::Malformed(error.to_string()))?;
        self.exchange(Method::PUT, "/v1/kubernetes", body.into(), PATIENCE).await.map(drop)
    }

    async fn request(&self, method: Method, path: &str, patience: Duration) -> Result<Bytes, ClientError> {
        self.exchange(method, path, Bytes::new(), patience).await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<Bytes, ClientError> {
        let outgoing = Outgoing { host: HOST, method, path, body, patience };
        mesh_unixapi::exchange(&self.socket, outgoing).await.map_err(|failure| match failure {
            Failure::Unreachable(source) => ClientError::Unreachable { socket: self.socket.clone(), source },
            Failure::Malformed(what) => ClientError::Malformed(what),
            Failure::Timeout => ClientError::Timeout,
            Failure::Refused(error) => ClientError::Api(error),
        })
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Malformed(error.to_string()))
}

/// A node's name or mesh address as a path segment: neither has a character that would need an escape.
fn segment(node: &str) -> Result<&str, ClientError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-.:".contains(&b);
    if !node.is_empty() && node.bytes().all(plain) {
        Ok(node)
    } else {
        let message = format!("{node:?} is neither a node's name nor a mesh address");
        Err(ClientError::Api(ApiError::BadRequest { message }))
    }
}
