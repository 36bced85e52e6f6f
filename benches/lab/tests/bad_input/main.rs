//! Bad input, through the public surface: real binaries, exit codes, what they print and what they leave on disk.
#![expect(clippy::unwrap_used, reason = "a test may fail that way")]

mod host;
mod join;
mod meshctl;
mod network;
mod rig;
mod state;
