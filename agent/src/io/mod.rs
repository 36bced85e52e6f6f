//! Sockets and TUN devices: bytes in and out, batch by batch, and nothing else.
//!
//! Nothing in here knows the engine's decisions: [`udp`] moves trains of datagrams, [`tun`] moves inner packets.
//! Errors of single packets are returned to be counted by the driver; none of them ends anything.

pub mod offload;
#[cfg(target_os = "linux")]
mod steering;
pub mod stream;
pub mod tun;
pub mod udp;
