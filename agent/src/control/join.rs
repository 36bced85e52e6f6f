//! Joining a mesh, once.
//!
//! ```text
//! dial -> the pinned key matches -> Welcome -> keys are written -> Join (token) -> Joined -> membership is written
//! ```
//!
//! The keys are on disk before the token leaves: whatever dies after that, the same command again finds the
//! same keys, gets the same node, and uses up nothing. When the coordinator refuses, what was made is removed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_proto::{
    control::{ClientMessage, Refusal, RefusalCode, SERVICE_ACCOUNTS, ServerMessage, Welcome},
    key::KeyPin,
    name::NodeName,
    netmap::Node,
    token::{InvalidServiceAccountToken, InvalidToken, JoinToken, ServiceAccountToken},
};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::info;
use zeroize::Zeroizing;

use super::{
    address::{HostPort, InvalidHostPort},
    attempt::DialError,
    dial::Target,
    link::{Link, LinkError},
    namebook::NameBook,
    race::{First, Reached, Refused, race},
    stream::{StreamOptions, StreamTarget},
    tls,
};
use crate::{
    identity::{CreatedDir, Identity, Membership, StateDir, StateError, StateLock},
    nat64::Nat64,
};

/// How long a join tries before it fails.
pub const JOIN_PATIENCE: Duration = Duration::from_secs(30);

/// Once a proxy has refused, UDP has this long to get through: four transmissions of its first packet.
const UDP_PATIENCE: Duration = Duration::from_secs(2);

/// Pause between two attempts of a join.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What a person gives to `join`.
#[derive(Debug, Clone)]
pub struct JoinRequest {
    /// Where the identity is kept; made if it is missing.
    pub state_dir: PathBuf,
    /// `host[:port]` of the coordinator; all are tried.
    pub coordinators: Vec<String>,
    /// The right to join.
    pub right: JoinRight,
    /// The coordinator's pinned key.
    pub pin: KeyPin,
    /// The wished-for name.
    pub name: NodeName,
    /// How byte pipes are made, where UDP is blocked.
    pub stream: StreamOptions,
    /// The way to IPv4 from a network without it.
    pub nat64: Nat64,
    /// How long to try: [`JOIN_PATIENCE`].
    pub patience: Duration,
}

/// The right to join a mesh.
#[derive(Debug, Clone)]
pub enum JoinRight {
    /// A join token of the coordinator's.
    Token(JoinToken),
    /// The file with a token that Kubernetes has given to this pod, for the coordinator; read when it is needed, because
    /// it is replaced all the time.
    ServiceAccount(PathBuf),
}

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A coordinator is not of the form `host[:port]`.
    #[error("the coordinator {0}")]
    Address(#[from] InvalidHostPort),
    /// The token; never said what is wrong with it.
    #[error("the join token is not accepted: it is wrong, expired, used up or of another mesh")]
    Token,
    /// There is no token in the file that should have one.
    #[error("the ServiceAccount's token in {} cannot be used: {why}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// Why: a clause for people.
        why: String,
    },
    /// The coordinator does not know tokens of ServiceAccounts.
    #[error(
        "the coordinator takes no tokens of ServiceAccounts: it needs --kubernetes-kubeconfig, or is older than that"
    )]
    NoServiceAccounts,
    /// The ServiceAccount's token.
    #[error("the ServiceAccount's token does not admit this node: {0}")]
    ServiceAccount(Refusal),
    /// Another node has the name.
    #[error("the name {0} is taken by another node: choose one with --name")]
    NameTaken(NodeName),
    /// Somebody else answered.
    #[error("the coordinator's key does not match the given hash, and nothing was sent to it: {0}")]
    PinMismatch(DialError),
    /// Nobody answered.
    #[error("the coordinator was not reached in {} s: {error}; on its own network, name its address there", patience.as_secs())]
    Unreachable {
        /// How long it was tried.
        patience: Duration,
        /// What was tried last.
        error: DialError,
    },
    /// UDP does not get through, and the proxy does not want to lead there.
    #[error("the coordinator was not reached: {0}")]
    Proxy(DialError),
    /// The coordinator was reached and did not answer.
    #[error("the coordinator did not confirm in {} s: {error}; run the same command again", patience.as_secs())]
    Unconfirmed {
        /// How long it was tried.
        patience: Duration,
        /// What happened last.
        error: LinkError,
    },
    /// The coordinator refused for another reason.
    #[error("the coordinator refused: {0}")]
    Refused(Refusal),
    /// This node is in another mesh.
    #[error("{}: this node is a member of another mesh, whose coordinator is {coordinators}; use another --state-dir, or remove this one to leave that mesh", dir.display())]
    OtherMesh {
        /// The state directory.
        dir: PathBuf,
        /// The other mesh's coordinator.
        coordinators: String,
    },
    /// The operating system has no random numbers.
    #[error("no random numbers for new keys: {0}")]
    Random(#[from] getrandom::Error),
    /// The key cannot be used.
    #[error("the node key cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// Registers this node with the coordinator and keeps its identity.
///
/// A node that has joined this mesh already keeps its identity and is told who it is.
///
/// # Errors
/// When the node is not registered. Nothing new is on disk then, unless the coordinator may have registered
/// the node without its answer arriving ([`JoinError::Unconfirmed`]).
pub async fn join(request: JoinRequest) -> Result<Node, JoinError> {
    let names = request.coordinators.iter().map(|text| text.parse()).collect::<Result<Vec<HostPort>, _>>()?;
    let mut disk = Disk::open(&request)?;
    let book = NameBook::default();
    let target = Target {
        config: tls::client_config(&disk.identity, request.pin)?,
        names: names.clone(),
        known: Vec::new(),
        mesh: Vec::new(),
        nat64: request.nat64.clone(),
        book: book.clone(),
    };
    let pipe = StreamTarget {
        config: tls::stream_config(&disk.identity, request.pin)?,
        options: request.stream.clone(),
        names: names.clone(),
        known: Vec::new(),
        mesh: Vec::new(),
        last: None,
        nat64: request.nat64.clone(),
        book,
    };
    let ways = Ways { target, pipe, tracker: TaskTracker::new() };
    match register(&request, &ways, &mut disk).await {
        Ok(node) => {
            disk.keep(&Membership {
                coordinators: merge(names, disk.membership.as_ref()),
                pin: request.pin,
                node: node.clone(),
                websocket_url: request.stream.url.as_ref().map(ToString::to_string),
            })?;
            Ok(node)
        }
        Err(error) => {
            match error {
                // The coordinator may know the keys.
                JoinError::Unconfirmed { .. } => {}
                JoinError::State(_)
                | JoinError::Address(_)
                | JoinError::Token
                | JoinError::TokenFile { .. }
                | JoinError::NoServiceAccounts
                | JoinError::ServiceAccount(_)
                | JoinError::NameTaken(_)
                | JoinError::PinMismatch(_)
                | JoinError::Unreachable { .. }
                | JoinError::Proxy(_)
                | JoinError::Refused(_)
                | JoinError::OtherMesh { .. }
                | JoinError::Random(_)
                | JoinError::Tls(_) => disk.revoke(),
            }
            Err(error)
        }
    }
}

/// How the coordinator is reached.
struct Ways {
    target: Target,
    pipe: StreamTarget,
    /// Of the tasks that carry byte pipes; each ends with its link.
    tracker: TaskTracker,
}

/// What is on disk, and what this join puts there.
struct Disk {
    path: PathBuf,
    identity: Identity,
    membership: Option<Membership>,
    /// Whether the identity was there before.
    found: bool,
    /// What was made, once the keys are written.
    made: Option<(CreatedDir, StateLock)>,
}

impl Disk {
    fn open(request: &JoinRequest) -> Result<Self, JoinError> {
        let path = request.state_dir.clone();
        let (membership, identity) = match StateDir::open(&path) {
            Ok(dir) => {
                let membership = Membership::find(&dir)?;
                let identity = match &membership {
                    Some(_) => Some(Identity::load(&dir)?),
                    None => Identity::find(&dir)?,
                };
                (membership, identity)
            }
            Err(StateError::NotJoined { .. }) => (None, None),
            Err(error) => return Err(error.into()),
        };
        if let Some(other) = membership.as_ref().filter(|membership| membership.pin != request.pin) {
            let coordinators = other.coordinators.join(", ");
            return Err(JoinError::OtherMesh { dir: path, coordinators });
        }
        let found = identity.is_some();
        let identity = identity.map_or_else(Identity::generate, Ok)?;
        Ok(Self { path, identity, membership, found, made: None })
    }

    /// Writes the keys, once.
    fn write_keys(&mut self) -> Result<(), StateError> {
        if self.found || self.made.is_some() {
            return Ok(());
        }
        let created = StateDir::create_revocably(&self.path)?;
        let lock = match created.dir.lock() {
            Ok(lock) => lock,
            Err(error) => {
                created.revoke();
                return Err(error);
            }
        };
        let stored = match Identity::find(&created.dir) {
            Ok(None) => self.identity.store(&created.dir),
            // Another join was faster.
            Ok(Some(_)) => return Err(StateError::InUse { path: self.path.clone() }),
            Err(error) => return Err(error),
        };
        self.made = Some((created, lock));
        stored
    }

    fn keep(&self, membership: &Membership) -> Result<(), StateError> {
        membership.store(&StateDir::open(&self.path)?)
    }

    /// Removes what was made.
    fn revoke(&mut self) {
        if let Some((created, _lock)) = self.made.take() {
            Identity::discard(&created.dir);
            created.revoke();
        }
    }
}

/// Why one attempt failed.
enum Failure {
    /// Trying again may help.
    Dial(DialError),
    /// Trying again may help; the coordinator may have heard the token.
    Link(LinkError),
    /// Trying again may help, after a while.
    Busy(Refusal),
    /// Trying again is of no use.
    Final(JoinError),
}

/// Tries until it is registered, refused, or out of patience.
async fn register(request: &JoinRequest, ways: &Ways, disk: &mut Disk) -> Result<Node, JoinError> {
    let patience = request.patience;
    let deadline = Instant::now() + patience;
    let mut unconfirmed = None;
    let mut waiting = false;
    loop {
        let mut pause = RETRY_PAUSE;
        let error = match attempt(request, ways, disk, deadline).await {
            Ok(node) => return Ok(node),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Busy(refusal)) => {
                pause = pause.max(Duration::from_millis(refusal.retry_after_ms.unwrap_or_default()));
                JoinError::Refused(refusal)
            }
            Err(Failure::Dial(error)) => JoinError::Unreachable { patience, error },
            Err(Failure::Link(error)) => JoinError::Unconfirmed { patience, error },
        };
        if Instant::now() + pause >= deadline {
            // What may have happened to the token is worth more than what happened last.
            return Err(unconfirmed.unwrap_or(error));
        }
        if !waiting {
            info!(seconds = patience.as_secs(), %error, "not yet: trying on");
            waiting = true;
        }
        if matches!(error, JoinError::Unconfirmed { .. }) {
            unconfirmed = Some(error);
        }
        tokio::time::sleep(pause).await;
    }
}

async fn attempt(
    request: &JoinRequest,
    ways: &Ways,
    disk: &mut Disk,
    deadline: Instant,
) -> Result<Node, Failure> {
    let refused = Refused::After(UDP_PATIENCE);
    let race = race(ways.target.clone(), ways.pipe.clone(), First::Quic, refused, deadline);
    let reached = race.await.map_err(|error| match (error.is_pin_mismatch(), error.is_proxy_refusal()) {
        (true, _) => Failure::Final(JoinError::PinMismatch(error)),
        (false, true) => Failure::Final(JoinError::Proxy(error)),
        (false, false) => Failure::Dial(error),
    })?;
    let mut link = match reached {
        Reached::Quic(dialed) => Link::open(dialed).await,
        Reached::Pipe { dialed, quic: _ } => {
            info!("UDP does not get through: joining through {}", dialed.url);
            Link::open_pipe(*dialed, &ways.tracker)
        }
    }
    .map_err(Failure::Link)?;
    let result = converse(&mut link, request, disk, deadline).await;
    link.close().await;
    result
}

async fn converse(
    link: &mut Link,
    request: &JoinRequest,
    disk: &mut Disk,
    deadline: Instant,
) -> Result<Node, Failure> {
    loop {
        let message = match timeout_at(deadline, link.recv()).await {
            Ok(message) => message.map_err(Failure::Link)?,
            Err(_elapsed) => return Err(Failure::Link(LinkError::Silent)),
        };
        match message {
            ServerMessage::Welcome(welcome) => {
                let name = request.name.clone();
                let public_key = disk.identity.public_key();
                let message = match &request.right {
                    JoinRight::Token(token) => ClientMessage::Join { token: token.clone(), name, public_key },
                    JoinRight::ServiceAccount(path) => {
                        let token = service_account_token(path, &welcome).map_err(Failure::Final)?;
                        ClientMessage::JoinServiceAccount { token, name, public_key }
                    }
                };
                disk.write_keys().map_err(|error| Failure::Final(error.into()))?;
                link.queue(&message).map_err(Failure::Link)?;
            }
            ServerMessage::Joined { node } if node.node_key == disk.identity.node_key() => return Ok(node),
            ServerMessage::Refused(refusal) => return Err(judge(refusal, request)),
            ServerMessage::Joined { .. }
            | ServerMessage::Map { .. }
            | ServerMessage::Delta { .. }
            | ServerMessage::PeerStates { .. }
            | ServerMessage::CallMeMaybe { .. }
            | ServerMessage::RelayOpened(_)
            | ServerMessage::Knock(_)
            | ServerMessage::Knocking(_)
            | ServerMessage::AreYouThere { .. }
            | ServerMessage::Copied
            | ServerMessage::Routes { .. }
            | ServerMessage::Pong { .. }
            | ServerMessage::Unknown => {}
        }
    }
}

/// Reads the token as it is now, for a coordinator that takes it.
fn service_account_token(path: &Path, welcome: &Welcome) -> Result<ServiceAccountToken, JoinError> {
    if !welcome.features.iter().any(|feature| feature == SERVICE_ACCOUNTS) {
        return Err(JoinError::NoServiceAccounts);
    }
    let unusable = |why: String| JoinError::TokenFile { path: path.to_owned(), why };
    let text = fs::read_to_string(path).map_err(|error: io::Error| unusable(error.to_string()))?;
    let text = Zeroizing::new(text);
    text.trim().parse().map_err(|error: InvalidServiceAccountToken| unusable(error.to_string()))
}

fn judge(refusal: Refusal, request: &JoinRequest) -> Failure {
    match refusal.code {
        RefusalCode::Token => Failure::Final(JoinError::Token),
        RefusalCode::ServiceAccount => Failure::Final(JoinError::ServiceAccount(refusal)),
        RefusalCode::NameTaken => Failure::Final(JoinError::NameTaken(request.name.clone())),
        RefusalCode::Busy | RefusalCode::ShuttingDown => Failure::Busy(refusal),
        RefusalCode::Duplicate
        | RefusalCode::NotRegistered
        | RefusalCode::Replaced
        | RefusalCode::Protocol
        | RefusalCode::Unknown => Failure::Final(JoinError::Refused(refusal)),
    }
}

/// Puts the names of this join before those that were known.
fn merge(names: Vec<HostPort>, membership: Option<&Membership>) -> Vec<String> {
    let mut merged: Vec<_> = names.iter().map(HostPort::to_string).collect();
    for known in membership.iter().flat_map(|membership| &membership.coordinators) {
        if !merged.contains(known) {
            merged.push(known.clone());
        }
    }
    merged
}

impl From<InvalidToken> for JoinError {
    fn from(_: InvalidToken) -> Self {
        Self::Token
    }
}
