//! Who this node is: its keys, its membership, and the state directory that holds them.
//!
//! | file | what | if it is damaged |
//! |---|---|---|
//! | `node.key` | Ed25519 node key | error: never silently a new identity |
//! | `wireguard.key` | X25519 WireGuard key | error |
//! | `membership.json` | coordinator, its pinned key, this node | the generation before, else an error |
//! | `map.json`, `peers.json`, `coordinator.json` | caches of [`crate::netmap`] and [`crate::control`] | the generation before, else none |
//!
//! Every file carries a checksum of its content (`sealed`), is written whole or not at all (`state_dir`), and
//! all but the keys keep their previous generation ([`StateFile`]).

mod error;
mod keys;
mod membership;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod powercut;
mod sealed;
mod state_dir;
mod state_file;

pub use error::{DamageKind, StateError};
pub use keys::Identity;
pub use membership::{Membership, load, node_name};
pub(crate) use state_dir::CreatedDir;
pub use state_dir::{StateDir, StateLock};
pub use state_file::{Loaded, StateFile};
