//! Inner packets of the simulation: small IPv4 UDP packets that carry a number.

use std::net::Ipv4Addr;

/// IPv4 and UDP header.
const HEADERS_LEN: usize = 28;
/// The smallest packet: headers and a number.
pub(crate) const MIN_LEN: usize = HEADERS_LEN + 8;

/// Makes a packet of `len` bytes.
pub(crate) fn build(source: Ipv4Addr, destination: Ipv4Addr, number: u64, len: usize) -> Vec<u8> {
    assert!(len >= MIN_LEN, "a packet has room for its number");
    let total = u16::try_from(len).expect("an IP packet has 16 bits of length");
    let mut packet = vec![0; len];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    // Not to be fragmented: what is too large is answered.
    packet[6] = 0x40;
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    let checksum = !ones_complement_sum(&packet[..20]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet[20..22].copy_from_slice(&7777_u16.to_be_bytes());
    packet[22..24].copy_from_slice(&7777_u16.to_be_bytes());
    packet[24..26].copy_from_slice(&(total - 20).to_be_bytes());
    packet[HEADERS_LEN..MIN_LEN].copy_from_slice(&number.to_be_bytes());
    packet
}

/// Reads source, destination and number of a packet that [`build`] made.
pub(crate) fn parse(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, u64)> {
    let address = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
    let number = u64::from_be_bytes(*packet.get(HEADERS_LEN..)?.first_chunk()?);
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    (total == packet.len()).then_some((address(12)?, address(16)?, number))
}

/// Reads the MTU that an ICMP error tells the sender of a packet, and that packet's number.
pub(crate) fn parse_too_big(packet: &[u8]) -> Option<(u16, u64)> {
    let icmp = packet.get(20..)?;
    let number = u64::from_be_bytes(*icmp.get(8 + HEADERS_LEN..)?.first_chunk()?);
    (packet.get(9) == Some(&1) && icmp.starts_with(&[3, 4]))
        .then(|| (u16::from_be_bytes([icmp[6], icmp[7]]), number))
}

fn ones_complement_sum(header: &[u8]) -> u16 {
    let (words, _) = header.as_chunks::<2>();
    let sum: u32 = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).expect("a folded sum has 16 bits")
}

#[test]
fn a_packet_is_read_as_it_was_built() {
    let (a, b) = (Ipv4Addr::new(10, 90, 0, 1), Ipv4Addr::new(10, 90, 0, 2));
    let packet = build(a, b, 77, 100);
    assert_eq!(parse(&packet), Some((a, b, 77)));
    assert_eq!(ones_complement_sum(&packet[..20]), 0xffff);
    assert_eq!(parse(&packet[..99]), None);
}
