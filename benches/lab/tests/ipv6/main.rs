//! IPv6 beside IPv4 and instead of it.

mod broken;
mod firewall;
mod nat64;
mod rig;
