//! The mesh coordinator: registration, network map, signalling, store and relay.
//!
//! [`store`] keeps revisioned key-values.
//!
//! On the other side is one UDP port: [`front`] tells apart what arrives there, and [`relay`] forwards between
//! nodes. [`limit`] has the rate limits of all of them.

pub mod front;
pub mod limit;
pub mod relay;
pub mod store;
