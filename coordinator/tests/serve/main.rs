//! A whole coordinator on loopback, spoken to through real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod control;
mod returning;
mod rig;
mod standalone;
#[expect(dead_code, reason = "the bench uses the rest")]
mod storm;
mod stream;
mod udp;
mod versions;
