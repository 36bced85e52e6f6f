//! The server side, in the daemon.
//!
//! A connection holds a request in flight and nothing else, so that cutting it off loses nothing.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use hyper::{Method, Request, StatusCode, body::Incoming};
use mesh_unixapi::{Answer, Api, Caller, Credentials, Listening, answer, empty, is_from};
use tokio::net::UnixListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Agent, ApiError, HOST};

/// Longest life of a connection: `--watch` and scripts connect anew for each request.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(75);
/// Longest time that a ping may ask to wait.
const MAX_PING_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a ping waits when it does not say.
const DEFAULT_PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Everyone on the host may connect and read; what changes things asks for the caller's credentials.
const SOCKET_MODE: u32 = 0o666;

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
    let (path, deadline, daemon) = (socket, CONNECTION_DEADLINE, Credentials::own());
    let listening = Listening { listener, path, deadline, daemon };
    tracker.spawn(mesh_unixapi::serve(listening, Arc::new(Served(agent)), cancel));
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

/// An agent as what answers requests.
struct Served<A>(Arc<A>);

impl<A: Agent> Api for Served<A> {
    async fn answer(&self, request: Request<Incoming>, caller: Caller) -> Answer {
        match route(request, &*self.0, caller).await {
            Ok(answer) => answer,
            Err(error) => {
                let status = match &error {
                    ApiError::UnknownNode { .. } => StatusCode::NOT_FOUND,
                    ApiError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
                    ApiError::Forbidden => StatusCode::FORBIDDEN,
                    ApiError::BadRequest { .. } => StatusCode::BAD_REQUEST,
                    ApiError::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
                };
                answer(status, &error)
            }
        }
    }
}

async fn route(request: Request<Incoming>, agent: &impl Agent, caller: Caller) -> Result<Answer, ApiError> {
    if !is_from(HOST, request.headers(), request.uri()) {
        return Err(ApiError::Forbidden);
    }
    tracing::trace!(?caller, "local api request");
    let (request, body) = request.into_parts();
    let segments: Vec<_> = request.uri.path().split('/').skip(1).collect();
    match (&request.method, segments.as_slice()) {
        (&Method::GET, ["v1", "live"]) => Ok(empty(StatusCode::NO_CONTENT)),
        (&Method::GET, ["v1", "status"]) => {
            Ok(answer(StatusCode::OK, &agent.status().await.map_err(internal)?))
        }
        (&Method::GET, ["v1", "report"]) => match caller {
            Caller::Operator => Ok(answer(StatusCode::OK, &agent.report().await.map_err(internal)?)),
            Caller::Reader => Err(ApiError::Forbidden),
        },
        (&Method::PUT, ["v1", "kubernetes"]) => match caller {
            Caller::Operator => {
                let beside =
                    mesh_unixapi::body(body).await.map_err(|message| ApiError::BadRequest { message })?;
                agent.set_kubernetes(beside).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            Caller::Reader => Err(ApiError::Forbidden),
        },
        (&Method::GET, ["v1", "why", node]) => Ok(answer(StatusCode::OK, &agent.why(node).await?)),
        (&Method::POST, ["v1", "netcheck"]) => Ok(answer(StatusCode::OK, &agent.netcheck().await?)),
        (&Method::POST, ["v1", "ping", node]) => {
            let timeout = ping_timeout(request.uri.query().unwrap_or_default())?;
            Ok(answer(StatusCode::OK, &agent.ping(node, timeout).await?))
        }
        _ => Err(ApiError::BadRequest { message: "there is nothing here".to_owned() }),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "taken by map_err")]
fn internal(error: anyhow::Error) -> ApiError {
    ApiError::Internal { message: format!("{error:#}") }
}

fn ping_timeout(query: &str) -> Result<Duration, ApiError> {
    let Some(value) = query.strip_prefix("timeout_ms=") else { return Ok(DEFAULT_PING_TIMEOUT) };
    let millis =
        value.parse().map_err(|_| ApiError::BadRequest { message: "timeout_ms is no number".to_owned() })?;
    Ok(Duration::from_millis(millis).min(MAX_PING_TIMEOUT))
}
