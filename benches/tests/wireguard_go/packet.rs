//! Inner packets made by hand: echoes and UDP over IPv4, and the answers to echo requests of either family.

use std::net::Ipv4Addr;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const ICMP_HEADER: usize = 8;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_ICMPV6: u8 = 58;
const PROTOCOL_UDP: u8 = 17;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Don't fragment: the tunnel takes packets as they are.
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];

/// An echo request with this sequence number and payload.
pub(crate) fn echo_request(from: Ipv4Addr, to: Ipv4Addr, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut icmp = vec![ECHO_REQUEST, 0, 0, 0, 0x1e, 0xd0];
    icmp.extend(sequence.to_be_bytes());
    icmp.extend(payload);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    ipv4(PROTOCOL_ICMP, from, to, &icmp)
}

/// A UDP datagram without a checksum, which IPv4 allows.
pub(crate) fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let mut udp = from.1.to_be_bytes().to_vec();
    udp.extend(to.1.to_be_bytes());
    udp.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    ipv4(PROTOCOL_UDP, from.0, to.0, &udp)
}

/// What an inner packet turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// A reply to an echo request: its sequence number and payload.
    Reply(u16, Vec<u8>),
    /// A request, with the packet that answers it.
    Request(Vec<u8>),
    /// A UDP datagram's payload.
    Udp(Vec<u8>),
    /// Something else, as neighbour discovery.
    Other,
}

/// Reads an inner packet.
pub(crate) fn read(packet: &[u8]) -> Seen {
    let (protocol, header) = match packet.first().map(|byte| byte >> 4) {
        Some(4) => (packet[9], IPV4_HEADER),
        Some(6) => (packet[6], IPV6_HEADER),
        _ => return Seen::Other,
    };
    let body = &packet[header..];
    match (protocol, body[0]) {
        (PROTOCOL_ICMP, ECHO_REPLY) => {
            assert_eq!(checksum(body), [0, 0], "a reply arrives whole");
            Seen::Reply(u16::from_be_bytes([body[6], body[7]]), body[ICMP_HEADER..].to_vec())
        }
        (PROTOCOL_ICMP, ECHO_REQUEST) => Seen::Request(answer(packet, header, 12..16, ECHO_REPLY)),
        (PROTOCOL_ICMPV6, ECHO_REQUEST_V6) => Seen::Request(answer(packet, header, 8..24, ECHO_REPLY_V6)),
        (PROTOCOL_UDP, _) => Seen::Udp(body[8..].to_vec()),
        _ => Seen::Other,
    }
}

/// Turns an echo request into its reply. Swapped addresses leave both checksums as they are; of the ICMP checksum,
/// only the type's change is taken away (RFC 1624).
fn answer(packet: &[u8], header: usize, source: std::ops::Range<usize>, kind: u8) -> Vec<u8> {
    let mut reply = packet.to_vec();
    let (from, length) = (source.start, source.len());
    reply[from..from + length].copy_from_slice(&packet[from + length..from + 2 * length]);
    reply[from + length..from + 2 * length].copy_from_slice(&packet[source]);
    let old = u16::from_be_bytes([packet[header], packet[header + 1]]);
    reply[header] = kind;
    let new = u16::from_be_bytes([reply[header], reply[header + 1]]);
    let sum = !u16::from_be_bytes([packet[header + 2], packet[header + 3]]);
    let sum = fold(u32::from(sum) + u32::from(!old) + u32::from(new));
    reply[header + 2..header + 4].copy_from_slice(&(!sum).to_be_bytes());
    reply
}

fn ipv4(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, body: &[u8]) -> Vec<u8> {
    let total = u16::try_from(IPV4_HEADER + body.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, total[0], total[1], 0, 0];
    packet.extend(DONT_FRAGMENT);
    packet.extend([64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(body);
    packet
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    (!fold(words.map(u32::from).sum())).to_be_bytes()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}
