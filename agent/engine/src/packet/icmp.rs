//! ICMP answers to packets that cannot be sent on.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    Header, IPV4_HEADER_LEN, IPV6_HEADER_LEN, PROTOCOL_ICMP, PROTOCOL_ICMPV6,
    checksum::{finish, pseudo_header, sum},
};

/// Most of the refused packet that is quoted to an IPv4 sender (RFC 1812, section 4.3.2.3: up to 576 in all).
const MAX_IPV4: usize = 576;
/// Most bytes of an ICMPv6 error (RFC 4443, section 3.2: the minimum MTU).
const MAX_IPV6: usize = 1280;
/// ICMP errors per second at most (Linux: `icmp_msgs_per_sec`, one per millisecond and host; this is for one node).
const ICMP_PER_SECOND: u32 = 50;
const ICMP_LEN: usize = 8;
const TTL: u8 = 64;

/// Counts ICMP errors of the running second.
#[derive(Debug, Default)]
pub(crate) struct IcmpLimit {
    since: Option<Instant>,
    sent: u32,
}

impl IcmpLimit {
    /// Whether one more may be sent.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= Duration::from_secs(1);
        if self.since.is_none_or(is_over) {
            *self = Self { since: Some(now), sent: 0 };
        }
        self.sent += 1;
        self.sent <= ICMP_PER_SECOND
    }
}

/// Builds the answer to a packet that is larger than `mtu` (RFC 1191, RFC 4443).
///
/// It comes from where the packet was to go: from an address of this node's the kernel would take it for a forgery
/// (a packet with a local source that comes from outside, a "martian").
///
/// `None` where none may be sent: to a packet that may be fragmented, is not the first fragment, is itself an ICMP
/// error, or does not come from and go to single hosts.
pub(crate) fn too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let header = Header::parse(packet)?;
    if is_not_one_host(header.source) || is_not_one_host(header.destination) {
        return None;
    }
    match header.destination {
        IpAddr::V4(from) => {
            let flags = u16::from_be_bytes([packet[6], packet[7]]);
            let (dont_fragment, offset) = (flags & 0x4000 != 0, flags & 0x1fff);
            let payload = &packet[header.header_len..header.len];
            // Echo, echo reply and the like are no errors.
            let is_error =
                header.protocol == PROTOCOL_ICMP && matches!(payload.first(), Some(3 | 4 | 5 | 11 | 12));
            if !dont_fragment || offset != 0 || is_error {
                return None;
            }
            let quote = &packet[..header.len.min(MAX_IPV4 - IPV4_HEADER_LEN - ICMP_LEN)];
            let mut icmp = vec![3, 4, 0, 0, 0, 0];
            icmp.extend(mtu.to_be_bytes());
            icmp.extend(quote);
            let check = finish(sum(&icmp, 0));
            icmp[2..4].copy_from_slice(&check.to_be_bytes());
            let len = u16::try_from(IPV4_HEADER_LEN + icmp.len()).ok()?.to_be_bytes();
            let mut out = vec![0x45, 0xc0, len[0], len[1], 0, 0, 0, 0, TTL, PROTOCOL_ICMP, 0, 0];
            out.extend(from.octets());
            out.extend(&packet[12..16]);
            let check = finish(sum(&out, 0));
            out[10..12].copy_from_slice(&check.to_be_bytes());
            out.extend(icmp);
            Some(out)
        }
        IpAddr::V6(from) => {
            let is_error = header.protocol == PROTOCOL_ICMPV6
                && packet.get(IPV6_HEADER_LEN).is_some_and(|kind| *kind < 128);
            if is_error {
                return None;
            }
            let quote = &packet[..header.len.min(MAX_IPV6 - IPV6_HEADER_LEN - ICMP_LEN)];
            let mut icmp = vec![2, 0, 0, 0, 0, 0];
            icmp.extend(mtu.to_be_bytes());
            icmp.extend(quote);
            let pseudo = pseudo_header(from.into(), header.source, PROTOCOL_ICMPV6, icmp.len());
            let check = finish(sum(&icmp, pseudo));
            icmp[2..4].copy_from_slice(&check.to_be_bytes());
            let len = u16::try_from(icmp.len()).ok()?.to_be_bytes();
            let mut out = vec![0x60, 0, 0, 0, len[0], len[1], PROTOCOL_ICMPV6, TTL];
            out.extend(from.octets());
            out.extend(&packet[8..24]);
            out.extend(icmp);
            Some(out)
        }
    }
}

fn is_not_one_host(address: IpAddr) -> bool {
    address.is_unspecified()
        || address.is_multicast()
        || matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{PROTOCOL_UDP, tests::ipv4};

    #[test]
    fn an_ipv4_sender_is_told_the_mtu() {
        let packet = ipv4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_UDP, &[7; 1400]);
        let answer = too_big(&packet, 1280).unwrap();
        let header = Header::parse(&answer).unwrap();
        assert_eq!(header.source, IpAddr::from([10, 0, 0, 2]));
        assert_eq!(header.destination, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(answer.len(), MAX_IPV4);
        assert_eq!(finish(sum(&answer[..20], 0)), 0);
        assert_eq!(finish(sum(&answer[20..], 0)), 0);
        assert_eq!(answer[20..22], [3, 4]);
        assert_eq!(answer[26..28], 1280u16.to_be_bytes());
        assert_eq!(answer[28..48], packet[..20]);
    }

    #[test]
    fn an_ipv6_sender_is_told_the_mtu() {
        let mut packet = vec![0x60, 0, 0, 0, 5, 0xdc, PROTOCOL_UDP, 64];
        packet.extend("fd00::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.extend("fd00::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.resize(1540, 1);
        let answer = too_big(&packet, 1280).unwrap();
        let header = Header::parse(&answer).unwrap();
        assert_eq!(header.source, "fd00::2".parse::<IpAddr>().unwrap());
        assert_eq!(answer.len(), MAX_IPV6);
        let pseudo = pseudo_header(header.source, header.destination, PROTOCOL_ICMPV6, answer.len() - 40);
        assert_eq!(finish(sum(&answer[40..], pseudo)), 0);
        assert_eq!(answer[46..48], 1280u16.to_be_bytes());
    }

    #[test]
    fn errors_fragments_and_groups_are_not_answered() {
        let big = ipv4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_UDP, &[7; 1400]);
        let mut fragmentable = big.clone();
        fragmentable[6] = 0;
        let mut later_fragment = big.clone();
        later_fragment[7] = 9;
        let error = ipv4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_ICMP, &[3; 1400]);
        let group = ipv4([10, 0, 0, 1], [224, 0, 0, 1], PROTOCOL_UDP, &[7; 1400]);
        for packet in [fragmentable, later_fragment, error, group] {
            assert_eq!(too_big(&packet, 1280), None);
        }
    }
}
