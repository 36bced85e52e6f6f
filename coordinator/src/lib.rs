//! The mesh coordinator: registration, network map, signalling, store and relay.
//!
//! [`store`] keeps revisioned key-values; [`registry`] is what they mean: nodes, join tokens, addresses and the
//! changes of the network map. [`identity`] is the coordinator's key.
//!
//! On the other side is one UDP port: [`front`] tells apart what arrives there, and [`relay`] forwards between
//! nodes. [`limit`] has the rate limits of all of them.

pub mod front;
pub mod identity;
pub mod limit;
pub mod registry;
pub mod relay;
pub mod store;
