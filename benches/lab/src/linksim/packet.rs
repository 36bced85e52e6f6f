//! What the simulator looks at in a packet: where it goes, and its TTL.

use std::net::IpAddr;

/// Offsets in an IPv4 header (RFC 791): time to live, checksum, destination.
const V4_TTL: usize = 8;
const V4_CHECKSUM: usize = 10;
const V4_DESTINATION: usize = 16;
const V4_HEADER: usize = 20;
/// Offsets in an IPv6 header (RFC 8200): hop limit, destination.
const V6_HOP_LIMIT: usize = 7;
const V6_DESTINATION: usize = 24;
const V6_HEADER: usize = 40;

/// The destination of an IP packet, or `None` if it is none.
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 if packet.len() >= V4_HEADER => {
            let bytes: [u8; 4] = packet[V4_DESTINATION..V4_HEADER].try_into().ok()?;
            Some(bytes.into())
        }
        6 if packet.len() >= V6_HEADER => {
            let bytes: [u8; 16] = packet[V6_DESTINATION..V6_HEADER].try_into().ok()?;
            Some(bytes.into())
        }
        _ => None,
    }
}

/// Takes one from the TTL, as each router does; `None` if the packet ends here.
///
/// The packet must have a [`destination`].
pub fn take_hop(packet: &mut [u8]) -> Option<()> {
    if packet[0] >> 4 == 6 {
        packet[V6_HOP_LIMIT] = packet[V6_HOP_LIMIT].checked_sub(1).filter(|left| *left > 0)?;
        return Some(());
    }
    packet[V4_TTL] = packet[V4_TTL].checked_sub(1).filter(|left| *left > 0)?;
    // RFC 1624: the word that holds the TTL in its high byte has become smaller by 0x0100.
    let old = u32::from(u16::from_be_bytes([packet[V4_CHECKSUM], packet[V4_CHECKSUM + 1]]));
    let sum = old + 0x0100;
    let new = (sum & 0xffff) + (sum >> 16);
    packet[V4_CHECKSUM..V4_CHECKSUM + 2].copy_from_slice(&new.to_be_bytes()[2..]);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 header from RFC 1071's neighbourhood: 192.168.0.1 to 192.168.0.199, TTL 64, UDP.
    const HEADER: [u8; 20] =
        [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 192, 168, 0, 1, 192, 168, 0, 199];

    fn sum(header: &[u8]) -> u16 {
        let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum: u32 = words.sum();
        u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
    }

    #[test]
    fn checksum_stays_right_over_all_hops() {
        let mut header = HEADER;
        for left in (1..64).rev() {
            take_hop(&mut header).unwrap();
            assert_eq!((header[V4_TTL], sum(&header)), (left, 0xffff));
        }
        assert_eq!(take_hop(&mut header), None);
    }

    #[test]
    fn destination_of_both_families_and_of_garbage() {
        assert_eq!(destination(&HEADER), Some("192.168.0.199".parse().unwrap()));
        let mut v6 = [0; V6_HEADER];
        v6[0] = 0x60;
        v6[V6_HOP_LIMIT] = 2;
        v6[39] = 1;
        assert_eq!(destination(&v6), Some("::1".parse().unwrap()));
        assert_eq!((take_hop(&mut v6), take_hop(&mut v6)), (Some(()), None));
        for garbage in [&[][..], &[0x45], &HEADER[..19], &[0x60; 39], &[0; 60]] {
            assert_eq!(destination(garbage), None);
        }
    }
}
