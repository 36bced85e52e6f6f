//! How the control side speaks to the relay, which lives in the front's task.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use mesh_pipe::{Train, TrainReceiver, TrainSender, trains};
use mesh_proto::{
    netmap::NodeId,
    relay::{CHANNEL_KEY_LEN, ChannelId},
};
use tokio::sync::{mpsc, oneshot};

use super::{RelayCore, RelayStats, StreamId, StreamTrain, Way};

/// Commands that may wait for the front; senders wait when it is full.
const COMMAND_CAPACITY: usize = 256;
/// Trains of all streams that may wait for the front; who has more waits, and TCP passes that on.
const TRAIN_CAPACITY: usize = 256;
/// Bytes that may wait for one stream: 20 ms at 100 Mbit/s. More would be delay, not throughput.
const STREAM_QUEUE_BYTES: usize = 256 << 10;

/// What the others want of the front.
#[derive(Debug)]
pub enum RelayCommand {
    /// A node's byte stream is there.
    AddStream {
        /// Which one.
        id: StreamId,
        /// Takes what is to be sent through it.
        trains: TrainSender,
    },
    /// A byte stream has ended.
    RemoveStream(StreamId),
    /// Something for the relay alone.
    Relay(RelayOrder),
}

/// What the control side wants of the relay.
#[derive(Debug)]
pub enum RelayOrder {
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
    trains: mpsc::Sender<StreamTrain>,
    last_stream: Arc<AtomicU64>,
}

/// Where the front gets what the others want of the relay.
#[derive(Debug)]
pub struct RelayInbox {
    pub(crate) commands: mpsc::Receiver<RelayCommand>,
    pub(crate) trains: mpsc::Receiver<StreamTrain>,
}

/// The relay's end of a node's byte stream.
#[derive(Debug)]
pub struct RelayStream {
    id: StreamId,
    way: Way,
    relay: RelayHandle,
}

/// The relay's task has ended: the process is stopping.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the relay has stopped")]
pub struct RelayGone;

impl RelayHandle {
    /// Makes a handle, and the end at which its commands arrive.
    #[must_use]
    pub fn channel() -> (Self, RelayInbox) {
        let (commands, command_receiver) = mpsc::channel(COMMAND_CAPACITY);
        let (trains, train_receiver) = mpsc::channel(TRAIN_CAPACITY);
        let inbox = RelayInbox { commands: command_receiver, trains: train_receiver };
        (Self { commands, trains, last_stream: Arc::default() }, inbox)
    }

    /// Adds a byte stream, whose other side proved its node key; returns the relay's end, and what is to be sent.
    ///
    /// # Errors
    /// When the relay has stopped.
    pub async fn add_stream(&self, remote: SocketAddr) -> Result<(RelayStream, TrainReceiver), RelayGone> {
        let id = StreamId(self.last_stream.fetch_add(1, Relaxed));
        let (sender, receiver) = trains(STREAM_QUEUE_BYTES);
        self.send(RelayCommand::AddStream { id, trains: sender }).await?;
        Ok((RelayStream { id, way: Way::Stream { id, remote }, relay: self.clone() }, receiver))
    }

    /// Opens a channel for a node that proved its node key, and returns its id and key; the node's older
    /// channel is closed.
    ///
    /// # Errors
    /// When the relay has stopped.
    pub async fn open(&self, node: NodeId) -> Result<(ChannelId, [u8; CHANNEL_KEY_LEN]), RelayGone> {
        let (opened, answer) = oneshot::channel();
        self.order(RelayOrder::Open { node, opened }).await?;
        answer.await.map_err(|_| RelayGone)
    }

    /// Sets which nodes there are; the channels of others are closed.
    ///
    /// # Errors
    /// When the relay has stopped.
    pub async fn set_nodes(&self, nodes: BTreeSet<NodeId>) -> Result<(), RelayGone> {
        self.order(RelayOrder::SetNodes(nodes)).await
    }

    /// Adds a node.
    ///
    /// # Errors
    /// When the relay has stopped.
    pub async fn add_node(&self, node: NodeId) -> Result<(), RelayGone> {
        self.order(RelayOrder::AddNode(node)).await
    }

    /// Removes a node and closes its channel.
    ///
    /// # Errors
    /// When the relay has stopped.
    pub async fn remove_node(&self, node: NodeId) -> Result<(), RelayGone> {
        self.order(RelayOrder::RemoveNode(node)).await
    }

    /// Returns the counters.
    ///
    /// # Errors
    /// When the relay has stopped.
    pub async fn stats(&self) -> Result<RelayStats, RelayGone> {
        let (sender, answer) = oneshot::channel();
        self.order(RelayOrder::Stats(sender)).await?;
        answer.await.map_err(|_| RelayGone)
    }

    async fn order(&self, order: RelayOrder) -> Result<(), RelayGone> {
        self.send(RelayCommand::Relay(order)).await
    }

    async fn send(&self, command: RelayCommand) -> Result<(), RelayGone> {
        self.commands.send(command).await.map_err(|_| RelayGone)
    }
}

impl RelayStream {
    /// Returns where trains go that came through the stream, as [`Self::wrap`] makes them.
    #[must_use]
    pub fn inbound(&self) -> mpsc::Sender<StreamTrain> {
        self.relay.trains.clone()
    }

    /// Says of a train through which stream it came.
    #[must_use]
    pub fn wrap(&self, train: Train) -> StreamTrain {
        StreamTrain { way: self.way, train }
    }

    /// The stream has ended.
    pub async fn remove(self) {
        // A relay that has stopped needs no telling.
        let _ = self.relay.send(RelayCommand::RemoveStream(self.id)).await;
    }
}

impl RelayOrder {
    /// Carries the order out. Who asked may be gone already: then nobody needs the answer.
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
