//! What a relay that stands alone says to the nodes that it knows.

use std::{collections::BTreeMap, sync::Arc};

use mesh_proto::{
    control::{ClientMessage, Refusal, RefusalCode, RelayChannel, ServerMessage},
    key::NodeKey,
    netmap::{NetworkMap, NodeId, RelayId},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::relay_id;
use crate::{
    control::{Link, LinkError, Service, Stranger, pong},
    relay::{BIND_LIFETIME_S, RelayHandle},
};

/// How long a node waits that the relay does not know (yet), in milliseconds.
const UNKNOWN_RETRY_MS: u64 = 5_000;

/// The nodes of the map, as a relay needs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownNodes {
    /// What this relay is called.
    pub(super) relay: RelayId,
    /// Who may use it.
    pub(super) nodes: BTreeMap<NodeKey, NodeId>,
}

/// The service of a relay: channels for nodes of the map.
pub(super) struct RelayService {
    relay: RelayHandle,
    known: watch::Receiver<Option<Arc<KnownNodes>>>,
}

impl KnownNodes {
    pub(super) fn of_map(map: &NetworkMap) -> Self {
        let nodes = map.peers.iter().map(|node| (node.node_key, node.id)).collect();
        Self { relay: relay_id(map), nodes }
    }
}

impl RelayService {
    pub(super) fn new(relay: RelayHandle, known: watch::Receiver<Option<Arc<KnownNodes>>>) -> Self {
        Self { relay, known }
    }

    /// Says which relay this is, and which node has this key; `None` if it is not in the map.
    fn find(&self, key: &NodeKey) -> Option<(RelayId, NodeId)> {
        let known = self.known.borrow();
        let known = known.as_ref()?;
        Some((known.relay, *known.nodes.get(key)?))
    }

    /// Answers messages until the connection ends, or has to be ended with what is returned.
    async fn serve_node(&self, link: &mut Link) -> Result<Refusal, LinkError> {
        let mut known = self.known.clone();
        loop {
            let Some((relay, node)) = self.find(&link.node_key) else { return Ok(unknown_node()) };
            let message = tokio::select! {
                biased;
                changed = known.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return Ok(stopping()),
                },
                message = link.recv() => message?,
            };
            match message {
                ClientMessage::RelayOpen => match self.relay.open(node).await {
                    Ok((channel, key)) => {
                        let opened =
                            RelayChannel { relay, channel, key, bind_lifetime_s: Some(BIND_LIFETIME_S) };
                        link.send(&ServerMessage::RelayOpened(opened)).await?;
                    }
                    Err(_) => return Ok(stopping()),
                },
                ClientMessage::Ping { id } => link.send(&pong(id)).await?,
                // Said to coordinators; nothing here needs it.
                ClientMessage::Candidates { .. }
                | ClientMessage::Advertise { .. }
                | ClientMessage::Resync
                | ClientMessage::Unknown => {}
                ClientMessage::Hello(_)
                | ClientMessage::Join { .. }
                | ClientMessage::JoinServiceAccount { .. }
                | ClientMessage::Connect { .. }
                | ClientMessage::StillHere { .. }
                | ClientMessage::CallMeMaybe { .. }
                | ClientMessage::Knock(_)
                | ClientMessage::ServeRelay { .. } => {
                    let message = "this is a relay, not the coordinator".to_owned();
                    return Ok(Refusal { code: RefusalCode::Protocol, message, retry_after_ms: None });
                }
            }
        }
    }
}

impl Service for RelayService {
    async fn serve(self: Arc<Self>, stranger: Stranger, cancel: CancellationToken) {
        let Stranger { mut link, place, .. } = stranger;
        if self.find(&link.node_key).is_some() {
            drop(place);
            link.set_allowance(None);
        }
        let end = tokio::select! {
            biased;
            () = cancel.cancelled() => Ok(stopping()),
            end = self.serve_node(&mut link) => end,
        };
        match end {
            Ok(refusal) => link.close(&ServerMessage::Refused(refusal)).await,
            Err(error) => tracing::debug!(%error, "connection ended"),
        }
    }
}

/// The relay may be behind the coordinator: the node should come again.
fn unknown_node() -> Refusal {
    Refusal {
        code: RefusalCode::NotRegistered,
        message: "this relay does not know the node".to_owned(),
        retry_after_ms: Some(UNKNOWN_RETRY_MS),
    }
}

fn stopping() -> Refusal {
    Refusal {
        code: RefusalCode::ShuttingDown,
        message: "the relay is stopping".to_owned(),
        retry_after_ms: Some(UNKNOWN_RETRY_MS),
    }
}
