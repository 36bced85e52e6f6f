//! What the kernel does for whole trains, and to share them among engines, if it can and may.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which offloads may be used. Each is used only where the system has it; without any, every packet costs a system
/// call of its own, and works all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offloads {
    /// The TUN gives and takes superpackets (`IFF_VNET_HDR`).
    pub tun: bool,
    /// A train leaves with one system call (`UDP_SEGMENT`).
    pub udp_send: bool,
    /// A train arrives with one system call (`UDP_GRO`).
    pub udp_receive: bool,
    /// Each of several engines is given what is its own (`IFF_MULTI_QUEUE`, `SO_ATTACH_REUSEPORT_CBPF`); without, they hand it
    /// over.
    pub steering: bool,
}

impl Offloads {
    /// All.
    pub const ALL: Self = Self { tun: true, udp_send: true, udp_receive: true, steering: true };
    /// None.
    pub const NONE: Self = Self { tun: false, udp_send: false, udp_receive: false, steering: false };
}

impl Default for Offloads {
    fn default() -> Self {
        Self::ALL
    }
}

/// The text is no list of offloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "offloads are 'all', 'none', or some of 'tun', 'udp-send', 'udp-receive' and 'steering', with commas between"
)]
pub struct InvalidOffloads;

impl FromStr for Offloads {
    type Err = InvalidOffloads;

    fn from_str(text: &str) -> Result<Self, InvalidOffloads> {
        match text {
            "all" => return Ok(Self::ALL),
            "none" => return Ok(Self::NONE),
            _ => {}
        }
        let mut offloads = Self::NONE;
        for name in text.split(',') {
            match name.trim() {
                "tun" => offloads.tun = true,
                "udp-send" => offloads.udp_send = true,
                "udp-receive" => offloads.udp_receive = true,
                "steering" => offloads.steering = true,
                _ => return Err(InvalidOffloads),
            }
        }
        Ok(offloads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_are_all_none_or_a_list() {
        assert_eq!("all".parse(), Ok(Offloads::ALL));
        assert_eq!("none".parse(), Ok(Offloads::NONE));
        assert_eq!("tun, udp-receive,steering".parse(), Ok(Offloads { udp_send: false, ..Offloads::ALL }));
        for bad in ["", "some", "tun,", "TUN"] {
            assert_eq!(bad.parse::<Offloads>(), Err(InvalidOffloads), "{bad}");
        }
    }
}
