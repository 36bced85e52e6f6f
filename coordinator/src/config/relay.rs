//! The settings of `mesh-coordinator relay`.

use std::{ffi::OsString, net::SocketAddr};

use mesh_proto::{DEFAULT_COORDINATOR_PORT, key::KeyPin, name::NodeName, token::JoinToken};
use mesh_settings::Settings;

use super::{
    Host, Problems, RelayArgs,
    parse::{parse_host, parse_listen, parse_path, parse_rate},
    relay_limits,
};
use crate::standalone::RelayOptions;

/// Where a relay keeps its state when it is not told.
const DEFAULT_STATE_DIR: &str = "/var/lib/mesh-relay";

pub(super) fn from_sources(
    args: &RelayArgs,
    state_dir: Option<&str>,
    environment: impl Fn(&str) -> Option<OsString>,
    host: &Host<'_>,
) -> Result<RelayOptions, Problems> {
    let mut settings = Settings::new(environment, host.file)?;
    let state_dir = settings.take("state-dir", state_dir, parse_path);
    let any = SocketAddr::new(host.any, DEFAULT_COORDINATOR_PORT);
    let listen_udp = settings.take("listen-udp", args.listen_udp.as_deref(), |text| parse_listen(text, any));
    let listen_udp = listen_udp.unwrap_or(any);
    let port = match listen_udp.port() {
        0 => DEFAULT_COORDINATOR_PORT,
        port => port,
    };
    let any_tcp = SocketAddr::new(host.any, port);
    let listen_tcp =
        settings.take("listen-tcp", args.listen_tcp.as_deref(), |text| parse_listen(text, any_tcp));
    let coordinators = settings
        .take_list("coordinator", &args.coordinator, |text| parse_host(text, DEFAULT_COORDINATOR_PORT));
    settings.require("coordinator", !coordinators.is_empty());
    let mut addresses = settings.take_list("address", &args.address, |text| parse_host(text, port));
    if addresses.is_empty() {
        addresses.extend(settings.check("--address", host.name, |text| {
            parse_host(text, port).map_err(|_| "this host's name is none: give one".to_owned())
        }));
    }
    let pin = settings.take("ca-cert-hash", args.ca_cert_hash.as_deref(), parse_pin);
    settings.require("ca-cert-hash", pin.is_some());
    let token = args.token.as_ref().map(|secret| secret.reveal());
    let token = settings.take("token", token, parse_token);
    let name = settings.take("name", args.name.as_deref(), parse_name).or_else(|| {
        let label = host.name.split('.').next().unwrap_or_default().to_ascii_lowercase();
        settings.check("--name", &label, |label| {
            parse_name(label).map_err(|_| "this host's name is no node name: give one".to_owned())
        })
    });
    let relay_rate = settings.take("relay-rate", args.relay_rate.as_deref(), parse_rate);
    settings.finish()?;
    Ok(RelayOptions {
        state_dir: state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
        listen_udp,
        listen_tcp: listen_tcp.unwrap_or(any_tcp),
        addresses,
        coordinators,
        pin: pin.expect("a pin that is missing was reported"),
        name: name.expect("a name that is missing was reported"),
        token,
        limits: relay_limits(relay_rate),
    })
}

fn parse_pin(text: &str) -> Result<KeyPin, String> {
    text.parse().map_err(|error: mesh_proto::key::ParseKeyError| error.to_string())
}

fn parse_token(text: &str) -> Result<JoinToken, String> {
    text.parse().map_err(|error: mesh_proto::token::InvalidToken| error.to_string())
}

fn parse_name(text: &str) -> Result<NodeName, String> {
    text.parse().map_err(|error: mesh_proto::name::InvalidName| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn resolve(args: &RelayArgs, file: &str) -> Result<RelayOptions, Problems> {
        let host = Host {
            name: "Edge.example",
            any: std::net::Ipv6Addr::UNSPECIFIED.into(),
            file,
            credentials: None,
        };
        from_sources(args, None, |_| None, &host)
    }

    #[test]
    fn the_host_name_serves_as_name_and_address() {
        let file = format!("coordinator = 'pi.example'\nca-cert-hash = '{PIN}'\nlisten-udp = 9000");
        let options = resolve(&RelayArgs::default(), &file).unwrap();
        assert_eq!(options.coordinators, ["pi.example:7443"]);
        assert_eq!(options.addresses, ["Edge.example:9000"]);
        assert_eq!(options.listen_tcp.to_string(), "[::]:9000", "where nodes look for it");
        assert_eq!(options.name.as_str(), "edge");
        assert_eq!(options.pin.to_string(), PIN);
        assert!(options.token.is_none());
    }

    #[test]
    fn what_is_missing_or_wrong_is_reported_at_once() {
        let args = RelayArgs { token: Some("not a token".parse().unwrap()), ..RelayArgs::default() };
        let Problems(problems) = resolve(&args, "ca-cert-hash = 'md5:00'\nmetrics = 'off'").unwrap_err();
        let settings: Vec<_> = problems.iter().map(|problem| problem.setting.as_str()).collect();
        assert_eq!(settings, ["--coordinator", "ca-cert-hash", "--token", "metrics"]);
        assert!(!format!("{args:?}{problems:?}").contains("not a token"), "secrets are not shown");
    }
}
