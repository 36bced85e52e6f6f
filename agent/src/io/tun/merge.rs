//! Merges neighbouring segments of a flow into superpackets for one write each (what the kernel calls GRO).
//!
//! A train that a peer's host sent as one superpacket arrives as a run of equal segments; written one by one they cost
//! a system call, and in the host's TCP an acknowledgement, each. Only neighbours are merged, which is enough, because
//! trains arrive whole. A run is:
//!
//! - one flow of TCP or UDP with the same addresses, ports, type of service, hop limit and don't-fragment bit, and
//!   for TCP the same acknowledgement, window and options, sequence numbers that follow on each other, and no flags but
//!   ACK and PSH;
//! - of equal payloads but the last, which may be shorter; neither fragments nor IP options.
//!
//! A PSH within a run moves to its end. It asks for data to be handed up without waiting for more, and nothing waits here:
//! the rest of the run goes up in the same write. Ending the run there, as the kernel's GRO must, would cost every third
//! train a second write and a second acknowledgement.
//!
//! The kernel does not verify the checksum of a superpacket, so every segment's is verified here before it is merged:
//! a packet that was damaged before it entered the peer's tunnel must not be blessed at its end.

use std::ops::Range;

use mesh_engine::checksum::{fold, sum};

use super::vnet;

/// Most segments in a run: what the kernel's UDP segmentation takes, and as many as fit a train.
pub(super) const MAX_RUN: usize = 64;

/// The longest IP packet.
const MAX_PACKET_LEN: usize = 65_535;

const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const TCP_HEADER_LEN: usize = 20;
const UDP_HEADER_LEN: usize = 8;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const TCP_PSH: u8 = 0x08;
const TCP_ACK: u8 = 0x10;
/// Where the checksum lies in a TCP and in a UDP header.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
/// IPv4's don't-fragment bit, in the byte that has the fragment flags.
const DONT_FRAGMENT: u8 = 0x40;

/// What is merged, and which protocols the kernel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Merge {
    /// TCP and UDP (Linux 6.2 and later).
    TcpAndUdp,
    /// TCP only.
    Tcp,
}

/// A packet that could be part of a run.
#[derive(Debug, Clone, Copy)]
struct Segment<'a> {
    packet: &'a [u8],
    ip_header: usize,
    headers: usize,
    protocol: u8,
}

/// Returns how many of the packets, from the first on, go into one write.
pub(super) fn run_len(bytes: &[u8], packets: &[Range<usize>], merge: Merge) -> usize {
    let parse = |range: &Range<usize>| Segment::parse(&bytes[range.clone()], merge);
    let Some(first) = packets.first().and_then(parse) else { return packets.len().min(1) };
    let mut last = first;
    let mut total = first.packet.len();
    let mut len = 1;
    for range in packets.iter().take(MAX_RUN).skip(1) {
        let Some(next) = parse(range) else { break };
        total += next.payload_len();
        let is_full = last.payload_len() == first.payload_len();
        if total > MAX_PACKET_LEN || !is_full || !next.continues(&last, len) {
            break;
        }
        if (len == 1 && !first.checksum_is_right()) || !next.checksum_is_right() {
            break;
        }
        (last, len) = (next, len + 1);
    }
    len
}

/// Makes the first packet's headers those of the whole run, and returns the header that goes before it and the length
/// of the headers that the other packets leave out.
pub(super) fn merge_headers(
    bytes: &mut [u8],
    run: &[Range<usize>],
) -> Option<([u8; vnet::HEADER_LEN], usize)> {
    let first = Segment::parse(bytes.get(run.first()?.clone())?, Merge::TcpAndUdp)?;
    let Segment { ip_header, headers, protocol, .. } = first;
    let segment_len = u16::try_from(first.payload_len()).ok()?;
    let payload: usize = run.iter().map(|range| range.len() - headers).sum();
    let flags_of = |range: &Range<usize>| bytes[range.start + ip_header + 13];
    let push = if protocol == PROTOCOL_TCP {
        run.iter().fold(0, |push, range| push | flags_of(range) & TCP_PSH)
    } else {
        0
    };

    let packet = bytes.get_mut(run.first()?.clone())?;
    let total = u16::try_from(headers + payload).ok()?;
    let is_v4 = ip_header == IPV4_HEADER_LEN;
    if is_v4 {
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[10..12].fill(0);
        let checksum = !fold(sum(&packet[..IPV4_HEADER_LEN], 0));
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        let len = total - u16::try_from(IPV6_HEADER_LEN).ok()?;
        packet[4..6].copy_from_slice(&len.to_be_bytes());
    }
    let transport_len = total - u16::try_from(ip_header).ok()?;
    let field = if protocol == PROTOCOL_TCP {
        packet[ip_header + 13] |= push;
        TCP_CHECKSUM
    } else {
        packet[ip_header + 4..ip_header + 6].copy_from_slice(&transport_len.to_be_bytes());
        UDP_CHECKSUM
    };
    // The kernel goes on summing from here, per segment.
    let pseudo = fold(pseudo_sum(packet, is_v4, protocol, transport_len));
    packet[ip_header + field..ip_header + field + 2].copy_from_slice(&pseudo.to_be_bytes());
    let gso = match (protocol, is_v4) {
        (PROTOCOL_TCP, true) => vnet::Gso::Tcp4,
        (PROTOCOL_TCP, false) => vnet::Gso::Tcp6,
        _ => vnet::Gso::Udp,
    };
    let [headers_len, start, offset] = [headers, ip_header, field].map(u16::try_from);
    Some((vnet::superpacket(gso, headers_len.ok()?, segment_len, (start.ok()?, offset.ok()?)), headers))
}

impl<'a> Segment<'a> {
    fn parse(packet: &'a [u8], merge: Merge) -> Option<Self> {
        let (ip_header, protocol, len) = match packet.first()? {
            0x45 if packet.len() > IPV4_HEADER_LEN => {
                // Neither "more fragments" nor an offset.
                let whole = packet[6] & !DONT_FRAGMENT == 0 && packet[7] == 0;
                (whole && sum_is_right(sum(&packet[..IPV4_HEADER_LEN], 0))).then_some(())?;
                (IPV4_HEADER_LEN, packet[9], usize::from(u16_at(packet, 2)))
            }
            version if version >> 4 == 6 && packet.len() > IPV6_HEADER_LEN => {
                (IPV6_HEADER_LEN, packet[6], IPV6_HEADER_LEN + usize::from(u16_at(packet, 4)))
            }
            _ => return None,
        };
        let transport = &packet[ip_header..];
        let headers = match protocol {
            PROTOCOL_TCP if transport.len() > TCP_HEADER_LEN => {
                let len = usize::from(transport[12] >> 4) * 4;
                let flags = transport[13] & !TCP_PSH == TCP_ACK;
                (len >= TCP_HEADER_LEN && flags && transport[12] & 0x0f == 0).then_some(ip_header + len)?
            }
            PROTOCOL_UDP if merge == Merge::TcpAndUdp && transport.len() > UDP_HEADER_LEN => {
                let whole = usize::from(u16_at(transport, 4)) == transport.len();
                // Over IPv4 a zero says that there is no checksum; a superpacket would have one.
                (whole && u16_at(transport, UDP_CHECKSUM) != 0).then_some(ip_header + UDP_HEADER_LEN)?
            }
            _ => return None,
        };
        (len == packet.len() && headers < len).then_some(Self { packet, ip_header, headers, protocol })
    }

    fn payload_len(&self) -> usize {
        self.packet.len() - self.headers
    }

    /// Whether this segment carries on right where `last`, the run's `nth`, ends.
    fn continues(&self, last: &Self, nth: usize) -> bool {
        let (a, b) = (last.packet, self.packet);
        let shape = |segment: &Self| (segment.ip_header, segment.headers, segment.protocol);
        if shape(self) != shape(last) || self.payload_len() > last.payload_len() {
            return false;
        }
        let ip = if self.ip_header == IPV4_HEADER_LEN {
            // Without "don't fragment" the identification numbers matter, and the kernel counts them up itself.
            let counted = a[6] & DONT_FRAGMENT != 0 || u16_at(b, 4) == u16_at(a, 4).wrapping_add(1);
            counted && a[..2] == b[..2] && a[6..10] == b[6..10] && a[12..20] == b[12..20]
        } else {
            a[..4] == b[..4] && a[6..IPV6_HEADER_LEN] == b[6..IPV6_HEADER_LEN]
        };
        let (a, b) = (&a[self.ip_header..self.headers], &b[self.ip_header..self.headers]);
        let transport = if self.protocol == PROTOCOL_TCP {
            let follows = u32_at(b, 4) == u32_at(a, 4).wrapping_add(last.payload_len() as u32);
            // Ports; acknowledgement and header length; window; urgent pointer and options.
            follows && a[8..13] == b[8..13] && a[14..16] == b[14..16] && a[18..] == b[18..]
        } else {
            true
        };
        ip && transport && a[..4] == b[..4] && nth < MAX_RUN
    }

    fn checksum_is_right(&self) -> bool {
        let transport = &self.packet[self.ip_header..];
        let Ok(len) = u16::try_from(transport.len()) else { return false };
        let is_v4 = self.ip_header == IPV4_HEADER_LEN;
        sum_is_right(sum(transport, pseudo_sum(self.packet, is_v4, self.protocol, len)))
    }
}

/// The sum of the pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1).
fn pseudo_sum(packet: &[u8], is_v4: bool, protocol: u8, transport_len: u16) -> u64 {
    let addresses = if is_v4 { &packet[12..20] } else { &packet[8..40] };
    sum(addresses, u64::from(protocol) + u64::from(transport_len))
}

fn sum_is_right(sum: u64) -> bool {
    fold(sum) == 0xffff
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A segment of a flow: `seq` only for TCP.
    fn segment(v6: bool, protocol: u8, seq: u32, payload: &[u8]) -> Vec<u8> {
        let mut transport = vec![0x12, 0x34, 0x00, 0x50];
        if protocol == PROTOCOL_TCP {
            transport.extend(seq.to_be_bytes());
            transport.extend([0, 0, 0, 9, 0x50, TCP_ACK, 0x20, 0, 0, 0, 0, 0]);
        } else {
            transport.extend((UDP_HEADER_LEN as u16 + payload.len() as u16).to_be_bytes());
            transport.extend([0, 0]);
        }
        transport.extend(payload);
        let mut packet = if v6 {
            let mut ip = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            ip[4..6].copy_from_slice(&(transport.len() as u16).to_be_bytes());
            ip.extend([0xfd; 32]);
            ip
        } else {
            let mut ip =
                vec![0x45, 0, 0, 0, 0, 1, DONT_FRAGMENT, 0, 64, protocol, 0, 0, 10, 90, 0, 1, 10, 90, 0, 2];
            ip[2..4].copy_from_slice(&(IPV4_HEADER_LEN as u16 + transport.len() as u16).to_be_bytes());
            ip
        };
        packet.extend(transport);
        seal(&mut packet);
        packet
    }

    /// Sets both checksums.
    fn seal(packet: &mut [u8]) {
        let is_v4 = packet[0] >> 4 == 4;
        let (ip_header, protocol) = if is_v4 { (20, packet[9]) } else { (40, packet[6]) };
        if is_v4 {
            packet[10..12].fill(0);
            let checksum = !fold(sum(&packet[..20], 0));
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        let field = ip_header + if protocol == PROTOCOL_TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
        packet[field..field + 2].fill(0);
        let len = (packet.len() - ip_header) as u16;
        let checksum = !fold(sum(&packet[ip_header..], pseudo_sum(packet, is_v4, protocol, len)));
        packet[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    }

    fn lay_out(packets: &[Vec<u8>]) -> (Vec<u8>, Vec<Range<usize>>) {
        let mut bytes = vec![];
        let ranges = packets
            .iter()
            .map(|packet| {
                bytes.extend([0; 16]);
                bytes.extend(packet);
                bytes.len() - packet.len()..bytes.len()
            })
            .collect();
        (bytes, ranges)
    }

    fn run_of(packets: &[Vec<u8>]) -> usize {
        let (bytes, ranges) = lay_out(packets);
        run_len(&bytes, &ranges, Merge::TcpAndUdp)
    }

    #[test]
    fn a_run_becomes_one_packet_that_the_kernel_cuts_back_into_the_same() {
        for (v6, protocol) in
            [(false, PROTOCOL_TCP), (true, PROTOCOL_TCP), (false, PROTOCOL_UDP), (true, PROTOCOL_UDP)]
        {
            let mut packets = vec![
                segment(v6, protocol, 1000, &[1; 99]),
                segment(v6, protocol, 1099, &[2; 99]),
                segment(v6, protocol, 1198, &[3; 50]),
            ];
            if protocol == PROTOCOL_TCP {
                let flags = if v6 { 53 } else { 33 };
                packets[2][flags] |= TCP_PSH;
                seal(&mut packets[2]);
            }
            assert_eq!(run_of(&packets), 3, "v6 {v6}, protocol {protocol}");
            let (mut bytes, ranges) = lay_out(&packets);
            let (header, skip) = merge_headers(&mut bytes, &ranges).unwrap();
            let mut whole = bytes[ranges[0].clone()].to_vec();
            for range in &ranges[1..] {
                whole.extend(&bytes[range.start + skip..range.end]);
            }
            let read = [&header[..], &whole].concat();
            let frame = vnet::frame(&read).unwrap();
            let mesh_engine::batch::Offload::Segment { segment_len, start, offset, .. } = frame.offload
            else {
                panic!("no superpacket")
            };
            assert_eq!(usize::from(segment_len), 99);
            // With the payload's sum added the checksum is right, so the pseudo-header's part was.
            let (start, field) = (usize::from(start), usize::from(start + offset));
            let mut sealed = whole.clone();
            sealed[field..field + 2].fill(0);
            let pseudo = u64::from(u16_at(&whole, field));
            let checksum = !fold(sum(&sealed[start..], pseudo));
            sealed[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
            let parsed = Segment::parse(&sealed, Merge::TcpAndUdp).unwrap();
            assert!(parsed.checksum_is_right());
            assert_eq!(parsed.payload_len(), 99 + 99 + 50);
        }
    }

    #[test]
    fn whatever_differs_ends_the_run() {
        let first = segment(false, PROTOCOL_TCP, 1000, &[1; 99]);
        let next = |seq| segment(false, PROTOCOL_TCP, seq, &[2; 99]);
        assert_eq!(run_of(&[first.clone(), next(1099)]), 2);
        assert_eq!(run_of(&[first.clone(), next(1100)]), 1, "a gap");
        assert_eq!(run_of(&[first.clone(), segment(true, PROTOCOL_TCP, 1099, &[2; 99])]), 1);
        assert_eq!(run_of(&[first.clone(), segment(false, PROTOCOL_TCP, 1099, &[2; 100])]), 1, "longer");
        // Type of service, more fragments, hop limit, source, port, acknowledgement, FIN, window.
        for at in [1, 6, 8, 15, 21, 31, 33, 34] {
            let mut other = next(1099);
            other[at] ^= if at == 6 { 0x20 } else { 1 };
            seal(&mut other);
            assert_eq!(run_of(&[first.clone(), other]), 1, "byte {at}");
        }
        let short = segment(false, PROTOCOL_TCP, 1099, &[2; 50]);
        assert_eq!(run_of(&[first, short, next(1149)]), 2, "only the last may be shorter");
    }

    #[test]
    fn a_damaged_segment_is_left_for_the_kernel_to_refuse() {
        let first = segment(false, PROTOCOL_TCP, 1000, &[1; 99]);
        let mut damaged = segment(false, PROTOCOL_TCP, 1099, &[2; 99]);
        damaged[60] ^= 1;
        assert_eq!(run_of(&[first.clone(), damaged.clone()]), 1);
        assert_eq!(run_of(&[damaged, segment(false, PROTOCOL_TCP, 1198, &[2; 99])]), 1);
    }

    #[test]
    fn runs_stay_within_one_ip_packet() {
        let packets: Vec<_> =
            (0..64).map(|i| segment(false, PROTOCOL_TCP, 1000 + i * 1200, &[1; 1200])).collect();
        let len = run_of(&packets);
        assert_eq!(len, (MAX_PACKET_LEN - 40) / 1200);
        assert_eq!(run_of(&packets[..1]), 1);
        assert_eq!(run_of(&[]), 0);
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 24
        };
        let good = segment(false, PROTOCOL_TCP, 1000, &[1; 30]);
        for _ in 0..20_000 {
            let mut packets = vec![good.clone(), segment(true, PROTOCOL_UDP, 0, &[1; 30])];
            for packet in &mut packets {
                let at = random() as usize % packet.len();
                packet[at] = random() as u8;
                packet.truncate(1 + random() as usize % packet.len());
            }
            let (mut bytes, ranges) = lay_out(&packets);
            let len = run_len(&bytes, &ranges, Merge::TcpAndUdp);
            assert!((1..=2).contains(&len));
            if len > 1 {
                merge_headers(&mut bytes, &ranges[..len]).unwrap();
            }
        }
    }

    /// Cuts a superpacket as the kernel does (`inet_gso_segment`, `tcp_gso_segment`, `__udp_gso_segment`).
    fn cut(header: &[u8; vnet::HEADER_LEN], whole: &[u8]) -> Vec<Vec<u8>> {
        let field = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
        let (headers, segment_len, ip_header) = (field(2), field(4), field(6));
        let chunks: Vec<_> = whole[headers..].chunks(segment_len).collect();
        let make = |(index, chunk): (usize, &&[u8])| {
            let mut packet = [&whole[..headers], *chunk].concat();
            let len = packet.len() as u16;
            if ip_header == IPV4_HEADER_LEN {
                let id = u16_at(whole, 4).wrapping_add(index as u16);
                packet[2..4].copy_from_slice(&len.to_be_bytes());
                packet[4..6].copy_from_slice(&id.to_be_bytes());
            } else {
                packet[4..6].copy_from_slice(&(len - IPV6_HEADER_LEN as u16).to_be_bytes());
            }
            if field(8) == TCP_CHECKSUM {
                let seq = u32_at(whole, ip_header + 4).wrapping_add((index * segment_len) as u32);
                packet[ip_header + 4..ip_header + 8].copy_from_slice(&seq.to_be_bytes());
                if index + 1 < chunks.len() {
                    packet[ip_header + 13] &= !TCP_PSH;
                }
            } else {
                let udp_len = len - ip_header as u16;
                packet[ip_header + 4..ip_header + 6].copy_from_slice(&udp_len.to_be_bytes());
            }
            seal(&mut packet);
            packet
        };
        chunks.iter().enumerate().map(make).collect()
    }

    /// Packets of some flows: mostly runs, now and then something that does not follow.
    fn packets() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let payload = prop_oneof![4 => Just(99_usize), 1 => 1..200_usize];
        let step = prop_oneof![8 => Just(0_u32), 1 => 1..3_u32];
        let flags = prop_oneof![6 => Just(0_u8), 1 => Just(TCP_PSH), 1 => Just(1_u8)];
        let change = prop_oneof![9 => Just(false), 1 => Just(true)];
        let one = (payload, step, flags, change, any::<bool>(), any::<bool>(), any::<u8>());
        prop::collection::vec(one, 1..90).prop_map(|drawn| {
            let (mut v6, mut protocol, mut seq, mut id) = (false, PROTOCOL_TCP, 1000_u32, 1_u16);
            let make =
                |(len, step, flags, change, new_v6, is_udp, byte): (_, u32, u8, bool, bool, bool, u8)| {
                    if change {
                        (v6, protocol) = (new_v6, if is_udp { PROTOCOL_UDP } else { PROTOCOL_TCP });
                    }
                    seq = seq.wrapping_add(step);
                    let mut packet = segment(v6, protocol, seq, &vec![byte; len]);
                    seq = seq.wrapping_add(len as u32);
                    id = id.wrapping_add(1);
                    if !v6 {
                        packet[4..6].copy_from_slice(&id.to_be_bytes());
                        // Some without "don't fragment", for which the numbers matter.
                        packet[6] = if byte < 128 { DONT_FRAGMENT } else { 0 };
                    }
                    if protocol == PROTOCOL_TCP {
                        packet[if v6 { 53 } else { 33 }] |= flags;
                    }
                    seal(&mut packet);
                    // One in 32 is damaged after its checksum was made.
                    if byte % 32 == 31 {
                        let last = packet.len() - 1;
                        packet[last] ^= 0x10;
                    }
                    packet
                };
            drawn.into_iter().map(make).collect()
        })
    }

    /// Moves a push within a run to its end.
    fn push_at_the_end(run: &mut [Vec<u8>]) {
        let is_tcp = |packet: &Vec<u8>| packet[if packet[0] >> 4 == 4 { 9 } else { 6 }] == PROTOCOL_TCP;
        let (Some(last), true) = (run.len().checked_sub(1), run.iter().all(is_tcp)) else { return };
        let flags = if run[0][0] >> 4 == 4 { 33 } else { 53 };
        let push = run.iter().fold(0, |push, packet| push | packet[flags] & TCP_PSH);
        for (index, packet) in run.iter_mut().enumerate() {
            packet[flags] = packet[flags] & !TCP_PSH | if index == last { push } else { 0 };
            seal(packet);
        }
    }

    proptest! {
        #[test]
        fn merged_or_one_by_one_the_kernel_gets_the_same_packets(mut sent in packets()) {
            let (mut bytes, ranges) = lay_out(&sent);
            let mut received = vec![];
            let mut rest = &ranges[..];
            while !rest.is_empty() {
                let (run, later) = rest.split_at(run_len(&bytes, rest, Merge::TcpAndUdp));
                rest = later;
                if let [single] = run {
                    received.push(bytes[single.clone()].to_vec());
                    continue;
                }
                push_at_the_end(&mut sent[received.len()..][..run.len()]);
                let (header, skip) = merge_headers(&mut bytes, run).unwrap();
                let mut whole = bytes[run[0].clone()].to_vec();
                for range in &run[1..] {
                    whole.extend(&bytes[range.start + skip..range.end]);
                }
                received.extend(cut(&header, &whole));
            }
            prop_assert_eq!(received, sent);
        }
    }
}
