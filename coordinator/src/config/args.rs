//! Flags that are settings, too.
//!
//! Their values are taken as text: they are parsed together with those of the environment and the file, so that
//! everything that is wrong is reported at once.

use std::path::PathBuf;

use clap::Args;
use mesh_settings::Secret;

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
    /// A second UDP port, or its address, or both, that tells nodes what their NATs do; where a router forwards the
    /// first one it has to forward this one, too [env: MESH_LISTEN_STUN] [default: none].
    #[arg(long, value_name = "ADDRESS")]
    pub listen_stun: Option<String>,
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
    /// A range for pods: what nodes offer of it as their own pods' is approved; may be repeated
    /// [env: MESH_POD_RANGE, with commas] [default: none].
    #[arg(long, value_name = "CIDR")]
    pub pod_range: Vec<String>,
    /// A range in which the networks that nodes offer are approved without asking; may be repeated
    /// [env: MESH_APPROVE_ROUTES, with commas] [default: none].
    #[arg(long, value_name = "CIDR")]
    pub approve_routes: Vec<String>,
    /// Bytes per second that one node may send through the relay [env: MESH_RELAY_RATE]
    /// [default: 125000000].
    #[arg(long, value_name = "BYTES")]
    pub relay_rate: Option<String>,
    /// The DuckDNS name to keep pointing here [env: MESH_DUCKDNS_DOMAIN] [default: the first --name that is one].
    #[arg(long, value_name = "NAME")]
    pub duckdns_domain: Option<String>,
    /// The file with the DuckDNS token [env: MESH_DUCKDNS_TOKEN_FILE] [default: the credential duckdns-token that
    /// systemd hands over].
    #[arg(long, value_name = "FILE")]
    pub duckdns_token_file: Option<String>,
    /// Where DuckDNS is [env: MESH_DUCKDNS_URL] [default: `https://www.duckdns.org/update`].
    #[arg(long, value_name = "URL")]
    pub duckdns_url: Option<String>,
    /// Which IPv6 address the DuckDNS name leads to: auto (this host's), an address, or off, and it stays what it is
    /// [env: MESH_DUCKDNS_IPV6] [default: off].
    #[arg(long, value_name = "WHICH")]
    pub duckdns_ipv6: Option<String>,
    /// How the Kubernetes API server is asked: with it, tokens of a ServiceAccount stand in for join tokens
    /// [env: MESH_KUBERNETES_KUBECONFIG] [default: none].
    #[arg(long, value_name = "FILE")]
    pub kubernetes_kubeconfig: Option<String>,
    /// What these tokens must be for [env: MESH_KUBERNETES_AUDIENCE] [default: mesh-coordinator].
    #[arg(long, value_name = "AUDIENCE")]
    pub kubernetes_audience: Option<String>,
    /// Whose they must be [env: MESH_KUBERNETES_SERVICE_ACCOUNT] [default: mesh-system/mesh-agent].
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub kubernetes_service_account: Option<String>,
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
    /// The TCP port, or its address, or both, for nodes that UDP does not reach; they look for it at the number of the
    /// UDP port, and at 443 [env: MESH_LISTEN_TCP] [default: the number of the UDP port, of all addresses].
    #[arg(long, value_name = "ADDRESS")]
    pub listen_tcp: Option<String>,
    /// Bytes per second that one node may send through the relay [env: MESH_RELAY_RATE]
    /// [default: 125000000].
    #[arg(long, value_name = "BYTES")]
    pub relay_rate: Option<String>,
}
