//! The agent is restarted under traffic, by a service manager that keeps its descriptors.

mod rig;
mod settings;
mod traffic;
