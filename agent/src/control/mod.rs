//! The control connection to the coordinator.
