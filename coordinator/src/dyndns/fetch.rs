//! One GET, over TLS with the system's certificate authorities.

use std::{fmt, io, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, body::Bytes, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::Ask;

/// How long an update may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long one of a host's addresses is waited for.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer.
const MAX_ANSWER: usize = 4096;

/// Where something is asked: `https://HOST[:PORT]/PATH`, or `http://` on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    is_tls: bool,
    host: String,
    port: u16,
    path: String,
}

/// A text is no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("neither https://HOST[:PORT]/PATH nor http://127.0.0.1:PORT/PATH")]
pub struct InvalidEndpoint;

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let (is_tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(InvalidEndpoint),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let default = if is_tls { 443 } else { 80 };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| InvalidEndpoint)?),
            None => (authority, default),
        };
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?');
        // A token must not cross a network in the clear.
        let is_private = is_tls || host == "127.0.0.1";
        if host.is_empty() || !is_private || !is_plain(host) || !is_plain(path) {
            return Err(InvalidEndpoint);
        }
        Ok(Self { is_tls, host: host.to_owned(), port, path: format!("/{path}") })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { is_tls, host, port, path } = self;
        write!(f, "{}://{host}:{port}{path}", if *is_tls { "https" } else { "http" })
    }
}

/// Asks one endpoint.
pub(super) struct Fetcher {
    endpoint: Endpoint,
    tls: Option<TlsConnector>,
}

impl Fetcher {
    /// Reads the system's certificate authorities, if TLS is spoken.
    pub(super) fn new(endpoint: &Endpoint) -> anyhow::Result<Self> {
        let tls = endpoint.is_tls.then(connector).transpose()?;
        Ok(Self { endpoint: endpoint.clone(), tls })
    }

    async fn try_get(&self, query: &str) -> anyhow::Result<String> {
        let Endpoint { host, .. } = &self.endpoint;
        let stream = self.connect().await.context("cannot be reached")?;
        match &self.tls {
            Some(tls) => {
                let name = ServerName::try_from(host.clone())?;
                self.exchange(tls.connect(name, stream).await.context("TLS failed")?, query).await
            }
            None => self.exchange(stream, query).await,
        }
    }

    /// Connects over IPv4, if that works: a keeper sees where a request comes from, and it is the IPv4 address that it
    /// cannot be told.
    async fn connect(&self) -> io::Result<TcpStream> {
        let Endpoint { host, port, .. } = &self.endpoint;
        let mut addresses: Vec<_> = tokio::net::lookup_host((host.as_str(), *port)).await?.collect();
        addresses.sort_by_key(SocketAddr::is_ipv6);
        let mut last = io::ErrorKind::NotFound.into();
        for address in addresses {
            match timeout(CONNECT_PATIENCE, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(elapsed) => last = elapsed.into(),
            }
        }
        Err(last)
    }

    async fn exchange<S>(&self, stream: S, query: &str) -> anyhow::Result<String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("speaks no HTTP")?;
        let request = Request::get(format!("{}?{query}", self.endpoint.path))
            .header(header::HOST, &self.endpoint.host)
            .header(header::USER_AGENT, concat!("mesh-coordinator/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())
            .map_err(|_| anyhow::anyhow!("the request makes no sense"))?;
        let answer = async {
            let answer = sender.send_request(request).await?;
            ensure!(answer.status().is_success(), "it answers {}", answer.status());
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
            String::from_utf8(body.to_vec()).context("it answers no text")
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
}

impl Ask for Fetcher {
    async fn get(&self, query: &str) -> Result<String, String> {
        match timeout(DEADLINE, self.try_get(query)).await {
            Ok(answer) => answer.map_err(|error| format!("{}: {error:#}", self.endpoint.host)),
            Err(_) => Err(format!("{} does not answer", self.endpoint.host)),
        }
    }
}

fn connector() -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    ensure!(!roots.is_empty(), "this system has no certificate authorities: install ca-certificates");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_sent_in_the_clear() {
        for (text, shown) in [
            ("https://www.duckdns.org/update", "https://www.duckdns.org:443/update"),
            ("https://dns.example:8443", "https://dns.example:8443/"),
            ("http://127.0.0.1:81/update", "http://127.0.0.1:81/update"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown);
        }
        for bad in [
            "http://www.duckdns.org/update",
            "ftp://x/",
            "https://",
            "https://x:y/",
            "https://x/?a=b",
            "https://a b/",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
