//! A simulator of the mesh: many engines, one virtual clock, a modelled underlay.
//!
//! ```text
//! scenario (topology, schedule) -> world -> nodes (Engine) -> net (links, NATs, firewalls) -> nodes
//!                                        -> coordinator and relays (models) ----^
//! reference model: which pairs can be connected, and which direct -> invariants after every step
//! ```
//!
//! Everything is drawn from one printed seed and happens at virtual times, in an order that depends on nothing else:
//! no hash map is iterated and no real clock is read. Only the Noise library draws ephemeral keys of its own, so two
//! runs of a seed differ in ciphertext, but not in a single time, address or length (`properties.rs` checks that).
//!
//! | promise | checked |
//! |---|---|
//! | an inner packet comes out at a node that owns its destination, from a peer that owns its source, once and in time | `ledger.rs`, `world/check.rs`, at every packet |
//! | no path loop: no engine sends into the overlay, or sends on what it was sent | `world/check.rs`, at every datagram |
//! | connected, and direct, when the reference model says so; not direct when it says that this can't be | `scenario/verify.rs`, after every step |
//! | what a node does once is done once, however many engines it has | `sharded.rs`; the same promises for all: every scenario mixes them |
//! | hard pairs are punched in time, at a bounded rate, and only where the peer is seen; others are left to the relay | `punch.rs` |
//! | stable pairs lose nothing, and keep their paths | `scenario/verify.rs` |
//! | queues are bounded, and what waits too long goes | `scenario/schedule.rs` (floods), `ledger.rs` (ages) |
//! | no timer spins | `world/mod.rs`, at every wakeup |
//! | each node's home is near, a pair begins at it, and a dead relay is left within 2 s | `homes.rs` |
//! | a hard pair goes on through a node that lends itself | `lending.rs` |
//! | without the coordinator for weeks, with a relay or with none, nodes that restart, sleep and move find each other | `away.rs` |
//! | what users of other meshes had to report comes right by itself | `histories.rs` |
//! | how long NATs remember is measured, and mappings are kept by that | `lifetime.rs` |
//! | what nobody talks to costs no packet and no timer | `scenario/schedule.rs` (long pauses), `idle.rs` |
//!
//! A failing run prints its seed, its topology, its schedule so far and the last things that happened.
//! `SIM_SEED=n` runs that seed alone; `make sim HOURS=100000` runs seeds until they add up to so many virtual node-hours.

mod away;
mod coordinator;
#[path = "../engines/mod.rs"]
mod engines;
mod histories;
mod homes;
mod idle;
mod ledger;
mod lending;
mod lifetime;
mod matrix;
mod model;
mod net;
mod packet;
mod properties;
mod punch;
mod queue;
mod recovery;
mod relay;
mod rng;
mod scenario;
mod sharded;
mod topology;
mod trace;
mod world;
