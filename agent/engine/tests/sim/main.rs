//! A simulator of the mesh: many engines, one virtual clock, a modelled underlay.
//!
//! Here: the underlay with its links and NATs, the relay model, and the reference model that says which pairs of hosts
//! can have a direct path.

#![expect(
    dead_code,
    unused_imports,
    reason = "the world that uses all of it needs the engine, which lands after it"
)]

mod model;
mod net;
mod packet;
mod queue;
mod relay;
mod rng;
