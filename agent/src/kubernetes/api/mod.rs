//! What the API server is asked: [`mesh_kubeapi`] with this agent's requests.

mod lines;

use std::time::Duration;

use kube::core::{
    Status, WatchEvent,
    params::{ListParams, Patch, PatchParams, PostParams, WatchParams},
    request::Request as Requests,
};
use mesh_kubeapi::{Access, ApiError, Caller, Client, Exchange};
use serde::Serialize;
use tokio::time::timeout;

use super::objects::{Anything, List, NewEvent, Node, ServiceRange};
use lines::Lines;

/// How long the server keeps a watch open.
const WATCH_SECONDS: u32 = 290;
/// A watch in which nothing has come for so long is dead: bookmarks come about once a minute.
const WATCH_SILENCE: Duration = Duration::from_secs(200);

const NODES: &str = "/api/v1/nodes";
const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
const SERVICE_RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";
/// Where Events on things without a namespace are, as kubelet has it.
const EVENTS_NAMESPACE: &str = "default";

/// Asks the API server.
#[derive(Debug)]
pub(super) struct Api {
    client: Client,
    node: String,
}

/// A watch that goes on.
#[derive(Debug)]
pub(super) struct NodeWatch {
    exchange: Exchange,
    lines: Lines,
    address: String,
}

impl Api {
    /// Makes a client for one Node.
    pub(super) fn new(access: Access, node: String) -> Self {
        let caller = Caller { name: "agent", user_agent: concat!("mesh-agent/", env!("CARGO_PKG_VERSION")) };
        Self { client: Client::new(access, caller), node }
    }

    /// Returns where the server was asked last, as far as the credentials say.
    pub(super) async fn address(&mut self) -> Option<String> {
        self.client.address().await
    }

    /// Returns the Node, if it is there, and the version from which a watch goes on.
    pub(super) async fn node(&mut self) -> Result<(Option<Node>, String), ApiError> {
        let params = ListParams::default().fields(&self.selector());
        let list: List<Node> = self
            .client
            .ask(Requests::new(NODES).list(&params), &format!("list the Node {}", self.node))
            .await?;
        let node = list.items.unwrap_or_default().into_iter().find(|node| node.metadata.name == self.node);
        Ok((node, list.metadata.resource_version))
    }

    /// Watches the Node from a version on.
    pub(super) async fn watch_node(&mut self, version: &str) -> Result<NodeWatch, ApiError> {
        let params = WatchParams::default().fields(&self.selector()).timeout(WATCH_SECONDS);
        let request = Requests::new(NODES).watch(&params, version);
        let what = format!("watch the Node {}", self.node);
        let (exchange, target) = self.client.exchange(request, &what).await?;
        Ok(NodeWatch { exchange, lines: Lines::default(), address: target.address() })
    }

    /// Changes the Node's status by a strategic merge.
    pub(super) async fn patch_node_status(&mut self, patch: &impl Serialize) -> Result<(), ApiError> {
        let patch = Patch::Strategic(patch);
        let request =
            Requests::new(NODES).patch_subresource("status", &self.node, &PatchParams::default(), &patch);
        let what = format!("set conditions of the Node {}", self.node);
        self.client.ask::<Anything>(request, &what).await.map(drop)
    }

    /// Makes an Event, unless there is one of that name, which the server forgets after an hour.
    pub(super) async fn create_event(&mut self, event: &NewEvent<'_>) -> Result<(), ApiError> {
        let body = serde_json::to_vec(event).map_err(|error| ApiError::Malformed(error.to_string()))?;
        let events = Requests::new(format!("/api/v1/namespaces/{EVENTS_NAMESPACE}/events"));
        match self.client.ask::<Anything>(events.create(&PostParams::default(), body), "create Events").await
        {
            Ok(_) | Err(ApiError::Exists) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Returns whether there is any NetworkPolicy.
    pub(super) async fn has_policies(&mut self) -> Result<bool, ApiError> {
        let params = ListParams::default().limit(1);
        let list: List<Anything> =
            self.client.ask(Requests::new(POLICIES).list_metadata(&params), "list NetworkPolicies").await?;
        Ok(list.items.is_some_and(|items| !items.is_empty()))
    }

    /// Returns the cluster's ranges for Services.
    pub(super) async fn service_ranges(&mut self) -> Result<Vec<String>, ApiError> {
        let request = Requests::new(SERVICE_RANGES).list(&ListParams::default());
        let list: List<ServiceRange> = self.client.ask(request, "list ServiceCIDRs").await?;
        Ok(list.items.unwrap_or_default().into_iter().flat_map(|range| range.spec.cidrs).collect())
    }

    /// Returns where Events on the Node are made.
    pub(super) fn events_namespace() -> &'static str {
        EVENTS_NAMESPACE
    }

    fn selector(&self) -> String {
        format!("metadata.name={}", self.node)
    }
}

impl NodeWatch {
    /// Returns what happened next; `None` when the server has ended the watch in order. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<WatchEvent<Node>>, ApiError> {
        loop {
            if let Some(line) = self.lines.take() {
                return match serde_json::from_slice(&line) {
                    Ok(WatchEvent::Error(status)) => Err(watch_error(&status)),
                    Ok(event) => Ok(Some(event)),
                    Err(error) => Err(ApiError::Malformed(error.to_string())),
                };
            }
            let piece = timeout(WATCH_SILENCE, self.exchange.next()).await;
            match piece.map_err(|_| ApiError::Silent(self.address.clone()))?? {
                Some(piece) => self.lines.push(&piece)?,
                None => return Ok(None),
            }
        }
    }
}

fn watch_error(status: &Status) -> ApiError {
    // 410, and 504 of etcd's compaction while the request was under way.
    match status.code == 410 || status.reason == "Expired" || status.reason == "Gone" {
        true => ApiError::Gone,
        false => ApiError::Failed(status.message.clone()),
    }
}
