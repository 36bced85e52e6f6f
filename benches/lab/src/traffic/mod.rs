//! Traffic over a mesh, from sockets of this process that stand in the hosts' namespaces: no programs are started, so
//! that much of it costs little.
//!
//! - [`Echo`]: requests between many pairs at a steady pace, and when replies came.
//! - [`transfer()`]: one TCP stream with a checksum at both ends.

mod echo;
mod transfer;
mod wire;

pub use echo::{Echo, Flow};
pub use transfer::{Transfer, transfer};
