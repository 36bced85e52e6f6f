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
//! So of two agents with the same keys the first one stays, and nothing changes hands. One that was refused has to wait
//! until the first one's connection is gone: being silent for a moment, as when a network changes, is not enough then. Where a node was reached last is
//! remembered in memory when it goes, so that a peer which comes later can try.
//!
//! At present every registered node is in every other's map, so news of one go to all others; but relays that
//! stand alone are nobody's peers, and get and make no news. What is new is put up at the board and shown at once, or, where
//! that would wake more sessions than [`SHOWING_RATE`] allows, a little later together with what comes until then: when
//! everybody comes back at the same moment, each session is told of many in one message.

mod handle;
mod presence;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use mesh_proto::{
    candidate::{Candidate, MAX_CANDIDATES},
    control::{Knock, RefusalCode},
    netmap::NodeId,
};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc, watch,
};
use tokio_util::sync::CancellationToken;

pub(super) use self::handle::{Admission, Arrival, Attachment, Incumbent, Newcomer, Post, Reach, Seen};
pub use self::handle::{HubGone, HubHandle};
use self::{
    handle::Command,
    presence::{Connected, Presence},
};
use super::{board::Board, link::Carrier, mailbox::Mailbox, refusal, stats::ControlStats};
use crate::{
    limit::{Rate, TokenBucket},
    registry::{Change, ChangeKind, Registry, RegistryError},
    relay::{RelayGone, RelayHandle},
};

/// Commands that may wait; sessions wait when it is full.
const COMMAND_CAPACITY: usize = 1024;
/// CallMeMaybes from one node to one other. Honest ones come with a change of network or a new attempt.
const CALL_RATE: Rate = Rate { per_second: 2, burst: 8 };
/// Sessions that are woken to read news: waking one, and the packet that follows, costs some 20 µs of a core. Up to a few
/// hundred sessions nothing ever waits; of a thousand each is woken four times a second in a storm.
const SHOWING_RATE: Rate = Rate { per_second: 4000, burst: 8000 };
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
    /// How many nodes have a session.
    sessions: u64,
    board: Board,
    /// How much may still be shown.
    showing: TokenBucket,
    /// Something waits to be shown.
    unshown: Unshown,
    /// Ids are never used again: a session that comes too late for its node's removal is known by them.
    removed: BTreeSet<NodeId>,
    next_session: u64,
}

/// What was put up at the board and not shown yet.
#[derive(Debug, Clone, Copy)]
enum Unshown {
    Nothing,
    /// It may be shown at once, if the rate allows.
    Something,
    /// It may be shown then.
    Until(Instant),
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
            sessions: 0,
            board: Board::new(),
            showing: TokenBucket::new(Instant::now()),
            unshown: Unshown::Nothing,
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
                () = showable(self.unshown) => self.show(),
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
            self.add(node.id, node.is_relay());
        }
        // A relay that is gone ends the process; here is nothing more to do about it.
        let _ = self.relay.set_nodes(relayed).await;
        Ok(())
    }

    async fn handle_change(&mut self, change: ChangeKind) -> Result<(), RelayGone> {
        match change {
            ChangeKind::NodeSet(node) => {
                self.add(node.id, node.is_relay());
                if node.is_relay() { Ok(()) } else { self.relay.add_node(node.id).await }
            }
            ChangeKind::NodeRemoved(id) => {
                self.remove(id);
                self.relay.remove_node(id).await
            }
            ChangeKind::RelaysSet(_) | ChangeKind::RoutesSet(_) => Ok(()),
        }
    }

    /// Takes in a node that may be new, or whose session may have come before the news of it.
    fn add(&mut self, id: NodeId, is_relay: bool) {
        let is_new = !self.nodes.contains_key(&id);
        let presence = self.nodes.entry(id).or_default();
        presence.is_relay = is_relay;
        if is_relay {
            self.board.remove(id);
        } else if is_new {
            self.board.put_quietly(&presence.state(id));
        }
    }

    /// Forgets a node. Its session learns of the removal by itself, and is told here in case it lagged.
    fn remove(&mut self, id: NodeId) {
        self.removed.insert(id);
        self.board.remove(id);
        if let Some(Presence { session: Some(session), .. }) = self.nodes.remove(&id) {
            session.mailbox.put_end(refusal(RefusalCode::NotRegistered, "this node was removed"));
            self.sessions -= 1;
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
            Command::NoteCopy { node, instance } => {
                if let Some(presence) = self.nodes.get_mut(&node) {
                    presence.note_copy(instance);
                }
            }
            Command::SetReach { node, reach } => self.set_reach(node, reach),
            Command::Call { from, to, candidates } => match self.call(from, to, candidates) {
                Some(()) => self.stats.calls.increment(),
                None => self.stats.calls_dropped.increment(),
            },
        }
    }

    fn admit(&mut self, node: NodeId, arrival: Arrival) -> Admission {
        let presence = self.nodes.get(&node);
        let is_other = |older: &&Connected| match (older.instance, arrival.instance) {
            (Some(older), Some(newer)) => older != newer,
            (None, _) | (_, None) => false,
        };
        let older = presence.and_then(|presence| presence.session.as_ref());
        let Some(older) = older.filter(is_other).filter(|older| arrival.past != Some(older.id)) else {
            return Admission::Attached(self.attach(node, arrival));
        };
        let copies = presence.map(|presence| &presence.copies);
        let is_copy = copies.zip(arrival.instance).is_some_and(|(copies, newer)| copies.contains(&newer));
        let newcomer = if is_copy { Newcomer::Copy } else { Newcomer::New };
        Admission::Occupied(Incumbent { session: older.id, mailbox: older.mailbox.clone(), newcomer })
    }

    fn attach(&mut self, node: NodeId, arrival: Arrival) -> Attachment {
        let Arrival { seen, instance, past: _ } = arrival;
        self.next_session += 1;
        let mailbox = Arc::new(Mailbox::default());
        let mut attachment =
            Attachment { node, session: self.next_session, mailbox: mailbox.clone(), reader: None };
        if self.removed.contains(&node) {
            mailbox.put_end(refusal(RefusalCode::NotRegistered, "this node was removed"));
            return attachment;
        }
        let Seen { address: observed, carrier } = seen;
        let connected =
            Connected { id: self.next_session, carrier, instance, mailbox, calls: BTreeMap::new() };
        let presence = self.nodes.entry(node).or_default();
        attachment.reader = (!presence.is_relay).then(|| self.board.read());
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
                self.sessions += 1;
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
            self.sessions -= 1;
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
    fn announce(&mut self, node: NodeId) {
        let Some(presence) = self.nodes.get(&node).filter(|presence| !presence.is_relay) else { return };
        self.board.put(&presence.state(node));
        if matches!(self.unshown, Unshown::Nothing) {
            self.unshown = Unshown::Something;
        }
    }

    /// Shows what was put up, or finds out when that may be.
    fn show(&mut self) {
        let now = Instant::now();
        let cost = self.sessions.clamp(1, SHOWING_RATE.burst);
        self.unshown = match self.showing.try_take(now, SHOWING_RATE, cost) {
            Ok(()) => {
                self.board.show();
                Unshown::Nothing
            }
            Err(wait) => Unshown::Until(now + wait),
        };
    }
}

/// Waits until something may be shown. Cancel-safe.
async fn showable(unshown: Unshown) {
    match unshown {
        Unshown::Nothing => std::future::pending().await,
        Unshown::Something => {}
        Unshown::Until(time) => tokio::time::sleep_until(time.into()).await,
    }
}
