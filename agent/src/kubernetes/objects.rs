//! The parts of Kubernetes' objects that are looked at, and those that are made. What is not named here is not read.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node {
    #[serde(default)]
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) spec: NodeSpec,
    #[serde(default)]
    pub(super) status: NodeStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) uid: String,
    #[serde(default)]
    pub(super) resource_version: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct NodeSpec {
    /// What it was before there were two families.
    #[serde(default, rename = "podCIDR")]
    pub(super) pod_cidr: String,
    #[serde(default, rename = "podCIDRs")]
    pub(super) pod_cidrs: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeStatus {
    #[serde(default)]
    pub(super) conditions: Vec<Condition>,
    #[serde(default)]
    pub(super) node_info: NodeInfo,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct NodeInfo {
    #[serde(default, rename = "machineID")]
    pub(super) machine_id: String,
}

/// A condition of a Node, as it is read and as it is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    #[serde(default)]
    pub(super) reason: String,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) last_heartbeat_time: Option<String>,
    #[serde(default)]
    pub(super) last_transition_time: Option<String>,
}

/// A list of anything.
#[derive(Debug, Deserialize)]
pub(super) struct List<T> {
    #[serde(default)]
    pub(super) metadata: ListMetadata,
    /// `null` where there are none, with some servers.
    pub(super) items: Option<Vec<T>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMetadata {
    #[serde(default)]
    pub(super) resource_version: String,
}

/// Something of which only its being there counts.
#[derive(Debug, Deserialize)]
pub(super) struct Anything {}

/// A range of addresses for Services.
#[derive(Debug, Deserialize)]
pub(super) struct ServiceRange {
    #[serde(default)]
    pub(super) spec: ServiceRangeSpec,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct ServiceRangeSpec {
    #[serde(default)]
    pub(super) cidrs: Vec<String>,
}

/// An Event on a Node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewEvent<'a> {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) metadata: NewMetadata<'a>,
    pub(super) involved_object: InvolvedObject<'a>,
    pub(super) reason: &'a str,
    pub(super) message: &'a str,
    #[serde(rename = "type")]
    pub(super) severity: &'static str,
    pub(super) source: EventSource<'a>,
    pub(super) first_timestamp: &'a str,
    pub(super) last_timestamp: &'a str,
    pub(super) count: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewMetadata<'a> {
    pub(super) name: String,
    pub(super) namespace: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InvolvedObject<'a> {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) name: &'a str,
    pub(super) uid: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct EventSource<'a> {
    pub(super) component: &'static str,
    pub(super) host: &'a str,
}

impl Node {
    /// Returns the ranges for this Node's pods, first family first, and the texts that are none.
    pub(super) fn pod_ranges(&self) -> (Vec<IpNet>, Vec<String>) {
        let texts: Vec<&String> = match self.spec.pod_cidrs.is_empty() {
            true => Some(&self.spec.pod_cidr).filter(|text| !text.is_empty()).into_iter().collect(),
            false => self.spec.pod_cidrs.iter().collect(),
        };
        let (mut ranges, mut wrong) = (Vec::new(), Vec::new());
        for text in texts {
            match text.parse::<IpNet>() {
                Ok(range) => ranges.push(range.trunc()),
                Err(_) => wrong.push(text.clone()),
            }
        }
        (ranges, wrong)
    }

    /// Returns a condition.
    pub(super) fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_read_and_what_is_not_known_is_not() {
        let text = r#"{"kind":"Node","metadata":{"name":"pi","uid":"u","resourceVersion":"7","labels":{}},
            "spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24","fd00:10:244:1::/64"],"taints":[{"key":"x"}]},
            "status":{"conditions":[{"type":"Ready","status":"True","lastHeartbeatTime":"2026-01-02T03:04:05Z"}],
            "nodeInfo":{"machineID":"0123"},"images":[]}}"#;
        let node: Node = serde_json::from_str(text).unwrap();
        assert_eq!(node.pod_ranges().0.len(), 2);
        assert_eq!(node.condition("Ready").unwrap().status, "True");
        assert_eq!(node.condition("NetworkUnavailable"), None);
        let mut old = node.clone();
        old.spec.pod_cidrs.clear();
        assert_eq!(old.pod_ranges().0, ["10.244.1.0/24".parse().unwrap()]);
        old.spec.pod_cidr = "ten".to_owned();
        assert_eq!(old.pod_ranges(), (vec![], vec!["ten".to_owned()]));
        old.spec.pod_cidr.clear();
        assert_eq!(old.pod_ranges(), (vec![], vec![]));
    }
}
