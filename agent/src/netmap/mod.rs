//! The network map as this node holds it: what is taken over, and what is kept on disk.
//!
//! ```text
//! Map or Delta --> Store (version check, latest wins) --> ControlEvent::Map
//!                             |
//!                             +--> Saver (latest wins, off the path of messages) --> map.json
//! ```
//!
//! A map that is older than the known one is refused, and so is one that is not for this node. A map never
//! shrinks by accident: within an epoch peers go by a delta that names them, and a whole map that lacks others is refused;
//! in a new epoch, or from an older coordinator, one that lost most of its peers is only believed when it comes twice.

mod cache;
#[cfg(test)]
pub(crate) mod fixtures;
mod saver;
mod store;

pub use cache::{CachedMap, CachedPeer, CachedPeers, Caches, KnownAddresses};
pub(crate) use cache::{coordinator_file, map_file, peers_file};
pub(crate) use saver::Saver;
pub use store::{Rejection, Removals, Store, Update};
