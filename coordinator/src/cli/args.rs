//! The command line.

use std::{convert::Infallible, fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use mesh_proto::name::NodeName;
use zeroize::Zeroizing;

/// The mesh coordinator: registers nodes, tells them of each other, and relays for those who cannot meet.
#[derive(Debug, Parser)]
#[command(name = "mesh-coordinator", version)]
pub struct Cli {
    /// Where keys and state are kept [env: MESH_STATE_DIR] [default: /var/lib/mesh-coordinator].
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `mesh-coordinator` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the coordinator in the foreground.
    Serve(ServeArgs),
    /// Runs a relay alone, on another machine than the coordinator, in the foreground. Its state directory is
    /// /var/lib/mesh-relay by default.
    Relay(RelayArgs),
    /// Makes join tokens; asks the running coordinator.
    Token {
        /// What to do.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Lists and changes nodes; asks the running coordinator.
    Node {
        /// What to do.
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

// Values are taken as text: `config` parses them, together with those of the environment and the file, so
// that everything that is wrong is reported at once.

/// Flags of `mesh-coordinator serve`.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// A TOML file with any of the long flags as keys [env: MESH_CONFIG].
    #[arg(long, env = "MESH_CONFIG", hide_env = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The UDP port, or its address, or both [env: MESH_LISTEN_UDP] [default: 7443 of all addresses].
    #[arg(long, value_name = "ADDRESS")]
    pub listen_udp: Option<String>,
    /// The TCP port, or its address, or both [env: MESH_LISTEN_TCP] [default: 7443 of all addresses].
    #[arg(long, value_name = "ADDRESS")]
    pub listen_tcp: Option<String>,
    /// A DNS name or address by which nodes reach this coordinator, with a port where a router forwards
    /// another one; several are tried in order [env: MESH_NAME, with commas] [default: the host name].
    #[arg(long, value_name = "HOST[:PORT]")]
    pub name: Vec<String>,
    /// Where metrics are shown, or "off" [env: MESH_METRICS] [default: 127.0.0.1:9743].
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
    /// The range of IPv4 mesh addresses, fixed at the first start [env: MESH_IPV4_RANGE]
    /// [default: 10.90.0.0/16].
    #[arg(long, value_name = "CIDR")]
    pub ipv4_range: Option<String>,
    /// Bytes per second that one node may send through the relay [env: MESH_RELAY_RATE]
    /// [default: 125000000].
    #[arg(long, value_name = "BYTES")]
    pub relay_rate: Option<String>,
}

/// Flags of `mesh-coordinator relay`.
#[derive(Debug, Clone, Default, Args)]
pub struct RelayArgs {
    /// The coordinator; several names and addresses are tried in order [env: MESH_COORDINATOR, with commas].
    #[arg(value_name = "HOST[:PORT]")]
    pub coordinator: Vec<String>,
    /// A TOML file with any of the long flags, and "coordinator", as keys [env: MESH_CONFIG].
    #[arg(long, env = "MESH_CONFIG", hide_env = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A join token that was made with `--tag relay`, for the first start [env: MESH_TOKEN].
    #[arg(long)]
    pub token: Option<Secret>,
    /// SHA-256 of the coordinator's public key: sha256:HEX [env: MESH_CA_CERT_HASH].
    #[arg(long, value_name = "HASH")]
    pub ca_cert_hash: Option<String>,
    /// The relay's name [env: MESH_NAME] [default: the host name].
    #[arg(long)]
    pub name: Option<String>,
    /// A DNS name or address by which nodes reach this relay; several are tried in order
    /// [env: MESH_ADDRESS, with commas] [default: the host name].
    #[arg(long, value_name = "HOST[:PORT]")]
    pub address: Vec<String>,
    /// The UDP port, or its address, or both [env: MESH_LISTEN_UDP] [default: 7443 of all addresses].
    #[arg(long, value_name = "ADDRESS")]
    pub listen_udp: Option<String>,
    /// Bytes per second that one node may send through the relay [env: MESH_RELAY_RATE]
    /// [default: 125000000].
    #[arg(long, value_name = "BYTES")]
    pub relay_rate: Option<String>,
}

/// A text that `Debug` does not show.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

/// What can be done with join tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Makes a join token and prints the command that joins a node with it.
    Create {
        /// For how long it is valid.
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// How many nodes may join with it.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// A tag for these nodes; may be repeated.
        #[arg(long = "tag", value_name = "TAG")]
        tags: Vec<String>,
    },
}

/// What can be done with nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Lists all nodes.
    List {
        /// Prints a JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Removes a node from the mesh.
    Remove {
        /// The node.
        name: NodeName,
        /// Prints a JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Gives a node another name.
    Rename {
        /// The node.
        name: NodeName,
        /// Its new name.
        to: NodeName,
        /// Prints a JSON document.
        #[arg(long)]
        json: bool,
    },
}

impl Secret {
    /// Returns the text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_state_directory_can_be_given_anywhere() {
        for line in [
            "mesh-coordinator --state-dir d token create",
            "mesh-coordinator token --state-dir d create --uses 2 --ttl 30m --tag a --tag b",
            "mesh-coordinator node list --json --state-dir d",
            "mesh-coordinator serve --state-dir d --name a --name b",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.state_dir.as_deref(), Some("d"), "{line}");
        }
        for bad in ["mesh-coordinator token create --uses 0", "mesh-coordinator node remove ../x"] {
            assert!(Cli::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }
}
