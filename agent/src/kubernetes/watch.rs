//! Watches this node's own Node, for as long as the agent runs and whatever the API server does.
//!
//! ```text
//! list (by name) --> version --> watch from version --> events, bookmarks --> newer version
//!   ^                                |  ends in order after five minutes: again from the version
//!   |                                |  breaks, or cannot be made: the same after a wait that grows, and then --+
//!   +---- too old (410) -------------+                                                                          |
//!   +---- it has failed so often that the version itself may be the trouble (etcd restored) --------------------+
//! ```
//!
//! Nothing that is seen is forgotten while the server is away, for hours or for days: what is told is what was seen last,
//! and that the server is silent. A sign that it may be back ends a wait at once, and an attempt that has no answer yet.

use std::{sync::Arc, time::Duration};

use kube::core::WatchEvent;
use mesh_kubeapi::ApiError;
use mesh_proto::kubernetes::ApiState;
use time::OffsetDateTime;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{api::Api, objects::Node};
use crate::{
    control::backoff::{Backoff, random},
    entropy,
};

/// After so many failures in a row, the version to go on from is taken to be the trouble.
const DISTRUST_AFTER: u32 = 3;
/// A watch that has lasted for so long has worked, even if nothing came.
const WORKED: Duration = Duration::from_secs(5);

/// What was seen of the Node and of the API server.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) node: Presence,
    pub(super) api: ApiSeen,
}

/// Whether the Node is there.
#[derive(Debug, Clone, Default)]
pub(super) enum Presence {
    /// The server has not said it yet.
    #[default]
    Unknown,
    /// It is not, and was not since the agent was started.
    Absent,
    /// It was, and is not any more.
    Deleted,
    /// It is.
    There(Arc<Node>),
}

/// What is known of the API server.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ApiSeen {
    pub(super) state: ApiState,
    /// Whether it takes the agent for who it is, whatever it permits.
    pub(super) knows_agent: bool,
    pub(super) address: Option<String>,
    pub(super) error: Option<String>,
    pub(super) last_answer: Option<OffsetDateTime>,
}

/// Watches one Node.
pub(super) struct Watcher {
    api: Api,
    seen: watch::Sender<Seen>,
    /// Says that the server may be back.
    sign: Arc<Notify>,
    /// From where a watch goes on.
    version: Option<String>,
    backoff: Backoff,
}

impl Watcher {
    pub(super) fn new(api: Api, seen: watch::Sender<Seen>, sign: Arc<Notify>) -> Self {
        Self { api, seen, sign, version: None, backoff: Backoff::default() }
    }

    /// Watches until it is cancelled.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        entropy::gathered().await;
        let sign = Arc::clone(&self.sign);
        loop {
            let since = Instant::now();
            let seen = self.seen.subscribe();
            let ended = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                // A connection that was begun before there was a way would be waited for in vain.
                () = sign_of_return(&sign, &seen) => continue,
                ended = self.follow() => ended,
            };
            if since.elapsed() >= WORKED {
                self.backoff.reset();
            }
            if let Err(error) = ended {
                self.handle_failed(&error).await;
            }
            let wait = self.backoff.next_wait(random());
            if self.backoff.failures() > DISTRUST_AFTER {
                self.version = None;
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = sign.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Follows the Node until the server ends the watch.
    async fn follow(&mut self) -> Result<(), ApiError> {
        let version = match self.version.clone() {
            Some(version) => version,
            None => {
                let (node, version) = self.api.node().await?;
                self.set_node(node);
                self.version = Some(version.clone());
                version
            }
        };
        let mut watch = self.api.watch_node(&version).await?;
        self.set_answered().await;
        while let Some(event) = watch.next().await? {
            self.backoff.reset();
            let version = match event {
                WatchEvent::Added(node) | WatchEvent::Modified(node) => {
                    let version = node.metadata.resource_version.clone();
                    self.set_node(Some(node));
                    version
                }
                WatchEvent::Deleted(node) => {
                    self.set_node(None);
                    node.metadata.resource_version
                }
                WatchEvent::Bookmark(bookmark) => bookmark.metadata.resource_version,
                WatchEvent::Error(status) => return Err(ApiError::Failed(status.message)),
            };
            if !version.is_empty() {
                self.version = Some(version);
            }
            self.set_answered().await;
        }
        Ok(())
    }

    fn set_node(&self, node: Option<Node>) {
        self.seen.send_if_modified(|seen| {
            let next = match (&seen.node, node) {
                (Presence::There(before), Some(node)) if **before == node => return false,
                (_, Some(node)) => Presence::There(Arc::new(node)),
                (Presence::Unknown | Presence::Absent, None) => Presence::Absent,
                (Presence::There(_) | Presence::Deleted, None) => Presence::Deleted,
            };
            seen.node = next;
            true
        });
    }

    async fn set_answered(&mut self) {
        let address = self.api.address().await;
        let last_answer = Some(OffsetDateTime::now_utc());
        self.seen.send_if_modified(|seen| {
            let is_news = seen.api.state != ApiState::Answers;
            if is_news {
                tracing::info!("the API server answers");
            }
            seen.api =
                ApiSeen { state: ApiState::Answers, knows_agent: true, address, error: None, last_answer };
            is_news
        });
    }

    async fn handle_failed(&mut self, error: &ApiError) {
        if matches!(error, ApiError::Gone) {
            tracing::debug!("what was seen last is too old: the Node is listed again");
            self.version = None;
            return;
        }
        let address = self.api.address().await;
        let (state, text) = (error.state(), error.to_string());
        self.seen.send_if_modified(|seen| {
            let is_news = seen.api.error.as_ref() != Some(&text);
            // A break is no news before the next attempt has failed, too.
            let is_broken_watch = seen.api.state == ApiState::Answers && self.backoff.failures() == 0;
            if !is_news || is_broken_watch {
                tracing::debug!(error = text, "the API server is asked again");
                return false;
            }
            if seen.api.state == state && seen.api.error.is_some() {
                tracing::debug!(error = text, "still no answer of the API server");
            } else {
                tracing::warn!(error = text, "what runs goes on without the API server");
            }
            seen.api.state = state;
            seen.api.knows_agent = error.knows_caller();
            seen.api.address = address.or_else(|| seen.api.address.take());
            seen.api.error = Some(text);
            true
        });
    }
}

/// Waits for a sign that the server may be back while it does not answer. Cancel-safe.
async fn sign_of_return(sign: &Notify, seen: &watch::Receiver<Seen>) {
    loop {
        sign.notified().await;
        if seen.borrow().api.state != ApiState::Answers {
            return;
        }
    }
}
