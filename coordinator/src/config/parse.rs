//! Texts of settings to types; what is wrong with them is a clause for people.

use std::{net::SocketAddr, path::PathBuf};

use ipnet::{IpNet, Ipv4Net};

/// Longest host name (RFC 1035, section 2.3.4).
const MAX_HOST_LEN: usize = 253;

/// The lowest rate that can be set for a relay's clients, in bytes per second: one packet must fit.
const MIN_RELAY_RATE: u64 = 10_000;

pub(super) fn parse_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("a path is not empty".to_owned()) } else { Ok(text.into()) }
}

/// An address with a port, or either alone.
pub(super) fn parse_listen(text: &str, any: SocketAddr) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(SocketAddr::new(address, any.port()));
    }
    text.trim_start_matches(':')
        .parse()
        .map(|port| SocketAddr::new(any.ip(), port))
        .map_err(|_| format!("{text:?} is neither ADDRESS:PORT nor an address or a port"))
}

/// An address with a port, or `off`.
pub(super) fn parse_metrics(text: &str) -> Result<Option<SocketAddr>, String> {
    match text {
        "off" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| format!("{text:?} is neither ADDRESS:PORT nor off")),
    }
}

pub(super) fn parse_range(text: &str) -> Result<Ipv4Net, String> {
    text.parse().map_err(|_| format!("{text:?} is no IPv4 range such as 10.90.0.0/16"))
}

pub(super) fn parse_prefix(text: &str) -> Result<IpNet, String> {
    let prefix = text.parse::<IpNet>().map_err(|_| format!("{text:?} is no range such as 10.244.0.0/16"))?;
    Ok(prefix.trunc())
}

pub(super) fn parse_rate(text: &str) -> Result<u64, String> {
    let rate = text.parse().ok().filter(|rate| *rate >= MIN_RELAY_RATE);
    rate.ok_or_else(|| format!("{text:?} is no number of bytes per second from {MIN_RELAY_RATE} on"))
}

/// Completes `HOST` or `HOST:PORT`, where HOST may be an address, to `host:port`.
pub(super) fn parse_host(text: &str, default_port: u16) -> Result<String, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address.to_string());
    }
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(SocketAddr::new(address, default_port).to_string());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => {
            let port = port.parse().ok().filter(|port: &u16| *port > 0);
            (host, port.ok_or_else(|| format!("{text:?}: the port is no number from 1 to 65535"))?)
        }
        None => (text, default_port),
    };
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if host.len() > MAX_HOST_LEN || !host.trim_end_matches('.').split('.').all(label) {
        return Err(format!("{text:?} is neither a host name nor an address"));
    }
    Ok(format!("{host}:{port}"))
}
