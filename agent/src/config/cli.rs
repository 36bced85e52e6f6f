//! The command line of `mesh-agent`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

/// The mesh agent: keeps encrypted tunnels to the other nodes of a mesh.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version)]
pub struct AgentCli {
    /// What to do.
    #[command(subcommand)]
    pub command: AgentCommand,
}

/// What `mesh-agent` can do.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Makes this host a node of a mesh; paste the line that `mesh-coordinator token create` prints.
    Join(JoinArgs),
    /// Runs the agent in the foreground.
    Run(RunArgs),
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

// Values are taken as text: `config` parses them, together with those of the environment and the file, so
// that everything that is wrong is reported at once.

/// Flags of `mesh-agent join`.
#[derive(Debug, Clone, Default, Args)]
pub struct JoinArgs {
    /// The coordinator: HOST or HOST:PORT.
    #[arg(value_name = "HOST[:PORT]")]
    pub coordinator: String,
    /// The join token [env: MESH_TOKEN].
    #[arg(long, hide_env_values = true)]
    pub token: Option<String>,
    /// SHA-256 of the coordinator's public key: sha256:HEX [env: MESH_CA_CERT_HASH].
    #[arg(long)]
    pub ca_cert_hash: Option<String>,
    /// This node's name [env: MESH_NAME] [default: the host name].
    #[arg(long)]
    pub name: Option<String>,
    /// Where keys and state are kept [env: MESH_STATE_DIR] [default: /var/lib/mesh-agent].
    #[arg(long)]
    pub state_dir: Option<String>,
}

/// Flags of `mesh-agent run`.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// A TOML file with any of the flags below as keys [env: MESH_CONFIG].
    #[arg(long, env = "MESH_CONFIG", hide_env = true)]
    pub config: Option<PathBuf>,
    /// Where keys and state are kept [env: MESH_STATE_DIR] [default: /var/lib/mesh-agent].
    #[arg(long)]
    pub state_dir: Option<String>,
    /// Where the local API listens [env: MESH_SOCKET] [default: /run/mesh-agent/agent.sock].
    #[arg(long)]
    pub socket: Option<String>,
    /// The TUN interface [env: MESH_INTERFACE] [default: mesh0].
    #[arg(long)]
    pub interface: Option<String>,
    /// The UDP port of WireGuard, 0 for any [env: MESH_LISTEN_PORT] [default: 51820].
    #[arg(long)]
    pub listen_port: Option<String>,
    /// Offloads that may be used: all, none, or some of tun,udp-send,udp-receive [env: MESH_OFFLOADS] [default: all].
    #[arg(long)]
    pub offloads: Option<String>,
    /// The interface's MTU, 1280 to 1420 [env: MESH_MTU] [default: 1420].
    #[arg(long)]
    pub mtu: Option<String>,
}
