//! The relay: forwards ciphertext between nodes that have no direct path.
//!
//! A node asks for a *channel* over its authenticated control connection and is given a random id and a key
//! (see [`mesh_proto::relay`]). It binds the channel to the address it sends from, and sends Data frames
//! that name a peer. The relay finds the peer's channel, rewrites the header in place and sends the frame
//! on; of a payload it knows the length and nothing else.
//!
//! ```text
//!            open                Bind (key proved, counter risen)
//!   (none) -------> Unbound ----------------------------------> Bound <--+ Bind: address may move
//!      ^               | no Bind for UNBOUND_LIFETIME             |  |---+
//!      |               v                                          | no Bind for BIND_LIFETIME
//!      +----------- closed <---- no Bind for CHANNEL_LIFETIME -- Unbound
//!                      ^---- node removed, or a newer channel of the same node
//! ```
//!
//! [`RelayCore`] is sans-IO: it is handed trains of frames and says where they go. The front does the sending, and
//! hands back what could not be sent at once to be queued.
//!
//! A node without UDP has a byte stream to the relay, in which the same frames travel ([`Way::Stream`]). Its channel is
//! like any other: bound by a Bind that came through the stream, forwarded to and from channels of either kind. A
//! stream has a queue of its own, of which the oldest goes first, so that one slow reader delays nobody else.

mod channel;
mod core;
mod handle;
mod queue;
mod stats;
#[cfg(test)]
mod tests;
mod way;

pub use self::{
    channel::BIND_LIFETIME_S,
    core::{Forward, Limits, Outbound, RelayCore, Reply, TrainMut},
    handle::{RelayCommand, RelayGone, RelayHandle, RelayInbox, RelayOrder, RelayStream},
    stats::{DropReason, RelayStats},
    way::{StreamId, StreamTrain, Way},
};
