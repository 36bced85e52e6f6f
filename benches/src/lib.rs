//! The budgets of the mesh, measured on the real binaries in the network lab.
//!
//! `make bench` builds the binaries, runs every group and prints one table; the same figures go to
//! `target/bench/budgets.json`. A figure is a median over several runs, with its lowest and highest. Timings
//! depend on the machine: what has a peer is measured beside it, in the same run, and judged as a ratio.
//!
//! [`roam`] is how soon a pair talks again after its network has changed: `make bench-roam`.
//! [`restart`] is for how long nothing arrives when an agent is restarted: `make bench-restart`.
//! [`wire`] is the data plane beside other tunnels: `make bench-wire`.

pub mod agent;
pub mod figure;
pub mod first_packet;
pub mod footprint;
pub mod memory;
pub mod procfs;
pub mod relay;
pub mod restart;
pub mod roam;
pub mod shards;
pub mod soak;
pub mod startup;
pub mod throughput;
pub mod wire;
