//! Inner packets: as much of IPv4 and IPv6 as routing, cutting and refusing them asks for.
//!
//! The parser is total: any bytes give a header or nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub mod checksum;
pub(crate) mod fragment;
pub(crate) mod icmp;
pub(crate) mod mss;

/// Length of an IPv4 header without options.
pub(crate) const IPV4_HEADER_LEN: usize = 20;
/// Length of an IPv6 header.
pub(crate) const IPV6_HEADER_LEN: usize = 40;
/// Length of a UDP header.
pub(crate) const UDP_HEADER_LEN: usize = 8;
/// Protocol number of ICMP.
pub(crate) const PROTOCOL_ICMP: u8 = 1;
/// Protocol number of TCP.
pub(crate) const PROTOCOL_TCP: u8 = 6;
/// Protocol number of UDP.
pub(crate) const PROTOCOL_UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub(crate) const PROTOCOL_ICMPV6: u8 = 58;

/// What the header of an inner packet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Length of the whole packet.
    pub(crate) len: usize,
    /// Length of the IP header: with options, without IPv6 extension headers.
    pub(crate) header_len: usize,
    /// What follows: an IPv6 extension header is not looked behind.
    pub(crate) protocol: u8,
}

impl Header {
    /// Reads the header; `None` unless the bytes hold a whole IP packet.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        let header = match packet.first()? >> 4 {
            4 => Self::parse_v4(packet)?,
            6 => Self::parse_v6(packet)?,
            _ => return None,
        };
        (header.header_len <= header.len && header.len <= packet.len()).then_some(header)
    }

    fn parse_v4(packet: &[u8]) -> Option<Self> {
        let fixed: &[u8; IPV4_HEADER_LEN] = packet.first_chunk()?;
        let header_len = usize::from(fixed[0] & 0x0f) * 4;
        if header_len < IPV4_HEADER_LEN {
            return None;
        }
        let [s0, s1, s2, s3, d0, d1, d2, d3] = *fixed[12..].first_chunk()?;
        Some(Self {
            source: Ipv4Addr::new(s0, s1, s2, s3).into(),
            destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
            len: usize::from(u16::from_be_bytes([fixed[2], fixed[3]])),
            header_len,
            protocol: fixed[9],
        })
    }

    fn parse_v6(packet: &[u8]) -> Option<Self> {
        let fixed: &[u8; IPV6_HEADER_LEN] = packet.first_chunk()?;
        let source: [u8; 16] = *fixed[8..].first_chunk()?;
        let destination: [u8; 16] = *fixed[24..].first_chunk()?;
        Some(Self {
            source: Ipv6Addr::from(source).into(),
            destination: Ipv6Addr::from(destination).into(),
            len: IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([fixed[4], fixed[5]])),
            header_len: IPV6_HEADER_LEN,
            protocol: fixed[6],
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An IPv4 packet with this payload.
    pub(crate) fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let len = u16::try_from(IPV4_HEADER_LEN + payload.len()).unwrap().to_be_bytes();
        let mut packet = vec![0x45, 0, len[0], len[1], 0, 7, 0x40, 0, 64, protocol, 0, 0];
        packet.extend(source);
        packet.extend(destination);
        let sum = checksum::finish(checksum::sum(&packet, 0));
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(payload);
        packet
    }

    #[test]
    fn headers_are_read() {
        let packet = ipv4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_UDP, &[1, 2, 3]);
        let header = Header::parse(&packet).unwrap();
        assert_eq!(header.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(header.destination, IpAddr::from([10, 0, 0, 2]));
        assert_eq!((header.len, header.header_len, header.protocol), (23, 20, PROTOCOL_UDP));
        let mut six = vec![0x60, 0, 0, 0, 0, 2, 17, 64];
        six.extend(Ipv6Addr::LOCALHOST.octets());
        six.extend(Ipv6Addr::UNSPECIFIED.octets());
        assert_eq!(Header::parse(&six), None);
        six.extend([9, 9, 9]);
        assert_eq!(Header::parse(&six).unwrap().len, 42);
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let packet = ipv4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_UDP, &[1, 2, 3]);
        assert_eq!(Header::parse(&packet[..22]), None);
        for (at, value) in [(0, 0x44), (0, 0x4f), (0, 0x55), (3, 19), (3, 24)] {
            let mut bad = packet.clone();
            bad[at] = value;
            assert_eq!(Header::parse(&bad), None, "byte {at} = {value:#x}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_header_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Some(header) = Header::parse(&bytes) {
                prop_assert!(header.header_len <= header.len && header.len <= bytes.len());
            }
        }
    }
}
