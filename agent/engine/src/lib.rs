//! The sans-IO core of the mesh agent.
//!
//! No tokio, no sockets, no clock, no randomness of the OS outside the session, no locks, no channels. The
//! driver gives it `now` and a seed, feeds it with `handle_*` and drains it with `poll_*`; see [`Engine`].
//!
//! ```text
//! TUN -> router (AllowedIps) -> filter -> session -> primary path -> train in the TxArena -> UDP or relay
//! UDP or relay -> demux -> session index -> session -> source check -> filter -> RxBatch -> TUN
//! ```

mod backlog;
pub mod batch;
pub mod command;
pub mod config;
mod disco;
pub mod drops;
mod engine;
pub mod event;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod lend;
mod local;
mod netcheck;
mod packet;
mod pass;
mod path;
mod peer;
mod punch;
mod queue;
mod rate;
mod relay;
mod router;
mod segment;
mod session;
pub mod shard;
pub mod snapshot;
mod timer;

pub use engine::Engine;
pub use netcheck::mapping_of;
pub use packet::checksum;

/// Whether the session's clock is moved by the caller, for simulations. A shipped binary asserts that it is not.
pub const VIRTUAL_TIME: bool = cfg!(feature = "virtual-time");
