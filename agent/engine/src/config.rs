//! What the engine is told about itself, its peers and its relays.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use mesh_proto::{
    key::PublicKey,
    nat64::Nat64Prefix,
    netmap::{NodeId, RelayId},
    relay::{CHANNEL_KEY_LEN, ChannelId},
};
use zeroize::Zeroizing;

pub use crate::punch::PunchLimits;

/// An X25519 private key. `Debug` prints nothing of it.
#[derive(Clone)]
pub struct PrivateKey(pub Zeroizing<[u8; 32]>);

/// What does not change while an engine lives.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's number.
    pub id: NodeId,
    /// This node's WireGuard key.
    pub private_key: PrivateKey,
    /// This node's mesh addresses.
    pub addresses: Vec<IpAddr>,
    /// Where inner packets may go to on this node: its addresses and the prefixes behind it. Changed later by
    /// [`crate::command::Command::SetAllowedIps`].
    pub allowed_ips: Vec<IpNet>,
    /// Largest inner packet, in bytes.
    pub mtu: u16,
    /// What may be done to get through hard pairs of NATs.
    pub punch: PunchLimits,
    /// Real time, in milliseconds since 1970: what this node says of where it is is numbered from there, so that peers can
    /// tell what is newer also when it was restarted.
    pub real_time: u64,
}

/// A peer, as the network map describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its number.
    pub id: NodeId,
    /// Its WireGuard key.
    pub public_key: PublicKey,
    /// What it may send from and is sent to.
    pub allowed_ips: Vec<IpNet>,
}

/// An open channel at a relay.
#[derive(Clone, PartialEq, Eq)]
pub struct RelayConfig {
    /// Which relay.
    pub id: RelayId,
    /// What carries its frames.
    pub carrier: RelayCarrier,
    /// The channel.
    pub channel: ChannelId,
    /// The key of its Binds.
    pub key: [u8; CHANNEL_KEY_LEN],
    /// For how long the relay sends to where the last Bind came from.
    pub bind_lifetime: Duration,
}

/// What carries relay frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayCarrier {
    /// The relay's UDP port, at any of these addresses: all are bound, the one that answers first is used.
    Udp(Vec<SocketAddr>),
    /// A byte stream that the IO layer holds.
    Stream,
}

/// How IPv4 is reached from this node's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nat64 {
    /// Behind these, an IPv4 address leads to a translator.
    pub prefixes: Vec<Nat64Prefix>,
    /// Whether there is another way.
    pub ipv4: Ipv4Way,
}

/// Whether this node has a route for IPv4.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ipv4Way {
    /// It has. Whether packets come through is found out.
    #[default]
    Present,
    /// It has none.
    Absent,
}

impl RelayCarrier {
    /// Whether it is a byte stream.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        match self {
            Self::Stream => true,
            Self::Udp(_) => false,
        }
    }
}

impl RelayConfig {
    /// Whether the relay is said to be at an address.
    pub(crate) fn has(&self, address: SocketAddr) -> bool {
        match &self.carrier {
            RelayCarrier::Udp(addresses) => addresses.contains(&address),
            RelayCarrier::Stream => false,
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl fmt::Debug for RelayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayConfig")
            .field("id", &self.id)
            .field("carrier", &self.carrier)
            .finish_non_exhaustive()
    }
}
