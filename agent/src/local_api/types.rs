//! What `meshctl` and the agent say to each other, beside the status document.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use mesh_proto::{
    kubernetes::KubernetesStatus,
    netmap::NetworkMap,
    status::{PathReason, Timestamp},
};
use serde::{Deserialize, Serialize};

/// The fixed `Host` of every request: another one comes from a web page that was led here.
pub const HOST: &str = "mesh-agent.local";

/// Answers a ping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PingReply {
    /// The node that answered.
    pub node: String,
    /// Its first mesh address.
    pub address: IpAddr,
    /// Its endpoint, if the answer came straight.
    pub endpoint: Option<SocketAddr>,
    /// The relay, if the answer came through one.
    pub relay: Option<String>,
    /// Round-trip time, in milliseconds.
    pub rtt_ms: f64,
}

/// What a pod beside this agent does for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// The ranges of this node's pods, which are to be offered to the mesh; `None` while they are not known.
    pub pods: Option<Vec<IpNet>>,
    /// What is to be shown.
    pub status: KubernetesStatus,
}

/// Why a peer is on the path it is on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// The peer.
    pub node: String,
    /// Why the primary path is what it is, as `meshctl status --json` has it.
    #[serde(default)]
    pub code: PathReason,
    /// The same for people.
    pub reason: String,
    /// Every path that is known, the primary one first.
    pub paths: Vec<WhyPath>,
    /// The latest decisions, oldest first.
    pub decisions: Vec<WhyDecision>,
}

/// One path to a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WhyPath {
    /// `direct ADDRESS` or `relay NAME`.
    pub path: String,
    /// Whether it is the primary path.
    pub primary: bool,
    /// Smoothed round-trip time, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Share of the last probes that stayed unanswered, 0 to 1; 0 when there were none lately.
    pub loss: f64,
    /// Whether there were.
    #[serde(default)]
    pub loss_measured: bool,
    /// When it last answered.
    pub last_answer: Option<Timestamp>,
}

/// Why a primary path was chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WhyDecision {
    /// When.
    pub at: Timestamp,
    /// For how long it was the primary path, in seconds; `null` while it is.
    #[serde(default)]
    pub lasted_s: Option<f64>,
    /// `direct ADDRESS`, `relay NAME` or `none`.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// What only the daemon knows of itself, for a report of a problem. No secret is in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of the daemon, which may not be that of `meshctl`.
    pub version: String,
    /// When it was started.
    pub started: Timestamp,
    /// Its process.
    pub pid: u32,
    /// What it was told: flags, environment and file together; passwords are left out.
    pub config: String,
    /// What lies in its state directory.
    pub state: Vec<StateFileInfo>,
    /// The network map; before the first one, this node alone.
    pub map: NetworkMap,
    /// The log of the last hour.
    pub logs: String,
}

/// A file of the state directory; of what is in it, nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateFileInfo {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub len: u64,
    /// Its permission bits, in octal.
    pub mode: String,
    /// When it was last written.
    pub modified: Option<Timestamp>,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", rename_all = "kebab-case")]
pub enum ApiError {
    /// No peer has this name or address.
    #[error("no node is called {node}; there {}", known_nodes(known))]
    UnknownNode {
        /// What was asked for.
        node: String,
        /// The peers that there are.
        known: Vec<String>,
    },
    /// No answer came in time.
    #[error("no answer from {node}")]
    Timeout {
        /// The peer.
        node: String,
    },
    /// The caller may not do this.
    #[error("permission denied: only root and the agent's own group may do this")]
    Forbidden,
    /// The request made no sense.
    #[error("bad request: {message}")]
    BadRequest {
        /// What is wrong with it.
        message: String,
    },
    /// The agent failed.
    #[error("{message}")]
    Internal {
        /// How.
        message: String,
    },
}

fn known_nodes(known: &[String]) -> String {
    if known.is_empty() { "are no other nodes".to_owned() } else { format!("are: {}", known.join(", ")) }
}
