//! What the cluster is told of this node, and what it is asked beside the Node: the condition `NetworkUnavailable`, Events,
//! whether there are NetworkPolicies, and which ranges Services have.
//!
//! All of it is done while the API server answers, and left while it does not. What RBAC refuses is said, and asked again
//! now and then: somebody may put it right.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use ipnet::IpNet;
use mesh_kubeapi::ApiError;
use mesh_proto::kubernetes::{ApiState, NetworkPolicies};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    api::Api,
    objects::{Condition, EventSource, InvolvedObject, NewEvent, NewMetadata, Node},
    watch::{Presence, Seen},
};
use crate::entropy;

/// The condition by which the scheduler keeps pods away from a node without a network.
pub(super) const CONDITION: &str = "NetworkUnavailable";
/// How often it is looked whether something is to be told.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a condition that was set may take to be seen on the Node before it is set again.
const SETTLES: Duration = Duration::from_secs(30);
/// An Event about what goes on is made again after so long, which is how long the API server keeps it.
const REPEAT: Duration = Duration::from_secs(3600);
/// Not more Events than this ...
const MAX_EVENTS: usize = 6;
/// ... in this time.
const EVENTS_WINDOW: Duration = Duration::from_secs(600);
/// How often the cluster is asked what changes seldom.
const INQUIRY_INTERVAL: Duration = Duration::from_secs(600);
/// Longest message of an Event that the API server takes, in bytes.
const MAX_MESSAGE: usize = 1024;
/// Bytes that tell one Event on a Node from another.
const EVENT_NAME_LEN: usize = 8;
/// Who tells.
const COMPONENT: &str = "mesh-agent";

/// What the cluster is to be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// `None` to leave the condition as it is.
    pub(super) condition: Option<Network>,
    /// What there is to say, as long as it holds.
    pub(super) notices: Vec<Notice>,
}

/// The Node's network, for the condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Network {
    Available(String),
    Unavailable(String),
}

/// Something for an Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) severity: Severity,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    Normal,
    Warning,
}

/// What the cluster has said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answers {
    pub(super) policies: NetworkPolicies,
    pub(super) service_ranges: Vec<IpNet>,
    /// What it does not permit.
    pub(super) refused: Vec<String>,
}

/// Tells and asks.
pub(super) struct Teller {
    pub(super) api: Api,
    pub(super) name: String,
    pub(super) seen: watch::Receiver<Seen>,
    pub(super) wanted: watch::Receiver<Wanted>,
    pub(super) answers: watch::Sender<Answers>,
    memory: Memory,
}

/// What was told.
#[derive(Debug, Default)]
struct Memory {
    condition: Option<(String, Condition, Instant)>,
    events: BTreeMap<(&'static str, String), Instant>,
    recent: VecDeque<Instant>,
    inquiry: Option<Instant>,
    refused: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct Patch<'a> {
    status: PatchStatus<'a>,
}

#[derive(Serialize)]
struct PatchStatus<'a> {
    conditions: [&'a Condition; 1],
}

impl Teller {
    pub(super) fn new(
        api: Api,
        name: String,
        (seen, wanted): (watch::Receiver<Seen>, watch::Receiver<Wanted>),
        answers: watch::Sender<Answers>,
    ) -> Self {
        Self { api, name, seen, wanted, answers, memory: Memory::default() }
    }

    /// Tells and asks until it is cancelled.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        entropy::gathered().await;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = self.attend() => {}
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                changed = self.seen.changed() => if changed.is_err() { return },
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = sleep(INTERVAL) => {}
            }
        }
    }

    async fn attend(&mut self) {
        let seen = self.seen.borrow_and_update().clone();
        if !seen.api.knows_agent {
            return;
        }
        let wanted = self.wanted.borrow_and_update().clone();
        if let (Presence::There(node), Some(network)) = (&seen.node, &wanted.condition) {
            self.set_condition(node, network).await;
        }
        // What RBAC does not let be read is not known: an Event on it is made by its name alone.
        let uid = match &seen.node {
            Presence::There(node) => node.metadata.uid.as_str(),
            Presence::Unknown | Presence::Absent | Presence::Deleted => "",
        };
        self.tell(uid, &wanted.notices).await;
        if seen.api.state == ApiState::Answers {
            self.inquire().await;
        }
        let refused: Vec<_> = self.memory.refused.values().cloned().collect();
        self.answers.send_if_modified(|answers| {
            let is_news = answers.refused != refused;
            answers.refused = refused;
            is_news
        });
    }

    async fn set_condition(&mut self, node: &Node, network: &Network) {
        let now = now();
        let Some(condition) = next_condition(node.condition(CONDITION), network, &now) else { return };
        if let Some((uid, told, at)) = &self.memory.condition
            && *uid == node.metadata.uid
            && is_same(told, &condition)
            && at.elapsed() < SETTLES
        {
            return;
        }
        let patch = Patch { status: PatchStatus { conditions: [&condition] } };
        let patched = self.api.patch_node_status(&patch).await;
        if patched.is_ok() {
            tracing::debug!(status = condition.status, reason = condition.reason, "Node condition is set");
        }
        self.note("condition", patched);
        // What was refused is not asked for at every turn either.
        self.memory.condition = Some((node.metadata.uid.clone(), condition, Instant::now()));
    }

    async fn tell(&mut self, uid: &str, notices: &[Notice]) {
        let memory = &mut self.memory;
        memory.events.retain(|(reason, message), at| {
            at.elapsed() < REPEAT
                || notices.iter().any(|notice| notice.reason == *reason && notice.message == *message)
        });
        for notice in notices {
            let key = (notice.reason, notice.message.clone());
            if self.memory.events.get(&key).is_some_and(|at| at.elapsed() < REPEAT) {
                continue;
            }
            let recent = &mut self.memory.recent;
            recent.retain(|at| at.elapsed() < EVENTS_WINDOW);
            if recent.len() >= MAX_EVENTS {
                return;
            }
            let created = self.create_event(uid, notice).await;
            // What RBAC refuses is not asked for at every turn either; all else that fails is tried again.
            if matches!(created, Ok(()) | Err(ApiError::Forbidden { .. })) {
                self.memory.recent.push_back(Instant::now());
                self.memory.events.insert(key, Instant::now());
            }
            self.note("events", created);
        }
    }

    async fn create_event(&mut self, uid: &str, notice: &Notice) -> Result<(), ApiError> {
        let now = now();
        let event = NewEvent {
            api_version: "v1",
            kind: "Event",
            metadata: NewMetadata {
                name: event_name(&self.name, uid, notice),
                namespace: Api::events_namespace(),
            },
            involved_object: InvolvedObject { api_version: "v1", kind: "Node", name: &self.name, uid },
            reason: notice.reason,
            message: cut(&notice.message),
            severity: match notice.severity {
                Severity::Normal => "Normal",
                Severity::Warning => "Warning",
            },
            source: EventSource { component: COMPONENT, host: &self.name },
            first_timestamp: &now,
            last_timestamp: &now,
            count: 1,
        };
        self.api.create_event(&event).await
    }

    /// Asks what changes seldom. That this is not permitted is no trouble: it is what least privilege looks like.
    async fn inquire(&mut self) {
        if self.memory.inquiry.is_some_and(|at| at.elapsed() < INQUIRY_INTERVAL) {
            return;
        }
        self.memory.inquiry = Some(Instant::now());
        let policies = match self.api.has_policies().await {
            Ok(true) => NetworkPolicies::NotEnforced,
            Ok(false) => NetworkPolicies::None,
            Err(error) => {
                tracing::debug!(%error, "whether there are NetworkPolicies is not known");
                NetworkPolicies::Unknown
            }
        };
        let ranges = self.api.service_ranges().await;
        let ranges = ranges.inspect_err(|error| tracing::debug!(%error, "ranges of Services are not known"));
        let ranges = ranges.ok().map(|texts| texts.iter().filter_map(|text| text.parse().ok()).collect());
        self.answers.send_if_modified(|answers| {
            let mut next = answers.clone();
            next.policies = policies;
            if let Some(ranges) = ranges {
                next.service_ranges = ranges;
            }
            let is_news = *answers != next;
            *answers = next;
            is_news
        });
    }

    /// Remembers what RBAC refuses; what fails otherwise is tried again, and the watch says it.
    fn note(&mut self, what: &'static str, outcome: Result<(), ApiError>) {
        match outcome {
            Ok(()) => {
                self.memory.refused.remove(what);
            }
            Err(error @ ApiError::Forbidden { .. }) => {
                self.memory.refused.insert(what, error.to_string());
            }
            Err(error) => tracing::debug!(%error, what, "the cluster could not be told"),
        }
    }
}

/// Returns the condition as it should be, if it is not.
fn next_condition(current: Option<&Condition>, network: &Network, now: &str) -> Option<Condition> {
    let (status, reason, message) = match network {
        Network::Available(message) => ("False", "MeshReady", message),
        Network::Unavailable(message) => ("True", "MeshNotReady", message),
    };
    let since = current.filter(|current| current.status == status);
    let since = since.and_then(|current| current.last_transition_time.clone());
    let next = Condition {
        kind: CONDITION.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: cut(message).to_owned(),
        last_heartbeat_time: Some(now.to_owned()),
        last_transition_time: Some(since.unwrap_or_else(|| now.to_owned())),
    };
    (!current.is_some_and(|current| is_same(current, &next))).then_some(next)
}

/// Names an Event by what it says, so that one that is there already is not made again by the next run of the agent.
fn event_name(node: &str, uid: &str, notice: &Notice) -> String {
    let digest = Sha256::digest(format!("{uid} {} {}", notice.reason, notice.message));
    format!("{node}.{}", hex::encode(&digest[..EVENT_NAME_LEN]))
}

fn is_same(one: &Condition, other: &Condition) -> bool {
    (&one.status, &one.reason, &one.message) == (&other.status, &other.reason, &other.message)
}

/// Kubernetes' times have whole seconds.
fn now() -> String {
    let now = OffsetDateTime::now_utc();
    let whole = now.replace_nanosecond(0).unwrap_or(now);
    whole.format(&Rfc3339).expect("a moment of this century has an RFC 3339 text")
}

fn cut(message: &str) -> &str {
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_set_where_it_differs_and_keeps_its_time_where_it_does_not_turn() {
        let ready = Network::Available("all is well".to_owned());
        let first = next_condition(None, &ready, "2026-01-02T03:04:05Z").unwrap();
        assert_eq!((first.status.as_str(), first.reason.as_str()), ("False", "MeshReady"));
        assert_eq!(next_condition(Some(&first), &ready, "2026-01-02T03:05:05Z"), None);
        let other = Network::Available("all is still well".to_owned());
        let later = next_condition(Some(&first), &other, "2026-01-02T03:05:05Z").unwrap();
        assert_eq!(later.last_transition_time, first.last_transition_time);
        assert_ne!(later.last_heartbeat_time, first.last_heartbeat_time);
        let broken = Network::Unavailable("the tunnel is gone".to_owned());
        let turned = next_condition(Some(&later), &broken, "2026-01-02T03:06:05Z").unwrap();
        assert_eq!((turned.status.as_str(), turned.reason.as_str()), ("True", "MeshNotReady"));
        assert_eq!(turned.last_transition_time.as_deref(), Some("2026-01-02T03:06:05Z"));
    }

    #[test]
    fn messages_are_cut_between_characters() {
        let long = "ü".repeat(MAX_MESSAGE);
        assert_eq!(cut(&long).len(), MAX_MESSAGE);
        assert_eq!(cut(&format!("x{long}")).len(), MAX_MESSAGE - 1);
        assert_eq!(cut("short"), "short");
    }
}
