//! `virtio_net_hdr`: the 10 bytes that Linux puts before every packet of a TUN with `IFF_VNET_HDR`.
//!
//! ```text
//! 0 flags   1 gso_type   2 hdr_len   4 gso_size   6 csum_start   8 csum_offset      (u16 in host order)
//! ```
//!
//! On reading, `hdr_len` is not trusted: the engine takes it from the transport header. See
//! `include/uapi/linux/virtio_net.h`.

use std::io;

use mesh_engine::batch::{Offload, SegmentProtocol, TunFrame};

/// Length of the header.
pub(super) const HEADER_LEN: usize = 10;

/// The header of a packet that needs nothing.
pub(super) const PLAIN: [u8; HEADER_LEN] = [0; HEADER_LEN];

const FLAG_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Says that the first segment carries ECN's CWR: the engine clears it on the others by itself.
const GSO_ECN: u8 = 0x80;

/// Kinds of superpacket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gso {
    Tcp4,
    Tcp6,
    Udp,
}

/// Makes the header of a superpacket; `checksum` is where it is summed from, and where its field lies from there.
pub(super) fn superpacket(
    gso: Gso,
    headers_len: u16,
    segment_len: u16,
    checksum: (u16, u16),
) -> [u8; HEADER_LEN] {
    let gso = match gso {
        Gso::Tcp4 => GSO_TCP4,
        Gso::Tcp6 => GSO_TCP6,
        Gso::Udp => GSO_UDP_L4,
    };
    let mut header = [FLAG_NEEDS_CSUM, gso, 0, 0, 0, 0, 0, 0, 0, 0];
    let fields = [headers_len, segment_len, checksum.0, checksum.1];
    for (field, value) in header[2..].as_chunks_mut::<2>().0.iter_mut().zip(fields) {
        *field = value.to_ne_bytes();
    }
    header
}

/// Takes apart what one read gave.
///
/// # Errors
/// `InvalidData` for a header that makes no sense.
pub(super) fn frame(read: &[u8]) -> io::Result<TunFrame<'_>> {
    let (header, packet) = read.split_first_chunk::<HEADER_LEN>().ok_or_else(invalid)?;
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let (segment_len, start, offset) = (field(4), field(6), field(8));
    let needs_checksum = header[0] & FLAG_NEEDS_CSUM != 0;
    let protocol = match header[1] & !GSO_ECN {
        GSO_NONE if needs_checksum => {
            return Ok(TunFrame { packet, offload: Offload::Checksum { start, offset } });
        }
        GSO_NONE => return Ok(TunFrame { packet, offload: Offload::None }),
        GSO_TCP4 | GSO_TCP6 => SegmentProtocol::Tcp,
        GSO_UDP_L4 => SegmentProtocol::Udp,
        _ => return Err(invalid()),
    };
    if segment_len == 0 {
        return Err(invalid());
    }
    Ok(TunFrame { packet, offload: Offload::Segment { protocol, segment_len, start, offset } })
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a virtio_net_hdr")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flags: u8, gso_type: u8, gso_size: u16, start: u16, offset: u16) -> Vec<u8> {
        let mut bytes = vec![flags, gso_type, 0, 0];
        for field in [gso_size, start, offset] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(b"packet");
        bytes
    }

    #[test]
    fn every_kind_of_offload_is_told_apart() {
        let tcp =
            Offload::Segment { protocol: SegmentProtocol::Tcp, segment_len: 1368, start: 20, offset: 16 };
        let udp =
            Offload::Segment { protocol: SegmentProtocol::Udp, segment_len: 1200, start: 40, offset: 6 };
        for (bytes, offload) in [
            (read(0, 0, 0, 0, 0), Offload::None),
            (read(1, 0, 0, 20, 6), Offload::Checksum { start: 20, offset: 6 }),
            (read(1, 1, 1368, 20, 16), tcp),
            (read(1, 4 | 0x80, 1368, 20, 16), tcp),
            (read(1, 5, 1200, 40, 6), udp),
        ] {
            let frame = frame(&bytes).unwrap();
            assert_eq!((frame.packet, frame.offload), (&b"packet"[..], offload));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(frame(&[0; HEADER_LEN - 1]).is_err());
        assert!(frame(&read(1, 1, 0, 20, 16)).is_err(), "a superpacket without a segment length");
        assert!(frame(&read(1, 3, 1000, 20, 16)).is_err(), "UFO was not asked for");
    }
}
