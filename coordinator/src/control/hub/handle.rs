//! How sessions speak to the hub.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use mesh_proto::{
    candidate::Candidate,
    control::{InstanceId, Knock},
    netmap::{NodeId, RelayId},
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::control::{
    board::{News, Reader},
    link::{Carrier, Link},
    mailbox::{Mail, Mailbox},
};

/// Speaks to the hub. Cheap to clone.
#[derive(Clone)]
pub struct HubHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) online: watch::Receiver<BTreeSet<NodeId>>,
    pub(super) outside: watch::Receiver<Option<IpAddr>>,
}

/// The hub's task has ended: the process is stopping.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the hub has stopped")]
pub struct HubGone;

/// A session's place in the hub.
#[derive(Debug)]
pub(in crate::control) struct Attachment {
    pub(super) node: NodeId,
    pub(super) session: u64,
    pub(super) mailbox: Arc<Mailbox>,
    /// Where it reads of its peers; a relay that stands alone has none.
    pub(super) reader: Option<Reader>,
}

/// What the hub has for a session.
#[derive(Debug)]
pub(in crate::control) enum Post {
    /// Something for this one.
    Mail(Mail),
    /// News of peers.
    News(News),
}

/// Who wants to be a node's session.
#[derive(Debug, Clone, Copy)]
pub(in crate::control) struct Arrival {
    /// Where it comes from.
    pub(in crate::control) seen: Seen,
    /// Which run of the agent it is; older agents do not say.
    pub(in crate::control) instance: Option<InstanceId>,
    /// A session that was found not to be there any more.
    pub(in crate::control) past: Option<u64>,
}

/// What came of it.
#[derive(Debug)]
pub(in crate::control) enum Admission {
    /// It is the node's session.
    Attached(Attachment),
    /// Another run of the agent may be there still.
    Occupied(Incumbent),
}

/// A session that another one wants to take over from.
#[derive(Debug)]
pub(in crate::control) struct Incumbent {
    pub(in crate::control) session: u64,
    pub(in crate::control) mailbox: Arc<Mailbox>,
    pub(in crate::control) newcomer: Newcomer,
}

/// What is known of a run of an agent that finds another one in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::control) enum Newcomer {
    /// Nothing: it may be a restart.
    New,
    /// It is a copy: both were there at the same time once.
    Copy,
}

/// Where a node says that it may be reached.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::control) struct Reach {
    /// Addresses.
    pub(in crate::control) candidates: Vec<Candidate>,
    /// The relays at which it has a channel.
    pub(in crate::control) relays: Vec<RelayId>,
    /// Of them, the one that is nearest to it.
    pub(in crate::control) home: Option<RelayId>,
}

/// Where a session comes from.
#[derive(Debug, Clone, Copy)]
pub(in crate::control) struct Seen {
    pub(super) address: IpAddr,
    pub(super) carrier: Carrier,
}

pub(super) enum Command {
    Attach { node: NodeId, arrival: Arrival, admission: oneshot::Sender<Admission> },
    Knock { node: NodeId, knock: Knock, knocking: oneshot::Sender<Vec<IpAddr>> },
    Detach(Attachment),
    NoteCopy { node: NodeId, instance: InstanceId },
    SetReach { node: NodeId, reach: Reach },
    Call { from: NodeId, to: NodeId, candidates: Vec<Candidate> },
}

impl Seen {
    pub(in crate::control) fn of(link: &Link) -> Self {
        Self { address: link.remote.ip(), carrier: link.carrier }
    }
}

impl Attachment {
    pub(in crate::control) fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// Waits for what the hub has for the session, and takes it. Cancel-safe.
    pub(in crate::control) async fn take(&mut self) -> Post {
        let Some(reader) = &mut self.reader else { return Post::Mail(self.mailbox.take().await) };
        tokio::select! {
            biased;
            mail = self.mailbox.take() => Post::Mail(mail),
            news = reader.take() => Post::News(news),
        }
    }
}

impl HubHandle {
    /// Returns who is connected, now and as it changes.
    #[must_use]
    pub fn online(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.online.clone()
    }

    /// Returns this site's outside address, as nodes on its own network have found it, now and as it changes.
    #[must_use]
    pub fn outside(&self) -> watch::Receiver<Option<IpAddr>> {
        self.outside.clone()
    }

    /// Says that a node has a session, and where it comes from. An older session of it ends, unless it belongs to another
    /// run of the agent, which may be there still; the others are told.
    pub(in crate::control) async fn attach(
        &self,
        node: NodeId,
        arrival: Arrival,
    ) -> Result<Admission, HubGone> {
        let (admission, answer) = oneshot::channel();
        self.commands.send(Command::Attach { node, arrival, admission }).await.map_err(|_| HubGone)?;
        answer.await.map_err(|_| HubGone)
    }

    /// Has others knock at an address of a node's; returns where those come from.
    pub(in crate::control) async fn knock(&self, node: NodeId, knock: Knock) -> Result<Vec<IpAddr>, HubGone> {
        let (knocking, answer) = oneshot::channel();
        self.commands.send(Command::Knock { node, knock, knocking }).await.map_err(|_| HubGone)?;
        answer.await.map_err(|_| HubGone)
    }

    /// Says that a session has ended. If the hub is gone, nobody has to know.
    pub(in crate::control) async fn detach(&self, attachment: Attachment) {
        let _ = self.commands.send(Command::Detach(attachment)).await;
    }

    /// Notes that a run of a node's agent is a copy of another one.
    pub(in crate::control) async fn note_copy(&self, node: NodeId, instance: InstanceId) {
        let _ = self.commands.send(Command::NoteCopy { node, instance }).await;
    }

    /// Sets where a node may be reached, and at which relays.
    pub(in crate::control) async fn set_reach(&self, node: NodeId, reach: Reach) {
        let _ = self.commands.send(Command::SetReach { node, reach }).await;
    }

    /// Passes a call on.
    pub(in crate::control) async fn call(&self, from: NodeId, to: NodeId, candidates: Vec<Candidate>) {
        let _ = self.commands.send(Command::Call { from, to, candidates }).await;
    }
}
