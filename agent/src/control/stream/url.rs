//! Where a WebSocket is.

use std::{fmt, str::FromStr};

use mesh_proto::stream::PATH;

use crate::control::address::HostPort;

/// Port of HTTPS.
const HTTPS_PORT: u16 = 443;

/// The URL of a coordinator's WebSocket: `wss://HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WebSocketUrl {
    /// The server.
    pub(super) server: HostPort,
    /// The path, from its `/` on.
    pub(super) path: String,
}

/// Why a text is not the URL of a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form wss://HOST[:PORT][/PATH]")]
pub struct InvalidUrl(String);

impl WebSocketUrl {
    /// Returns where a coordinator's WebSocket may be: on its own port, and where a web server hands it on.
    pub(super) fn of_coordinator(name: &HostPort) -> impl Iterator<Item = Self> {
        let at = |port| Self { server: name.with_port(port), path: PATH.to_owned() };
        let elsewhere = (name.port() != HTTPS_PORT).then(|| at(HTTPS_PORT));
        std::iter::once(at(name.port())).chain(elsewhere)
    }
}

impl FromStr for WebSocketUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidUrl(text.to_owned());
        let rest = text.strip_prefix("wss://").ok_or_else(invalid)?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, PATH),
        };
        // What a request line must not have in it (RFC 3986), and what a server never sees.
        if path.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'#') {
            return Err(invalid());
        }
        let server = HostPort::parse_with_default(authority, HTTPS_PORT).map_err(|_| invalid())?;
        Ok(Self { server, path: path.to_owned() })
    }
}

impl fmt::Display for WebSocketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wss://{}{}", self.server, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_completed() {
        for (text, whole) in [
            ("wss://pi.example", "wss://pi.example:443/mesh"),
            ("wss://pi.example:7443/mesh", "wss://pi.example:7443/mesh"),
            ("wss://192.0.2.1/a/b?c=d", "wss://192.0.2.1:443/a/b?c=d"),
            ("wss://[2001:db8::1]:9/", "wss://[2001:db8::1]:9/"),
        ] {
            assert_eq!(text.parse::<WebSocketUrl>().unwrap().to_string(), whole);
        }
        for bad in [
            "",
            "https://pi",
            "wss://",
            "wss:///mesh",
            "wss://a b/",
            "wss://pi/a b",
            "wss://pi:0/",
            "wss://u@pi/",
        ] {
            assert!(bad.parse::<WebSocketUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_coordinator_is_looked_for_on_its_port_and_behind_a_web_server() {
        let urls = |name: &str| -> Vec<String> {
            WebSocketUrl::of_coordinator(&name.parse().unwrap()).map(|url| url.to_string()).collect()
        };
        assert_eq!(urls("pi.example"), ["wss://pi.example:7443/mesh", "wss://pi.example:443/mesh"]);
        assert_eq!(urls("pi.example:443"), ["wss://pi.example:443/mesh"]);
    }
}
