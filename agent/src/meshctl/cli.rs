//! The command line of `meshctl`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Shows what the mesh agent of this host does.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version)]
pub struct MeshctlCli {
    /// The agent's local API [default: /run/mesh-agent/agent.sock].
    #[arg(long, global = true, env = "MESH_SOCKET")]
    pub socket: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: MeshctlCommand,
}

/// What `meshctl` can do.
#[derive(Debug, Subcommand)]
pub enum MeshctlCommand {
    /// Shows this node and its peers.
    Status(StatusArgs),
    /// Pings a peer inside the mesh, and tells on which path.
    Ping(PingArgs),
    /// Checks the network around this node: what its NAT does, who is reached, what stands in the way.
    Netcheck {
        /// Prints one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Tells why a peer is on the path it is on.
    Why {
        /// The peer: a name or a mesh address.
        node: String,
        /// Prints one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Writes everything that helps to understand a problem into one archive; no secrets are in it.
    Bugreport {
        /// The archive [default: mesh-bugreport-NODE-TIME.tar.gz in the current directory].
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Flags of `meshctl status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Prints one JSON document.
    #[arg(long, conflicts_with = "watch")]
    pub json: bool,
    /// Shows the table anew every second, until Ctrl-C.
    #[arg(long)]
    pub watch: bool,
    /// Prints nothing and answers by exit code: 0 if it is so, 1 if not.
    #[arg(long, value_enum, conflicts_with_all = ["json", "watch"])]
    pub check: Option<Check>,
}

/// What `meshctl status --check` can check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// The agent answers.
    Live,
    /// Interface, addresses and routes are up; and the network of its pods, on a node of a Kubernetes cluster.
    Ready,
}

/// Flags of `meshctl ping`.
#[derive(Debug, Args)]
pub struct PingArgs {
    /// The peer: a name or a mesh address.
    pub node: String,
    /// How many pings to send; with --until-direct the most to send.
    #[arg(short = 'c', long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// Ends with the first answer that came straight, and fails if none did.
    #[arg(long)]
    pub until_direct: bool,
    /// Prints one JSON document at the end.
    #[arg(long)]
    pub json: bool,
}
