//! The server side, in the running coordinator.
//!
//! Tasks: the one that accepts, and one per connection. A connection that is cut off in the middle of a
//! change leaves it done or not done, never half, so all of them can be stopped at any point.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use mesh_proto::name::NodeName;
use serde::{Serialize, de::DeserializeOwned};
use time::OffsetDateTime;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    AdminInfo, ApiError, Caller, NodeEntry, RenameRequest, RouteRequest, RouteWord, TokenReply, TokenRequest,
    access::{Credentials, is_ours},
    join_command, socket_path,
};
use crate::{
    backup::{Backup, BackupError},
    registry::{Registry, RegistryError, TokenSpec},
};

/// Most connections at once: people and scripts, no more.
const MAX_CONNECTIONS: usize = 32;

/// Longest life of a connection, which carries one request.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);

/// Longest request body, in bytes; the longest that makes sense is a token's list of tags.
const MAX_BODY: usize = 64 << 10;

/// Most headers of a request.
const MAX_HEADERS: usize = 32;

/// The state directory decides who may connect, and [`Caller`] what they may do.
const SOCKET_MODE: u32 = 0o666;

/// How long to wait after an accept that failed: others give descriptors back in a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket that is bound and can be served.
pub struct AdminServer {
    listener: UnixListener,
    socket: PathBuf,
    api: Arc<Api>,
    service: Credentials,
}

struct Api {
    registry: Registry,
    info: AdminInfo,
}

type Answer = Response<Full<Bytes>>;

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
        Ok(Self { listener, socket, api: Arc::new(Api { registry, info }), service: Credentials::own() })
    }

    /// Pretends that another user runs the service.
    #[cfg(test)]
    pub(super) fn run_by(self, service: Credentials) -> Self {
        Self { service, ..self }
    }

    /// Serves until cancelled, and removes the socket.
    pub async fn run(self, cancel: CancellationToken) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let connections = TaskTracker::new();
        loop {
            let stream = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::debug!(%error, "the admin socket cannot accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            // Without a slot the connection is closed at once: the caller sees that and tries again.
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
            let (api, service, cancel) = (Arc::clone(&self.api), self.service, cancel.clone());
            connections.spawn(async move {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => {}
                    _ = timeout(CONNECTION_DEADLINE, serve_connection(stream, api, service)) => {}
                }
                drop(slot);
            });
        }
        connections.close();
        connections.wait().await;
        if let Err(error) = fs::remove_file(&self.socket) {
            tracing::debug!(%error, "the admin socket was gone already");
        }
    }
}

impl Api {
    async fn answer(&self, request: Request<Incoming>, caller: Caller) -> Answer {
        match self.route(request, caller).await {
            Ok(answer) => answer,
            Err(Failure { status, message }) => json(status, &ApiError { error: message }),
        }
    }

    async fn route(&self, request: Request<Incoming>, caller: Caller) -> Result<Answer, Failure> {
        if !is_ours(request.headers(), request.uri()) {
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
            (&Method::GET, ["v1", "routes"]) => Ok(json(StatusCode::OK, &self.registry.routes())),
            (&Method::POST, ["v1", "routes", name]) => {
                check_operator(caller)?;
                let name = parse_name(name)?;
                let RouteRequest { prefix, word } = body(request).await?;
                let entry = match word {
                    RouteWord::Approve => self.registry.approve_route(&name, prefix).await?,
                    RouteWord::Revoke => self.registry.revoke_route(&name, prefix).await?,
                };
                Ok(json(StatusCode::OK, &entry))
            }
            _ => Err(Failure::new(StatusCode::NOT_FOUND, "there is nothing here")),
        }
    }

    async fn nodes(&self) -> Result<Answer, Failure> {
        let nodes = self.registry.nodes().await?;
        let online = self.info.online.borrow();
        let entries: Vec<_> =
            nodes.into_iter().map(|node| NodeEntry { online: online.contains(&node.id), node }).collect();
        Ok(json(StatusCode::OK, &entries))
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
        Ok(json(StatusCode::CREATED, &TokenReply { join }))
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

async fn serve_connection(stream: UnixStream, api: Arc<Api>, service: Credentials) {
    let Ok(credentials) = stream.peer_cred() else { return };
    let caller = Caller::judge(credentials.into(), service);
    let answers = service_fn(|request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(api.answer(request, caller).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), answers)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection failed");
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
    let bad = |error: String| Failure::new(StatusCode::BAD_REQUEST, error);
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|error| bad(error.to_string()))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))
}

fn parse_name(segment: &str) -> Result<NodeName, Failure> {
    segment.parse().map_err(|error: mesh_proto::name::InvalidName| {
        Failure::new(StatusCode::BAD_REQUEST, error.to_string())
    })
}

fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    let Ok(text) = serde_json::to_vec(body) else { return empty(StatusCode::INTERNAL_SERVER_ERROR) };
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}

fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}
