//! Several relays, on a real kernel with the real binaries: homes, and what happens when relays die.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod homes;
mod lending;
mod rig;
mod tcp;
