//! A whole coordinator on loopback, spoken to through real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod control;
mod rig;
mod standalone;
mod stream;
mod udp;
