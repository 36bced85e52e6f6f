//! The server side, in the running coordinator.
//!
//! A connection that is cut off in the middle of a change leaves it done or not done, never half.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use mesh_proto::name::NodeName;
use mesh_unixapi::{Answer, Caller, Credentials, Listening, answer, empty, is_from};
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::{
    AdminInfo, ApiError, HOST, NodeEntry, RenameRequest, RouteRequest, RouteWord, TokenReply, TokenRequest,
    join_command, socket_path,
};
use crate::{
    backup::{Backup, BackupError},
    registry::{Registry, RegistryError, TokenSpec},
};

/// Longest life of a connection, which carries one request.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);

/// The state directory decides who may connect, and [`Caller`] what they may do.
const SOCKET_MODE: u32 = 0o666;

/// A socket that is bound and can be served.
pub struct AdminServer {
    listening: Listening,
    api: Arc<Api>,
}

struct Api {
    registry: Registry,
    info: AdminInfo,
}

/// A refusal on its way out.
struct Failure {
    status: StatusCode,
    message: String,
}

impl AdminServer {
    /// Binds the socket of a state directory. One that is there is replaced: whoever has opened the registry
    /// is the only coordinator of this directory, so it was left behind by a dead one.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind(state_dir: &Path, registry: Registry, info: AdminInfo) -> anyhow::Result<Self> {
        let socket = socket_path(state_dir);
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot replace {}", socket.display()));
            }
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("cannot listen on {} for administrators", socket.display()))?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(SOCKET_MODE))
            .with_context(|| format!("cannot set the mode of {}", socket.display()))?;
        let (path, deadline, daemon) = (socket, CONNECTION_DEADLINE, Credentials::own());
        let listening = Listening { listener, path, deadline, daemon };
        Ok(Self { listening, api: Arc::new(Api { registry, info }) })
    }

    /// Pretends that another user runs the service.
    #[cfg(test)]
    pub(super) fn run_by(self, daemon: Credentials) -> Self {
        Self { listening: Listening { daemon, ..self.listening }, ..self }
    }

    /// Serves until cancelled, and removes the socket.
    pub async fn run(self, cancel: CancellationToken) {
        mesh_unixapi::serve(self.listening, self.api, cancel).await;
    }
}

impl mesh_unixapi::Api for Api {
    async fn answer(&self, request: Request<Incoming>, caller: Caller) -> Answer {
        match self.route(request, caller).await {
            Ok(answer) => answer,
            Err(Failure { status, message }) => answer(status, &ApiError { error: message }),
        }
    }
}

impl Api {
    async fn route(&self, request: Request<Incoming>, caller: Caller) -> Result<Answer, Failure> {
        if !is_from(HOST, request.headers(), request.uri()) {
            return Err(Failure::new(StatusCode::FORBIDDEN, "this is not for web pages"));
        }
        let path = request.uri().path().to_owned();
        let segments: Vec<_> = path.split('/').skip(1).collect();
        match (request.method(), &segments[..]) {
            (&Method::GET, ["v1", "nodes"]) => self.nodes().await,
            (&Method::GET, ["v1", "backup"]) => {
                check_operator(caller)?;
                self.backup().await
            }
            (&Method::POST, ["v1", "tokens"]) => {
                check_operator(caller)?;
                self.create_token(body(request).await?).await
            }
            (&Method::DELETE, ["v1", "nodes", name]) => {
                check_operator(caller)?;
                self.registry.remove_node(&parse_name(name)?).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            (&Method::PATCH, ["v1", "nodes", name]) => {
                check_operator(caller)?;
                let RenameRequest { name: to } = body(request).await?;
                self.registry.rename_node(&parse_name(name)?, to).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            (&Method::GET, ["v1", "routes"]) => Ok(answer(StatusCode::OK, &self.registry.routes())),
            (&Method::POST, ["v1", "routes", name]) => {
                check_operator(caller)?;
                let name = parse_name(name)?;
                let RouteRequest { prefix, word } = body(request).await?;
                let entry = match word {
                    RouteWord::Approve => self.registry.approve_route(&name, prefix).await?,
                    RouteWord::Revoke => self.registry.revoke_route(&name, prefix).await?,
                };
                Ok(answer(StatusCode::OK, &entry))
            }
            _ => Err(Failure::new(StatusCode::NOT_FOUND, "there is nothing here")),
        }
    }

    async fn nodes(&self) -> Result<Answer, Failure> {
        let nodes = self.registry.nodes().await?;
        let online = self.info.online.borrow();
        let entries: Vec<_> =
            nodes.into_iter().map(|node| NodeEntry { online: online.contains(&node.id), node }).collect();
        Ok(answer(StatusCode::OK, &entries))
    }

    async fn backup(&self) -> Result<Answer, Failure> {
        let snapshot = self.registry.export().await?;
        let backup = Backup { identity: self.info.identity.clone(), snapshot };
        let failed = |error: BackupError| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
        let text = backup.encode(OffsetDateTime::now_utc()).map_err(failed)?;
        Ok(Response::new(Full::from(text.to_vec())))
    }

    async fn create_token(&self, request: TokenRequest) -> Result<Answer, Failure> {
        let TokenRequest { ttl_s, uses, tags } = request;
        let coordinator = self.info.coordinators.first().ok_or_else(|| {
            Failure::new(StatusCode::CONFLICT, "the coordinator has no name: start it with --name")
        })?;
        let spec = TokenSpec { ttl: Duration::from_secs(ttl_s), uses, tags };
        let token = self.registry.create_token(spec).await?;
        tracing::debug!(token = token.id(), "token created");
        let join = join_command(coordinator, &self.info.identity.pin, &token);
        Ok(answer(StatusCode::CREATED, &TokenReply { join }))
    }
}

impl Failure {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        let status = match error {
            RegistryError::UnknownNode(_) => StatusCode::NOT_FOUND,
            RegistryError::NameTaken(_) | RegistryError::TooManyRoutes(_) => StatusCode::CONFLICT,
            RegistryError::TokenSpec(_) => StatusCode::BAD_REQUEST,
            RegistryError::Contended | RegistryError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
            RegistryError::Token
            | RegistryError::PublicKeyTaken
            | RegistryError::NotRelay
            | RegistryError::NotRegistered
            | RegistryError::AddressesExhausted(_)
            | RegistryError::Ipv4RangeChanged { .. }
            | RegistryError::Ipv4RangeSize(_)
            | RegistryError::Corrupt { .. }
            | RegistryError::Randomness(_)
            | RegistryError::Removed
            | RegistryError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

fn check_operator(caller: Caller) -> Result<(), Failure> {
    match caller {
        Caller::Operator => Ok(()),
        Caller::Reader => Err(Failure::new(
            StatusCode::FORBIDDEN,
            "only root, the coordinator's user and its group may change things",
        )),
    }
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Failure> {
    let bad = |error| Failure::new(StatusCode::BAD_REQUEST, error);
    mesh_unixapi::body(request.into_body()).await.map_err(bad)
}

fn parse_name(segment: &str) -> Result<NodeName, Failure> {
    segment.parse().map_err(|error: mesh_proto::name::InvalidName| {
        Failure::new(StatusCode::BAD_REQUEST, error.to_string())
    })
}
