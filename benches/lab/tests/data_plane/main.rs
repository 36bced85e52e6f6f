//! The data plane on real kernels: what arrives is what was sent, at any speed, with and without each offload, between
//! hosts and between pods behind them.
#![expect(clippy::unwrap_used, reason = "a test may fail that way")]

mod checksums;
mod counters;
mod damage;
mod rig;
