//! One connection to the API server, for one request.
//!
//! Requests are rare and a watch lasts for minutes, so nothing is kept: each connection has the credentials of its moment.
//! A connection that dies without a word is noticed by the kernel, which asks the other side when nothing came for a while.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{AUTHORIZATION, HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{access::Target, client::Caller, error::ApiError};

/// How long a connection may take, and its TLS handshake.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer's beginning may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(15);
/// The kernel asks whether the other side is still there after it was silent for so long, ...
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
/// ... asks again in this interval, ...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// ... and gives up after so many questions.
const KEEPALIVE_PROBES: u32 = 4;

type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// An answer whose body is still coming.
pub struct Exchange {
    pub(crate) code: u16,
    body: Incoming,
    connection: Option<Connection>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("code", &self.code).finish_non_exhaustive()
    }
}

/// Asks, and waits for the beginning of the answer.
pub(crate) async fn exchange(
    request: Request<Vec<u8>>,
    target: &Target,
    caller: &Caller,
) -> Result<Exchange, ApiError> {
    let (stream, address) = connect(target).await?;
    let request = address_to(request, target, caller)?;
    match &target.tls {
        None => send(request, stream, address).await,
        Some((config, name)) => {
            let connector = TlsConnector::from(config.clone());
            let shaken = timeout(CONNECT_PATIENCE, connector.connect(name.clone(), stream)).await;
            let stream = shaken
                .map_err(|_| ApiError::Silent(address.to_string()))?
                .map_err(|error| ApiError::of_handshake(&error, address.to_string(), target))?;
            send(request, stream, address).await
        }
    }
}

impl Exchange {
    /// Returns the next piece of the body; `None` at its end. Cancel-safe.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let frame = match &mut self.connection {
                None => self.body.frame().await,
                Some(connection) => tokio::select! {
                    biased;
                    frame = self.body.frame() => frame,
                    ended = connection => {
                        self.connection = None;
                        ended.map_err(broken)?;
                        continue;
                    }
                },
            };
            match frame {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(broken)?.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Returns the whole body, if it comes in time and is not longer than that.
    pub(crate) async fn body(mut self, max: usize, address: &str) -> Result<Vec<u8>, ApiError> {
        let whole = async {
            let mut whole = Vec::new();
            while let Some(piece) = self.next().await? {
                if whole.len() + piece.len() > max {
                    return Err(ApiError::Malformed(format!("it is longer than {max} bytes")));
                }
                whole.extend_from_slice(&piece);
            }
            Ok(whole)
        };
        timeout(ANSWER_PATIENCE, whole).await.map_err(|_| ApiError::Silent(address.to_owned()))?
    }
}

async fn connect(target: &Target) -> Result<(TcpStream, SocketAddr), ApiError> {
    let addresses = match target.host.parse() {
        Ok(address) => vec![address],
        Err(_) => {
            // Unlike the coordinator, the API server may be behind the mesh.
            let found = mesh_names::lookup(&target.host, &[]).await;
            found.map_err(|why| ApiError::Name { host: target.host.clone(), why })?.addresses
        }
    };
    let mut last = ApiError::Unreachable {
        address: format!("{}:{}", target.host, target.port),
        why: "it has no address".to_owned(),
    };
    for address in addresses {
        let address = SocketAddr::new(address, target.port);
        match timeout(CONNECT_PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Without it, a dead connection would only be noticed later.
                if let Err(error) = keep_alive(&stream) {
                    tracing::debug!(%error, "keep-alives cannot be set");
                }
                return Ok((stream, address));
            }
            Ok(Err(error)) => {
                last = ApiError::Unreachable { address: address.to_string(), why: error.to_string() };
            }
            Err(_) => {
                last = ApiError::Unreachable {
                    address: address.to_string(),
                    why: "nothing answers there".to_owned(),
                };
            }
        }
    }
    Err(last)
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    stream.set_nodelay(true)
}

/// Says to whom a request goes, and who asks.
fn address_to(
    mut request: Request<Vec<u8>>,
    target: &Target,
    caller: &Caller,
) -> Result<Request<Vec<u8>>, ApiError> {
    let headers = request.headers_mut();
    let host = HeaderValue::from_str(&format!("{}:{}", target.host, target.port));
    let host = host.map_err(|_| ApiError::Malformed("its name is no host".to_owned()))?;
    headers.insert(HOST, host);
    headers.insert(USER_AGENT, HeaderValue::from_static(caller.user_agent));
    if let Some(token) = &target.token {
        let mut value = HeaderValue::from_str(&token.header)
            .map_err(|_| ApiError::Unauthorized(format!("{} holds no token", target.source.display())))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(request)
}

async fn send<S>(request: Request<Vec<u8>>, stream: S, address: SocketAddr) -> Result<Exchange, ApiError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let silent = || ApiError::Silent(address.to_string());
    let request = request.map(|body| Full::new(Bytes::from(body)));
    let answer = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut connection: Connection = Box::pin(connection);
        let mut answer = pin!(sender.send_request(request));
        let mut is_open = true;
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer.map_err(broken)?,
                ended = &mut connection, if is_open => {
                    ended.map_err(broken)?;
                    is_open = false;
                }
            }
        };
        let code = answer.status().as_u16();
        Ok(Exchange { code, body: answer.into_body(), connection: is_open.then_some(connection) })
    };
    let answer = timeout(ANSWER_PATIENCE, answer).await.map_err(|_| silent())?;
    answer.map_err(|error| match error {
        ApiError::Failed(why) => ApiError::Unreachable { address: address.to_string(), why },
        other => other,
    })
}

#[expect(clippy::needless_pass_by_value, reason = "taken by map_err")]
fn broken(error: hyper::Error) -> ApiError {
    use std::error::Error as _;
    match error.source() {
        Some(source) => ApiError::Failed(source.to_string()),
        None => ApiError::Failed(error.to_string()),
    }
}
