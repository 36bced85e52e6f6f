//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// Adds bytes to a running sum. All but the last part of what is summed must have an even length.
///
/// The sum does not depend on the byte order in which it is made (RFC 1071, section 2): it is made in this machine's,
/// four bytes at a time, and swapped at the end.
#[must_use]
pub fn sum(bytes: &[u8], initial: u64) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let (pairs, odd) = rest.as_chunks::<2>();
    for pair in pairs {
        total += u64::from(u16::from_ne_bytes(*pair));
    }
    if let [last] = odd {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    initial + u64::from(u16::from_be(fold(total)))
}

/// Folds a sum to 16 bits.
#[must_use]
pub fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).unwrap_or_default()
}

/// Folds and complements a sum: the checksum.
#[must_use]
pub fn finish(total: u64) -> u16 {
    !fold(total)
}

/// Sums the pseudo-header of TCP, UDP and ICMPv6.
#[must_use]
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u64 {
    let mut total = u64::from(protocol) + len as u64;
    for address in [source, destination] {
        total = match address {
            IpAddr::V4(v4) => sum(&v4.octets(), total),
            IpAddr::V6(v6) => sum(&v6.octets(), total),
        };
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes, 0)), 0xddf2);
        assert_eq!(finish(sum(&bytes, 0)), !0xddf2);
        assert_eq!(fold(sum(&bytes[..7], 0)), fold(sum(&[&bytes[..7], &[0]].concat(), 0)));
    }
}
