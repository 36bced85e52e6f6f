//! The messages.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    address,
    candidate::{self, Candidate},
    key::PublicKey,
    name::NodeName,
    netmap::{MapDelta, NetworkMap, Node, NodeId, RelayId, Version},
    relay::{CHANNEL_KEY_LEN, ChannelId, DEFAULT_BIND_LIFETIME_S},
    route::{RouteAnswer, RouteOffer},
    stun::TransactionId,
    token::{JoinToken, ServiceAccountToken},
};

/// What an agent says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// Opens every connection.
    Hello(Hello),
    /// Asks to become a node; answered by `Joined` or `Refused`. Repeating it with a node key that is
    /// registered already answers with the same node and uses up nothing.
    Join {
        /// The right to join.
        token: JoinToken,
        /// The name that is wished for; the coordinator refuses one that is taken.
        name: NodeName,
        /// The WireGuard key.
        public_key: PublicKey,
    },
    /// As `Join`, with a Kubernetes ServiceAccount's token as the right to join, which admits the node that its pod runs on
    /// under that node's name alone. Only said to a coordinator with the feature [`super::SERVICE_ACCOUNTS`].
    JoinServiceAccount {
        /// The right to join.
        token: ServiceAccountToken,
        /// The name: that of the Node that the pod runs on.
        name: NodeName,
        /// The WireGuard key.
        public_key: PublicKey,
    },
    /// Asks for the map and everything after it; refused unless the node is registered.
    Connect {
        /// The WireGuard key: a new one replaces the registered one.
        public_key: PublicKey,
        /// The version of the map that the agent has.
        #[serde(default)]
        map: Option<Version>,
        /// Which run of the agent this is. A connection of another run is taken over from only once that one does not
        /// answer any more.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instance: Option<InstanceId>,
    },
    /// Answers `AreYouThere`.
    StillHere {
        /// That of the question.
        id: u64,
    },
    /// Asks for a whole map: a delta did not fit.
    Resync,
    /// This node's candidates and relays, all of them, whenever they change.
    Candidates {
        /// Where it may be reached.
        #[serde(deserialize_with = "candidate::deserialize_capped")]
        candidates: Vec<Candidate>,
        /// The relays at which it has a channel.
        relays: Vec<RelayId>,
        /// Of them, the one that is nearest to it: where peers begin.
        #[serde(default)]
        home: Option<RelayId>,
    },
    /// Asks a peer to probe this node's candidates now.
    CallMeMaybe {
        /// The peer.
        to: NodeId,
        /// This node's candidates.
        #[serde(deserialize_with = "candidate::deserialize_capped")]
        candidates: Vec<Candidate>,
    },
    /// Asks for a channel at the relay that is spoken to; answered by `RelayOpened`. A new channel closes
    /// the node's older one.
    RelayOpen,
    /// A relay that stands alone says where its UDP port is, so that it is put into the map; refused unless
    /// it joined with the tag [`crate::netmap::RELAY_TAG`].
    ServeRelay {
        /// `host:port`, names or addresses, tried in order by agents.
        addresses: Vec<String>,
    },
    /// Asks for a Pong.
    Ping {
        /// Repeated by the Pong.
        id: u64,
    },
    /// Asks for knocks at an address of the sender's own, to see who is let in there; answered by `Knocking`. Nothing is
    /// sent to another IP address than the connection comes from.
    Knock(Knock),
    /// The routes that this node offers, all of them, whenever they change; answered by `Routes`.
    Advertise {
        /// The routes; what goes beyond [`crate::route::MAX_ROUTES`] is ignored.
        routes: Vec<RouteOffer>,
    },
    /// A message that this version does not know; ignored.
    #[serde(other)]
    Unknown,
}

/// What the coordinator (or a relay) says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// Answers Hello.
    Welcome(Welcome),
    /// The node is registered.
    Joined {
        /// As it is registered.
        node: Node,
    },
    /// A whole map.
    Map {
        /// The map.
        map: Box<NetworkMap>,
    },
    /// A change of the map.
    Delta {
        /// The change.
        delta: MapDelta,
    },
    /// News of peers that is not kept in the map.
    PeerStates {
        /// One entry per peer with news.
        peers: Vec<PeerState>,
    },
    /// A peer asks to be probed now.
    CallMeMaybe {
        /// The peer.
        from: NodeId,
        /// Its candidates.
        #[serde(deserialize_with = "candidate::deserialize_capped")]
        candidates: Vec<Candidate>,
    },
    /// The channel that was asked for.
    RelayOpened(RelayChannel),
    /// Answers Ping.
    Pong {
        /// The Ping's.
        id: u64,
        /// The time here, in milliseconds since 1970 in UTC.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time_ms: Option<u64>,
    },
    /// A node wants to know whether it is heard there: one STUN success response with this transaction id is to be sent
    /// to the address, from a port that has never sent anything there.
    Knock(Knock),
    /// Knocks are on their way.
    Knocking(Knocking),
    /// Asks an agent whether it is still there, because another run of it wants to take over; answered by `StillHere`.
    AreYouThere {
        /// Repeated by the answer.
        id: u64,
    },
    /// Another agent, somewhere else, has this node's keys and was refused.
    Copied,
    /// What became of the routes that this node offers, all of them; again whenever that changes.
    Routes {
        /// The routes.
        routes: Vec<RouteAnswer>,
    },
    /// What was asked for is refused; the connection is closed after it.
    Refused(Refusal),
    /// A message that this version does not know; ignored.
    #[serde(other)]
    Unknown,
}

/// First message of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The program's version, for people.
    pub version: String,
    /// Optional parts of the protocol that this side understands.
    #[serde(default)]
    pub features: Vec<String>,
}

/// One run of an agent: random, and the same over restarts in which a service manager has kept its sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(#[serde(with = "hex::serde")] pub [u8; 16]);

/// First message of a coordinator or relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The program's version, for people.
    pub version: String,
    /// Optional parts of the protocol that this side understands.
    #[serde(default)]
    pub features: Vec<String>,
    /// Where the connection comes from, as this side sees it; canonical once it was read.
    #[serde(deserialize_with = "address::deserialize")]
    pub observed: SocketAddr,
    /// Further UDP ports of this side's, at the address at which it was reached, that answer STUN.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub observer_ports: Vec<u16>,
}

/// An address at which somebody is to knock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knock {
    /// Where.
    #[serde(deserialize_with = "address::deserialize")]
    pub to: SocketAddr,
    /// The transaction id by which the knock is known; chosen at random, so that nobody else can forge it.
    #[serde(with = "hex::serde")]
    pub transaction: TransactionId,
}

/// Who knocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knocking {
    /// That of the Knock.
    #[serde(with = "hex::serde")]
    pub transaction: TransactionId,
    /// The UDP port of the coordinator's that knocks, which answers STUN.
    pub port: u16,
    /// Where others come from that were asked to knock, as the coordinator sees them.
    #[serde(default)]
    pub others: Vec<IpAddr>,
}

/// News of one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerState {
    /// The peer.
    pub id: NodeId,
    /// Whether it is connected to the coordinator.
    pub online: bool,
    /// Where it may be reached: the last known, also when it is offline.
    #[serde(default, deserialize_with = "candidate::deserialize_capped")]
    pub candidates: Vec<Candidate>,
    /// The relays at which it has a channel.
    #[serde(default)]
    pub relays: Vec<RelayId>,
    /// Of them, the one that is nearest to it: where it is reached before anything was measured.
    #[serde(default)]
    pub home: Option<RelayId>,
    /// Where the coordinator sees it: the only address of its at which ports that nobody has named may be probed.
    #[serde(default)]
    pub observed: Option<IpAddr>,
}

/// A channel at a relay.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayChannel {
    /// Which relay.
    pub relay: RelayId,
    /// The channel's id.
    pub channel: ChannelId,
    /// The key of the channel's Binds.
    #[serde(with = "hex::serde")]
    pub key: [u8; CHANNEL_KEY_LEN],
    /// For so many seconds after a Bind the relay sends to where that came from. Relays that don't say do so for
    /// [`crate::relay::DEFAULT_BIND_LIFETIME_S`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind_lifetime_s: Option<u32>,
}

/// Why something was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people.
    pub message: String,
    /// How long to wait before asking again, in milliseconds.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
}

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The token is wrong, expired, used up or of another mesh: never said which.
    Token,
    /// A ServiceAccount's token does not admit this node; the message says why.
    ServiceAccount,
    /// The name is taken by another node.
    NameTaken,
    /// The node key is not registered, or was removed.
    NotRegistered,
    /// Too many requests: wait.
    Busy,
    /// A newer connection of the same node took over.
    Replaced,
    /// Another agent with the same keys is connected, and answers: this one is a copy of it.
    Duplicate,
    /// The coordinator is stopping: connect again.
    ShuttingDown,
    /// The message made no sense here.
    Protocol,
    /// A code that this version does not know.
    #[serde(other)]
    Unknown,
}

impl RelayChannel {
    /// Returns for how long after a Bind the relay sends to where that came from.
    #[must_use]
    pub fn bind_lifetime(&self) -> Duration {
        Duration::from_secs(self.bind_lifetime_s.unwrap_or(DEFAULT_BIND_LIFETIME_S).into())
    }
}

impl fmt::Debug for RelayChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayChannel").field("relay", &self.relay).finish_non_exhaustive()
    }
}
