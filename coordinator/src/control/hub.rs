//! The hub: the one place that knows which nodes are connected, and where they may be reached.
//!
//! It is an actor: sessions send it commands and it puts news into their mailboxes; it never waits for a
//! session. Of one run of an agent the newest connection is the node; an older one is told that it was replaced. Another
//! run (a restart, or a copy of the machine) takes over once the older one was found not to be there any more:
//!
//! ```text
//! attach, other instance --> Occupied(incumbent) --> the session asks it: AreYouThere
//!                              no answer, or its end --> attach, past it --> Attached
//!                              StillHere --> refused as a duplicate; the incumbent is told that it was copied
//! ```
//!
//! So of two agents with the same keys the first one stays, and nothing changes hands. Where a node was reached last is
//! remembered in memory when it goes, so that a peer which comes later can try.
//!
//! At present every registered node is in every other's map, so news of one go to all others; but relays that
//! stand alone are nobody's peers, and get and make no news.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use mesh_proto::{
    candidate::{Candidate, CandidateKind, MAX_CANDIDATES},
    control::{InstanceId, Knock, PeerState, RefusalCode},
    netmap::{NodeId, RelayId},
};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc, oneshot, watch,
};
use tokio_util::sync::CancellationToken;

use super::{
    link::{Carrier, Link},
    mailbox::Mailbox,
    refusal,
    stats::ControlStats,
};
use crate::{
    limit::{Rate, TokenBucket},
    registry::{Change, ChangeKind, Registry, RegistryError},
    relay::{RelayGone, RelayHandle},
};

/// Commands that may wait; sessions wait when it is full.
const COMMAND_CAPACITY: usize = 1024;
/// CallMeMaybes from one node to one other. Honest ones come with a change of network or a new attempt.
const CALL_RATE: Rate = Rate { per_second: 2, burst: 8 };
/// Nodes that are asked to knock at one address.
const MAX_KNOCKERS: usize = 2;
/// Relays of one node that are passed on; what goes beyond is cut.
const MAX_RELAYS: usize = 8;

/// The task that knows who is connected.
pub struct Hub {
    registry: Registry,
    changes: broadcast::Receiver<Change>,
    commands: mpsc::Receiver<Command>,
    relay: RelayHandle,
    stats: Arc<ControlStats>,
    online: watch::Sender<BTreeSet<NodeId>>,
    outside: watch::Sender<Option<IpAddr>>,
    nodes: BTreeMap<NodeId, Presence>,
    /// Ids are never used again: a session that comes too late for its node's removal is known by them.
    removed: BTreeSet<NodeId>,
    next_session: u64,
}

/// Speaks to the hub. Cheap to clone.
#[derive(Clone)]
pub struct HubHandle {
    commands: mpsc::Sender<Command>,
    online: watch::Receiver<BTreeSet<NodeId>>,
    outside: watch::Receiver<Option<IpAddr>>,
}

/// The hub's task has ended: the process is stopping.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the hub has stopped")]
pub struct HubGone;

/// A session's place in the hub.
#[derive(Debug)]
pub(super) struct Attachment {
    node: NodeId,
    session: u64,
    mailbox: Arc<Mailbox>,
}

/// Who wants to be a node's session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    /// Where it comes from.
    pub(super) seen: Seen,
    /// Which run of the agent it is; older agents do not say.
    pub(super) instance: Option<InstanceId>,
    /// A session that was found not to be there any more.
    pub(super) past: Option<u64>,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Admission {
    /// It is the node's session.
    Attached(Attachment),
    /// Another run of the agent may be there still.
    Occupied(Incumbent),
}

/// A session that another one wants to take over from.
#[derive(Debug)]
pub(super) struct Incumbent {
    pub(super) session: u64,
    pub(super) mailbox: Arc<Mailbox>,
}

/// Where a node says that it may be reached.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// Addresses.
    pub(super) candidates: Vec<Candidate>,
    /// The relays at which it has a channel.
    pub(super) relays: Vec<RelayId>,
    /// Of them, the one that is nearest to it.
    pub(super) home: Option<RelayId>,
}

/// Where a session comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    address: IpAddr,
    carrier: Carrier,
}

enum Command {
    Attach { node: NodeId, arrival: Arrival, admission: oneshot::Sender<Admission> },
    Knock { node: NodeId, knock: Knock, knocking: oneshot::Sender<Vec<IpAddr>> },
    Detach(Attachment),
    SetReach { node: NodeId, reach: Reach },
    Call { from: NodeId, to: NodeId, candidates: Vec<Candidate> },
}

/// What the hub knows of a registered node.
#[derive(Default)]
struct Presence {
    /// A relay that stands alone: nobody's peer.
    is_relay: bool,
    session: Option<Connected>,
    reach: Reach,
    /// Where its last session came from.
    observed: Option<IpAddr>,
}

struct Connected {
    id: u64,
    carrier: Carrier,
    instance: Option<InstanceId>,
    mailbox: Arc<Mailbox>,
    /// One bucket per peer that was called and is registered.
    calls: BTreeMap<NodeId, TokenBucket>,
}

impl Seen {
    pub(super) fn of(link: &Link) -> Self {
        Self { address: link.remote.ip(), carrier: link.carrier }
    }
}

impl Attachment {
    pub(super) fn mailbox(&self) -> &Mailbox {
        &self.mailbox
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
    pub(super) async fn attach(&self, node: NodeId, arrival: Arrival) -> Result<Admission, HubGone> {
        let (admission, answer) = oneshot::channel();
        self.commands.send(Command::Attach { node, arrival, admission }).await.map_err(|_| HubGone)?;
        answer.await.map_err(|_| HubGone)
    }

    /// Has others knock at an address of a node's; returns where those come from.
    pub(super) async fn knock(&self, node: NodeId, knock: Knock) -> Result<Vec<IpAddr>, HubGone> {
        let (knocking, answer) = oneshot::channel();
        self.commands.send(Command::Knock { node, knock, knocking }).await.map_err(|_| HubGone)?;
        answer.await.map_err(|_| HubGone)
    }

    /// Says that a session has ended. If the hub is gone, nobody has to know.
    pub(super) async fn detach(&self, attachment: Attachment) {
        let _ = self.commands.send(Command::Detach(attachment)).await;
    }

    /// Sets where a node may be reached, and at which relays.
    pub(super) async fn set_reach(&self, node: NodeId, reach: Reach) {
        let _ = self.commands.send(Command::SetReach { node, reach }).await;
    }

    /// Passes a call on.
    pub(super) async fn call(&self, from: NodeId, to: NodeId, candidates: Vec<Candidate>) {
        let _ = self.commands.send(Command::Call { from, to, candidates }).await;
    }
}

impl Hub {
    /// Makes the hub of a registry; it tells the relay which nodes there are.
    #[must_use]
    pub fn new(registry: Registry, relay: RelayHandle, stats: Arc<ControlStats>) -> (Self, HubHandle) {
        let (sender, commands) = mpsc::channel(COMMAND_CAPACITY);
        let online = watch::Sender::new(BTreeSet::new());
        let outside = watch::Sender::new(None);
        let handle = HubHandle { commands: sender, online: online.subscribe(), outside: outside.subscribe() };
        let hub = Self {
            changes: registry.watch(),
            registry,
            commands,
            relay,
            stats,
            online,
            outside,
            nodes: BTreeMap::new(),
            removed: BTreeSet::new(),
            next_session: 0,
        };
        (hub, handle)
    }

    /// Works until it is cancelled, or the relay is gone.
    ///
    /// # Errors
    /// When the registry fails.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), RegistryError> {
        self.load_nodes().await?;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                change = self.changes.recv() => match change {
                    Ok(change) => {
                        if self.handle_change(change.kind).await.is_err() {
                            return Ok(());
                        }
                    }
                    Err(RecvError::Lagged(_)) => self.load_nodes().await?,
                    Err(RecvError::Closed) => return Ok(()),
                },
                command = self.commands.recv() => match command {
                    Some(command) => self.handle_command(command),
                    None => return Ok(()),
                },
            }
        }
    }

    /// Takes over which nodes there are, at the start and after changes were missed.
    async fn load_nodes(&mut self) -> Result<(), RegistryError> {
        let nodes = self.registry.nodes().await?;
        let known: BTreeSet<NodeId> = nodes.iter().map(|node| node.id).collect();
        let gone: Vec<NodeId> = self.nodes.keys().filter(|id| !known.contains(id)).copied().collect();
        for id in gone {
            self.remove(id);
        }
        let relayed = nodes.iter().filter(|node| !node.is_relay()).map(|node| node.id).collect();
        for node in nodes {
            self.nodes.entry(node.id).or_default().is_relay = node.is_relay();
        }
        // A relay that is gone ends the process; here is nothing more to do about it.
        let _ = self.relay.set_nodes(relayed).await;
        Ok(())
    }

    async fn handle_change(&mut self, change: ChangeKind) -> Result<(), RelayGone> {
        match change {
            ChangeKind::NodeSet(node) => {
                self.nodes.entry(node.id).or_default().is_relay = node.is_relay();
                if node.is_relay() { Ok(()) } else { self.relay.add_node(node.id).await }
            }
            ChangeKind::NodeRemoved(id) => {
                self.remove(id);
                self.relay.remove_node(id).await
            }
            ChangeKind::RelaysSet(_) | ChangeKind::RoutesSet(_) => Ok(()),
        }
    }

    /// Forgets a node. Its session learns of the removal by itself, and is told here in case it lagged.
    fn remove(&mut self, id: NodeId) {
        self.removed.insert(id);
        if let Some(Presence { session: Some(session), .. }) = self.nodes.remove(&id) {
            session.mailbox.put_end(refusal(RefusalCode::NotRegistered, "this node was removed"));
            self.online.send_if_modified(|online| online.remove(&id));
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Knock { node, knock, knocking } => {
                // Who asked may be gone.
                let _ = knocking.send(self.knock(node, knock));
            }
            Command::Attach { node, arrival, admission } => {
                if let Err(Admission::Attached(unclaimed)) = admission.send(self.admit(node, arrival)) {
                    self.detach(&unclaimed);
                }
            }
            Command::Detach(attachment) => self.detach(&attachment),
            Command::SetReach { node, reach } => self.set_reach(node, reach),
            Command::Call { from, to, candidates } => match self.call(from, to, candidates) {
                Some(()) => self.stats.calls.increment(),
                None => self.stats.calls_dropped.increment(),
            },
        }
    }

    fn admit(&mut self, node: NodeId, arrival: Arrival) -> Admission {
        let older = self.nodes.get(&node).and_then(|presence| presence.session.as_ref());
        let is_other = |older: &&Connected| match (older.instance, arrival.instance) {
            (Some(older), Some(newer)) => older != newer,
            (None, _) | (_, None) => false,
        };
        match older.filter(is_other).filter(|older| arrival.past != Some(older.id)) {
            Some(older) => {
                Admission::Occupied(Incumbent { session: older.id, mailbox: older.mailbox.clone() })
            }
            None => Admission::Attached(self.attach(node, arrival)),
        }
    }

    fn attach(&mut self, node: NodeId, arrival: Arrival) -> Attachment {
        let Arrival { seen, instance, past: _ } = arrival;
        self.next_session += 1;
        let mailbox = Arc::new(Mailbox::default());
        let attachment = Attachment { node, session: self.next_session, mailbox: mailbox.clone() };
        if self.removed.contains(&node) {
            mailbox.put_end(refusal(RefusalCode::NotRegistered, "this node was removed"));
            return attachment;
        }
        if !self.nodes.entry(node).or_default().is_relay {
            for (id, peer) in self.nodes.iter().filter(|(id, peer)| **id != node && !peer.is_relay) {
                mailbox.put_state(Arc::new(peer.state(*id)));
            }
        }
        let Seen { address: observed, carrier } = seen;
        let connected =
            Connected { id: self.next_session, carrier, instance, mailbox, calls: BTreeMap::new() };
        let presence = self.nodes.entry(node).or_default();
        let observed = Some(observed.to_canonical());
        let moved = std::mem::replace(&mut presence.observed, observed) != observed;
        match presence.session.replace(connected) {
            Some(older) => {
                let replaced = refusal(RefusalCode::Replaced, "a newer connection of this node took over");
                older.mailbox.put_end(replaced);
                if moved {
                    self.announce(node);
                }
            }
            None => {
                self.online.send_modify(|online| {
                    online.insert(node);
                });
                self.announce(node);
            }
        }
        attachment
    }

    fn detach(&mut self, attachment: &Attachment) {
        let node = attachment.node;
        attachment.mailbox.note_end();
        let Some(presence) = self.nodes.get_mut(&node) else { return };
        if presence.session.as_ref().is_some_and(|session| session.id == attachment.session) {
            presence.session = None;
            self.online.send_if_modified(|online| online.remove(&node));
            self.announce(node);
        }
    }

    fn set_reach(&mut self, node: NodeId, mut reach: Reach) {
        reach.candidates.truncate(MAX_CANDIDATES);
        reach.relays.truncate(MAX_RELAYS);
        // A home that is cut off, or was never listed, is none.
        reach.home = reach.home.filter(|home| reach.relays.contains(home));
        let Some(presence) = self.nodes.get_mut(&node) else { return };
        if presence.reach != reach {
            presence.reach = reach;
            if let Some(outside) = presence.outside() {
                self.outside.send_if_modified(|known| known.replace(outside) != Some(outside));
            }
            self.announce(node);
        }
    }

    /// Passes a call on; `None` if the peer is not there, or the pair is over its rate.
    fn call(&mut self, from: NodeId, to: NodeId, mut candidates: Vec<Candidate>) -> Option<()> {
        candidates.truncate(MAX_CANDIDATES);
        let mailbox = self.nodes.get(&to).filter(|_| from != to)?.session.as_ref()?.mailbox.clone();
        let caller = self.nodes.get_mut(&from)?.session.as_mut()?;
        let now = Instant::now();
        let bucket = caller.calls.entry(to).or_insert_with(|| TokenBucket::new(now));
        bucket.try_take(now, CALL_RATE, 1).ok()?;
        mailbox.put_call(from, candidates);
        Some(())
    }

    /// Passes a knock on to a few nodes that stand elsewhere and whose UDP gets out; not always the same ones.
    fn knock(&self, node: NodeId, knock: Knock) -> Vec<IpAddr> {
        let own = self.nodes.get(&node).and_then(|presence| presence.observed);
        let mut fit: Vec<(IpAddr, &Mailbox)> = Vec::new();
        for (id, presence) in &self.nodes {
            let session = presence.session.as_ref().filter(|session| session.carrier == Carrier::Udp);
            let (Some(session), Some(observed)) = (session, presence.observed) else { continue };
            let is_same_family = observed.is_ipv4() == knock.to.is_ipv4();
            let is_known = fit.iter().any(|(known, _)| *known == observed);
            if *id != node && Some(observed) != own && is_same_family && !is_known {
                fit.push((observed, &session.mailbox));
            }
        }
        let start = usize::from(knock.transaction[0]) % fit.len().max(1);
        let chosen = fit.iter().cycle().skip(start).take(MAX_KNOCKERS.min(fit.len()));
        let tell = |(observed, mailbox): &(IpAddr, &Mailbox)| {
            mailbox.put_knock(knock);
            *observed
        };
        chosen.map(tell).collect()
    }

    /// Tells the connected peers of a node its state.
    fn announce(&self, node: NodeId) {
        let Some(presence) = self.nodes.get(&node).filter(|presence| !presence.is_relay) else { return };
        let state = Arc::new(presence.state(node));
        for (_, peer) in self.nodes.iter().filter(|(id, peer)| **id != node && !peer.is_relay) {
            if let Some(session) = &peer.session {
                session.mailbox.put_state(state.clone());
            }
        }
    }
}

impl Presence {
    /// Returns this site's outside address, if the node is on the coordinator's own network and knows it: it was told so
    /// by an observer elsewhere, or by the router.
    fn outside(&self) -> Option<IpAddr> {
        let is_near = match self.observed? {
            IpAddr::V4(v4) => v4.is_private() || v4.is_loopback(),
            IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback() || v6.is_unicast_link_local(),
        };
        let found = |candidate: &&Candidate| match (candidate.kind, candidate.address.ip()) {
            (CandidateKind::Reflexive | CandidateKind::PortMapped, IpAddr::V4(v4)) => {
                !v4.is_private() && !v4.is_loopback()
            }
            _ => false,
        };
        self.reach.candidates.iter().filter(|_| is_near).find(found).map(|candidate| candidate.address.ip())
    }

    fn state(&self, id: NodeId) -> PeerState {
        PeerState {
            id,
            online: self.session.is_some(),
            candidates: self.reach.candidates.clone(),
            relays: self.reach.relays.clone(),
            home: self.reach.home,
            observed: self.observed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(observed: &str, candidates: &[(&str, CandidateKind)]) -> Presence {
        let candidate = |(address, kind): &(&str, CandidateKind)| Candidate {
            address: address.parse().unwrap(),
            kind: *kind,
        };
        Presence {
            observed: Some(observed.parse().unwrap()),
            reach: Reach { candidates: candidates.iter().map(candidate).collect(), ..Reach::default() },
            ..Presence::default()
        }
    }

    #[test]
    fn the_outside_address_is_what_nodes_nearby_were_seen_at() {
        let host = ("192.168.1.7:51820", CandidateKind::Host);
        let guess = ("203.0.113.5:51820", CandidateKind::Guess);
        let inner = ("192.168.1.7:51820", CandidateKind::Reflexive);
        let outer = ("203.0.113.7:51820", CandidateKind::Reflexive);
        let expected = Some(IpAddr::from([203, 0, 113, 7]));
        assert_eq!(presence("127.0.0.1", &[host, guess, inner, outer]).outside(), expected);
        assert_eq!(
            presence("192.168.1.7", &[("203.0.113.7:1", CandidateKind::PortMapped)]).outside(),
            expected
        );
        assert_eq!(presence("192.168.1.7", &[host, guess, inner]).outside(), None);
        assert_eq!(presence("198.51.100.1", &[outer]).outside(), None, "it is somewhere else");
    }
}
