//! The power goes after any system call of the coordinator, with anything lost that was not synced: it starts again,
//! what was acknowledged is there, and nothing is there by half. And the disk is full, read-only or broken.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod faults;
mod life;
mod rig;
