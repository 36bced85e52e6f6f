//! Traffic over a mesh, from sockets of this process that stand in the hosts' namespaces: no programs are started, so
//! that much of it costs little.
//!
//! - [`Echo`]: requests between many pairs at a steady pace, and when replies came.
//! - [`Probe`]: one pair, asked every few milliseconds, and the time of the first reply after an event.
//! - [`transfer()`]: one TCP stream with a checksum at both ends.
//! - [`Download`]: the same at a low rate, for as long as a run.

mod download;
mod echo;
mod probe;
mod transfer;
mod wire;

pub use download::Download;
pub use echo::{Echo, Flow};
pub use probe::Probe;
pub use transfer::{Transfer, transfer};
