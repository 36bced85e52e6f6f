//! The Internet checksum (RFC 1071).
#![expect(
    unsafe_code,
    reason = "the one loop over all bytes of a packet is compiled for newer processors too"
)]

use std::net::IpAddr;

/// From this length on the wider registers pay for the question whether they are there.
#[cfg(target_arch = "x86_64")]
const WIDE: usize = 128;

/// Adds bytes to a running sum. All but the last part of what is summed must have an even length.
///
/// The sum does not depend on the byte order in which it is made (RFC 1071, section 2): it is made in this machine's,
/// four bytes at a time, and swapped at the end.
#[must_use]
pub fn sum(bytes: &[u8], initial: u64) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= WIDE && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return initial + unsafe { sum_avx2(bytes) };
    }
    initial + sum_words(bytes)
}

/// [`sum_words`] with registers of 32 bytes, which the least x86-64 processor does not have.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(bytes: &[u8]) -> u64 {
    sum_words(bytes)
}

#[inline(always)]
fn sum_words(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let (pairs, odd) = rest.as_chunks::<2>();
    for pair in pairs {
        total += u64::from(u16::from_ne_bytes(*pair));
    }
    if let [last] = odd {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    u64::from(u16::from_be(fold(total)))
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

    #[test]
    fn every_length_sums_as_its_pairs_do() {
        let bytes: Vec<u8> = (0..=255).cycle().map(|byte: u8| byte.wrapping_mul(167)).take(1500).collect();
        for len in 0..bytes.len() {
            let pair = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
            let expected: u64 = bytes[..len].chunks(2).map(pair).sum();
            assert_eq!(fold(sum(&bytes[..len], 7)), fold(expected + 7), "{len} bytes");
        }
    }
}
