//! The command line of `mesh-agent`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use mesh_settings::Secret;

use super::kubernetes::KubernetesArgs;

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
    /// Takes back what made this host a part of a cluster's pod network: for a node that leaves it, once `run` has stopped.
    /// The same flags, variables and file.
    RemovePodNetwork(RunArgs),
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
    /// Does nothing where this host is a node already, whatever else is said: for what runs at every start.
    #[arg(long)]
    pub unless_joined: bool,
    /// The join token [env: MESH_TOKEN].
    #[arg(long, hide_env_values = true)]
    pub token: Option<String>,
    /// In place of a join token, the file with a token of this pod's ServiceAccount that is for the coordinator
    /// [env: MESH_SERVICE_ACCOUNT_TOKEN].
    #[arg(long, value_name = "FILE")]
    pub service_account_token: Option<String>,
    /// SHA-256 of the coordinator's public key: sha256:HEX [env: MESH_CA_CERT_HASH].
    #[arg(long)]
    pub ca_cert_hash: Option<String>,
    /// This node's name [env: MESH_NAME] [default: MESH_KUBERNETES_NODE_NAME in a pod that is told of it, else the host
    /// name].
    #[arg(long)]
    pub name: Option<String>,
    /// Where keys and state are kept [env: MESH_STATE_DIR] [default: /var/lib/mesh-agent].
    #[arg(long)]
    pub state_dir: Option<String>,
    /// An HTTP proxy to the coordinator where UDP is blocked: http://HOST:PORT, with USER:PASSWORD@
    /// before HOST if it asks for one, or off
    /// [env: MESH_PROXY] [default: HTTPS_PROXY, ALL_PROXY and NO_PROXY].
    #[arg(long, value_name = "URL")]
    pub proxy: Option<Secret>,
    /// The coordinator's WebSocket, where UDP is blocked: wss://HOST:PORT/PATH [env: MESH_WEBSOCKET_URL]
    /// [default: on the coordinator's port, and on port 443].
    #[arg(long, value_name = "URL")]
    pub websocket_url: Option<String>,
    /// Behind which prefix a network without IPv4 leads to it: auto to ask the resolvers, off, or PREFIX/LEN
    /// [env: MESH_NAT64_PREFIX] [default: auto].
    #[arg(long, value_name = "PREFIX")]
    pub nat64_prefix: Option<String>,
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
    /// Offloads that may be used: all, none, or some of tun,udp-send,udp-receive,steering [env: MESH_OFFLOADS]
    /// [default: all].
    #[arg(long)]
    pub offloads: Option<String>,
    /// Engines that share the peers, each with a thread of its own: auto, or a number from 1 to 16; auto is half of the
    /// cores, 4 at most [env: MESH_SHARDS] [default: auto].
    #[arg(long)]
    pub shards: Option<String>,
    /// The interface's MTU, 1280 to 1420 [env: MESH_MTU] [default: 1420].
    #[arg(long)]
    pub mtu: Option<String>,
    /// An HTTP proxy to the coordinator where UDP is blocked: http://HOST:PORT, with USER:PASSWORD@
    /// before HOST if it asks for one, or off
    /// [env: MESH_PROXY] [default: HTTPS_PROXY, ALL_PROXY and NO_PROXY].
    #[arg(long, value_name = "URL")]
    pub proxy: Option<Secret>,
    /// The coordinator's WebSocket, where UDP is blocked: wss://HOST:PORT/PATH [env: MESH_WEBSOCKET_URL]
    /// [default: what the join was told].
    #[arg(long, value_name = "URL")]
    pub websocket_url: Option<String>,
    /// Whether the router is asked to lead the UDP port to this node, by PCP, NAT-PMP or UPnP-IGD: on or off
    /// [env: MESH_PORT_MAPPING] [default: on].
    #[arg(long)]
    pub port_mapping: Option<String>,
    /// Servers elsewhere that answer STUN, with commas: they tell a node beside the coordinator where it is seen from
    /// outside [env: MESH_STUN] [default: none].
    #[arg(long, value_name = "HOST[:PORT]")]
    pub stun: Option<String>,
    /// Networks beside this node that the mesh may reach through it, with commas between them; the coordinator's operator
    /// has to approve them [env: MESH_ADVERTISE] [default: none].
    #[arg(long, value_name = "PREFIX[,PREFIX]")]
    pub advertise: Option<String>,
    /// A URL that answers `204 No Content`, by which netcheck tells captive portals: http://HOST/PATH
    /// [env: MESH_PORTAL_URL] [default: the coordinator's own answer].
    #[arg(long, value_name = "URL")]
    pub portal_url: Option<String>,
    /// Relay between peers that do not reach each other, while nothing better is there; takes one engine [env: MESH_RELAY]
    /// [default: false].
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub relay: Option<String>,
    /// Probes per second against NATs that plain probing does not get through, 0 for none, at most 4096
    /// [env: MESH_PUNCH_RATE] [default: 500].
    #[arg(long)]
    pub punch_rate: Option<String>,
    /// Probes in one attempt, at most 4096 [env: MESH_PUNCH_BUDGET] [default: 4096].
    #[arg(long)]
    pub punch_budget: Option<String>,
    /// Behind which prefix a network without IPv4 leads to it: auto to ask the resolvers, off, or PREFIX/LEN
    /// [env: MESH_NAT64_PREFIX] [default: auto].
    #[arg(long, value_name = "PREFIX")]
    pub nat64_prefix: Option<String>,
    /// Sockets in one attempt, 32 to 1024 [env: MESH_PUNCH_SOCKETS] [default: 256].
    #[arg(long)]
    pub punch_sockets: Option<String>,
    /// How long a pair with traffic stays relayed before an attempt, in milliseconds [env: MESH_PUNCH_WAIT]
    /// [default: 1000].
    #[arg(long)]
    pub punch_wait: Option<String>,
    /// Pause after a failed attempt, first and longest, in seconds: 60..3600 [env: MESH_PUNCH_BACKOFF] [default: 60..3600].
    #[arg(long)]
    pub punch_backoff: Option<String>,
    /// The pod network.
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
}
