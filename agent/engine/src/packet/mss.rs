//! Clamping of TCP's maximum segment size (RFC 9293, section 3.7.1).
//!
//! A host behind this node may think that its whole way has the MTU of its own network. The SYN in which it says so
//! passes here, and is put right: nothing larger than the interface's MTU is sent to begin with. Path MTUs below that
//! are left to ICMP: a path may get better within a connection, the MSS may not.

use super::{
    Header, IPV4_HEADER_LEN, IPV6_HEADER_LEN, PROTOCOL_TCP,
    checksum::{finish, sum},
};

const TCP_HEADER_LEN: usize = 20;
const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;
const CHECKSUM: usize = 16;
const FLAG_SYN: u8 = 0x02;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_MSS_LEN: usize = 4;

/// Lowers the MSS of a SYN to what fits into `mtu`; leaves every other packet as it is.
///
/// The checksum must be complete; it is updated (RFC 1624), so a wrong one stays wrong.
pub(crate) fn clamp(packet: &mut [u8], mtu: u16) {
    let Some(at) = find_mss(packet) else { return };
    let headers = TCP_HEADER_LEN + if packet[0] >> 4 == 4 { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN };
    let most = usize::from(mtu).saturating_sub(headers);
    let present = usize::from(u16::from_be_bytes([packet[at.mss], packet[at.mss + 1]]));
    if present <= most {
        return;
    }
    // Summed words are those at even places of the segment; an option may stand at an odd one.
    let start = at.mss - (at.mss - at.tcp) % 2;
    let end = (start + OPTION_MSS_LEN).min(packet.len());
    let before = sum(&packet[start..end], 0);
    // Below `present`, which has 16 bits.
    packet[at.mss..at.mss + 2].copy_from_slice(&(most as u16).to_be_bytes());
    let after = sum(&packet[start..end], 0);
    let check = at.tcp + CHECKSUM;
    let old = u16::from_be_bytes([packet[check], packet[check + 1]]);
    let new = finish(u64::from(!old) + u64::from(finish(before)) + after);
    packet[check..check + 2].copy_from_slice(&new.to_be_bytes());
}

/// Where the segment and its MSS are.
struct Place {
    tcp: usize,
    mss: usize,
}

fn find_mss(packet: &[u8]) -> Option<Place> {
    let header = Header::parse(packet)?;
    let is_later_fragment = packet[0] >> 4 == 4 && (packet[6] & 0x1f, packet[7]) != (0, 0);
    if header.protocol != PROTOCOL_TCP || is_later_fragment {
        return None;
    }
    let tcp = header.header_len;
    let segment = &packet[tcp..header.len];
    if segment.get(FLAGS)? & FLAG_SYN == 0 {
        return None;
    }
    let end = usize::from(segment[DATA_OFFSET] >> 4) * 4;
    let mut at = TCP_HEADER_LEN;
    while at < end {
        let len = match *segment.get(at)? {
            OPTION_END => return None,
            OPTION_NOP => 1,
            OPTION_MSS if at + OPTION_MSS_LEN <= end.min(segment.len()) => {
                return Some(Place { tcp, mss: tcp + at + 2 });
            }
            _ => usize::from(*segment.get(at + 1)?),
        };
        if len == 0 {
            return None;
        }
        at += len;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::{
        checksum::{fold, pseudo_header},
        tests::ipv4,
    };

    /// A SYN with these options, which fill whole words.
    fn syn(flags: u8, options: &[u8]) -> Vec<u8> {
        let words = u8::try_from(5 + options.len() / 4).unwrap();
        let mut segment = vec![0, 80, 0, 81, 1, 2, 3, 4, 0, 0, 0, 0, words << 4, flags, 9, 9, 0, 0, 0, 0];
        segment.extend(options);
        segment
    }

    fn v4(segment: &[u8]) -> Vec<u8> {
        seal(ipv4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_TCP, segment))
    }

    fn v6(segment: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, u8::try_from(segment.len()).unwrap(), PROTOCOL_TCP, 64];
        packet.extend("fd00::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.extend("fd00::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.extend(segment);
        seal(packet)
    }

    fn seal(mut packet: Vec<u8>) -> Vec<u8> {
        let at = Header::parse(&packet).unwrap().header_len + CHECKSUM;
        let check = finish(segment_sum(&packet));
        packet[at..at + 2].copy_from_slice(&check.to_be_bytes());
        packet
    }

    fn segment_sum(packet: &[u8]) -> u64 {
        let header = Header::parse(packet).unwrap();
        let segment = &packet[header.header_len..];
        sum(segment, pseudo_header(header.source, header.destination, PROTOCOL_TCP, segment.len()))
    }

    fn mss(packet: &[u8]) -> Option<u16> {
        find_mss(packet).map(|at| u16::from_be_bytes([packet[at.mss], packet[at.mss + 1]]))
    }

    #[test]
    fn the_mss_of_a_syn_is_lowered_and_its_checksum_stays_right() {
        // Alone; behind a no-operation, at an odd place; behind window scale.
        let layouts: [&[u8]; 3] =
            [&[2, 4, 5, 0xb4], &[1, 2, 4, 5, 0xb4, 1, 1, 0], &[3, 3, 7, 2, 4, 5, 0xb4, 0]];
        for options in layouts {
            for flags in [0x02, 0x12, 0xc2] {
                for (mut packet, most) in [(v4(&syn(flags, options)), 1380), (v6(&syn(flags, options)), 1360)]
                {
                    assert_eq!(mss(&packet), Some(1460));
                    clamp(&mut packet, 1420);
                    assert_eq!(mss(&packet), Some(most));
                    assert_eq!(fold(segment_sum(&packet)), 0xffff);
                    let clamped = packet.clone();
                    clamp(&mut packet, 1420);
                    assert_eq!(packet, clamped);
                }
            }
        }
    }

    #[test]
    fn nothing_else_is_touched() {
        let small = v4(&syn(0x02, &[2, 4, 4, 0]));
        let no_syn = v4(&syn(0x10, &[2, 4, 5, 0xb4]));
        let no_option = v4(&syn(0x02, &[]));
        let cut_off = v4(&syn(0x02, &[1, 1, 1, 2]));
        let endless = v4(&syn(0x02, &[8, 0, 2, 4]));
        let mut later_fragment = v4(&syn(0x02, &[2, 4, 5, 0xb4]));
        later_fragment[7] = 1;
        for packet in [small, no_syn, no_option, cut_off, endless, later_fragment] {
            let mut same = packet.clone();
            clamp(&mut same, 1420);
            assert_eq!(same, packet);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), v4: bool) {
            if let [first, _, high, low, ..] = bytes.as_mut_slice() {
                (*first, *high, *low) = if v4 { (0x45, 0, 60) } else { (0x60, 0, 0) };
            }
            if bytes.len() > 9 {
                bytes[if v4 { 9 } else { 6 }] = PROTOCOL_TCP;
            }
            clamp(&mut bytes, 1280);
        }
    }
}
