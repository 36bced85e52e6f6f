//! The server side, in the daemon.
//!
//! Tasks: the one that accepts, and one per connection. A connection can be cut off at any point: whoever answers sees to it
//! that a change is done or not done by then, never half.

use std::{convert::Infallible, fs, future::Future, path::PathBuf, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Caller, Credentials};

/// Most connections at once: people and scripts, no more.
const MAX_CONNECTIONS: usize = 32;
/// Longest request body, in bytes.
const MAX_BODY: usize = 64 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 32;
/// How long to wait after an accept that failed: others give descriptors back in a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a request is answered with.
pub type Answer = Response<Full<Bytes>>;

/// What a daemon answers.
pub trait Api: Send + Sync + 'static {
    /// Answers a request, which may be cut off at any await.
    fn answer(&self, request: Request<Incoming>, caller: Caller) -> impl Future<Output = Answer> + Send;
}

/// A socket to serve.
#[derive(Debug)]
pub struct Listening {
    /// The socket, bound.
    pub listener: UnixListener,
    /// Where it is; it is removed at the end.
    pub path: PathBuf,
    /// Longest life of a connection, which carries one request.
    pub deadline: Duration,
    /// Who runs the daemon.
    pub daemon: Credentials,
}

/// Serves until cancelled, and removes the socket.
pub async fn serve(listening: Listening, api: Arc<impl Api>, cancel: CancellationToken) {
    let Listening { listener, path, deadline, daemon } = listening;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, socket = %path.display(), "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        // Without a slot the connection is closed at once: the caller sees that and tries again.
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        let (api, cancel) = (Arc::clone(&api), cancel.clone());
        connections.spawn(async move {
            let served = timeout(deadline, serve_connection(stream, api, daemon));
            // Neither a deadline that is over nor an end is news.
            let _ = cancel.run_until_cancelled(served).await;
            drop(slot);
        });
    }
    connections.close();
    connections.wait().await;
    if let Err(error) = fs::remove_file(&path) {
        tracing::debug!(%error, socket = %path.display(), "it was gone already");
    }
}

async fn serve_connection(stream: UnixStream, api: Arc<impl Api>, daemon: Credentials) {
    let Ok(credentials) = stream.peer_cred() else { return };
    let caller = Caller::judge(credentials.into(), daemon);
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
        tracing::debug!(%error, "a connection to the daemon's socket failed");
    }
}

/// Reads a request's document.
///
/// # Errors
/// When it is too long, breaks off, or is not the JSON that was asked for; the text says what.
pub async fn body<T: DeserializeOwned>(body: Incoming) -> Result<T, String> {
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())
}

/// Makes an answer of a document.
#[must_use]
pub fn answer(status: StatusCode, document: &impl Serialize) -> Answer {
    let Ok(text) = serde_json::to_vec(document) else { return empty(StatusCode::INTERNAL_SERVER_ERROR) };
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}

/// Makes an answer that is its status alone.
#[must_use]
pub fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}
