//! How the control side speaks to the relay, which lives in the front's task.

use std::collections::BTreeSet;

use mesh_proto::{
    netmap::NodeId,
    relay::{CHANNEL_KEY_LEN, ChannelId},
};
use tokio::sync::{mpsc, oneshot};

use super::{RelayCore, RelayStats};

/// Commands that may wait for the front; senders wait when it is full.
const COMMAND_CAPACITY: usize = 256;

/// What the control side wants of the relay.
#[derive(Debug)]
pub enum RelayCommand {
    /// Opens a channel for a node that proved its node key.
    Open {
        /// The node.
        node: NodeId,
        /// Gets the channel's id and key.
        opened: oneshot::Sender<(ChannelId, [u8; CHANNEL_KEY_LEN])>,
    },
    /// Sets which nodes there are.
    SetNodes(BTreeSet<NodeId>),
    /// Adds a node.
    AddNode(NodeId),
    /// Removes a node and closes its channel.
    RemoveNode(NodeId),
    /// Asks for the counters.
    Stats(oneshot::Sender<RelayStats>),
}

/// Speaks to the relay. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RelayHandle {
    commands: mpsc::Sender<RelayCommand>,
}

/// The relay's task has ended: the process is stopping.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the relay has stopped")]
pub struct RelayGone;

impl RelayHandle {
    /// Makes a handle, and the end at which its commands arrive.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<RelayCommand>) {
        let (commands, receiver) = mpsc::channel(COMMAND_CAPACITY);
        (Self { commands }, receiver)
    }

    /// Opens a channel for a node that proved its node key, and returns its id and key; the node's older
    /// channel is closed.
    ///
    /// # Errors
    /// When the relay has stopped.
    pub async fn open(&self, node: NodeId) -> Result<(ChannelId, [u8; CHANNEL_KEY_LEN]), RelayGone> {
        let (opened, answer) = oneshot::channel();
        self.send(RelayCommand::Open { node, opened }).await?;
        answer.await.map_err(|_| RelayGone)
    }

    /// Sets which nodes there are; the channels of others are closed.
    ///
    /// # Errors
    /// When the relay has stopped.
    pub async fn set_nodes(&self, nodes: BTreeSet<NodeId>) -> Result<(), RelayGone> {
        self.send(RelayCommand::SetNodes(nodes)).await
    }

    /// Adds a node.
    ///
    /// # Errors
    /// When the relay has stopped.
    pub async fn add_node(&self, node: NodeId) -> Result<(), RelayGone> {
        self.send(RelayCommand::AddNode(node)).await
    }

    /// Removes a node and closes its channel.
    ///
    /// # Errors
    /// When the relay has stopped.
    pub async fn remove_node(&self, node: NodeId) -> Result<(), RelayGone> {
        self.send(RelayCommand::RemoveNode(node)).await
    }

    /// Returns the counters.
    ///
    /// # Errors
    /// When the relay has stopped.
    pub async fn stats(&self) -> Result<RelayStats, RelayGone> {
        let (sender, answer) = oneshot::channel();
        self.send(RelayCommand::Stats(sender)).await?;
        answer.await.map_err(|_| RelayGone)
    }

    async fn send(&self, command: RelayCommand) -> Result<(), RelayGone> {
        self.commands.send(command).await.map_err(|_| RelayGone)
    }
}

impl RelayCommand {
    /// Carries the command out. Who asked may be gone already: then nobody needs the answer.
    pub(crate) fn apply(self, now: std::time::Instant, core: &mut RelayCore) {
        match self {
            Self::Open { node, opened } => match fresh_channel() {
                Ok((id, key)) => {
                    core.open(now, node, id, key);
                    let _ = opened.send((id, key));
                }
                Err(error) => tracing::error!(%error, "no random bytes for a relay channel"),
            },
            Self::SetNodes(nodes) => core.set_nodes(nodes),
            Self::AddNode(node) => core.add_node(node),
            Self::RemoveNode(node) => core.remove_node(node),
            Self::Stats(sender) => {
                let _ = sender.send(core.stats());
            }
        }
    }
}

fn fresh_channel() -> Result<(ChannelId, [u8; CHANNEL_KEY_LEN]), getrandom::Error> {
    let mut key = [0; CHANNEL_KEY_LEN];
    getrandom::fill(&mut key)?;
    Ok((ChannelId(getrandom::u64()?), key))
}
