//! The program as its administrators use it: the commands, and what a `kill -9` leaves behind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod administer;
mod kill;
mod rig;
