//! Socket addresses as they stand in disco messages and relay frames.
//!
//! ```text
//! IPv6 address, or IPv4-mapped IPv6 address (16) | port (2, big-endian)
//! ```
//!
//! One underlay address has one form: a dual-stack socket shows an IPv4 sender as `::ffff:a.b.c.d`, and a scope
//! id or flow label means nothing on another host. [`canonical`] undoes all of it, and everything that is decoded
//! passes through it, so that addresses can be compared and used as keys.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Deserializer};

/// Length of an encoded address.
pub(crate) const ADDRESS_LEN: usize = 18;

/// Returns the one form of an address: IPv4 if it is mapped, without scope id and flow label.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Encodes an address; scope id and flow label are left out.
pub(crate) fn encode(address: SocketAddr) -> [u8; ADDRESS_LEN] {
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut out = [0; ADDRESS_LEN];
    out[..16].copy_from_slice(&ip.octets());
    out[16..].copy_from_slice(&address.port().to_be_bytes());
    out
}

/// Decodes an address: every value of the bytes is one.
pub(crate) fn decode(bytes: &[u8; ADDRESS_LEN]) -> SocketAddr {
    let [ip @ .., port_high, port_low] = *bytes;
    let port = u16::from_be_bytes([port_high, port_low]);
    canonical(SocketAddr::new(Ipv6Addr::from(ip).into(), port))
}

/// Reads the text of an address into its canonical form, for `#[serde(deserialize_with)]`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    SocketAddr::deserialize(deserializer).map(canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_form() {
        for (given, expected) in [
            ("192.0.2.1:5", "192.0.2.1:5"),
            ("[::ffff:192.0.2.1]:5", "192.0.2.1:5"),
            ("[2001:db8::1]:65535", "[2001:db8::1]:65535"),
            ("[fe80::1%7]:5", "[fe80::1]:5"),
            ("0.0.0.0:0", "0.0.0.0:0"),
        ] {
            let (given, expected): (SocketAddr, SocketAddr) =
                (given.parse().unwrap(), expected.parse().unwrap());
            assert_eq!(canonical(given), expected);
            assert_eq!(decode(&encode(given)), expected);
        }
    }
}
