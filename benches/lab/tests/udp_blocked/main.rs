//! Networks that let no UDP out, on a real kernel with the real binaries: everything works over TCP.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod direct;
mod proxies;
mod rig;
mod servers;
