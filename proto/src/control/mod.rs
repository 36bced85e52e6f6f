//! Control protocol: what an agent and the coordinator (or a relay that stands alone) say to each other.
//!
//! One bidirectional stream per connection, opened by the agent, carries [`frame`]d messages both ways:
//!
//! ```text
//! agent                                   coordinator
//!   | -- Hello ------------------------------> |   versions and features
//!   | <------------------------------ Welcome -- |
//!   | -- Join (token, name, key) --------------> |   first time only, on a connection of its own
//!   | <----------------------- Joined | Refused -- |
//!   | -- Connect (key, map version) -----------> |
//!   | <---------------------------------- Map -- |   whole, unless the agent's version is the latest
//!   | <-------------------------- PeerStates -- |   online and candidates of every peer
//!   | -- RelayOpen ----------------------------> |
//!   | <-------------------------- RelayOpened -- |
//!   | -- Candidates ---------------------------> |   forwarded to peers as PeerStates
//!   | -- CallMeMaybe (to) ---------------------> |   forwarded as CallMeMaybe (from)
//!   | <------------ Delta, PeerStates, CallMeMaybe -- |   as they happen
//!   | -- Ping ---------------------------------> |
//!   | <--------------------------------- Pong -- |
//! ```
//!
//! The peer that is spoken to was authenticated by TLS before the first byte: the coordinator by its pinned
//! key, the agent by its node key. A message of an unknown type is ignored by its receiver.

pub mod frame;
mod message;

pub use message::{
    ClientMessage, Hello, PeerState, Refusal, RefusalCode, RelayChannel, ServerMessage, Welcome,
};

/// ALPN of control protocol version 1, spoken by coordinators and stand-alone relays.
pub const ALPN: &[u8] = b"mesh-control/1";
