//! HTTP proxies: which one, and its CONNECT (RFC 9110 section 9.3.6).
//!
//! Names are left to the proxy to resolve: behind one, there may be no resolver that knows them.

use std::{fmt, io, net::IpAddr, str::FromStr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use crate::control::address::HostPort;

/// Port of a proxy whose URL names none.
const DEFAULT_PORT: u16 = 80;
/// Longest head of an answer; honest ones are of a few hundred bytes.
const MAX_HEAD: usize = 16 << 10;
/// Headers of an answer; what has more is not understood.
const MAX_HEADERS: usize = 64;

/// An HTTP proxy: `http://[USER:PASSWORD@]HOST[:PORT]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub(in crate::control) server: HostPort,
    /// `USER:PASSWORD`.
    credentials: Option<Arc<Zeroizing<String>>>,
}

/// Why a text is not a proxy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProxy {
    /// Another protocol than HTTP between here and the proxy.
    #[error("only proxies that are spoken to in HTTP are supported: http://[USER:PASSWORD@]HOST[:PORT]")]
    Scheme,
    /// Anything else. The text is not repeated: it may hold a password.
    #[error("not of the form http://[USER:PASSWORD@]HOST[:PORT]")]
    Form,
}

/// Which proxy is used, and where it is not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyRules {
    /// The proxy.
    pub proxy: Option<Proxy>,
    /// Names, domains, addresses and prefixes that are reached without it (`NO_PROXY`).
    pub exceptions: Vec<String>,
}

/// Why a proxy does not lead anywhere.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// It wants to know who asks, or does not believe it.
    #[error(
        "the proxy asks for a user and a password ({0}): give them as --proxy http://USER:PASSWORD@HOST:PORT"
    )]
    WantsCredentials(u16),
    /// It does not take these credentials.
    #[error("the proxy does not accept the user and password ({0})")]
    RefusesCredentials(u16),
    /// It forbids the destination.
    #[error("the proxy forbids the way to {0} (403): ask who runs it to allow it")]
    Forbidden(HostPort),
    /// Any other answer.
    #[error("the proxy answers with HTTP {0}")]
    Status(u16),
    /// It says that it has connected, and sends a page.
    #[error(
        "the proxy answers with a web page of its own instead of connecting: perhaps a sign-in page is to be passed first"
    )]
    Page,
    /// What it answers is not HTTP.
    #[error("the proxy does not answer in HTTP")]
    NotHttp,
    /// The connection to it failed.
    #[error("the connection to the proxy failed: {0}")]
    Io(#[from] io::Error),
}

impl ProxyError {
    /// Whether the proxy says in plain words that it does not want to, so that asking again is of no use.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::WantsCredentials(_) | Self::RefusesCredentials(_) | Self::Forbidden(_) => true,
            Self::Status(_) | Self::Page | Self::NotHttp | Self::Io(_) => false,
        }
    }
}

impl ProxyRules {
    /// Returns the proxy that leads to a server, unless it is reached without one.
    pub(crate) fn proxy_for(&self, server: &HostPort) -> Option<&Proxy> {
        let host = server.host();
        let matches = |rule: &String| {
            let rule = rule.trim().trim_start_matches('.');
            let address = host.parse::<IpAddr>().ok();
            let in_net = |net: IpNet| address.is_some_and(|address| net.contains(&address));
            rule == "*"
                || rule.eq_ignore_ascii_case(host)
                || rule.parse().is_ok_and(in_net)
                || (!rule.is_empty() && address.is_none() && is_in_domain(host, rule))
        };
        self.proxy.as_ref().filter(|_| !self.exceptions.iter().any(matches))
    }
}

fn is_in_domain(host: &str, domain: &str) -> bool {
    let start = host.len().checked_sub(domain.len());
    start.is_some_and(|start| {
        start > 0 && host.as_bytes()[start - 1] == b'.' && host[start..].eq_ignore_ascii_case(domain)
    })
}

impl FromStr for Proxy {
    type Err = InvalidProxy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = match text.split_once("://") {
            Some(("http" | "HTTP", rest)) => rest,
            Some(_) => return Err(InvalidProxy::Scheme),
            None => text,
        };
        let rest = rest.trim_end_matches('/');
        let (credentials, authority) = match rest.rsplit_once('@') {
            Some((credentials, authority)) => (Some(credentials), authority),
            None => (None, rest),
        };
        let server = HostPort::parse_with_default(authority, DEFAULT_PORT).map_err(|_| InvalidProxy::Form)?;
        let credentials = match credentials {
            Some(credentials) if credentials.contains(':') => {
                let decoded = percent_decode(credentials).ok_or(InvalidProxy::Form)?;
                Some(Arc::new(decoded))
            }
            Some(_) => return Err(InvalidProxy::Form),
            None => None,
        };
        Ok(Self { server, credentials })
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("server", &self.server).finish_non_exhaustive()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.server)
    }
}

/// Decodes `%40` and the like (RFC 3986 section 2.1).
fn percent_decode(text: &str) -> Option<Zeroizing<String>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(bytes).ok().map(Zeroizing::new)
}

/// Has a proxy connect to a server; the stream leads there afterwards.
pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    proxy: &Proxy,
    server: &HostPort,
) -> Result<(), ProxyError> {
    let mut request = Zeroizing::new(format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n"));
    if let Some(credentials) = &proxy.credentials {
        let encoded = Zeroizing::new(STANDARD.encode(credentials.as_bytes()));
        request.push_str("Proxy-Authorization: Basic ");
        request.push_str(&encoded);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let status = read_head(stream).await?;
    match status {
        200..=299 => Ok(()),
        // 407 is meant; tinyproxy says 401 to a wrong password.
        401 | 407 if proxy.credentials.is_some() => Err(ProxyError::RefusesCredentials(status)),
        401 | 407 => Err(ProxyError::WantsCredentials(status)),
        403 => Err(ProxyError::Forbidden(server.clone())),
        status => Err(ProxyError::Status(status)),
    }
}

/// Reads the head of the answer and not a byte beyond it, which would be the server's.
async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> Result<u16, ProxyError> {
    let mut head = Vec::with_capacity(512);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return Err(ProxyError::NotHttp);
        }
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(ProxyError::NotHttp),
            Err(error) => return Err(error.into()),
        }
        if head.len() == 4 && head != b"HTTP" {
            return Err(ProxyError::NotHttp);
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    response.parse(&head).map_err(|_| ProxyError::NotHttp)?;
    let status = response.code.ok_or(ProxyError::NotHttp)?;
    // An answer to CONNECT has no body; one that announces a page is the proxy's own.
    let announces_page = response.headers.iter().any(|header| {
        header.name.eq_ignore_ascii_case("content-type")
            && header.value.to_ascii_lowercase().starts_with(b"text/html")
    });
    if announces_page && (200..300).contains(&status) { Err(ProxyError::Page) } else { Ok(status) }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    async fn ask(proxy: &str, answer: &str) -> (Result<(), ProxyError>, String, Vec<u8>) {
        let (mut near, mut far) = duplex(4096);
        let (proxy, server) = (proxy.parse().unwrap(), "pi.example:443".parse().unwrap());
        far.write_all(answer.as_bytes()).await.unwrap();
        let result = connect(&mut near, &proxy, &server).await;
        let mut asked = vec![0; 4096];
        let len = far.read(&mut asked).await.unwrap();
        drop(far);
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        (result, String::from_utf8_lossy(&asked[..len]).into_owned(), rest)
    }

    #[tokio::test]
    async fn a_proxy_connects_and_nothing_of_the_server_is_lost() {
        let (result, asked, rest) =
            ask("http://u%40x:p%3Aw@proxy", "HTTP/1.1 200 OK\r\nVia: x\r\n\r\nserver").await;
        result.unwrap();
        assert_eq!(rest, b"server");
        let encoded = STANDARD.encode("u@x:p:w");
        assert_eq!(
            asked,
            format!(
                "CONNECT pi.example:443 HTTP/1.1\r\nHost: pi.example:443\r\nProxy-Authorization: Basic {encoded}\r\n\r\n"
            )
        );
        let (result, asked, _) = ask("proxy:3128", "HTTP/1.0 200 Connection established\r\n\r\n").await;
        result.unwrap();
        assert!(!asked.contains("Authorization"));
    }

    #[tokio::test]
    async fn what_a_proxy_answers_is_said_in_words() {
        for (proxy, answer, words) in [
            (
                "p",
                "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
                "asks for a user and a password (407)",
            ),
            ("http://u:p@p", "HTTP/1.1 407 No\r\n\r\n", "does not accept the user and password (407)"),
            ("p", "HTTP/1.1 403 Forbidden\r\n\r\n", "forbids the way to pi.example:443 (403)"),
            ("p", "HTTP/1.1 502 Bad Gateway\r\n\r\n", "HTTP 502"),
            ("p", "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>", "a web page of its own"),
            ("p", "SSH-2.0-OpenSSH\r\n\r\n", "not answer in HTTP"),
            ("p", "HTTP/1.1 ???\r\n\r\n", "not answer in HTTP"),
        ] {
            let (result, _, _) = ask(proxy, answer).await;
            let error = result.unwrap_err().to_string();
            assert!(error.contains(words), "{answer:?}: {error}");
            assert!(!error.contains("u:p"), "{error}");
        }
        let (mut near, mut far) = duplex(4096);
        far.write_all(b"HTTP/1.1 200 OK\r\nX: cut off").await.unwrap();
        drop(far);
        let error = read_head(&mut near).await.unwrap_err();
        assert!(matches!(error, ProxyError::NotHttp), "{error}");
    }

    #[test]
    fn proxies_are_read_and_their_passwords_not_shown() {
        let proxy: Proxy = "http://user:secret@proxy.example:3128/".parse().unwrap();
        assert_eq!(proxy.to_string(), "http://proxy.example:3128");
        assert!(!format!("{proxy:?}").contains("secret"));
        assert_eq!("proxy".parse::<Proxy>().unwrap().to_string(), "http://proxy:80");
        assert_eq!("https://proxy".parse::<Proxy>(), Err(InvalidProxy::Scheme));
        assert_eq!("socks5://proxy".parse::<Proxy>(), Err(InvalidProxy::Scheme));
        for bad in ["", "http://", "http://user@proxy", "http://a:%zz@proxy", "http://a b"] {
            assert_eq!(bad.parse::<Proxy>(), Err(InvalidProxy::Form), "{bad}");
        }
    }

    #[test]
    fn exceptions_are_names_domains_addresses_and_prefixes() {
        let exceptions =
            ["localhost", ".corp.example", "10.0.0.0/8", "192.0.2.1", ""].map(str::to_owned).to_vec();
        let rules = ProxyRules { proxy: Some("proxy".parse().unwrap()), exceptions };
        for (server, through) in [
            ("pi.example", true),
            ("localhost", false),
            ("a.corp.example", false),
            ("CORP.example", false),
            ("notcorp.example", true),
            ("10.1.2.3", false),
            ("192.0.2.1", false),
            ("192.0.2.2", true),
        ] {
            assert_eq!(rules.proxy_for(&server.parse().unwrap()).is_some(), through, "{server}");
        }
    }
}
