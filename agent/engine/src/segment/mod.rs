//! What the kernel left undone on packets read from the TUN: cutting superpackets, completing checksums.
//!
//! A superpacket (TSO, USO) is one packet of up to 64 KiB with one header. Each segment gets a copy of the header
//! with its own lengths, IPv4 identification, TCP sequence number and flags, and its own checksums.

use crate::{
    batch::{Offload, SegmentProtocol, TunFrame},
    drops::DropReason,
    packet::{
        Header, PROTOCOL_TCP, PROTOCOL_UDP, UDP_HEADER_LEN,
        checksum::{finish, pseudo_header, sum},
    },
};

const TCP_HEADER_LEN: usize = 20;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const TCP_SEQUENCE: usize = 4;
const TCP_DATA_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
const FLAGS_ON_LAST: u8 = 0x01 | 0x08; // FIN, PSH
const FLAG_ON_FIRST: u8 = 0x80; // CWR

/// A frame from the TUN as the packets that it stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segments<'a> {
    packet: &'a [u8],
    header: Header,
    cut: Cut,
}

#[derive(Debug, Clone, Copy)]
enum Cut {
    Whole,
    /// The checksum from `start` to the end goes to `at`.
    Checksum {
        start: usize,
        at: usize,
    },
    Pieces {
        protocol: SegmentProtocol,
        /// Where the transport header starts.
        transport: usize,
        /// Length of IP and transport headers.
        headers: usize,
        payload: usize,
    },
}

/// Which piece of a superpacket.
#[derive(Debug, Clone, Copy)]
struct Piece {
    index: usize,
    /// Bytes of payload before it.
    skipped: usize,
}

impl<'a> Segments<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    /// When it is not an IP packet, or what is said of it cannot be.
    pub(crate) fn new(frame: TunFrame<'a>) -> Result<Self, DropReason> {
        let malformed = DropReason::MalformedPacket;
        let header = Header::parse(frame.packet).ok_or(malformed)?;
        let packet = &frame.packet[..header.len];
        let cut = match frame.offload {
            Offload::None => Cut::Whole,
            Offload::Checksum { start, offset } => {
                let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
                if start < header.header_len || at + 2 > packet.len() {
                    return Err(malformed);
                }
                Cut::Checksum { start, at }
            }
            Offload::Segment { protocol, segment_len, start, .. } => {
                let start = usize::from(start);
                let transport = packet.get(start..).ok_or(malformed)?;
                let transport_len = match protocol {
                    SegmentProtocol::Tcp => {
                        usize::from(transport.get(TCP_DATA_OFFSET).ok_or(malformed)? >> 4) * 4
                    }
                    SegmentProtocol::Udp => UDP_HEADER_LEN,
                };
                let least = match protocol {
                    SegmentProtocol::Tcp => TCP_HEADER_LEN,
                    SegmentProtocol::Udp => UDP_HEADER_LEN,
                };
                let number = match protocol {
                    SegmentProtocol::Tcp => PROTOCOL_TCP,
                    SegmentProtocol::Udp => PROTOCOL_UDP,
                };
                // Between IPv6's header and the transport's there may be others, which are not looked into.
                let is_other = start == header.header_len && header.protocol != number;
                let headers = start + transport_len;
                if is_other
                    || start < header.header_len
                    || (header.source.is_ipv4() && start > header.header_len)
                    || transport_len < least
                    || headers > packet.len()
                    || segment_len == 0
                {
                    return Err(malformed);
                }
                Cut::Pieces { protocol, transport: start, headers, payload: usize::from(segment_len) }
            }
        };
        Ok(Self { packet, header, cut })
    }

    /// Returns the header that all segments share, but for lengths.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the whole packet as the kernel gave it.
    pub(crate) fn packet(&self) -> &'a [u8] {
        self.packet
    }

    /// Returns the same frame in pieces of up to `mtu` bytes, if it is one that may be cut anywhere: a TCP superpacket.
    pub(crate) fn cut_to(&self, mtu: usize) -> Option<Self> {
        let Cut::Pieces { protocol: SegmentProtocol::Tcp, transport, headers, payload } = self.cut else {
            return None;
        };
        let payload = mtu.checked_sub(headers).filter(|room| *room > 0)?.min(payload);
        let cut = Cut::Pieces { protocol: SegmentProtocol::Tcp, transport, headers, payload };
        Some(Self { cut, ..*self })
    }

    /// Returns how many packets it stands for.
    pub(crate) fn count(&self) -> usize {
        match self.cut {
            Cut::Whole | Cut::Checksum { .. } => 1,
            Cut::Pieces { headers, payload, .. } => (self.packet.len() - headers).div_ceil(payload).max(1),
        }
    }

    /// Returns the length of the longest of them.
    pub(crate) fn max_len(&self) -> usize {
        match self.cut {
            Cut::Whole | Cut::Checksum { .. } => self.packet.len(),
            Cut::Pieces { headers, payload, .. } => self.packet.len().min(headers + payload),
        }
    }

    /// Writes one of them over `out`.
    pub(crate) fn write(&self, index: usize, out: &mut Vec<u8>) {
        out.clear();
        match self.cut {
            Cut::Whole => out.extend_from_slice(self.packet),
            Cut::Checksum { start, at } => {
                out.extend_from_slice(self.packet);
                // The field holds the sum of the pseudo-header already.
                let check = nonzero_udp(finish(sum(&out[start..], 0)), self.header.protocol);
                out[at..at + 2].copy_from_slice(&check.to_be_bytes());
            }
            Cut::Pieces { protocol, transport, headers, payload } => {
                let from = headers + index * payload;
                let to = (from + payload).min(self.packet.len());
                out.extend_from_slice(&self.packet[..headers]);
                out.extend_from_slice(&self.packet[from..to]);
                self.finish_piece(protocol, transport, Piece { index, skipped: index * payload }, out);
            }
        }
    }

    fn finish_piece(
        &self,
        protocol: SegmentProtocol,
        transport_start: usize,
        Piece { index, skipped }: Piece,
        out: &mut [u8],
    ) {
        let len = out.len();
        let is_last = index + 1 == self.count();
        // Truncations are what the wire does: lengths are below 64 KiB, numbers wrap.
        let wire16 = |value: usize| (value as u16).to_be_bytes();
        let (ip, transport) = out.split_at_mut(transport_start);
        if self.header.source.is_ipv4() {
            ip[2..4].copy_from_slice(&wire16(len));
            let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(index as u16);
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            ip[10..12].fill(0);
            let check = finish(sum(&ip[..self.header.header_len], 0));
            ip[10..12].copy_from_slice(&check.to_be_bytes());
        } else {
            ip[4..6].copy_from_slice(&wire16(len - self.header.header_len));
        }
        let (number, check_at) = match protocol {
            SegmentProtocol::Tcp => {
                let sequence = &mut transport[TCP_SEQUENCE..TCP_SEQUENCE + 4];
                let value = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
                sequence.copy_from_slice(&value.wrapping_add(skipped as u32).to_be_bytes());
                if !is_last {
                    transport[TCP_FLAGS] &= !FLAGS_ON_LAST;
                }
                if index > 0 {
                    transport[TCP_FLAGS] &= !FLAG_ON_FIRST;
                }
                (PROTOCOL_TCP, TCP_CHECKSUM)
            }
            SegmentProtocol::Udp => {
                transport[4..6].copy_from_slice(&wire16(len - transport_start));
                (PROTOCOL_UDP, UDP_CHECKSUM)
            }
        };
        transport[check_at..check_at + 2].fill(0);
        let pseudo = pseudo_header(self.header.source, self.header.destination, number, transport.len());
        let check = nonzero_udp(finish(sum(transport, pseudo)), number);
        transport[check_at..check_at + 2].copy_from_slice(&check.to_be_bytes());
    }
}

/// A UDP checksum of zero would mean that there is none (RFC 768).
fn nonzero_udp(check: u16, protocol: u8) -> u16 {
    if check == 0 && protocol == PROTOCOL_UDP { 0xffff } else { check }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{checksum::fold, tests::ipv4};

    fn tcp(flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut segment =
            vec![0, 80, 0, 81, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1, 0x80, flags, 9, 9, 0, 0, 0, 0];
        segment.extend([1; 12]);
        segment.extend(payload);
        segment
    }

    fn checksum_is_right(packet: &[u8]) -> bool {
        let header = Header::parse(packet).unwrap();
        let transport = &packet[header.header_len..];
        let pseudo = pseudo_header(header.source, header.destination, header.protocol, transport.len());
        let ip_is_right = header.source.is_ipv6() || finish(sum(&packet[..header.header_len], 0)) == 0;
        ip_is_right && fold(sum(transport, pseudo)) == 0xffff
    }

    fn pieces(packet: &[u8], offload: Offload) -> Vec<Vec<u8>> {
        let segments = Segments::new(TunFrame { packet, offload }).unwrap();
        (0..segments.count())
            .map(|index| {
                let mut out = Vec::new();
                segments.write(index, &mut out);
                assert!(out.len() <= segments.max_len());
                out
            })
            .collect()
    }

    #[test]
    fn tcp_superpackets_are_cut() {
        let payload: Vec<u8> = (0..=255).cycle().take(2500).collect();
        // CWR, ACK, PSH, FIN
        let packet = ipv4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_TCP, &tcp(0x99, &payload));
        let offload =
            Offload::Segment { protocol: SegmentProtocol::Tcp, segment_len: 1000, start: 20, offset: 16 };
        let cut = pieces(&packet, offload);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [1052, 1052, 552]);
        assert!(cut.iter().all(|piece| checksum_is_right(piece)));
        assert_eq!(cut.iter().map(|piece| piece[33]).collect::<Vec<_>>(), [0x90, 0x10, 0x19]);
        let numbers: Vec<_> =
            cut.iter().map(|piece| u32::from_be_bytes(piece[24..28].try_into().unwrap())).collect();
        assert_eq!(
            numbers,
            [0xffff_fff0, 0xffff_fff0u32.wrapping_add(1000), 0xffff_fff0u32.wrapping_add(2000)]
        );
        assert_eq!(cut.iter().map(|piece| piece[5]).collect::<Vec<_>>(), [7, 8, 9]);
        let joined: Vec<u8> = cut.iter().flat_map(|piece| piece[52..].to_vec()).collect();
        assert_eq!(joined, payload);
    }

    #[test]
    fn tcp_superpackets_can_be_cut_smaller() {
        let payload: Vec<u8> = (0..=255).cycle().take(2500).collect();
        let packet = ipv4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_TCP, &tcp(0x10, &payload));
        let offload =
            Offload::Segment { protocol: SegmentProtocol::Tcp, segment_len: 1000, start: 20, offset: 16 };
        let segments = Segments::new(TunFrame { packet: &packet, offload }).unwrap();
        for (mtu, lens) in [(652, vec![652, 652, 652, 652, 152]), (9000, vec![1052, 1052, 552])] {
            let cut = segments.cut_to(mtu).unwrap();
            let mut joined = Vec::new();
            let mut piece = Vec::new();
            for (index, len) in lens.iter().enumerate() {
                cut.write(index, &mut piece);
                assert_eq!(piece.len(), *len);
                assert!(checksum_is_right(&piece));
                joined.extend_from_slice(&piece[52..]);
            }
            assert_eq!((cut.count(), joined), (lens.len(), payload.clone()));
        }
        assert!(segments.cut_to(52).is_none());
        let whole = Segments::new(TunFrame { packet: &packet, offload: Offload::None }).unwrap();
        assert!(whole.cut_to(652).is_none());
    }

    #[test]
    fn udp_superpackets_over_ipv6_are_cut() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, PROTOCOL_UDP, 64];
        packet.extend("fd00::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.extend("fd00::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.extend([1, 1, 2, 2, 0, 0, 0, 0]);
        packet.extend([5; 301]);
        let len = u16::try_from(packet.len() - 40).unwrap();
        packet[4..6].copy_from_slice(&len.to_be_bytes());
        let offload =
            Offload::Segment { protocol: SegmentProtocol::Udp, segment_len: 100, start: 40, offset: 6 };
        let cut = pieces(&packet, offload);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [148, 148, 148, 49]);
        assert!(cut.iter().all(|piece| checksum_is_right(piece)));
        assert_eq!(cut[3][44..46], 9u16.to_be_bytes());
    }

    #[test]
    fn partial_checksums_are_completed() {
        let mut packet = ipv4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_TCP, &tcp(0x10, &[3; 33]));
        let header = Header::parse(&packet).unwrap();
        let partial = fold(pseudo_header(header.source, header.destination, PROTOCOL_TCP, packet.len() - 20));
        packet[36..38].copy_from_slice(&partial.to_be_bytes());
        assert!(checksum_is_right(&pieces(&packet, Offload::Checksum { start: 20, offset: 16 })[0]));
    }

    #[test]
    fn offloads_that_cannot_be_are_refused() {
        let packet = ipv4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_TCP, &tcp(0x10, &[3; 33]));
        let segment = |segment_len, start| Offload::Segment {
            protocol: SegmentProtocol::Tcp,
            segment_len,
            start,
            offset: 16,
        };
        let bad = [
            segment(0, 20),
            Offload::Segment { protocol: SegmentProtocol::Udp, segment_len: 10, start: 20, offset: 6 },
            segment(10, 24),
            segment(10, 0),
            segment(10, 80),
            segment(10, 65535),
            Offload::Checksum { start: 20, offset: 65 },
            Offload::Checksum { start: 0, offset: 10 },
            Offload::Checksum { start: 65535, offset: 65535 },
        ];
        for offload in bad {
            let refused = Segments::new(TunFrame { packet: &packet, offload }).err();
            assert_eq!(refused, Some(DropReason::MalformedPacket), "{offload:?}");
        }
    }
}
