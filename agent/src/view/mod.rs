//! What people and scripts see: turns what the daemon knows into documents and tables. Pure.

mod explain;
mod netcheck;
mod status;
pub mod table;
pub mod units;

pub use explain::explain;
pub use netcheck::netcheck;
#[cfg(test)]
pub(crate) use status::tests::document;
pub use status::{Input, status};
