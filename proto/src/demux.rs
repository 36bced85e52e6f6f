//! Tells apart what shares one UDP port, by first bytes.
//!
//! Checked in this order; the first that fits is it:
//!
//! | first bytes | what |
//! |---|---|
//! | 1 to 4, then three zero bytes | WireGuard |
//! | 0 to 3, with STUN's magic cookie at offset 4 | STUN (RFC 8489) |
//! | `mdisco`, the disco magic | Disco |
//! | `10xxxxxx` | relay frame |
//! | `01xxxxxx`, `11xxxxxx` | QUIC (RFC 9443) |
//!
//! WireGuard comes before STUN because offset 4 of a handshake holds a session index, which may happen to be the
//! cookie, while no STUN binding starts like WireGuard: its second byte is 1.
//!
//! The disco magic starts with a byte of QUIC's short-header range: disco messages only ever reach agents'
//! WireGuard sockets, where no QUIC is spoken, and relay and coordinator ports never receive them bare.
//!
//! QUIC keeps to its range only while its fixed bit is not greased (RFC 9287): an endpoint that shares its port
//! must not offer that (`grease_quic_bit(false)` in quinn), or its peers may send first bytes that mean others.

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
        [1..=4, 0, 0, 0, ..] => DatagramKind::WireGuard,
        [0..=3, _, _, _, rest @ ..] if rest.starts_with(&stun::MAGIC_COOKIE) => DatagramKind::Stun,
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
        // A handshake whose session index is the cookie is still a handshake.
        assert_eq!(classify(&[1, 0, 0, 0, 0x21, 0x12, 0xa4, 0x42]), DatagramKind::WireGuard);
        assert_eq!(classify(&[1, 1, 0, 12, 0x21, 0x12, 0xa4, 0x42]), DatagramKind::Stun);
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
