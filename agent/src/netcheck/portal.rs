//! Captive portals: whether somebody on the way answers plain HTTP in the place of whom it was meant for.
//!
//! The coordinator's TCP port is asked for its WebSocket without TLS: its answer repeats a hash of what was asked, which
//! nobody who shows a sign-in page to everybody does. Where a person has chosen a URL it is asked for instead: `204 No
//! Content` is what such URLs answer with.

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use ipnet::IpNet;
use mesh_pipe::ConnectError;
use mesh_proto::stream::PATH;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::reach;
use crate::control::HostPort;

/// Port of HTTP.
const HTTP_PORT: u16 = 80;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// As much of an answer as its first line and a few headers need.
const MAX_HEAD: usize = 4096;
/// Status of what such URLs answer with.
const NO_CONTENT: u16 = 204;
/// Network Authentication Required (RFC 6585, section 6).
const SIGN_IN: u16 = 511;

/// A URL that answers `204 No Content`: `http://HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortalUrl {
    server: HostPort,
    path: String,
}

/// Why a text is not such a URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form http://HOST[:PORT][/PATH]")]
pub struct InvalidPortalUrl(String);

impl FromStr for PortalUrl {
    type Err = InvalidPortalUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPortalUrl(text.to_owned());
        let rest = text.strip_prefix("http://").ok_or_else(invalid)?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        if path.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'#') {
            return Err(invalid());
        }
        let server = HostPort::parse_with_default(authority, HTTP_PORT).map_err(|_| invalid())?;
        Ok(Self { server, path: path.to_owned() })
    }
}

impl fmt::Display for PortalUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.server, self.path)
    }
}

/// Measures it; nothing if nobody answers, or what is answered proves nothing.
pub(super) async fn measure(
    url: Option<&PortalUrl>,
    coordinators: &[String],
    mesh: &[IpNet],
) -> Option<bool> {
    match url {
        Some(url) => {
            let addresses = url.server.resolve(mesh).await.ok()?.addresses;
            let status = timeout(PATIENCE, ask_url(*addresses.first()?, url)).await.ok().flatten()?;
            Some(status != NO_CONTENT)
        }
        None => {
            let addresses = reach::addresses(coordinators, mesh).await;
            timeout(PATIENCE, ask_coordinator(&addresses)).await.ok().flatten()
        }
    }
}

async fn ask_url(address: SocketAddr, url: &PortalUrl) -> Option<u16> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", url.path, url.server);
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut head = Vec::new();
    while head.len() < MAX_HEAD {
        if let Some(status) = status_of(&head) {
            return Some(status);
        }
        if stream.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    None
}

/// Reads the status of an answer whose first line is there.
fn status_of(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\n').next().filter(|line| line.len() < head.len())?;
    let line = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    line.split_whitespace().nth(1)?.parse().ok()
}

async fn ask_coordinator(addresses: &[SocketAddr]) -> Option<bool> {
    for address in addresses {
        let Ok(stream) = TcpStream::connect(address).await else { continue };
        match mesh_pipe::connect(Box::new(stream), &address.to_string(), PATH).await {
            Ok(_) => return Some(false),
            Err(ConnectError::Http(status @ (200..=399 | SIGN_IN))) => {
                tracing::debug!(status, "somebody answers in the coordinator's place");
                return Some(true);
            }
            // A web server that has no WebSocket without TLS, or one that says nothing.
            Err(ConnectError::Http(_) | ConnectError::Io(_) | ConnectError::Protocol(_)) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;

    async fn serve(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 2000]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn who_answers_for_others_is_a_portal() {
        let page = "HTTP/1.1 302 Found\r\nLocation: http://sign.in/\r\nContent-Length: 0\r\n\r\n";
        let table = [
            (page, Some(true), Some(true)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", Some(true), Some(true)),
            ("HTTP/1.1 204 No Content\r\n\r\n", Some(true), Some(false)),
            ("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", None, Some(true)),
            ("SSH-2.0-OpenSSH_9\r\n", None, None),
        ];
        for (answer, coordinator, url) in table {
            let address = serve(answer).await;
            assert_eq!(measure(None, &[address.to_string()], &[]).await, coordinator, "{answer}");
            let chosen = format!("http://{address}/generate_204").parse().unwrap();
            assert_eq!(measure(Some(&chosen), &[], &[]).await, url, "{answer}");
        }
        assert_eq!(measure(None, &["127.0.0.1:1".to_owned()], &[]).await, None);
    }

    #[tokio::test]
    async fn the_coordinators_own_answer_is_no_portal() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            mesh_pipe::accept(Box::new(stream)).await.is_ok()
        });
        assert_eq!(measure(None, &[address.to_string()], &[]).await, Some(false));
        assert!(server.await.unwrap());
    }

    #[test]
    fn a_url_is_plain_http() {
        let url: PortalUrl = "http://check.example".parse().unwrap();
        assert_eq!(url.to_string(), "http://check.example:80/");
        for wrong in ["https://check.example/", "check.example", "http://a b/", "http://x/\r\nHost: y"] {
            assert!(wrong.parse::<PortalUrl>().is_err(), "{wrong}");
        }
    }
}
