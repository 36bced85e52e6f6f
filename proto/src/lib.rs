//! Wire types and codecs of the mesh. No IO, no clock, no randomness.
//!
//! Everything that crosses a process boundary is defined here: control messages between an agent and the
//! coordinator ([`control`]), the network map and its deltas ([`netmap`]), disco messages between agents
//! ([`disco`]), relay frames ([`relay`]), STUN for address discovery ([`stun`]) and the JSON of
//! `meshctl status` ([`status`]). [`demux`] tells apart what shares one UDP port.
//!
//! Control messages are JSON objects with named fields. A reader ignores fields it does not know and turns
//! variants it does not know into an `Unknown` variant, so old agents and new coordinators work together.

mod address;
pub mod candidate;
pub mod control;
pub mod demux;
pub mod disco;
pub mod key;
pub mod name;
pub mod netmap;
pub mod relay;
pub mod status;
pub mod stun;
pub mod token;

/// UDP and TCP port of a coordinator when none is named.
pub const DEFAULT_COORDINATOR_PORT: u16 = 7443;

/// UDP port of an agent's WireGuard socket when none is configured.
pub const DEFAULT_AGENT_PORT: u16 = 51820;
