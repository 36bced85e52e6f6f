//! The datagrams of [`Echo`](super::Echo).
//!
//! ```text
//!  0        8      9     10     11         15                23
//!  | magic  | kind | from | to  | sequence | nanoseconds     |
//! ```
//!
//! Numbers are big-endian. `from` and `to` are the places of asker and asked in the list of nodes, in requests and
//! replies alike; the time is the asker's.

/// What every datagram begins with.
const MAGIC: [u8; 8] = *b"meshecho";
/// The length of every datagram.
pub(super) const LENGTH: usize = 23;

/// Whether a datagram asks or answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Reply,
}

/// One datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) kind: Kind,
    pub(super) from: u8,
    pub(super) to: u8,
    pub(super) sequence: u32,
    /// When the request was sent, since the start of the traffic.
    pub(super) nanos: u64,
}

impl Datagram {
    pub(super) fn to_bytes(self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8] = match self.kind {
            Kind::Request => 0,
            Kind::Reply => 1,
        };
        bytes[9] = self.from;
        bytes[10] = self.to;
        bytes[11..15].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[15..].copy_from_slice(&self.nanos.to_be_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (&[kind, from, to], rest) = rest.split_first_chunk::<3>()?;
        let (sequence, nanos) = rest.split_first_chunk::<4>()?;
        let kind = match kind {
            0 => Kind::Request,
            1 => Kind::Reply,
            _ => return None,
        };
        let nanos = u64::from_be_bytes(nanos.try_into().ok()?);
        (*magic == MAGIC).then_some(Self { kind, from, to, sequence: u32::from_be_bytes(*sequence), nanos })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let datagram =
            Datagram { kind: Kind::Reply, from: 3, to: 17, sequence: 0x0102_0304, nanos: u64::MAX - 1 };
        let bytes = datagram.to_bytes();
        assert_eq!(Datagram::from_bytes(&bytes), Some(datagram));
        assert_eq!(Datagram::from_bytes(&bytes[1..]), None);
        let mut other = bytes;
        other[8] = 2;
        assert_eq!(Datagram::from_bytes(&other), None);
    }
}
