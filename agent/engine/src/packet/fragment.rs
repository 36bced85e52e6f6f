//! Fragmentation of IPv4 packets that may be fragmented (RFC 791, section 3.2).

use super::{
    Header, IPV4_HEADER_LEN,
    checksum::{finish, sum},
};

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;
/// Fragments begin at multiples of this.
const OFFSET_UNIT: usize = 8;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
/// An option with this bit stands in every fragment, others in the first one only.
const OPTION_COPIED: u8 = 0x80;

/// Whether a packet may be cut on its way: IPv4 without "don't fragment".
pub(crate) fn may_be_cut(packet: &[u8]) -> bool {
    matches!(packet, [first, ..] if first >> 4 == 4) && flags(packet) & DONT_FRAGMENT == 0
}

/// Cuts a packet into fragments of up to `mtu` bytes, in order; a fragment is cut into smaller ones.
///
/// Empty where it cannot be cut: not IPv4, not to be fragmented, or no room behind the header.
pub(crate) fn fragments(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let Some(header) = Header::parse(packet).filter(|_| may_be_cut(packet)) else { return Vec::new() };
    let step = mtu.saturating_sub(header.header_len) / OFFSET_UNIT * OFFSET_UNIT;
    if step == 0 {
        return Vec::new();
    }
    let payload = &packet[header.header_len..header.len];
    let last = payload.len().div_ceil(step).saturating_sub(1);
    let mut later_header = packet[..header.header_len].to_vec();
    drop_first_only_options(&mut later_header[IPV4_HEADER_LEN..]);
    let fragment = |(index, piece): (usize, &[u8])| {
        let source = if index == 0 { &packet[..header.header_len] } else { &later_header };
        let mut out = [source, piece].concat();
        // Truncations are what the wire does: a packet is below 64 KiB.
        let len = (out.len() as u16).to_be_bytes();
        out[2..4].copy_from_slice(&len);
        let offset = (flags(packet) & OFFSET_MASK) + (index * step / OFFSET_UNIT) as u16;
        let more = if index < last { MORE_FRAGMENTS } else { flags(packet) & MORE_FRAGMENTS };
        out[6..8].copy_from_slice(&(more | offset & OFFSET_MASK).to_be_bytes());
        out[10..12].fill(0);
        let check = finish(sum(&out[..header.header_len], 0));
        out[10..12].copy_from_slice(&check.to_be_bytes());
        out
    };
    payload.chunks(step).enumerate().map(fragment).collect()
}

fn flags(packet: &[u8]) -> u16 {
    packet.get(6..8).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Writes no-operations over the options that only the first fragment carries, so that the header keeps its length.
fn drop_first_only_options(mut options: &mut [u8]) {
    while let Some(&kind) = options.first() {
        let len = match kind {
            OPTION_END => return,
            OPTION_NOP => 1,
            _ => options.get(1).map_or(0, |len| usize::from(*len)),
        };
        if len == 0 || len > options.len() {
            return;
        }
        let (option, rest) = options.split_at_mut(len);
        if kind & OPTION_COPIED == 0 {
            option.fill(OPTION_NOP);
        }
        options = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{PROTOCOL_UDP, tests::ipv4};

    fn fragmentable(payload: &[u8]) -> Vec<u8> {
        let mut packet = ipv4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_UDP, payload);
        packet[6] = 0;
        packet
    }

    /// Puts fragments together, as a receiver does.
    fn reassemble(fragments: &[Vec<u8>]) -> Vec<u8> {
        let mut payload = Vec::new();
        for (index, fragment) in fragments.iter().enumerate() {
            let header = Header::parse(fragment).unwrap();
            assert_eq!(header.len, fragment.len());
            assert_eq!(finish(sum(&fragment[..header.header_len], 0)), 0);
            assert_eq!(usize::from(flags(fragment) & OFFSET_MASK) * 8, payload.len());
            assert_eq!(flags(fragment) & MORE_FRAGMENTS != 0, index + 1 < fragments.len());
            payload.extend(&fragment[header.header_len..]);
        }
        payload
    }

    #[test]
    fn fragments_make_the_packet_again() {
        let payload: Vec<u8> = (0..=255).cycle().take(1400).collect();
        let packet = fragmentable(&payload);
        for (mtu, lens) in [(1420, vec![1420]), (1419, vec![1412, 28]), (576, vec![572, 572, 316])] {
            let cut = fragments(&packet, mtu);
            assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), lens);
            assert_eq!(reassemble(&cut), payload);
            assert!(
                cut.iter()
                    .all(|fragment| fragment[4..6] == packet[4..6] && fragment[12..20] == packet[12..20])
            );
        }
    }

    #[test]
    fn a_fragment_is_cut_again() {
        let payload: Vec<u8> = (0..=255).cycle().take(1400).collect();
        let first = fragments(&fragmentable(&payload), 1340);
        let again: Vec<_> = first.iter().flat_map(|fragment| fragments(fragment, 600)).collect();
        assert!(again.iter().all(|fragment| fragment.len() <= 600));
        assert_eq!(reassemble(&again), payload);
    }

    #[test]
    fn options_of_the_first_fragment_stay_there() {
        let mut packet = vec![0x48, 0, 0, 132, 0, 7, 0, 0, 64, PROTOCOL_UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        // Record route (first only), then a security label (copied), then the end.
        packet.extend([7, 3, 4, 0x86, 8, 0, 0, 0, 1, 2, 3, 0]);
        packet.extend([9; 100]);
        let cut = fragments(&packet, 96);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [96, 68]);
        assert_eq!(cut[0][20..32], packet[20..32]);
        assert_eq!(cut[1][20..32], [1, 1, 1, 0x86, 8, 0, 0, 0, 1, 2, 3, 0]);
        assert_eq!(reassemble(&cut), [9; 100]);
    }

    #[test]
    fn what_must_not_be_cut_is_not() {
        let packet = ipv4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_UDP, &[0; 1400]);
        assert!(!may_be_cut(&packet));
        assert_eq!(fragments(&packet, 1280), Vec::<Vec<u8>>::new());
        assert_eq!(fragments(&fragmentable(&[0; 100]), 27), Vec::<Vec<u8>>::new());
        assert!(!may_be_cut(&[0x60; 60]));
        assert!(!may_be_cut(&[]));
    }
}
