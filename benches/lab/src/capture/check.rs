//! Whether the checksums of a packet are right, by the letter of the RFCs and by nobody's code but this.

use serde::Serialize;

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// Where the checksum lies in a TCP, a UDP and an ICMP header.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const ICMP_CHECKSUM: usize = 2;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// IPv6's fragment header.
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
/// "More fragments", and the offset.
const FRAGMENT_BITS: u16 = 0x3fff;

/// A kind of packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over IPv4.
    UdpV4,
    /// UDP over IPv6.
    UdpV6,
    /// A fragment of an IPv4 packet: only its header can be judged.
    FragmentV4,
    /// A fragment of an IPv6 packet, of which nothing can be.
    FragmentV6,
    /// ICMP of either version.
    Icmp,
    /// Anything else.
    Other,
}

/// What the kernel has left undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unfinished {
    /// Whether it is a superpacket.
    pub(super) is_merged: bool,
    /// Where summing starts, from the IP header on.
    pub(super) start: usize,
    /// Where the sum goes, from there.
    pub(super) offset: usize,
}

/// Judges a packet; says what is wrong with it.
pub(super) fn check(packet: &[u8], unfinished: Option<Unfinished>) -> Result<Kind, String> {
    let wrong = |what: &str| {
        let head = packet.iter().take(64).map(|byte| format!("{byte:02x}")).collect::<String>();
        Err(format!("{what}, {} bytes, {unfinished:?}: {head}", packet.len()))
    };
    let (header, total, protocol, fragment) = match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= V4_HEADER => {
            let header = usize::from(packet[0] & 0x0f) * 4;
            if header < V4_HEADER || header > packet.len() || fold(sum(&packet[..header])) != 0xffff {
                return wrong("IPv4 header");
            }
            (header, usize::from(u16_at(packet, 2)), packet[9], u16_at(packet, 6) & FRAGMENT_BITS != 0)
        }
        Some(6) if packet.len() >= V6_HEADER => {
            let total = V6_HEADER + usize::from(u16_at(packet, 4));
            (V6_HEADER, total, packet[6], packet[6] == FRAGMENT)
        }
        _ => return wrong("no IP packet"),
    };
    let is_v4 = packet[0] >> 4 == 4;
    if total > packet.len() || total < header {
        return wrong("IP length");
    }
    if fragment {
        return Ok(if is_v4 { Kind::FragmentV4 } else { Kind::FragmentV6 });
    }
    // Ethernet pads short frames.
    let transport = &packet[header..total];
    let (kind, least, at) = match (protocol, is_v4) {
        (TCP, true) => (Kind::TcpV4, TCP_HEADER, TCP_CHECKSUM),
        (TCP, false) => (Kind::TcpV6, TCP_HEADER, TCP_CHECKSUM),
        (UDP, true) => (Kind::UdpV4, UDP_HEADER, UDP_CHECKSUM),
        (UDP, false) => (Kind::UdpV6, UDP_HEADER, UDP_CHECKSUM),
        (ICMP, true) | (ICMPV6, false) => (Kind::Icmp, ICMP_CHECKSUM + 2, ICMP_CHECKSUM),
        _ => return Ok(Kind::Other),
    };
    if transport.len() < least {
        return wrong("transport header");
    }
    let addresses = if is_v4 { &packet[12..20] } else { &packet[8..V6_HEADER] };
    let pseudo = match protocol {
        ICMP => 0,
        _ => sum(addresses) + u64::from(protocol) + transport.len() as u64,
    };
    match unfinished {
        Some(Unfinished { start, offset, .. }) if (start, offset) != (header, at) => {
            wrong("place of the checksum")
        }
        Some(_) if u16_at(transport, at) != fold(pseudo) => wrong("sum of the pseudo-header"),
        Some(_) => Ok(kind),
        // Over IPv4 a zero says that there is none (RFC 768).
        None if kind == Kind::UdpV4 && u16_at(transport, at) == 0 => Ok(kind),
        None if fold(pseudo + sum(transport)) != 0xffff => wrong("checksum"),
        None => Ok(kind),
    }
}

/// The sum of RFC 1071, two bytes at a time.
fn sum(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    bytes.chunks(2).map(word).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or_default()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A datagram from 10.0.0.1 to 10.0.0.2 with both its checksums.
    fn sealed() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 33, 0x12, 0x34, 0x40, 0, 64, UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0x30, 0x39, 0, 53, 0, 13, 0, 0]);
        packet.extend(b"hello");
        let header = !fold(sum(&packet[..20]));
        packet[10..12].copy_from_slice(&header.to_be_bytes());
        let pseudo = sum(&packet[12..20]) + u64::from(UDP) + 13;
        let checksum = !fold(pseudo + sum(&packet[20..]));
        packet[26..28].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    #[test]
    fn every_flipped_bit_of_a_datagram_is_wrong() {
        let packet = sealed();
        assert_eq!(check(&packet, None), Ok(Kind::UdpV4));
        for at in 0..packet.len() {
            for bit in 0..8 {
                let mut flipped = packet.clone();
                flipped[at] ^= 1 << bit;
                assert!(check(&flipped, None).is_err(), "byte {at}, bit {bit}");
            }
        }
        assert_eq!(check(&[&packet[..], &[0; 13]].concat(), None), Ok(Kind::UdpV4), "padded by Ethernet");
        assert!(check(&packet[..32], None).is_err());
    }

    #[test]
    fn an_unfinished_packet_has_the_sum_of_its_pseudo_header() {
        let mut packet = sealed();
        let pseudo = fold(sum(&packet[12..20]) + u64::from(UDP) + 13);
        packet[26..28].copy_from_slice(&pseudo.to_be_bytes());
        let unfinished = Unfinished { is_merged: false, start: 20, offset: UDP_CHECKSUM };
        assert_eq!(check(&packet, Some(unfinished)), Ok(Kind::UdpV4));
        assert!(check(&packet, None).is_err(), "as a finished packet it is wrong");
        assert!(check(&packet, Some(Unfinished { offset: 16, ..unfinished })).is_err());
        assert!(check(&sealed(), Some(unfinished)).is_err());
    }

    #[test]
    fn fragments_are_judged_by_their_header() {
        let mut packet = sealed();
        packet[6] = 0x20;
        assert!(check(&packet, None).is_err());
        packet[10..12].fill(0);
        let header = !fold(sum(&packet[..20]));
        packet[10..12].copy_from_slice(&header.to_be_bytes());
        packet[30] ^= 1;
        assert_eq!(check(&packet, None), Ok(Kind::FragmentV4));
    }
}
