//! Tells apart what shares one UDP port, by first bytes.
//!
//! | first byte | what |
//! |---|---|
//! | 0 to 3, with STUN's magic cookie at offset 4 | STUN (RFC 8489) |
//! | 1 to 4, followed by three zero bytes | WireGuard |
//! | `0x6d` "m", start of the disco magic | Disco |
//! | `10xxxxxx` | relay frame |
//! | `11xxxxxx`, `01xxxxxx` | QUIC (RFC 9443) |
//!
//! The disco magic starts with a byte of QUIC's short-header range: disco messages only ever reach agents'
//! WireGuard sockets, where no QUIC is spoken, and relay and coordinator ports never receive them bare.

use crate::{disco, stun};

/// What a datagram is, judged by its first bytes alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatagramKind {
    /// A WireGuard message of type 1 to 4.
    WireGuard,
    /// A disco message.
    Disco,
    /// A STUN message.
    Stun,
    /// A relay frame.
    Relay,
    /// A QUIC packet.
    Quic,
    /// None of these: dropped and counted.
    Unknown,
}

/// Classifies a datagram received on a port.
#[must_use]
pub fn classify(datagram: &[u8]) -> DatagramKind {
    match datagram {
        [0..=3, _, _, _, rest @ ..] if rest.starts_with(&stun::MAGIC_COOKIE) => DatagramKind::Stun,
        [1..=4, 0, 0, 0, ..] => DatagramKind::WireGuard,
        _ if datagram.starts_with(&disco::MAGIC) => DatagramKind::Disco,
        [0x80..=0xbf, ..] => DatagramKind::Relay,
        [0x40..=0x7f | 0xc0..=0xff, ..] => DatagramKind::Quic,
        _ => DatagramKind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_first_byte_has_one_meaning() {
        assert_eq!(classify(&[]), DatagramKind::Unknown);
        assert_eq!(classify(&[1, 0, 0, 0, 9, 9]), DatagramKind::WireGuard);
        assert_eq!(classify(&[1, 0, 0, 0, 0x21, 0x12, 0xa4, 0x42]), DatagramKind::Stun);
        assert_eq!(classify(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]), DatagramKind::Stun);
        assert_eq!(classify(&[0, 1, 0, 0]), DatagramKind::Unknown);
        assert_eq!(classify(&[5, 0, 0, 0]), DatagramKind::Unknown);
        assert_eq!(classify(&disco::MAGIC), DatagramKind::Disco);
        assert_eq!(classify(&[0x82]), DatagramKind::Relay);
        assert_eq!(classify(&[0xc3, 0, 0, 0, 1]), DatagramKind::Quic);
        assert_eq!(classify(&[0x45]), DatagramKind::Quic);
        assert_eq!(classify(&[0x20]), DatagramKind::Unknown);
    }
}
