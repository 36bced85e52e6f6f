//! The mesh agent: the daemon `mesh-agent` and the command line `meshctl`.
//!
//! This crate is the shell around [`mesh_engine`]: it has the clock, the sockets, the TUN, the operating
//! system and the control connection, and no decision of the data path.
//!
//! ```text
//!            coordinator ---- control ---> netmap ---> plan (pure) ---> reconcile ---> os (addresses, routes)
//!                               |                                          |
//!                               +-------------- app (wiring) --------------+
//!                                                |
//!                 meshctl <--- local_api ---- app, view (pure)
//!                                                |
//!     io::tun <---------------------------> driver (owns the engine) <---------------------------> io::udp
//! ```

pub mod app;
pub mod command;
pub mod config;
pub mod control;
pub mod driver;
pub mod entropy;
pub mod identity;
pub mod io;
#[cfg(target_os = "linux")]
pub mod keep;
pub mod kubernetes;
pub mod local_api;
pub mod logs;
pub mod meshctl;
pub mod nat64;
pub mod netcheck;
pub mod netmap;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod netns;
pub mod os;
pub mod plan;
pub mod portmap;
pub mod reconcile;
pub mod view;
