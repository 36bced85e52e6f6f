//! The client side, in the commands.

use std::{io, path::Path, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, time::timeout};

/// Longest answer, in bytes: what is to be said of some ten thousand nodes.
const MAX_ANSWER: usize = 32 << 20;

/// A request on its way out.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The daemon's `Host`.
    pub host: &'static str,
    /// What is wanted.
    pub method: Method,
    /// Of what; path and query.
    pub path: &'a str,
    /// JSON, or nothing.
    pub body: Bytes,
    /// How long all of it may take.
    pub patience: Duration,
}

/// Why there was no good answer; `E` is how the daemon says what is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Failure<E> {
    /// Nothing listens on the socket, or this user may not use it.
    #[error(transparent)]
    Unreachable(io::Error),
    /// Something answered, but not as the daemon does.
    #[error("the answer makes no sense: {0}")]
    Malformed(String),
    /// There was no answer in time.
    #[error("there is no answer")]
    Timeout,
    /// The daemon refused, or failed.
    #[error("refused")]
    Refused(E),
}

/// Sends a request to the daemon at a socket, and returns the body of its answer.
///
/// # Errors
/// When there is no good answer.
pub async fn exchange<E: DeserializeOwned>(
    socket: &Path,
    outgoing: Outgoing<'_>,
) -> Result<Bytes, Failure<E>> {
    let patience = outgoing.patience;
    let (status, body) =
        timeout(patience, converse(socket, outgoing)).await.map_err(|_| Failure::Timeout)??;
    if status.is_success() {
        return Ok(body);
    }
    Err(serde_json::from_slice(&body)
        .map_or_else(|_| Failure::Malformed(status.to_string()), Failure::Refused))
}

async fn converse<E>(socket: &Path, outgoing: Outgoing<'_>) -> Result<(StatusCode, Bytes), Failure<E>> {
    let Outgoing { host, method, path, body, patience: _ } = outgoing;
    let stream = UnixStream::connect(socket).await.map_err(Failure::Unreachable)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(malformed)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(malformed)?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(malformed)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(malformed)?;
        Ok((status, body.to_bytes()))
    };
    let connection = async {
        // Its errors show in the answer, too.
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        answer = answer => answer,
        () = connection => unreachable!("it never ends"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "taken by map_err")]
fn malformed<E>(error: impl ToString) -> Failure<E> {
    Failure::Malformed(error.to_string())
}
