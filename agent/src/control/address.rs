//! Names and addresses of coordinators and relays.
//!
//! Names are resolved by [`mesh_names`]. An answer inside the mesh's own ranges is refused: the control connection must never
//! run through the tunnel that it builds.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use futures_util::future::join_all;
use ipnet::IpNet;
use mesh_proto::{DEFAULT_COORDINATOR_PORT, nat64::Nat64Prefix};

use mesh_names::NameError;

/// Addresses of one name that are used; what goes beyond is cut.
const MAX_ADDRESSES: usize = 8;

/// A host, by name or address, and a port. Its text form is `host:port`, with an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// Why a text is not `host[:port]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form host or host:port")]
pub struct InvalidHostPort(String);

/// Why a name leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It does not resolve.
    #[error("the name does not resolve: {0}")]
    Name(#[from] NameError),
    /// It resolves to addresses that are refused.
    #[error("the name resolves to no address outside the mesh")]
    NoAddress,
}

/// What a name resolved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where it leads.
    pub(crate) addresses: Vec<SocketAddr>,
    /// How long that holds.
    pub(crate) ttl: Duration,
}

/// What names resolved to.
pub(crate) type Resolved = BTreeMap<HostPort, Vec<SocketAddr>>;

impl FromStr for HostPort {
    type Err = InvalidHostPort;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse_with_default(text, DEFAULT_COORDINATOR_PORT)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse::<Ipv6Addr>() {
            Ok(address) => write!(f, "[{address}]:{}", self.port),
            Err(_) => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl HostPort {
    /// Reads a host and a port, which may be missing.
    pub(crate) fn parse_with_default(text: &str, default: u16) -> Result<Self, InvalidHostPort> {
        let invalid = || InvalidHostPort(text.to_owned());
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self { host: address.to_string(), port: default });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| invalid())?),
            None => (text, default),
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if host.is_empty() || port == 0 || !host.bytes().all(plain) {
            return Err(invalid());
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// Returns the name or address.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the same host with another port.
    pub(super) fn with_port(&self, port: u16) -> Self {
        Self { host: self.host.clone(), port }
    }

    /// Reads a list, leaving out what is not understood and what comes twice.
    pub(crate) fn parse_all<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<Self> {
        let mut parsed = Vec::new();
        for host in texts.into_iter().filter_map(|text| text.parse().ok()) {
            if !parsed.contains(&host) {
                parsed.push(host);
            }
        }
        parsed
    }

    /// Returns the address, if it is one and not a name.
    pub(super) fn literal(&self) -> Option<SocketAddr> {
        self.host.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, self.port))
    }

    /// Resolves the name, outside the ranges of the mesh.
    pub(crate) async fn resolve(&self, mesh: &[IpNet]) -> Result<Found, ResolveError> {
        let (found, ttl) = match self.host.parse() {
            Ok(ip) => (vec![ip], Duration::MAX),
            Err(_) => {
                let answer = mesh_names::lookup(&self.host, mesh).await?;
                (answer.addresses, answer.ttl)
            }
        };
        let mut addresses = Vec::new();
        for ip in found {
            let address = SocketAddr::new(ip.to_canonical(), self.port);
            if is_usable(address, mesh) && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses.truncate(MAX_ADDRESSES);
        if addresses.is_empty() { Err(ResolveError::NoAddress) } else { Ok(Found { addresses, ttl }) }
    }
}

/// Resolves several names at once; those that lead nowhere are left out.
pub(crate) async fn resolve_all(names: Vec<HostPort>, mesh: Vec<IpNet>) -> Resolved {
    let lookups = names.into_iter().map(|name| {
        let mesh = &mesh;
        async move {
            let found = name.resolve(mesh).await.ok()?;
            Some((name, found.addresses))
        }
    });
    join_all(lookups).await.into_iter().flatten().collect()
}

/// Returns an address and where it is besides: an IPv4 address also behind each of these prefixes, unless it is of a local
/// network.
pub(super) fn everywhere(address: SocketAddr, prefixes: &[Nat64Prefix]) -> impl Iterator<Item = SocketAddr> {
    let prefixes = if is_public(address.ip()) { prefixes } else { &[] };
    let behind = prefixes.iter().filter_map(move |prefix| prefix.embed_endpoint(address));
    std::iter::once(address).chain(behind)
}

/// Returns whether an address can be that of something on the underlay.
pub(super) fn is_usable(address: SocketAddr, mesh: &[IpNet]) -> bool {
    let ip = address.ip();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    address.port() != 0
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && !broadcast
        && !mesh.iter().any(|range| range.contains(&ip))
}

/// Returns whether an address means the same host everywhere.
pub(crate) fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            // RFC 6598: addresses behind a carrier's NAT.
            let shared = a == 100 && (64..128).contains(&b);
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || shared)
        }
        IpAddr::V6(v6) => {
            !(v6.is_unique_local() || v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_read_in_every_form() {
        for (text, want) in [
            ("pi.example", "pi.example:7443"),
            ("pi.example:9", "pi.example:9"),
            ("192.0.2.1", "192.0.2.1:7443"),
            ("192.0.2.1:9", "192.0.2.1:9"),
            ("2001:db8::1", "[2001:db8::1]:7443"),
            ("[2001:db8::1]", "[2001:db8::1]:7443"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
        ] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), want);
        }
        for bad in ["", ":9", "pi:", "pi:0", "pi:65536", "a b:1", "https://pi", "pi/x", "a:1:2"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn an_answer_inside_the_mesh_is_refused() {
        let mesh = ["10.90.0.0/16".parse().unwrap()];
        let inside: HostPort = "10.90.0.1:7443".parse().unwrap();
        assert!(matches!(inside.resolve(&mesh).await, Err(ResolveError::NoAddress)));
        let outside: HostPort = "10.91.0.1:7443".parse().unwrap();
        assert_eq!(outside.resolve(&mesh).await.unwrap().addresses, ["10.91.0.1:7443".parse().unwrap()]);
    }

    #[tokio::test]
    async fn an_unknown_name_is_an_error() {
        let unknown: HostPort = "no-such-host.invalid".parse().unwrap();
        assert!(unknown.resolve(&[]).await.is_err());
    }

    #[test]
    fn private_addresses_are_not_public() {
        for private in
            ["192.168.1.1", "10.0.0.1", "127.0.0.1", "100.64.0.1", "169.254.1.1", "fd00::1", "fe80::1", "::1"]
        {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["203.0.113.1", "100.128.0.1", "2001:db8::1"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }
}
