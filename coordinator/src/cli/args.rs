//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use ipnet::IpNet;
use mesh_proto::name::NodeName;

use crate::config::{RelayArgs, ServeArgs};

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
    /// Lists and judges the routes that nodes offer; asks the running coordinator.
    Route {
        /// What to do.
        #[command(subcommand)]
        command: RouteCommand,
    },
    /// Writes everything that makes this coordinator to a private file; asks the running coordinator.
    Backup {
        /// The file. One that is there is replaced.
        file: PathBuf,
    },
    /// Makes a state directory of a backup, while no coordinator runs there. The state that it replaces is kept beside it,
    /// and agents take over the older map, because it gets a new epoch.
    Restore {
        /// The file.
        file: PathBuf,
    },
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

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

/// What can be done with routes.
#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// Lists the routes that nodes offer, and what became of them.
    List {
        /// Prints a JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Lets the mesh send a prefix to a node, now or once the node offers it.
    Approve {
        /// Which.
        #[command(flatten)]
        route: RouteArgs,
    },
    /// Does not let the mesh send a prefix to a node, whatever the coordinator's settings say.
    Revoke {
        /// Which.
        #[command(flatten)]
        route: RouteArgs,
    },
}

/// A route of a node.
#[derive(Debug, clap::Args)]
pub struct RouteArgs {
    /// The node.
    pub node: NodeName,
    /// The prefix, as in 192.168.7.0/24.
    pub prefix: IpNet,
    /// Prints a JSON document.
    #[arg(long)]
    pub json: bool,
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
            "mesh-coordinator route approve pi 192.168.7.0/24 --state-dir d --json",
            "mesh-coordinator serve --state-dir d --name a --name b",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.state_dir.as_deref(), Some("d"), "{line}");
        }
        for bad in [
            "mesh-coordinator token create --uses 0",
            "mesh-coordinator node remove ../x",
            "mesh-coordinator route revoke pi x",
        ] {
            assert!(Cli::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }
}
