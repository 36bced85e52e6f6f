//! The server side, in the daemon.
//!
//! Tasks: one that accepts, one per connection; all of them only hold requests in flight, so stopping them
//! at any point loses nothing.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::{UnixListener, UnixStream, unix::UCred},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Agent, ApiError, HOST};

/// Most connections at once: people and scripts, no more.
const MAX_CONNECTIONS: usize = 32;
/// Longest life of a connection: `--watch` and scripts connect anew for each request.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(75);
/// Longest time that a ping may ask to wait.
const MAX_PING_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest document that is taken, in bytes.
const MAX_BODY: usize = 64 << 10;
/// How long a ping waits when it does not say.
const DEFAULT_PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Everyone on the host may connect and read; what changes things asks for the caller's credentials.
const SOCKET_MODE: u32 = 0o666;

/// Who called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Root, the daemon's own user, or a member of its group: may change things.
    Operator,
    /// Anyone else on this host: may read.
    Reader,
}

type Answer = Response<Full<Bytes>>;

impl Caller {
    fn of(credentials: UCred) -> Self {
        let own_user = rustix::process::geteuid().as_raw();
        let own_group = rustix::process::getegid().as_raw();
        if [0, own_user].contains(&credentials.uid()) || credentials.gid() == own_group {
            Self::Operator
        } else {
            Self::Reader
        }
    }
}

/// Serves the local API until cancelled.
///
/// # Errors
/// When the socket cannot be made, or another agent listens on it.
pub fn serve(
    socket: PathBuf,
    agent: Arc<impl Agent>,
    cancel: CancellationToken,
    tracker: &TaskTracker,
) -> anyhow::Result<()> {
    let listener = bind(&socket)?;
    tracker.spawn(accept(listener, socket, agent, cancel));
    Ok(())
}

/// Binds the socket; one that a dead agent left behind is replaced.
fn bind(socket: &Path) -> anyhow::Result<UnixListener> {
    if let Some(folder) = socket.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| {
            format!("cannot make {}, the folder of the local API's socket", folder.display())
        })?;
    }
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => {
            anyhow::bail!("another agent listens on {}: give this one another --socket", socket.display())
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(socket)
            .with_context(|| format!("cannot remove the stale socket {}", socket.display()))?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("cannot listen on {} for the local API", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(SOCKET_MODE))
        .with_context(|| format!("cannot set the mode of {}", socket.display()))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, socket: PathBuf, agent: Arc<impl Agent>, cancel: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors: others give theirs back in a moment.
                    tracing::debug!(%error, "local api cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        // Without a slot the connection is closed at once: the caller sees that and tries again.
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        let (agent, cancel) = (Arc::clone(&agent), cancel.clone());
        connections.spawn(async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                _ = timeout(CONNECTION_DEADLINE, serve_connection(stream, agent)) => {}
            }
            drop(slot);
        });
    }
    connections.close();
    connections.wait().await;
    if let Err(error) = std::fs::remove_file(&socket) {
        tracing::debug!(%error, "local api's socket was gone already");
    }
}

async fn serve_connection(stream: UnixStream, agent: Arc<impl Agent>) {
    let Ok(credentials) = stream.peer_cred() else { return };
    let caller = Caller::of(credentials);
    let service = service_fn(|request| {
        let agent = Arc::clone(&agent);
        async move { Ok::<_, std::convert::Infallible>(answer(request, &*agent, caller).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_headers(32)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "local api connection failed");
    }
}

async fn answer(request: Request<Incoming>, agent: &impl Agent, caller: Caller) -> Answer {
    match route(request, agent, caller).await {
        Ok(answer) => answer,
        Err(error) => {
            let status = match &error {
                ApiError::UnknownNode { .. } => StatusCode::NOT_FOUND,
                ApiError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
                ApiError::Forbidden => StatusCode::FORBIDDEN,
                ApiError::BadRequest { .. } => StatusCode::BAD_REQUEST,
                ApiError::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            };
            json(status, &error)
        }
    }
}

async fn route(request: Request<Incoming>, agent: &impl Agent, caller: Caller) -> Result<Answer, ApiError> {
    check_headers(&request)?;
    tracing::trace!(?caller, "local api request");
    let (request, body) = request.into_parts();
    let segments: Vec<_> = request.uri.path().split('/').skip(1).collect();
    match (&request.method, segments.as_slice()) {
        (&Method::GET, ["v1", "live"]) => Ok(empty(StatusCode::NO_CONTENT)),
        (&Method::GET, ["v1", "status"]) => {
            Ok(json(StatusCode::OK, &agent.status().await.map_err(internal)?))
        }
        (&Method::GET, ["v1", "report"]) => match caller {
            Caller::Operator => Ok(json(StatusCode::OK, &agent.report().await.map_err(internal)?)),
            Caller::Reader => Err(ApiError::Forbidden),
        },
        (&Method::PUT, ["v1", "kubernetes"]) => match caller {
            Caller::Operator => {
                agent.set_kubernetes(read(body).await?).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            Caller::Reader => Err(ApiError::Forbidden),
        },
        (&Method::GET, ["v1", "why", node]) => Ok(json(StatusCode::OK, &agent.why(node).await?)),
        (&Method::POST, ["v1", "netcheck"]) => Ok(json(StatusCode::OK, &agent.netcheck().await?)),
        (&Method::POST, ["v1", "ping", node]) => {
            let timeout = ping_timeout(request.uri.query().unwrap_or_default())?;
            Ok(json(StatusCode::OK, &agent.ping(node, timeout).await?))
        }
        _ => Err(ApiError::BadRequest { message: "there is nothing here".to_owned() }),
    }
}

/// Reads a document.
async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, ApiError> {
    let bad = |message: String| ApiError::BadRequest { message };
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| bad(error.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| bad(error.to_string()))
}

#[expect(clippy::needless_pass_by_value, reason = "taken by map_err")]
fn internal(error: anyhow::Error) -> ApiError {
    ApiError::Internal { message: format!("{error:#}") }
}

/// Refuses what a web page could have sent.
fn check_headers(request: &Request<Incoming>) -> Result<(), ApiError> {
    let headers = request.headers();
    let from_page = headers.contains_key(header::ORIGIN) || headers.contains_key(header::REFERER);
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    if from_page || host != Some(HOST) || request.uri().authority().is_some() {
        return Err(ApiError::Forbidden);
    }
    Ok(())
}

fn ping_timeout(query: &str) -> Result<Duration, ApiError> {
    let Some(value) = query.strip_prefix("timeout_ms=") else { return Ok(DEFAULT_PING_TIMEOUT) };
    let millis =
        value.parse().map_err(|_| ApiError::BadRequest { message: "timeout_ms is no number".to_owned() })?;
    Ok(Duration::from_millis(millis).min(MAX_PING_TIMEOUT))
}

fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    match serde_json::to_vec(body) {
        Ok(text) => {
            let mut answer = Response::new(Full::from(text));
            *answer.status_mut() = status;
            let kind = header::HeaderValue::from_static("application/json");
            answer.headers_mut().insert(header::CONTENT_TYPE, kind);
            answer
        }
        Err(_) => empty(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}
