//! UPnP Internet Gateway Devices, versions 1 and 2: found by SSDP, described in XML, asked by SOAP over HTTP.
//!
//! ```text
//! M-SEARCH to the router and to all UPnP devices -> its answer names a description -> services that map ports
//!   -> the first that has an external address is asked for mappings
//! ```
//!
//! All that a device says of where to go next is reduced to a port and a path on the router's own address: nothing that
//! is written in an answer makes this host connect to another one.

mod description;
mod http;
mod soap;
mod ssdp;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use super::{
    policy::{Failure, Grant, Held, LIFETIME, Standing},
    router::Router,
};
use soap::{Action, Fault, SoapError};

/// What is shown in the router's list of mappings.
const DESCRIPTION: &str = "mesh-agent";
/// Services of one router that are asked for their external address.
const MAX_SERVICES: usize = 4;

/// A place on the router; the address is always the router's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    port: u16,
    /// Path and query.
    path: String,
}

/// A service of the router that maps ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    /// `urn:schemas-upnp-org:service:WANIPConnection:1` and the like.
    kind: &'static str,
    control: Target,
}

/// An address that is not on the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an address on the router")]
struct Elsewhere;

/// Finds the router's service.
pub(super) async fn find(router: Router) -> Result<Service, Failure> {
    let places = ssdp::search(router).await?;
    let mut failure = Failure::Garbage;
    for place in places {
        let text = match http::get(router, &place).await {
            Ok(text) => text,
            Err(error) => {
                failure = error;
                continue;
            }
        };
        let services = match description::services(&text, router.gateway, &place) {
            Ok(services) => services,
            Err(error) => {
                tracing::debug!(%error, "UPnP description");
                continue;
            }
        };
        for service in services.into_iter().take(MAX_SERVICES) {
            match external_address(router, &service).await {
                Ok(_) => return Ok(service),
                Err(error) => failure = error,
            }
        }
    }
    Err(failure)
}

/// Asks for a mapping of `port` to `internal_port`.
pub(super) async fn map(
    router: Router,
    service: &Service,
    internal_port: u16,
    port: u16,
) -> Result<Grant, Failure> {
    let add = |lease: Duration| Action::AddPortMapping {
        external_port: port,
        internal_port,
        client: router.local,
        description: DESCRIPTION,
        lease,
    };
    match call(router, service, &add(LIFETIME)).await {
        // Renewed all the same, and removed in the end.
        Err(CallError::Fault(Fault::OnlyPermanentLeases)) => {
            call(router, service, &add(Duration::ZERO)).await?;
        }
        outcome => drop(outcome?),
    }
    let address = external_address(router, service).await?;
    Ok(Grant { external: SocketAddrV4::new(address, port), lifetime: LIFETIME, epoch: None })
}

/// Asks whether a mapping is still there, and still leads here.
pub(super) async fn check(router: Router, service: &Service, held: &Held) -> Result<Standing, Failure> {
    let get = Action::GetSpecificPortMappingEntry { external_port: held.external.port() };
    let answer = match call(router, service, &get).await {
        Err(CallError::Fault(Fault::NoSuchEntry)) => return Err(Failure::Gone),
        answer => answer?,
    };
    let is_ours = answer.get("NewInternalClient").is_some_and(|client| client.parse() == Ok(router.local))
        && answer.get("NewInternalPort").is_some_and(|port| port.parse() == Ok(held.internal_port));
    if !is_ours {
        return Err(Failure::Gone);
    }
    let address = external_address(router, service).await?;
    Ok(Standing { epoch: None, address: Some(address) })
}

/// Removes a mapping, if it leads here.
pub(super) async fn remove(router: Router, service: &Service, external_port: u16) -> Result<(), Failure> {
    let delete = Action::DeletePortMapping { external_port };
    match call(router, service, &delete).await {
        Err(CallError::Fault(Fault::NoSuchEntry)) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

async fn external_address(router: Router, service: &Service) -> Result<Ipv4Addr, Failure> {
    let answer = call(router, service, &Action::GetExternalIpAddress).await?;
    let address = answer.get("NewExternalIPAddress").and_then(|text| text.parse::<Ipv4Addr>().ok());
    // A line that is down has none, or 0.0.0.0.
    address.filter(|address| !address.is_unspecified()).ok_or(Failure::Refused)
}

/// Why a call came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallError {
    Fault(Fault),
    Failed(Failure),
}

async fn call(router: Router, service: &Service, action: &Action<'_>) -> Result<soap::Answer, CallError> {
    let text = http::post(router, &service.control, &action.header(service.kind), action.body(service.kind))
        .await
        .map_err(CallError::Failed)?;
    soap::read(&text, action.name()).map_err(|error| {
        tracing::debug!(%error, action = action.name(), "UPnP");
        match error {
            SoapError::Fault(fault) => CallError::Fault(fault),
            SoapError::Xml(_) | SoapError::Unrelated => CallError::Failed(Failure::Garbage),
        }
    })
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Fault(Fault::Conflict) => Self::Conflict,
            CallError::Fault(Fault::NoSuchEntry) => Self::Gone,
            CallError::Fault(Fault::OnlyPermanentLeases | Fault::Other(_)) => Self::Refused,
            CallError::Failed(failure) => failure,
        }
    }
}

impl Target {
    /// Reads an absolute `http` URL whose host is the router's address in digits.
    fn parse(url: &str, gateway: Ipv4Addr) -> Result<Self, Elsewhere> {
        let rest = url.trim().strip_prefix("http://").ok_or(Elsewhere)?;
        let (authority, path) = match rest.find(['/', '?', '#']) {
            Some(end) => rest.split_at(end),
            None => (rest, "/"),
        };
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| Elsewhere)?),
            None => (authority, 80),
        };
        if host.parse() != Ok(gateway) || port == 0 {
            return Err(Elsewhere);
        }
        Self::at(port, path)
    }

    /// Reads a URL that may be relative to this one.
    fn join(&self, url: &str, gateway: Ipv4Addr) -> Result<Self, Elsewhere> {
        let url = url.trim();
        if url.starts_with("//") {
            return Err(Elsewhere);
        }
        if url.starts_with('/') {
            return Self::at(self.port, url);
        }
        if url.contains("://") {
            return Self::parse(url, gateway);
        }
        let (directory, _) = self.path.rsplit_once('/').unwrap_or_default();
        Self::at(self.port, &format!("{directory}/{url}"))
    }

    /// Takes nothing that would end a request's line.
    fn at(port: u16, path: &str) -> Result<Self, Elsewhere> {
        let path = path.split('#').next().unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        if path.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self { port, path })
        } else {
            Err(Elsewhere)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

    fn target(port: u16, path: &str) -> Result<Target, Elsewhere> {
        Ok(Target { port, path: path.to_owned() })
    }

    #[test]
    fn only_the_router_itself_is_a_target() {
        let parse = |url| Target::parse(url, GATEWAY);
        assert_eq!(parse("http://192.168.1.1:5000/rootDesc.xml"), target(5000, "/rootDesc.xml"));
        assert_eq!(parse("http://192.168.1.1"), target(80, "/"));
        assert_eq!(parse("http://192.168.1.1?x=1#y"), target(80, "/?x=1"));
        for url in [
            "http://192.168.1.2:5000/",
            "http://203.0.113.1/",
            "http://127.0.0.1/",
            "http://localhost/",
            "http://router.example/",
            "http://192.168.1.1@203.0.113.1/",
            "http://203.0.113.1@192.168.1.1/",
            "http://192.168.1.1:80:80/",
            "http://192.168.1.1:0/",
            "http://192.168.1.1:99999/",
            "http://3232235777/",
            "https://192.168.1.1/",
            "file:///etc/passwd",
            "gopher://192.168.1.1/",
            "http://192.168.1.1/a b",
            "http://192.168.1.1/a\r\nX: y",
            "",
        ] {
            assert_eq!(parse(url), Err(Elsewhere), "{url}");
        }
    }

    #[test]
    fn what_is_relative_stays_on_the_router() {
        let base = Target { port: 5000, path: "/upnp/root.xml".to_owned() };
        let join = |url| base.join(url, GATEWAY);
        assert_eq!(join("/ctl/IPConn"), target(5000, "/ctl/IPConn"));
        assert_eq!(join("ctl?a=http"), target(5000, "/upnp/ctl?a=http"));
        assert_eq!(join("http://192.168.1.1:49152/x"), target(49152, "/x"));
        assert_eq!(join("http://203.0.113.1/x"), Err(Elsewhere));
        assert_eq!(join("//203.0.113.1/x"), Err(Elsewhere));
        assert_eq!(join("@203.0.113.1/x"), target(5000, "/upnp/@203.0.113.1/x"));
    }
}
