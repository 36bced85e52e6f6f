//! The mesh coordinator: registration, network map, signalling, store and relay.
//!
//! [`store`] keeps revisioned key-values; [`registry`] is what they mean: nodes, join tokens, addresses and the
//! changes of the network map. [`identity`] is the coordinator's key. Administrators reach them through
//! [`admin`], a unix socket in the state directory; [`backup`] is all of it in one file. [`cli`] and
//! [`config`] turn arguments, environment and
//! file into types.
//!
//! On the other side is one UDP port: [`front`] tells apart what arrives there, [`relay`] forwards between
//! nodes, and [`control`] is what nodes and the coordinator say to each other over QUIC, with the keys of
//! [`mesh_rawkeys`]. [`limit`] has the rate limits of all of them. [`tcp`] is the one TCP port, [`metrics`] what is
//! counted, [`dyndns`] keeps the coordinator's name pointing here, and [`kubernetes`] has the tokens of pods checked, and [`serve`] puts the parts together; [`standalone`]
//! does so for a relay on another machine.

pub mod admin;
pub mod backup;
pub mod cli;
pub mod config;
pub mod control;
pub mod dyndns;
pub mod front;
pub mod identity;
pub mod kubernetes;
pub mod limit;
pub mod metrics;
pub mod registry;
pub mod relay;
pub mod serve;
mod shared;
pub mod standalone;
pub mod store;
pub mod tcp;
