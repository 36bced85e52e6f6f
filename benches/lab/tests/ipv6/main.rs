//! IPv6 beside IPv4 and instead of it.

mod firewall;
mod nat64;
mod rig;
