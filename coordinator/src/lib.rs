//! The mesh coordinator.
pub mod front;
pub mod limit;
pub mod relay;
