//! Wire types and codecs of the mesh. No IO, no clock, no randomness.
//!
//! Everything that crosses a process boundary is defined here: control messages between an agent and the
//! coordinator ([`control`]), the network map and its deltas ([`netmap`]), routes that nodes offer ([`route`]), disco messages between agents
//! ([`disco`]), relay frames ([`relay`]), both of control and relay in a byte pipe ([`stream`]), STUN for address discovery ([`stun`]), IPv4 behind a translator ([`nat64`]) and the JSON of
//! `meshctl status` ([`status`]) and `meshctl netcheck` ([`netreport`]). [`demux`] tells apart what shares one UDP port.
//!
//! Control messages are JSON objects with named fields. A reader ignores fields it does not know and turns
//! variants it does not know into an `Unknown` variant, so old agents and new coordinators work together.
//!
//! # To change something here
//!
//! - A new field is optional: an `Option`, or with `#[serde(default)]`. None is ever renamed or given another meaning.
//! - A new variant needs nothing but its name; who sends it must bear that old readers see `Unknown`.
//! - A list of values that may grow ends in `#[serde(other)] Unknown`.
//! - Every decoder takes any bytes: an error, never a panic. A new one gets a fuzz target (`src/fuzz.rs`).
//! - The bytes are frozen by `tests/golden.rs`, the rules above by `tests/compat.rs`.

mod address;
pub mod candidate;
pub mod control;
pub mod demux;
pub mod disco;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod key;
pub mod kubernetes;
pub mod lend;
pub mod name;
pub mod nat64;
pub mod netmap;
pub mod netreport;
pub mod pass;
pub mod punch;
pub mod relay;
pub mod route;
pub mod status;
pub mod stream;
pub mod stun;
pub mod token;

/// UDP and TCP port of a coordinator when none is named.
pub const DEFAULT_COORDINATOR_PORT: u16 = 7443;

/// UDP port of an agent's WireGuard socket when none is configured.
pub const DEFAULT_AGENT_PORT: u16 = 51820;
