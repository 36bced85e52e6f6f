//! What `mesh-coordinator` is told: flags, environment variables and a TOML file, in this order of precedence.
//!
//! Every flag of `mesh-coordinator serve` has a key in the file (`--listen-udp`: `listen-udp`) and an
//! environment variable (`MESH_LISTEN_UDP`). Values are parsed into types here and nowhere else, and everything
//! that is wrong is reported at once.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
};

use anyhow::Context;
use ipnet::Ipv4Net;
use mesh_proto::DEFAULT_COORDINATOR_PORT;

use crate::{cli::ServeArgs, limit::Rate, registry::MeshOptions, relay::Limits, serve::ServeOptions};

mod settings;

use self::settings::Settings;
pub use self::settings::{Problem, Problems};

/// Where the coordinator keeps its state when it is not told.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/mesh-coordinator";

/// Where metrics are shown when it is not told.
const DEFAULT_METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9743);

/// The range of IPv4 mesh addresses: private, and not where carriers put their NATs (RFC 6598).
const DEFAULT_IPV4_RANGE: &str = "10.90.0.0/16";

/// Longest host name (RFC 1035, section 2.3.4).
const MAX_HOST_LEN: usize = 253;

/// The lowest rate that can be set for a relay's clients, in bytes per second: one packet must fit.
const MIN_RELAY_RATE: u64 = 10_000;

/// Resolves flags, environment and file to what `serve` needs.
///
/// # Errors
/// Everything that is wrong, at once; also when the file cannot be read.
pub fn resolve(args: &ServeArgs, state_dir: Option<&str>) -> anyhow::Result<ServeOptions> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let file = read_file(args.config.as_deref())?;
    Ok(from_sources(args, state_dir, environment, &Host { name: &host, any: any_address(), file: &file })?)
}

/// Resolves the state directory of commands that have no file.
///
/// # Errors
/// When it is empty or not UTF-8.
pub fn resolve_state_dir(flag: Option<&str>) -> Result<PathBuf, Problems> {
    let mut settings = Settings::new(environment, "")?;
    let state_dir = settings.take("state-dir", flag, parse_path);
    settings.finish()?;
    Ok(state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()))
}

/// What this host contributes.
struct Host<'a> {
    name: &'a str,
    /// What stands for all its addresses.
    any: IpAddr,
    /// The text of the configuration file.
    file: &'a str,
}

fn from_sources(
    args: &ServeArgs,
    state_dir: Option<&str>,
    environment: impl Fn(&str) -> Option<OsString>,
    host: &Host<'_>,
) -> Result<ServeOptions, Problems> {
    let mut settings = Settings::new(environment, host.file)?;
    let state_dir = settings.take("state-dir", state_dir, parse_path);
    let any = SocketAddr::new(host.any, DEFAULT_COORDINATOR_PORT);
    let parse_listen = |text: &str| parse_listen(text, any);
    let listen_udp = settings.take("listen-udp", args.listen_udp.as_deref(), parse_listen);
    let listen_tcp = settings.take("listen-tcp", args.listen_tcp.as_deref(), parse_listen);
    let metrics = settings.take("metrics", args.metrics.as_deref(), parse_metrics);
    let ipv4 = settings.take("ipv4-range", args.ipv4_range.as_deref(), parse_range);
    let relay_rate = settings.take("relay-rate", args.relay_rate.as_deref(), parse_rate);
    let listen_udp = listen_udp.unwrap_or(any);
    let port = match listen_udp.port() {
        0 => DEFAULT_COORDINATOR_PORT,
        port => port,
    };
    let mut coordinators = settings.take_list("name", &args.name, |text| parse_host(text, port));
    if coordinators.is_empty() {
        coordinators.extend(settings.check("--name", host.name, |text| {
            parse_host(text, port).map_err(|_| "this host's name is none: give one".to_owned())
        }));
    }
    let default_range = settings.check("ipv4-range", DEFAULT_IPV4_RANGE, parse_range);
    settings.finish()?;
    let relay_name = coordinators.first().map(|name| relay_name(name)).unwrap_or_default();
    let mut relay = Limits::default();
    if let Some(per_second) = relay_rate {
        relay.client_rate = Rate { per_second, ..relay.client_rate };
    }
    Ok(ServeOptions {
        state_dir: state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
        listen_udp,
        listen_tcp: listen_tcp.unwrap_or(any),
        metrics: metrics.unwrap_or(Some(DEFAULT_METRICS)),
        mesh: MeshOptions {
            ipv4: ipv4.or(default_range).expect("the default range is a range"),
            coordinators,
            relay_name,
        },
        relay,
    })
}

/// Returns the address that stands for all of this host's: of both families, unless it has no IPv6.
fn any_address() -> IpAddr {
    match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(_) => Ipv6Addr::UNSPECIFIED.into(),
        Err(_) => Ipv4Addr::UNSPECIFIED.into(),
    }
}

fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

fn read_file(path: Option<&Path>) -> anyhow::Result<String> {
    path.map_or_else(
        || Ok(String::new()),
        |path| {
            std::fs::read_to_string(path)
                .with_context(|| format!("cannot read config file {}", path.display()))
        },
    )
}

fn parse_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("a path is not empty".to_owned()) } else { Ok(text.into()) }
}

/// An address with a port, or either alone.
fn parse_listen(text: &str, any: SocketAddr) -> Result<SocketAddr, String> {
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
fn parse_metrics(text: &str) -> Result<Option<SocketAddr>, String> {
    match text {
        "off" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| format!("{text:?} is neither ADDRESS:PORT nor off")),
    }
}

fn parse_range(text: &str) -> Result<Ipv4Net, String> {
    text.parse().map_err(|_| format!("{text:?} is no IPv4 range such as {DEFAULT_IPV4_RANGE}"))
}

fn parse_rate(text: &str) -> Result<u64, String> {
    let rate = text.parse().ok().filter(|rate| *rate >= MIN_RELAY_RATE);
    rate.ok_or_else(|| format!("{text:?} is no number of bytes per second from {MIN_RELAY_RATE} on"))
}

/// Completes `HOST` or `HOST:PORT`, where HOST may be an address, to `host:port`.
fn parse_host(text: &str, default_port: u16) -> Result<String, String> {
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

/// The relay is called as the coordinator: by the first label of a name, or the whole of an address.
fn relay_name(coordinator: &str) -> String {
    match coordinator.parse::<SocketAddr>() {
        Ok(address) => address.ip().to_string(),
        Err(_) => coordinator.split(['.', ':']).next().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(args: &ServeArgs, environment: &[(&str, &str)], file: &str) -> Result<ServeOptions, Problems> {
        let environment = |name: &str| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(*value))
        };
        from_sources(args, None, environment, &Host { name: "pi", any: Ipv6Addr::UNSPECIFIED.into(), file })
    }

    #[test]
    fn defaults_need_no_settings() {
        let options = resolve(&ServeArgs::default(), &[], "").unwrap();
        assert_eq!(options.state_dir, Path::new(DEFAULT_STATE_DIR));
        assert_eq!(options.listen_udp.to_string(), "[::]:7443");
        assert_eq!(options.listen_tcp.to_string(), "[::]:7443");
        assert_eq!(options.metrics.unwrap().to_string(), "127.0.0.1:9743");
        assert_eq!(options.mesh.coordinators, ["pi:7443"]);
        assert_eq!(options.mesh.ipv4.to_string(), DEFAULT_IPV4_RANGE);
    }

    #[test]
    fn flags_win_over_environment_and_environment_over_the_file() {
        let args = ServeArgs { listen_udp: Some("127.0.0.1:1".to_owned()), ..ServeArgs::default() };
        let environment = [
            ("MESH_LISTEN_UDP", "127.0.0.1:2"),
            ("MESH_LISTEN_TCP", "2"),
            ("MESH_NAME", "a.example, b.example:9"),
        ];
        let file = "listen-udp = '127.0.0.1:3'\nlisten-tcp = 3\nmetrics = 'off'\nname = 'c'";
        let options = resolve(&args, &environment, file).unwrap();
        assert_eq!(options.listen_udp.to_string(), "127.0.0.1:1");
        assert_eq!(options.listen_tcp.to_string(), "[::]:2");
        assert_eq!(options.metrics, None);
        assert_eq!(
            options.mesh.coordinators,
            ["a.example:1", "b.example:9"],
            "the port is the one listened on"
        );
        assert_eq!(options.mesh.relay_name, "a");
        let options = resolve(&ServeArgs::default(), &[], "name = ['192.0.2.1', '2001:db8::1']").unwrap();
        assert_eq!(options.mesh.coordinators, ["192.0.2.1:7443", "[2001:db8::1]:7443"]);
    }

    #[test]
    fn everything_that_is_wrong_is_reported_at_once() {
        let args = ServeArgs { name: vec!["a b".to_owned(), "x:0".to_owned()], ..ServeArgs::default() };
        let environment = [("MESH_LISTEN_TCP", "nowhere"), ("MESH_RELAY_RATE", "1")];
        let file = "metrics = true\nipv4-range = '10.0.0.0'\nport = 1";
        let Problems(problems) = resolve(&args, &environment, file).unwrap_err();
        let settings: Vec<_> = problems.iter().map(|problem| problem.setting.as_str()).collect();
        assert_eq!(
            settings,
            ["MESH_LISTEN_TCP", "metrics", "ipv4-range", "MESH_RELAY_RATE", "--name", "--name", "port"]
        );
        let text = Problems(problems.clone()).to_string();
        assert_eq!(text.lines().count(), settings.len(), "{text}");
    }

    #[test]
    fn a_file_that_is_no_toml_is_refused() {
        assert!(resolve(&ServeArgs::default(), &[], "name = ").is_err());
    }
}
