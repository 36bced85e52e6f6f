//! What `mesh-agent` is told: flags, environment variables and a TOML file, in this order of precedence.
//!
//! Every flag of `mesh-agent run` has a key in the file (`--listen-port`: `listen-port`) and an environment
//! variable (`MESH_LISTEN_PORT`). Values are parsed into types here and nowhere else, and everything that is
//! wrong is reported at once.

mod cli;
mod kubernetes;
mod punch;
mod shards;
mod stream;

use std::{ffi::OsString, net::SocketAddr, num::NonZeroU32, path::PathBuf};

use ipnet::IpNet;
use mesh_engine::config::PunchLimits;
use mesh_proto::{
    DEFAULT_AGENT_PORT, DEFAULT_COORDINATOR_PORT,
    key::KeyPin,
    name::NodeName,
    route::{MAX_ROUTES, check_routable},
    token::{InvalidToken, JoinToken},
};
pub use mesh_settings::{Problem, Problems};
use mesh_settings::{Settings, environment, read_file};

use crate::{
    control::{HostPort, JoinRight, StreamOptions},
    io::offload::{InvalidOffloads, Offloads},
    kubernetes::KubernetesConfig,
    nat64,
    netcheck::PortalUrl,
    portmap,
};

pub use cli::{AgentCli, AgentCommand, JoinArgs, RunArgs};
pub use kubernetes::KubernetesArgs;

/// Where an agent keeps its keys and its last good network map when it is not told.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/mesh-agent";
/// Where an agent's local API listens when it is not told.
pub const DEFAULT_SOCKET: &str = "/run/mesh-agent/agent.sock";
/// The TUN interface when none is named.
pub const DEFAULT_INTERFACE: &str = "mesh0";
/// The interface's MTU when none is given, and the largest: a full packet fits into 1,500 bytes outside, over IPv6
/// (48 bytes of headers) and WireGuard (32), or over IPv4 (28) through a relay (16).
pub const DEFAULT_MTU: u16 = 1420;
/// The smallest MTU of the interface: IPv6's, and what every path is taken to carry.
pub const MIN_MTU: u16 = 1280;
/// Longest interface name (IFNAMSIZ less its end).
const MAX_INTERFACE_LEN: usize = 15;

/// The port of STUN (RFC 8489, section 8.5).
const STUN_PORT: u16 = 3478;
/// STUN servers that are asked; two elsewhere tell all that can be told.
const MAX_STUN: usize = 4;

/// What `mesh-agent run` does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunConfig {
    /// Where keys and the last good network map are.
    pub state_dir: PathBuf,
    /// Where the local API listens.
    pub socket: PathBuf,
    /// The TUN interface.
    pub interface: String,
    /// The UDP port of WireGuard; 0 for any.
    pub listen_port: u16,
    /// What the kernel may do for whole trains of packets.
    pub offloads: Offloads,
    /// How many engines share the peers, each with a thread of its own.
    pub shards: NonZeroU32,
    /// Whether this node relays between its peers.
    pub relay: bool,
    /// The interface's MTU.
    pub mtu: u16,
    /// How byte pipes are made, where UDP is blocked.
    pub stream: StreamOptions,
    /// What may be done to get through hard pairs of NATs.
    pub punch: PunchLimits,
    /// Whether the router is asked for a mapping of the port.
    pub port_mapping: portmap::Mode,
    /// How IPv4 is reached from a network without it.
    pub nat64: nat64::Mode,
    /// Servers elsewhere that answer STUN.
    pub stun: Vec<HostPort>,
    /// Networks beside this node that are offered to the mesh.
    pub advertise: Vec<IpNet>,
    /// What captive portals are told by, beside the coordinator's own answer.
    pub portal_url: Option<PortalUrl>,
    /// What this node does for a Kubernetes cluster, if anything.
    pub kubernetes: Option<KubernetesConfig>,
}

/// By which variable a pod is told the name of its Node.
const NODE_NAME: &str = "MESH_KUBERNETES_NODE_NAME";

/// What `mesh-agent join` does.
#[derive(Debug, Clone)]
pub struct JoinConfig {
    /// Where keys and the membership go.
    pub state_dir: PathBuf,
    /// The coordinator, `host:port`.
    pub coordinators: Vec<String>,
    /// The right to join, or why the text given for it is none: to be reported like a token that is refused.
    pub right: Result<JoinRight, InvalidToken>,
    /// The pin of the coordinator's key.
    pub pin: KeyPin,
    /// This node's name.
    pub name: NodeName,
    /// How byte pipes are made, where UDP is blocked.
    pub stream: StreamOptions,
    /// How IPv4 is reached from a network without it.
    pub nat64: nat64::Mode,
}

impl RunConfig {
    /// Resolves flags, environment and file.
    ///
    /// # Errors
    /// Everything that is wrong, at once; also when the file cannot be read.
    pub fn resolve(args: &RunArgs) -> anyhow::Result<Self> {
        Ok(Self::from_sources(args, environment, &read_file(args.config.as_deref())?)?)
    }

    fn from_sources(
        args: &RunArgs,
        environment: impl Fn(&str) -> Option<OsString>,
        file: &str,
    ) -> Result<Self, Problems> {
        let mut settings = Settings::new(environment, file)?.with_table("kubernetes");
        let state_dir = settings.take("state-dir", args.state_dir.as_deref(), parse_path);
        let socket = settings.take("socket", args.socket.as_deref(), parse_path);
        let interface = settings.take("interface", args.interface.as_deref(), parse_interface);
        let listen_port = settings.take("listen-port", args.listen_port.as_deref(), parse_port);
        let offloads = settings.take("offloads", args.offloads.as_deref(), parse_offloads);
        let shards = settings.take("shards", args.shards.as_deref(), shards::parse);
        let mtu = settings.take("mtu", args.mtu.as_deref(), parse_mtu);
        let stream = stream::take(&mut settings, args.proxy.as_ref(), args.websocket_url.as_deref());
        let punch = punch::take(&mut settings, args);
        let port_mapping = settings.take("port-mapping", args.port_mapping.as_deref(), parse_port_mapping);
        let nat64 = settings.take("nat64-prefix", args.nat64_prefix.as_deref(), parse_nat64);
        let stun = settings.take("stun", args.stun.as_deref(), parse_stun);
        let advertise = settings.take("advertise", args.advertise.as_deref(), parse_routes);
        let portal_url = settings.take("portal-url", args.portal_url.as_deref(), |text| {
            text.parse::<PortalUrl>().map_err(|error| error.to_string())
        });
        let relay = settings.take("relay", args.relay.as_deref(), parse_flag).unwrap_or_default();
        let kubernetes = kubernetes::take(&mut settings, &args.kubernetes);
        settings.finish()?;
        // Channels of peers of different engines would lead nowhere.
        let shards = match relay {
            true => NonZeroU32::MIN,
            false => shards.unwrap_or_else(shards::by_default),
        };
        Ok(Self {
            state_dir: state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
            socket: socket.unwrap_or_else(|| DEFAULT_SOCKET.into()),
            interface: interface.unwrap_or_else(|| DEFAULT_INTERFACE.to_owned()),
            listen_port: listen_port.unwrap_or(DEFAULT_AGENT_PORT),
            offloads: offloads.unwrap_or_default(),
            shards,
            relay,
            mtu: mtu.unwrap_or(DEFAULT_MTU),
            stream,
            punch,
            port_mapping: port_mapping.unwrap_or_default(),
            nat64: nat64.unwrap_or_default(),
            stun: stun.unwrap_or_default(),
            advertise: advertise.unwrap_or_default(),
            portal_url,
            kubernetes,
        })
    }
}

impl JoinConfig {
    /// Resolves flags and environment.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn resolve(args: &JoinArgs) -> Result<Self, Problems> {
        let node = environment(NODE_NAME).filter(|name| !name.is_empty());
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        let host = node.map_or_else(host, |node| node.to_string_lossy().into_owned());
        Self::from_sources(args, environment, &host)
    }

    /// Resolves where keys and the membership go, and nothing else.
    ///
    /// # Errors
    /// When that is no path.
    pub fn resolve_state_dir(args: &JoinArgs) -> Result<PathBuf, Problems> {
        let mut settings = Settings::new(environment, "")?;
        let state_dir = settings.take("state-dir", args.state_dir.as_deref(), parse_path);
        settings.finish()?;
        Ok(state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()))
    }

    fn from_sources(
        args: &JoinArgs,
        environment: impl Fn(&str) -> Option<OsString>,
        host_name: &str,
    ) -> Result<Self, Problems> {
        let mut settings = Settings::new(environment, "")?;
        let coordinator = settings.take("coordinator", Some(&args.coordinator), parse_coordinator);
        let token = settings.take("token", args.token.as_deref(), |text| Ok(text.parse::<JoinToken>()));
        let token = token.map(|token| token.map(JoinRight::Token));
        let account = args.service_account_token.as_deref();
        let account = settings.take("service-account-token", account, parse_path);
        let right = match (token, account) {
            (Some(_), Some(_)) => {
                let both = |_: &str| Err::<JoinRight, _>("not together with a join token".to_owned());
                settings.check("--service-account-token", "", both).map(Ok)
            }
            (token, account) => token.or(account.map(|file| Ok(JoinRight::ServiceAccount(file)))),
        };
        let pin = settings.take("ca-cert-hash", args.ca_cert_hash.as_deref(), |text| {
            text.parse::<KeyPin>().map_err(|error| error.to_string())
        });
        let state_dir = settings.take("state-dir", args.state_dir.as_deref(), parse_path);
        let name = settings.take("name", args.name.as_deref(), parse_name);
        let name = name.or_else(|| settings.check("name", &host_label(host_name), parse_own_name));
        let stream = stream::take(&mut settings, args.proxy.as_ref(), args.websocket_url.as_deref());
        let nat64 = settings.take("nat64-prefix", args.nat64_prefix.as_deref(), parse_nat64);
        settings.require_any("token", &["service-account-token"], right.is_some());
        settings.require("ca-cert-hash", pin.is_some());
        settings.finish()?;
        let (Some(coordinator), Some(right), Some(pin), Some(name)) = (coordinator, right, pin, name) else {
            unreachable!("what is missing was reported by finish");
        };
        Ok(Self {
            state_dir: state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
            coordinators: vec![coordinator],
            right,
            pin,
            name,
            stream,
            nat64: nat64.unwrap_or_default(),
        })
    }
}

/// Returns the socket that `meshctl` speaks to.
#[must_use]
pub fn socket_or_default(flag: Option<PathBuf>) -> PathBuf {
    flag.unwrap_or_else(|| DEFAULT_SOCKET.into())
}

/// Completes `HOST` or `HOST:PORT`, where HOST may be an address, to `host:port`.
///
/// # Errors
/// When the text is neither: a clause for people.
pub fn parse_coordinator(text: &str) -> Result<String, String> {
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(SocketAddr::new(address, DEFAULT_COORDINATOR_PORT).to_string());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (
            host,
            port.parse::<u16>()
                .ok()
                .filter(|port| *port > 0)
                .ok_or("the port is not a number from 1 to 65535")?,
        ),
        None => (text, DEFAULT_COORDINATOR_PORT),
    };
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if host.len() > 253 || !host.trim_end_matches('.').split('.').all(label) {
        return Err("neither a host name nor an address, with or without a port".to_owned());
    }
    Ok(format!("{host}:{port}"))
}

fn parse_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("a path is not empty".to_owned()) } else { Ok(text.into()) }
}

/// Several names, with commas between them.
fn parse_stun(text: &str) -> Result<Vec<HostPort>, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let names = names.map(|name| HostPort::parse_with_default(name, STUN_PORT));
    let names: Vec<_> = names.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if names.len() > MAX_STUN { Err(format!("more than {MAX_STUN}")) } else { Ok(names) }
}

/// Several prefixes, with commas between them. What no coordinator could approve is a mistake.
fn parse_routes(text: &str) -> Result<Vec<IpNet>, String> {
    let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
    let parse = |text: &str| {
        let prefix =
            text.parse::<IpNet>().map_err(|_| format!("{text:?} is no prefix such as 192.168.7.0/24"))?;
        check_routable(&prefix).map_err(|why| format!("{prefix} cannot be a route: {why}"))?;
        Ok(prefix.trunc())
    };
    let routes: Vec<_> = texts.map(parse).collect::<Result<_, String>>()?;
    if routes.len() > MAX_ROUTES { Err(format!("more than {MAX_ROUTES}")) } else { Ok(routes) }
}

fn parse_port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "a port is a number from 0 to 65535".to_owned())
}

fn parse_offloads(text: &str) -> Result<Offloads, String> {
    text.parse().map_err(|error: InvalidOffloads| error.to_string())
}

fn parse_flag(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "neither true nor false".to_owned())
}

fn parse_port_mapping(text: &str) -> Result<portmap::Mode, String> {
    text.parse().map_err(|error: portmap::InvalidMode| error.to_string())
}

fn parse_nat64(text: &str) -> Result<nat64::Mode, String> {
    text.parse().map_err(|error: nat64::InvalidMode| error.to_string())
}

fn parse_mtu(text: &str) -> Result<u16, String> {
    let mtu = text.parse().ok().filter(|mtu| (MIN_MTU..=DEFAULT_MTU).contains(mtu));
    mtu.ok_or_else(|| format!("an MTU is a number from {MIN_MTU} to {DEFAULT_MTU}"))
}

fn parse_interface(text: &str) -> Result<String, String> {
    let valid = (1..=MAX_INTERFACE_LEN).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && text != "."
        && text != "..";
    if valid {
        Ok(text.to_owned())
    } else {
        Err(format!("an interface name is 1 to {MAX_INTERFACE_LEN} of letters, digits, '-', '_' and '.'"))
    }
}

fn parse_name(text: &str) -> Result<NodeName, String> {
    text.parse().map_err(|error: mesh_proto::name::InvalidName| error.to_string())
}

fn parse_own_name(label: &str) -> Result<NodeName, String> {
    parse_name(label).map_err(|_| "this host's name is no node name: give one with --name".to_owned())
}

/// The first label of a host name, in lower case, which mostly is a node name already.
fn host_label(host_name: &str) -> String {
    host_name.split('.').next().unwrap_or_default().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn run(args: &RunArgs, variables: &[(&str, &str)], file: &str) -> Result<RunConfig, Problems> {
        let lookup =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        RunConfig::from_sources(args, lookup, file)
    }

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        let args = RunArgs { interface: Some("flag0".into()), ..RunArgs::default() };
        let variables = [("MESH_INTERFACE", "env0"), ("MESH_LISTEN_PORT", "7")];
        let file = "interface = 'file0'\nlisten-port = 8\nsocket = '/file.sock'\nport-mapping = 'off'\nnat64-prefix = '64:ff9b::/96'\nrelay = true";
        let config = run(&args, &variables, file).unwrap();
        assert_eq!(config.interface, "flag0");
        assert_eq!(config.listen_port, 7);
        assert_eq!(config.mtu, DEFAULT_MTU);
        assert_eq!(config.punch, PunchLimits::default());
        assert!(config.relay && config.shards.get() == 1);
        assert_eq!(config.port_mapping, portmap::Mode::Off);
        assert_eq!(config.nat64, "64:ff9b::/96".parse().unwrap());
        assert_eq!(config.socket, Path::new("/file.sock"));
        assert_eq!(config.state_dir, Path::new(DEFAULT_STATE_DIR));
    }

    #[test]
    fn servers_elsewhere_have_the_port_of_stun_unless_they_say_another() {
        let names: Vec<_> =
            parse_stun("stun.example, 192.0.2.1:19302,").unwrap().iter().map(HostPort::to_string).collect();
        assert_eq!(names, ["stun.example:3478", "192.0.2.1:19302"]);
        assert!(parse_stun("a, b, c, d, e").is_err() && parse_stun("a b").is_err());
    }

    #[test]
    fn networks_are_offered_as_prefixes() {
        let config = run(&RunArgs::default(), &[], "advertise = ['192.168.7.9/24', 'fd42::/64']").unwrap();
        assert_eq!(config.advertise, ["192.168.7.0/24", "fd42::/64"].map(|prefix| prefix.parse().unwrap()));
        for bad in ["advertise = '0.0.0.0/0'", "advertise = 'home'", "advertise = ['192.168.7.0/24', 7]"] {
            assert!(run(&RunArgs::default(), &[], bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let args =
            RunArgs { listen_port: Some("70000".into()), mtu: Some("1500".into()), ..RunArgs::default() };
        let file = "interface = 'much-too-long-a-name'\ncolour = 'red'\nsocket = ''\noffloads = 'fast'\nport-mapping = 'upnp'\nnat64-prefix = '64:ff9b::/95'";
        let problems = run(&args, &[("MESH_STATE_DIR", "")], file).unwrap_err().to_string();
        let keys = ["--listen-port", "--mtu", "MESH_STATE_DIR", "interface", "colour", "socket", "offloads"];
        for key in keys.into_iter().chain(["port-mapping", "nat64-prefix"]) {
            assert!(problems.contains(key), "{key} is missing in: {problems}");
        }
    }

    fn join(args: &JoinArgs, host: &str) -> Result<JoinConfig, Problems> {
        JoinConfig::from_sources(args, |_| None, host)
    }

    fn join_args() -> JoinArgs {
        JoinArgs {
            coordinator: "pi.example".into(),
            token: Some("0101010101.02020202020202020202020202020202".into()),
            ca_cert_hash: Some(format!("sha256:{}", "00".repeat(32))),
            ..JoinArgs::default()
        }
    }

    #[test]
    fn a_join_takes_its_name_from_the_host() {
        assert_eq!(join(&join_args(), "Home-A.lan").unwrap().name.as_str(), "home-a");
        assert!(join(&join_args(), "my_host").unwrap_err().to_string().contains("--name"));
    }

    #[test]
    fn a_service_account_s_token_stands_in_for_a_join_token_but_not_beside_one() {
        let account = JoinArgs { service_account_token: Some("/t".into()), ..join_args() };
        let both = join(&account, "pi").unwrap_err().to_string();
        assert!(both.contains("not together with a join token") && !both.contains("required"), "{both}");
        let alone = JoinArgs { token: None, ..account };
        let right = join(&alone, "pi").unwrap().right.unwrap();
        assert!(matches!(right, JoinRight::ServiceAccount(path) if path == Path::new("/t")));
    }

    #[test]
    fn a_token_that_is_none_is_left_to_the_join_to_report() {
        let args = JoinArgs { token: Some(" spaces ".into()), ..join_args() };
        assert!(join(&args, "pi").unwrap().right.is_err());
        let args = JoinArgs { token: None, ca_cert_hash: None, ..join_args() };
        let problems = join(&args, "pi").unwrap_err().to_string();
        assert!(problems.contains("--token") && problems.contains("--ca-cert-hash"), "{problems}");
    }

    #[test]
    fn coordinators_get_the_default_port() {
        for (text, whole) in [
            ("pi.duckdns.org", "pi.duckdns.org:7443"),
            ("pi:1", "pi:1"),
            ("192.0.2.1", "192.0.2.1:7443"),
            ("192.0.2.1:5", "192.0.2.1:5"),
            ("2001:db8::1", "[2001:db8::1]:7443"),
            ("[2001:db8::1]", "[2001:db8::1]:7443"),
            ("[2001:db8::1]:5", "[2001:db8::1]:5"),
        ] {
            assert_eq!(parse_coordinator(text).as_deref(), Ok(whole));
        }
        for bad in ["", "a b", "pi:0", "pi:x", "pi..org", "https://pi"] {
            assert!(parse_coordinator(bad).is_err(), "{bad}");
        }
    }
}
