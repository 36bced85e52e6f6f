//! What a node does for Kubernetes: the object `self.kubernetes` of `meshctl status --json`.
//!
//! ```json
//! {"node":"country","state":"waiting|no-pod-ranges|refused|not-ready|ready","pod_ranges":["10.244.2.0/24"],
//!  "api":{"state":"answers|silent|refuses|unknown","address":"10.90.0.1:6443","error":null,"last_answer":"RFC 3339"},
//!  "from_cache":false,"network_policies":"none|not-enforced|unknown","problems":[]}
//! ```
//!
//! As everywhere in the status, fields are added and never renamed, and a value that a reader does not know is `unknown`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::status::Timestamp;

/// The pod network on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesStatus {
    /// The name of the Node in the cluster.
    pub node: String,
    /// How far the pod network is.
    pub state: PodNetworkState,
    /// The ranges from which this node's pods have their addresses.
    pub pod_ranges: Vec<IpNet>,
    /// The connection to the API server.
    pub api: ApiStatus,
    /// Whether what is known of the Node is from an earlier run: the API server has not answered since.
    pub from_cache: bool,
    /// Whether the cluster has NetworkPolicies, which the mesh does not enforce.
    pub network_policies: NetworkPolicies,
    /// What a person should know, worst first; `self.warnings` has it, too.
    pub problems: Vec<String>,
}

/// How far the pod network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodNetworkState {
    /// The Node has not been seen yet.
    Waiting,
    /// The Node has no range for pods.
    NoPodRanges,
    /// No range of the Node's can be used.
    Refused,
    /// The range is this node's, but the mesh or what is set on the host is not ready.
    NotReady,
    /// Pods have a network.
    Ready,
    /// A state that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// The connection to the API server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ApiStatus {
    /// Whether it answers.
    pub state: ApiState,
    /// Where it is: host and port.
    pub address: Option<String>,
    /// Why it does not answer, or what it refuses.
    pub error: Option<String>,
    /// When it last answered.
    pub last_answer: Option<Timestamp>,
}

/// Whether the API server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApiState {
    /// It does.
    Answers,
    /// It does not.
    Silent,
    /// It does not take this node's credentials, does not permit what is needed, or is not the one that they are for.
    Refuses,
    /// It was not asked yet, or a state that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Whether the cluster has NetworkPolicies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkPolicies {
    /// It has none.
    None,
    /// It has some: the mesh does not enforce them.
    NotEnforced,
    /// It was not asked, does not tell this node, or says what this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl PodNetworkState {
    /// Returns the word that the document has for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::NoPodRanges => "no-pod-ranges",
            Self::Refused => "refused",
            Self::NotReady => "not-ready",
            Self::Ready => "ready",
            Self::Unknown => "unknown",
        }
    }
}

impl ApiState {
    /// Returns the word that the document has for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answers => "answers",
            Self::Silent => "silent",
            Self::Refuses => "refuses",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_unknown() {
        let text = r#"{"node":"pi","state":"draining","pod_ranges":[],"api":{"state":"slow","address":null,"error":null,
            "last_answer":null},"from_cache":false,"network_policies":"enforced","problems":[],"more":1}"#;
        let status: KubernetesStatus = serde_json::from_str(text).unwrap();
        assert_eq!(status.state, PodNetworkState::Unknown);
        assert_eq!(status.api.state, ApiState::Unknown);
        assert_eq!(status.network_policies, NetworkPolicies::Unknown);
        let words = [PodNetworkState::NoPodRanges, PodNetworkState::NotReady];
        for state in words {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
