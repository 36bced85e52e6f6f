//! Relay frames: how an agent and a relay speak, one frame to a datagram.
//!
//! An agent opens a *channel* over its authenticated control connection, which proves its node key, and gets
//! a channel id and a key (see [`crate::control::ServerMessage::RelayOpened`]). It then binds the channel to
//! the address it sends from, and binds again whenever that address may have changed, and as often as keeps the NATs'
//! mappings and the relay's memory of it alive: every 20 s while it does not know better.
//!
//! ```text
//! agent                              relay
//!   | -- Bind(channel, counter, mac) --> |   counter rises: an old Bind cannot be replayed
//!   | <-- Bound(channel, observed) ----- |   shows the agent its reflexive address, too
//!   | -- Data(peer, channel) payload --> |   only from the bound address, only to peers of its map
//!   | <-- Data(peer, channel) payload -- |   the header rewritten in place: peer is now the sender
//!   | <-- UnknownChannel(channel) ------ |   the relay restarted: open a new channel
//! ```
//!
//! Every frame starts with the same 16 bytes, so payload can be forwarded in place and a train of equal
//! frames keeps its stride. All numbers are big-endian.
//!
//! ```text
//! type (1) | zero (3) | peer (4) | channel (8) | rest
//! ```
//!
//! | type | frame | rest |
//! |---|---|---|
//! | `0x80` | Bind | counter (8), mac (16): [`bind_mac`] |
//! | `0x81` | Bound | counter (8), observed source of the Bind (18) |
//! | `0x82` | Data | a WireGuard or disco message |
//! | `0x83` | UnknownChannel | nothing |
//!
//! Only Data has a peer; elsewhere those four bytes are written as zero. A reader ignores them there, the three
//! zero bytes, and what stands behind a frame of fixed length: later versions may use them. An address is an IPv6
//! or IPv4-mapped address (16) and a port (2); decoded, it is canonical.

use std::net::SocketAddr;

use blake2::{
    Blake2sMac,
    digest::{Mac, consts::U16},
};
use serde::{Deserialize, Serialize};

use crate::{
    address::{self, ADDRESS_LEN},
    netmap::NodeId,
};

/// Length in bytes of the header of every frame.
pub const HEADER_LEN: usize = 16;
/// Length in bytes of a Bind's authentication code.
pub const MAC_LEN: usize = 16;
/// Length in bytes of a channel key.
pub const CHANNEL_KEY_LEN: usize = 32;
/// Length in bytes of a Bind frame.
pub const BIND_LEN: usize = HEADER_LEN + 8 + MAC_LEN;
/// Length in bytes of a Bound frame.
pub const BOUND_LEN: usize = HEADER_LEN + 8 + ADDRESS_LEN;

/// For so many seconds after a Bind a relay that does not say how long sends to where that came from.
pub const DEFAULT_BIND_LIFETIME_S: u32 = 70;

/// Keeps the code of a Bind from meaning anything elsewhere.
const BIND_CONTEXT: &[u8] = b"mesh relay bind v1";
const TYPE_BIND: u8 = 0x80;
const TYPE_BOUND: u8 = 0x81;
const TYPE_DATA: u8 = 0x82;
const TYPE_UNKNOWN_CHANNEL: u8 = 0x83;

/// Names a channel at one relay. Unguessable: it also keeps off-path senders out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChannelId(pub u64);

/// A relay frame, borrowed from its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Agent to relay: this channel is now reached at the address this came from.
    Bind {
        /// The channel.
        channel: ChannelId,
        /// Rises with every Bind of the channel; a relay takes none that is not above the last.
        counter: u64,
        /// [`bind_mac`] of the frame.
        mac: [u8; MAC_LEN],
    },
    /// Relay to agent: the Bind with this counter was taken.
    Bound {
        /// The channel.
        channel: ChannelId,
        /// The Bind's counter.
        counter: u64,
        /// Where the Bind came from.
        observed: SocketAddr,
    },
    /// Ciphertext for or from a peer, both ways.
    Data {
        /// Towards the relay the receiver, towards an agent the sender.
        peer: NodeId,
        /// The channel of the agent that sends or receives this frame.
        channel: ChannelId,
        /// A WireGuard or disco message.
        payload: &'a [u8],
    },
    /// Relay to agent: there is no such channel (any more).
    UnknownChannel {
        /// The channel.
        channel: ChannelId,
    },
}

/// Why bytes are not a relay frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than its type asks for.
    #[error("relay frame is truncated")]
    Truncated,
    /// A type that this side does not know.
    #[error("unknown relay frame type {0:#04x}")]
    UnknownType(u8),
}

impl std::fmt::Debug for ChannelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChannelId(..)")
    }
}

impl<'a> Frame<'a> {
    /// Decodes a datagram that [`crate::demux::classify`] called a relay frame.
    ///
    /// The code of a Bind is not checked here: it takes the key of the channel.
    ///
    /// # Errors
    /// When the frame is truncated or of an unknown type.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, DecodeError> {
        let (header, payload) = datagram.split_first_chunk::<HEADER_LEN>().ok_or(DecodeError::Truncated)?;
        let [kind, _, _, _, p0, p1, p2, p3, channel @ ..] = *header;
        let channel = ChannelId(u64::from_be_bytes(channel));
        match kind {
            TYPE_BIND => {
                let (counter, mac) = payload.split_first_chunk().ok_or(DecodeError::Truncated)?;
                let mac = *mac.first_chunk().ok_or(DecodeError::Truncated)?;
                Ok(Self::Bind { channel, counter: u64::from_be_bytes(*counter), mac })
            }
            TYPE_BOUND => {
                let (counter, rest) = payload.split_first_chunk().ok_or(DecodeError::Truncated)?;
                let observed = address::decode(rest.first_chunk().ok_or(DecodeError::Truncated)?);
                Ok(Self::Bound { channel, counter: u64::from_be_bytes(*counter), observed })
            }
            TYPE_DATA => {
                Ok(Self::Data { peer: NodeId(u32::from_be_bytes([p0, p1, p2, p3])), channel, payload })
            }
            TYPE_UNKNOWN_CHANNEL => Ok(Self::UnknownChannel { channel }),
            unknown => Err(DecodeError::UnknownType(unknown)),
        }
    }

    /// Encodes the frame into a buffer of its own.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Self::Bind { channel, counter, mac } => {
                let header = encode_header(TYPE_BIND, NodeId(0), channel);
                [&header[..], &counter.to_be_bytes(), &mac].concat()
            }
            Self::Bound { channel, counter, observed } => {
                let header = encode_header(TYPE_BOUND, NodeId(0), channel);
                [&header[..], &counter.to_be_bytes(), &address::encode(observed)].concat()
            }
            Self::Data { peer, channel, payload } => [&data_header(peer, channel)[..], payload].concat(),
            Self::UnknownChannel { channel } => {
                encode_header(TYPE_UNKNOWN_CHANNEL, NodeId(0), channel).to_vec()
            }
        }
    }
}

/// Returns the header of a Data frame, to be written in front of a payload that is already in place.
#[must_use]
pub fn data_header(peer: NodeId, channel: ChannelId) -> [u8; HEADER_LEN] {
    encode_header(TYPE_DATA, peer, channel)
}

/// Computes a Bind's authentication code: BLAKE2s with 16 bytes of output, keyed with the channel key, of the
/// text `mesh relay bind v1`, the channel (8) and the counter (8).
///
/// Compare codes in constant time.
#[must_use]
pub fn bind_mac(key: &[u8; CHANNEL_KEY_LEN], channel: ChannelId, counter: u64) -> [u8; MAC_LEN] {
    let mut mac = <Blake2sMac<U16> as Mac>::new_from_slice(key).expect("a BLAKE2s key has up to 32 bytes");
    mac.update(BIND_CONTEXT);
    mac.update(&channel.0.to_be_bytes());
    mac.update(&counter.to_be_bytes());
    mac.finalize().into_bytes().into()
}

fn encode_header(kind: u8, peer: NodeId, channel: ChannelId) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[0] = kind;
    out[4..8].copy_from_slice(&peer.0.to_be_bytes());
    out[8..].copy_from_slice(&channel.0.to_be_bytes());
    out
}
