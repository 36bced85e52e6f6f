//! What `mesh-coordinator` is told: flags, environment variables and a TOML file, in this order of precedence.
//!
//! Every flag of `mesh-coordinator serve` and `relay` has a key in the file (`--listen-udp`: `listen-udp`) and an
//! environment variable (`MESH_LISTEN_UDP`). Values are parsed into types here and nowhere else, and everything
//! that is wrong is reported at once.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::{Path, PathBuf},
};

pub use mesh_settings::{Problem, Problems};
use mesh_settings::{Settings, environment, read_file};

pub use self::args::{RelayArgs, ServeArgs};
use self::parse::parse_path;
use crate::{limit::Rate, relay::Limits, serve::ServeOptions, standalone::RelayOptions};

mod args;
mod parse;
mod relay;
mod serve;

/// Where the coordinator keeps its state when it is not told.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/mesh-coordinator";

/// What this host contributes.
struct Host<'a> {
    name: &'a str,
    /// What stands for all its addresses.
    any: IpAddr,
    /// The text of the configuration file.
    file: &'a str,
    /// Where systemd has put credentials for this service.
    credentials: Option<&'a Path>,
}

/// Resolves flags, environment and file to what `serve` needs.
///
/// # Errors
/// Everything that is wrong, at once; also when the file cannot be read.
pub fn resolve_serve(args: &ServeArgs, state_dir: Option<&str>) -> anyhow::Result<ServeOptions> {
    let (name, file) = (host_name(), read_file(args.config.as_deref())?);
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let host = Host { name: &name, any: any_address(), file: &file, credentials: credentials.as_deref() };
    Ok(serve::from_sources(args, state_dir, environment, &host)?)
}

/// Resolves flags, environment and file to what `relay` needs.
///
/// # Errors
/// As [`resolve_serve`].
pub fn resolve_relay(args: &RelayArgs, state_dir: Option<&str>) -> anyhow::Result<RelayOptions> {
    let (name, file) = (host_name(), read_file(args.config.as_deref())?);
    let host = Host { name: &name, any: any_address(), file: &file, credentials: None };
    Ok(relay::from_sources(args, state_dir, environment, &host)?)
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

/// Returns what a relay grants, with this rate for each client where it is set.
fn relay_limits(rate: Option<u64>) -> Limits {
    let mut limits = Limits::default();
    if let Some(per_second) = rate {
        limits.client_rate = Rate { per_second, ..limits.client_rate };
    }
    limits
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Returns the address that stands for all of this host's: of both families, unless it has no IPv6.
fn any_address() -> IpAddr {
    match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(_) => Ipv6Addr::UNSPECIFIED.into(),
        Err(_) => Ipv4Addr::UNSPECIFIED.into(),
    }
}
