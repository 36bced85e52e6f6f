//! Frames as a TUN gives them, and the packets that they stand for: by a reference that is slow, plain, and shares no
//! code with the engine.
//!
//! It cuts as the kernel does: `inet_gso_segment`, `ipv6_gso_segment`, `tcp_gso_segment`, `__udp_gso_segment`.

use mesh_engine::batch::{Offload, SegmentProtocol, TunFrame};
use proptest::prelude::*;

use crate::world::mesh_address;

/// Most frames of one batch.
pub(crate) const MAX_FRAMES: usize = 6;
const MTU: usize = 1420;
/// Payload that fits into the MTU whatever the headers are: IPv6's with options, and TCP's longest.
const MOST_PAYLOAD: usize = MTU - 48 - 60;
/// Most pieces of one superpacket here.
const MAX_PIECES: usize = 50;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// IPv6 destination options that say nothing (RFC 8200, section 4.2), but for what follows.
const OPTIONS_V6: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

/// What the kernel leaves to the reader of the TUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Checksum,
    /// Cutting, into pieces with so much payload.
    Pieces(usize),
}

/// One frame.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    bytes: Vec<u8>,
    /// Where the transport header starts, and where the payload does.
    transport: usize,
    payload: usize,
    protocol: u8,
    left: Left,
}

/// What a frame is drawn from.
#[derive(Debug, Clone)]
struct Drawn {
    v6: bool,
    udp: bool,
    options: bool,
    /// Words of TCP options.
    tcp_options: usize,
    flags: u8,
    numbers: (u16, u32),
    left: Left,
    payload: usize,
    seed: u8,
}

/// Draws frames from node 1 for node 2.
pub(crate) fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let left = prop_oneof![
        1 => Just(Left::Nothing),
        1 => Just(Left::Checksum),
        4 => prop_oneof![1..64_usize, Just(1000), 1000..=MOST_PAYLOAD].prop_map(Left::Pieces),
    ];
    let shape = (any::<bool>(), any::<bool>(), any::<bool>(), 0..=10_usize);
    // Numbers near their ends, so that they wrap.
    let id = prop_oneof![any::<u16>(), 0xfff0..=0xffff_u16];
    let seq = prop_oneof![any::<u32>(), 0xffff_0000..=0xffff_ffff_u32];
    let drawn = (shape, any::<u8>(), (id, seq), left, any::<prop::sample::Index>(), any::<u8>());
    let frame = drawn.prop_map(|((v6, udp, options, tcp_options), flags, numbers, left, payload, seed)| {
        // A superpacket may lack a payload, too.
        let most = match left {
            Left::Nothing | Left::Checksum => MOST_PAYLOAD,
            Left::Pieces(payload) => payload * MAX_PIECES,
        };
        let payload = payload.index(most.min(60_000) + 1);
        Frame::new(&Drawn { v6, udp, options, tcp_options, flags, numbers, left, payload, seed })
    });
    prop::collection::vec(frame, 1..=MAX_FRAMES)
}

impl Frame {
    fn new(drawn: &Drawn) -> Self {
        let protocol = if drawn.udp { UDP } else { TCP };
        let (id, seq) = drawn.numbers;
        let mut transport = vec![0x30, 0x39, 0, 80];
        if drawn.udp {
            transport.extend([0; 4]);
        } else {
            let words = u8::try_from(5 + drawn.tcp_options).unwrap();
            transport.extend(seq.to_be_bytes());
            transport.extend([1, 2, 3, 4, words << 4, drawn.flags & !SYN, 9, 9, 0, 0, 0, 0]);
            // No-operations.
            transport.extend(vec![1; 4 * drawn.tcp_options]);
        }
        let headers = transport.len();
        transport.extend((0..drawn.payload).map(|at| (at as u8).wrapping_mul(31).wrapping_add(drawn.seed)));
        if drawn.udp {
            let len = u16::try_from(transport.len()).unwrap();
            transport[4..6].copy_from_slice(&len.to_be_bytes());
        }
        let mut bytes = if drawn.v6 {
            let next = if drawn.options { 60 } else { protocol };
            let mut ip = vec![0x60, drawn.seed & 0x0f, 0, 0, 0, 0, next, 64];
            ip.extend(mesh_address_v6(1));
            ip.extend(mesh_address_v6(2));
            if drawn.options {
                ip.extend(OPTIONS_V6);
                ip[40] = protocol;
            }
            ip
        } else {
            let words = if drawn.options { 6 } else { 5 };
            let dont_fragment = if drawn.seed.is_multiple_of(2) { 0x40 } else { 0 };
            let mut ip = vec![0x40 | words, drawn.seed & 3, 0, 0, 0, 0, dont_fragment, 0, 64, protocol, 0, 0];
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            ip.extend(mesh_address(1));
            ip.extend(mesh_address(2));
            ip.extend(vec![1; usize::from(words - 5) * 4]);
            ip
        };
        let start = bytes.len();
        bytes.extend(transport);
        let mut frame =
            Self { bytes, transport: start, payload: start + headers, protocol, left: drawn.left };
        seal(&mut frame.bytes, start, protocol);
        if drawn.left != Left::Nothing {
            let partial = pseudo_header(&frame.bytes, start, protocol);
            let at = frame.checksum_at();
            frame.bytes[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        }
        frame
    }

    /// The frame as the engine takes it.
    pub(crate) fn as_tun(&self) -> TunFrame<'_> {
        let start = self.transport as u16;
        let offset = (self.checksum_at() - self.transport) as u16;
        let protocol = if self.protocol == UDP { SegmentProtocol::Udp } else { SegmentProtocol::Tcp };
        let offload = match self.left {
            Left::Nothing => Offload::None,
            Left::Checksum => Offload::Checksum { start, offset },
            Left::Pieces(len) => Offload::Segment { protocol, segment_len: len as u16, start, offset },
        };
        TunFrame { packet: &self.bytes, offload }
    }

    /// The packets that it stands for.
    pub(crate) fn packets(&self) -> Vec<Vec<u8>> {
        match self.left {
            Left::Nothing => vec![self.bytes.clone()],
            Left::Checksum => vec![self.piece(0, 1, &self.bytes[self.payload..])],
            Left::Pieces(_) if self.bytes.len() == self.payload => vec![self.piece(0, 1, &[])],
            Left::Pieces(len) => {
                let chunks: Vec<&[u8]> = self.bytes[self.payload..].chunks(len).collect();
                (0..chunks.len()).map(|index| self.piece(index, chunks.len(), chunks[index])).collect()
            }
        }
    }

    fn piece(&self, index: usize, count: usize, payload: &[u8]) -> Vec<u8> {
        let mut packet = [&self.bytes[..self.payload], payload].concat();
        let transport = self.transport;
        if packet[0] >> 4 == 4 {
            let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(index as u16);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
        }
        if self.protocol == UDP {
            let len = (packet.len() - transport) as u16;
            packet[transport + 4..transport + 6].copy_from_slice(&len.to_be_bytes());
        } else {
            if let Left::Pieces(len) = self.left {
                let seq = u32::from_be_bytes(packet[transport + 4..transport + 8].try_into().unwrap());
                let seq = seq.wrapping_add((index * len) as u32);
                packet[transport + 4..transport + 8].copy_from_slice(&seq.to_be_bytes());
            }
            if index + 1 < count {
                packet[transport + 13] &= !(FIN | PSH);
            }
            if index > 0 {
                packet[transport + 13] &= !CWR;
            }
        }
        seal(&mut packet, transport, self.protocol);
        packet
    }

    fn checksum_at(&self) -> usize {
        self.transport + if self.protocol == UDP { 6 } else { 16 }
    }
}

/// An IPv6 mesh address of a node.
pub(crate) fn mesh_address_v6(node: u32) -> [u8; 16] {
    let mut address = [0; 16];
    address[0] = 0xfd;
    address[12..].copy_from_slice(&node.to_be_bytes());
    address
}

/// Sets lengths and checksums.
fn seal(packet: &mut [u8], transport: usize, protocol: u8) {
    let total = packet.len();
    if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        packet[10..12].fill(0);
        let checksum = !sum(&packet[..transport]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        packet[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
    }
    let at = transport + if protocol == UDP { 6 } else { 16 };
    packet[at..at + 2].fill(0);
    let pseudo = pseudo_header(packet, transport, protocol);
    let mut checksum = !sum(&[&pseudo.to_be_bytes(), &packet[transport..]].concat());
    // A UDP checksum of zero would mean that there is none (RFC 768).
    if checksum == 0 && protocol == UDP {
        checksum = 0xffff;
    }
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

fn pseudo_header(packet: &[u8], transport: usize, protocol: u8) -> u16 {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    let len = ((packet.len() - transport) as u32).to_be_bytes();
    sum(&[addresses, &len, &[0, protocol]].concat())
}

/// The sum of RFC 1071: of 16-bit words, with the carry added at once.
fn sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0, |total: u16, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (total, carry) = total.overflowing_add(word);
        total + u16::from(carry)
    })
}
