//! Control protocol: what an agent and the coordinator (or a relay that stands alone) say to each other.
//!
//! One bidirectional stream per connection, opened by the agent, carries [`frame`]d messages both ways:
//!
//! ```text
//! agent                                      coordinator
//!   | -- Hello -----------------------------------> |   version and features
//!   | <--------------------------------- Welcome -- |
//!   | -- Join (token, name, key) -----------------> |   first time only, on a connection of its own
//!   | <------------------------ Joined | Refused -- |   (or JoinServiceAccount, with another token)
//!   | -- Connect (key, map version) --------------> |
//!   | <------------------------------------- Map -- |   whole, unless the agent's version is the latest
//!   | <------------------------------ PeerStates -- |   online and candidates of every peer
//!   | -- RelayOpen -------------------------------> |
//!   | <----------------------------- RelayOpened -- |
//!   | -- Candidates ------------------------------> |   forwarded to peers as PeerStates
//!   | -- CallMeMaybe (to) ------------------------> |   forwarded as CallMeMaybe (from)
//!   | <---------- Delta, PeerStates, CallMeMaybe -- |   as they happen
//!   | -- Resync ----------------------------------> |   a Delta did not fit: answered by Map
//!   | -- Ping ------------------------------------> |
//!   | <------------------------------------ Pong -- |   with the coordinator's time
//!   | -- Knock (to, transaction) -----------------> |   knocked at by the coordinator, and passed on to others as Knock
//!   | <-------------------------------- Knocking -- |
//! ```
//!
//! A relay that stands alone joins and connects to the coordinator like an agent, with a token that has the tag
//! for it, and says ServeRelay (addresses). Agents find it in the map, and say Hello and RelayOpen to it.
//!
//! A message is a JSON object whose `type` names it, in snake case, with its fields beside that:
//! `{"type":"ping","id":7}`. Numbers are integers without unit but for `…_ms`, milliseconds; keys, addresses and
//! names have their text forms.
//!
//! The peer that is spoken to was authenticated by TLS before the first byte: the coordinator by its pinned
//! key, the agent by its node key. A receiver ignores messages of an unknown type and unknown fields, reads an
//! unknown value of a closed list as `Unknown`, and closes the connection over a message that it cannot read.

pub mod frame;
mod message;

pub use message::{
    ClientMessage, Hello, InstanceId, Knock, Knocking, PeerState, Refusal, RefusalCode, RelayChannel,
    ServerMessage, Welcome,
};

/// Feature of a coordinator: a map of the same epoch has no fewer peers than the one before it, but for those whose removal
/// was said in a delta. Where one of them is sent whole, a delta that changes no version says it before.
pub const EXPLICIT_REMOVALS: &str = "explicit-removals";

/// Feature of a coordinator: it takes a Kubernetes ServiceAccount's token in place of a join token.
pub const SERVICE_ACCOUNTS: &str = "service-accounts";

/// ALPN of control protocol version 1, spoken by coordinators and stand-alone relays.
pub const ALPN: &[u8] = b"mesh-control/1";
