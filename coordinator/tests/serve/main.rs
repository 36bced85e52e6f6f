//! A whole coordinator on loopback, spoken to through real sockets.

mod control;
mod rig;
mod udp;
