//! What runs in a byte pipe where UDP is blocked: control messages and relay frames, one behind the other.
//!
//! The pipe is a WebSocket, through whatever stands on the way; inside it runs the same mutually authenticated TLS
//! session as over QUIC, with an ALPN of its own ([`ALPN`]); inside that run these frames:
//!
//! ```text
//! kind (1) | zero (1) | stride (2) | length of the body (4) | body
//! ```
//!
//! | kind | frame | body |
//! |---|---|---|
//! | 0 | Control | a piece of the control stream (see [`crate::control`]), cut anywhere |
//! | 1 | Relay | a train of relay frames ([`crate::relay`]) of `stride` bytes each; the last may be shorter |
//!
//! Numbers are big-endian. A train keeps the boundaries of its frames and leaves the other side of the relay as a
//! train again. A reader skips frames of an unknown kind; it ignores the zero byte, and the stride where it is not
//! that of a train.

/// ALPN of version 1 of the session inside a byte pipe.
pub const ALPN: &[u8] = b"mesh-stream/1";

/// Where a coordinator's WebSocket is, by default.
pub const PATH: &str = "/mesh";

/// Length in bytes of what stands before a body.
pub const HEADER_LEN: usize = 8;

/// Longest body, in bytes: the longest train.
pub const MAX_BODY_LEN: usize = 1 << 16;

const KIND_CONTROL: u8 = 0;
const KIND_RELAY: u8 = 1;

/// A frame, borrowed from the bytes of the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A piece of the control stream.
    Control(&'a [u8]),
    /// A train of relay frames.
    Relay {
        /// Length of every frame but the last, which may be shorter.
        stride: u16,
        /// The frames, one behind the other.
        frames: &'a [u8],
    },
    /// A kind that this version does not know.
    Unknown(u8),
}

/// Why a pipe cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A body of more than [`MAX_BODY_LEN`] bytes was announced.
    #[error("a frame of {0} bytes is longer than {MAX_BODY_LEN}")]
    TooLong(u32),
    /// A train whose frames have no length.
    #[error("a train of frames without a length")]
    NoStride,
}

impl<'a> Frame<'a> {
    /// Decodes the first frame of some bytes, and returns it with the number of bytes that it takes; `None` until
    /// more bytes are there.
    ///
    /// # Errors
    /// When the pipe cannot be read on: it should be closed. Seen as soon as the header is there.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, DecodeError> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let [kind, _, s0, s1, length @ ..] = *header;
        let length = u32::from_be_bytes(length);
        let len = length as usize;
        if len > MAX_BODY_LEN {
            return Err(DecodeError::TooLong(length));
        }
        let stride = u16::from_be_bytes([s0, s1]);
        if kind == KIND_RELAY && stride == 0 {
            return Err(DecodeError::NoStride);
        }
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let frame = match kind {
            KIND_CONTROL => Self::Control(body),
            KIND_RELAY => Self::Relay { stride, frames: body },
            unknown => Self::Unknown(unknown),
        };
        Ok(Some((frame, HEADER_LEN + len)))
    }
}

/// Returns what stands before a piece of the control stream of up to [`MAX_BODY_LEN`] bytes.
#[must_use]
pub fn control_header(len: usize) -> [u8; HEADER_LEN] {
    header(KIND_CONTROL, 0, len)
}

/// Returns what stands before a train of `len` bytes, up to [`MAX_BODY_LEN`].
#[must_use]
pub fn relay_header(stride: u16, len: usize) -> [u8; HEADER_LEN] {
    header(KIND_RELAY, stride, len)
}

fn header(kind: u8, stride: u16, len: usize) -> [u8; HEADER_LEN] {
    let len = u32::try_from(len).expect("a body fits in 32 bits");
    let mut out = [0; HEADER_LEN];
    out[0] = kind;
    out[2..4].copy_from_slice(&stride.to_be_bytes());
    out[4..].copy_from_slice(&len.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_they_are_cut() {
        let bytes =
            [&control_header(3)[..], b"abc", &relay_header(2, 5), b"12345", &control_header(0)].concat();
        for cut in 0..bytes.len() {
            let (mut buffer, mut got) = (Vec::new(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                buffer.extend_from_slice(part);
                while let Some((frame, len)) = Frame::decode(&buffer).unwrap() {
                    got.push(match frame {
                        Frame::Control(piece) => (0, piece.to_vec()),
                        Frame::Relay { stride, frames } => (stride, frames.to_vec()),
                        Frame::Unknown(kind) => panic!("{kind}"),
                    });
                    buffer.drain(..len);
                }
            }
            assert_eq!(got, [(0, b"abc".to_vec()), (2, b"12345".to_vec()), (0, vec![])], "cut at {cut}");
        }
    }

    #[test]
    fn what_cannot_be_read_on_is_seen_at_the_header() {
        let too_long = control_header(MAX_BODY_LEN + 1);
        assert_eq!(Frame::decode(&too_long), Err(DecodeError::TooLong(65_537)));
        assert_eq!(Frame::decode(&relay_header(0, 9)), Err(DecodeError::NoStride));
    }

    #[test]
    fn an_unknown_kind_is_skipped() {
        let mut bytes = [&control_header(2)[..], b"xy"].concat();
        bytes[0] = 77;
        assert_eq!(Frame::decode(&bytes), Ok(Some((Frame::Unknown(77), bytes.len()))));
    }
}
