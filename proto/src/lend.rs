//! How a node asks another one to relay for it.
//!
//! A node whose operator allows it relays between its peers: it *lends* itself. That it does is told like any relay: by
//! its own number it names itself among the relays at which it is. A node that wants a channel there asks for it on the
//! direct path between the two, by disco messages of types 5 and 6, which prove both keys:
//!
//! ```text
//! node                                lender
//!   | -- LendMe(id), padded ----------> |   only from a peer of the lender's map, only on a direct path
//!   | <-- Lent(id, channel, key) ------ |   not longer than the question
//!   | -- Bind, Data (see crate::relay)  |   as with any relay, to the lender's own UDP port
//! ```
//!
//! | type | message | body after type and version |
//! |---|---|---|
//! | 5 | LendMe | id (12), 40 zero bytes |
//! | 6 | Lent | id (12), channel (8), key (32) |
//!
//! The channel takes the place of the older one once it is bound, so a recorded LendMe takes nothing from anyone.

use std::fmt;

use crate::{
    disco::{TXID_LEN, TxId},
    relay::{CHANNEL_KEY_LEN, ChannelId},
};

/// Length in bytes of both bodies.
pub const LEND_LEN: usize = TXID_LEN + 8 + CHANNEL_KEY_LEN;

/// Asks for a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LendMe {
    /// Random, repeated by the answer.
    pub id: TxId,
}

/// Gives one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Lent {
    /// The question's.
    pub id: TxId,
    /// The channel.
    pub channel: ChannelId,
    /// The key of its Binds.
    pub key: [u8; CHANNEL_KEY_LEN],
}

impl LendMe {
    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> [u8; LEND_LEN] {
        let mut out = [0; LEND_LEN];
        out[..TXID_LEN].copy_from_slice(&self.id);
        out
    }

    /// Decodes it; `None` when it is shorter than its answer.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        let body: &[u8; LEND_LEN] = body.first_chunk()?;
        Some(Self { id: *body.first_chunk()? })
    }
}

impl Lent {
    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> [u8; LEND_LEN] {
        let mut out = [0; LEND_LEN];
        out[..TXID_LEN].copy_from_slice(&self.id);
        out[TXID_LEN..TXID_LEN + 8].copy_from_slice(&self.channel.0.to_be_bytes());
        out[TXID_LEN + 8..].copy_from_slice(&self.key);
        out
    }

    /// Decodes it; `None` when it is truncated.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        let (id, rest) = body.split_first_chunk()?;
        let (channel, rest) = rest.split_first_chunk()?;
        let key = *rest.first_chunk()?;
        Some(Self { id: *id, channel: ChannelId(u64::from_be_bytes(*channel)), key })
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").field("id", &self.id).finish_non_exhaustive()
    }
}
