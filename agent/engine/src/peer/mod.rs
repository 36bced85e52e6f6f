//! One peer: its session, its paths, and what waits for it.
//!
//! ```text
//! traffic to it, a handshake or a CallMeMaybe from it
//!    |-- initiation through the relay at once (and to addresses that worked before); first packets wait
//!    |-- CallMeMaybe through the relay and through the coordinator
//!    `-- every known address is probed: at once in the local network, else when the CallMeMaybe has arrived
//! response ------> waiting packets go out, in order, through the relay
//! first Pong ----> the path that answered becomes the primary path
//! ```
//!
//! The session ([`handshake`], [`data`]) and the paths ([`probing`]) know nothing of each other but where a message
//! came from and where one is to go.

use std::time::{Duration, Instant};

use mesh_proto::{
    candidate::Candidate,
    disco::TxId,
    key::PublicKey,
    netmap::{NodeId, RelayId},
};

mod data;
mod handshake;
mod holding;
mod lending;
mod oversize;
mod passing;
mod pausing;
mod probing;
mod punching;

pub(crate) use data::{Room, Scratch};
use holding::Hold;
pub(crate) use holding::{EXCHANGE_BYTES, HOLD_RATE};
pub(crate) use pausing::Parting;
use pausing::Pause;
use punching::Punched;

use crate::{
    config::PeerConfig,
    disco::DiscoKey,
    drops::{DropCounters, DropReason},
    event::{Event, WakeupReason},
    local::Local,
    pass::Passed,
    path::{ACTIVE_WINDOW, Health, Path, PathSet},
    queue::Queue,
    session::{REJECT_AFTER_TIME, Session, Timestamp},
    snapshot::{PathSnapshot, PeerSnapshot},
    timer::Wakeups,
};

/// A peer.
pub(crate) struct Peer {
    config: PeerConfig,
    slot: u32,
    session: Option<Box<Session>>,
    disco: Option<DiscoKey>,
    paths: PathSet,
    queue: Queue,
    /// What waits until it is known what the path carries.
    oversize: Queue,
    pause: Option<Pause>,
    online: bool,
    /// The relays at which it has a channel, as the coordinator says.
    relays: Vec<RelayId>,
    /// Of them, the one that is nearest to it.
    home: Option<RelayId>,
    /// Of the newest initiation that was taken: older ones are replays, also after the session is gone.
    newest_initiation: Option<Timestamp>,
    last_handshake: Option<Instant>,
    /// When this node last began a handshake because the peer's initiation was too old.
    last_call_back: Option<Instant>,
    /// When the peer first probed this node without a session between them.
    probed_without_session: Option<Instant>,
    last_call: Option<Instant>,
    /// How often the peer was called again, in vain, since there was a new reason to.
    recalls: u32,
    /// When the peer is to be told news that came too soon after the last call.
    news_at: Option<Instant>,
    hold: Hold,
    last_called: Option<Instant>,
    punched: Punched,
    passed: Passed,
    /// When something was sent to or came from the peer: a peer that only calls, or is only looked for, has no traffic.
    last_traffic: Option<Instant>,
    /// Until when this node calls the peer of its own accord.
    wanted_until: Option<Instant>,
    /// The last initiation could not be sent anywhere.
    unsent: bool,
    /// Pings that a person asked for.
    pings: Vec<AskedPing>,
    tx_bytes: u64,
    rx_bytes: u64,
    drops: DropCounters,
}

/// What the coordinator says of where a peer is.
#[derive(Debug)]
pub(crate) struct PeerNews {
    /// Whether it is connected.
    pub(crate) online: bool,
    /// Where it may be reached.
    pub(crate) candidates: Vec<Candidate>,
    /// The relays at which it has a channel.
    pub(crate) relays: Vec<RelayId>,
    /// Of them, the one that is nearest to it.
    pub(crate) home: Option<RelayId>,
}

#[derive(Debug, Clone, Copy)]
struct AskedPing {
    token: u64,
    /// Set when it was sent.
    txid: Option<TxId>,
}

impl Peer {
    pub(crate) fn new(config: PeerConfig, slot: u32) -> Self {
        Self {
            config,
            slot,
            session: None,
            disco: None,
            paths: PathSet::default(),
            queue: Queue::default(),
            oversize: Queue::default(),
            pause: None,
            online: false,
            relays: Vec::new(),
            home: None,
            newest_initiation: None,
            last_handshake: None,
            last_call_back: None,
            probed_without_session: None,
            last_call: None,
            recalls: 0,
            news_at: None,
            hold: Hold::default(),
            last_called: None,
            punched: Punched::default(),
            passed: Passed::default(),
            last_traffic: None,
            wanted_until: None,
            unsent: false,
            pings: Vec::new(),
            tx_bytes: 0,
            rx_bytes: 0,
            drops: DropCounters::default(),
        }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.config.id
    }

    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        self.config.public_key
    }

    pub(crate) fn config(&self) -> &PeerConfig {
        &self.config
    }

    /// Takes over a configuration with the same id and key.
    pub(crate) fn set_config(&mut self, config: PeerConfig) {
        self.config = config;
    }

    /// Gives back what the peer holds of shared things.
    pub(crate) fn close(&mut self, local: &mut Local) {
        self.queue.clear(&mut local.budget);
        self.oversize.clear(&mut local.budget);
        self.abandon_punch(local);
    }

    /// Returns what the coordinator and the peer have said of where it is.
    pub(crate) fn news(&self) -> PeerNews {
        PeerNews {
            online: self.online,
            candidates: self.paths.candidates(),
            relays: self.relays.clone(),
            home: self.home,
        }
    }

    /// Whether there was traffic lately.
    pub(crate) fn is_active(&self, now: Instant) -> bool {
        self.paths.is_active(now)
    }

    /// Whether this node has a reason of its own to be active, which a call of the peer's is not.
    fn has_traffic(&self, now: Instant) -> bool {
        self.last_traffic.is_some_and(|at| now.saturating_duration_since(at) < ACTIVE_WINDOW)
    }

    fn is_wanted(&self, now: Instant) -> bool {
        self.wanted_until.is_some_and(|until| now < until)
    }

    fn want(&mut self, time: Duration, now: Instant) {
        self.wanted_until = self.wanted_until.max(Some(now + time));
    }

    /// Whether a direct path answers.
    pub(crate) fn has_direct_answer(&self) -> bool {
        self.paths.iter().any(|path| path.is_direct() && path.health == Health::Alive)
    }

    /// Whether a session is there or being made.
    pub(crate) fn has_session(&self) -> bool {
        self.session.is_some()
    }

    /// Counts a dropped packet.
    pub(crate) fn count_drop(&mut self, reason: DropReason) {
        self.drops.count(reason);
    }

    pub(crate) fn count_drops(&mut self, reason: DropReason, packets: u64) {
        self.drops.count_some(reason, packets);
    }

    /// Arms the wakeups exactly, after something other than a packet has changed them.
    pub(crate) fn arm(&self, wakeups: &mut Wakeups, now: Instant) {
        let id = self.config.id;
        wakeups.set_after(WakeupReason::Session(id), self.session_timeout(now), now);
        wakeups.set_after(WakeupReason::Paths(id), self.paths_timeout(now), now);
    }

    /// Arms the wakeups after packets: one that comes early does no harm and is put right then.
    pub(crate) fn arm_loosely(&self, wakeups: &mut Wakeups, now: Instant) {
        let id = self.config.id;
        wakeups.bring_forward(WakeupReason::Session(id), self.session_timeout(now), now);
        wakeups.bring_forward(WakeupReason::Paths(id), self.paths_timeout(now), now);
    }

    fn paths_timeout(&self, now: Instant) -> Option<Instant> {
        let others = [self.news_at, self.hold_timeout(), self.punch_timeout(), self.passed.poll_timeout()];
        self.paths.poll_timeout(now).into_iter().chain(others.into_iter().flatten()).min()
    }

    /// Shows the peer as it is.
    pub(crate) fn snapshot(&self, now: Instant) -> PeerSnapshot {
        let primary = self.paths.primary();
        let answered = self.paths.iter().any(|path| path.is_trusted(now));
        let in_session =
            self.last_handshake.is_some_and(|at| now.saturating_duration_since(at) < REJECT_AFTER_TIME);
        let others = self.paths.iter().filter(|path| Some(path.address) != primary.map(|path| path.address));
        PeerSnapshot {
            id: self.config.id,
            online: self.online || answered || in_session,
            path: primary.map(|path| self.path_snapshot(path, now)),
            code: self.punch_reason().unwrap_or_else(|| self.paths.code()),
            reason: self.paths.reason(),
            mapping: self.punched.peer_mapping,
            last_handshake: self.last_handshake,
            tx_bytes: self.tx_bytes,
            rx_bytes: self.rx_bytes,
            drops: self.drops.clone(),
            paths: primary.into_iter().chain(others).map(|path| self.path_snapshot(path, now)).collect(),
            decisions: self.paths.decisions().cloned().collect(),
        }
    }

    fn path_snapshot(&self, path: &Path, now: Instant) -> PathSnapshot {
        let is_primary = self.paths.primary().is_some_and(|primary| primary.address == path.address);
        PathSnapshot {
            address: path.address,
            since: self.paths.primary_since().filter(|_| is_primary),
            rtt: path.rtt,
            loss: path.loss(now),
            mtu: path.mtu.mtu(),
            last_answer: path.last_answer,
        }
    }

    fn session_timeout(&self, now: Instant) -> Option<Instant> {
        let session = self.session.as_ref().and_then(|session| session.poll_timeout());
        let waiting = [self.queue.poll_timeout(), self.oversize.poll_timeout()];
        waiting.into_iter().chain([session, self.pause_timeout(now)]).flatten().min()
    }

    /// Judges the paths and tells what came of it.
    fn judge(&mut self, local: &mut Local, now: Instant) {
        let verdict = self.paths.judge(now);
        if verdict.suspicion {
            local.check_relays(now);
        }
        if verdict.changed {
            let path = self.paths.primary().map(|path| path.address);
            tracing::debug!(
                peer = self.config.id.0,
                reason = self.paths.reason(),
                "the primary path changed"
            );
            local.outbox.push_event(Event::PathChanged { peer: self.config.id, path });
            self.send_asked_pings(local, now);
        }
        self.judge_punch(local, now);
    }
}
