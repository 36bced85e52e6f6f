//! NAT-PMP, the NAT Port Mapping Protocol (RFC 6886): the external address, and mappings of UDP ports.
//!
//! ```text
//! question  0, opcode                      | then for a mapping: 0 0 | internal port, external port | lifetime
//! answer    0, 128+opcode, result, epoch   | external address, or: internal port, external port | lifetime
//! ```
//!
//! There is no nonce: that answers come from the router's address and port is all there is to check.

use std::net::Ipv4Addr;

use super::wire::Reader;

/// The only version.
const VERSION: u8 = 0;
/// The version of PCP, whose servers listen on the same port.
const PCP: u8 = 2;
/// Asks for the external address.
const ADDRESS: u8 = 0;
/// Asks for a mapping of a UDP port.
const MAP_UDP: u8 = 1;
/// Added to the opcode in an answer.
const ANSWER: u8 = 128;

/// Where the router is outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outside {
    pub(super) address: Ipv4Addr,
    pub(super) epoch: u32,
}

/// A mapping as the router has made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) external_port: u16,
    /// In seconds.
    pub(super) lifetime: u32,
    pub(super) epoch: u32,
}

/// Why a datagram is no good answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NatPmpError {
    /// It ends too soon.
    #[error("the answer is cut short")]
    Truncated,
    /// It is not an answer to what was asked.
    #[error("not an answer to this question")]
    Unrelated,
    /// The router speaks another version.
    #[error("the router speaks another version")]
    Version,
    /// The router says no.
    #[error("the router refused with code {0}")]
    Refused(u16),
}

/// Writes the question for the external address.
pub(super) fn address() -> Vec<u8> {
    vec![VERSION, ADDRESS]
}

/// Writes the question for a mapping; a lifetime of 0 removes it, and then the external port is 0 (section 3.4).
pub(super) fn map(internal_port: u16, external_port: u16, lifetime: u32) -> Vec<u8> {
    let mut out = vec![VERSION, MAP_UDP, 0, 0];
    out.extend_from_slice(&internal_port.to_be_bytes());
    out.extend_from_slice(&external_port.to_be_bytes());
    out.extend_from_slice(&lifetime.to_be_bytes());
    out
}

/// Reads the answer to [`address`], or the news that a router sends by itself.
pub(super) fn read_address(datagram: &[u8]) -> Result<Outside, NatPmpError> {
    let mut reader = Reader(datagram);
    let epoch = read_header(&mut reader, ADDRESS)?;
    let address = reader.array::<4>().ok_or(NatPmpError::Truncated)?.into();
    Ok(Outside { address, epoch })
}

/// Reads the answer to [`map`].
pub(super) fn read_map(datagram: &[u8], internal_port: u16) -> Result<Granted, NatPmpError> {
    let mut reader = Reader(datagram);
    let epoch = read_header(&mut reader, MAP_UDP)?;
    let port = reader.u16().ok_or(NatPmpError::Truncated)?;
    let external_port = reader.u16().ok_or(NatPmpError::Truncated)?;
    let lifetime = reader.u32().ok_or(NatPmpError::Truncated)?;
    if port != internal_port {
        return Err(NatPmpError::Unrelated);
    }
    Ok(Granted { external_port, lifetime, epoch })
}

/// Returns the epoch.
fn read_header(reader: &mut Reader<'_>, opcode: u8) -> Result<u32, NatPmpError> {
    let [version, answered] = reader.array::<2>().ok_or(NatPmpError::Truncated)?;
    if answered < ANSWER {
        return Err(NatPmpError::Unrelated);
    }
    match version {
        VERSION => {}
        PCP => return Err(NatPmpError::Version),
        _ => return Err(NatPmpError::Unrelated),
    }
    if answered != ANSWER + opcode {
        return Err(NatPmpError::Unrelated);
    }
    let result = reader.u16().ok_or(NatPmpError::Truncated)?;
    if result != 0 {
        return Err(NatPmpError::Refused(result));
    }
    reader.u32().ok_or(NatPmpError::Truncated)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_these_bytes() {
        assert_eq!(hex::encode(address()), "0000");
        assert_eq!(hex::encode(map(51820, 51821, 7200)), "00010000ca6cca6d00001c20");
    }

    #[test]
    fn answers_are_read_from_these_bytes() {
        let outside = read_address(&hex::decode("0080000000000009cb007101").unwrap());
        assert_eq!(outside, Ok(Outside { address: Ipv4Addr::new(203, 0, 113, 1), epoch: 9 }));
        let bytes = hex::decode("0081000000000009ca6cca6d00000e10").unwrap();
        let granted = Granted { external_port: 51821, lifetime: 3600, epoch: 9 };
        assert_eq!(read_map(&bytes, 51820), Ok(granted));
        assert_eq!(read_map(&bytes, 51821), Err(NatPmpError::Unrelated));
        assert_eq!(read_map(&bytes[..15], 51820), Err(NatPmpError::Truncated));
        assert_eq!(read_map(&hex::decode("0081000200000009").unwrap(), 1), Err(NatPmpError::Refused(2)));
        assert_eq!(read_address(&bytes), Err(NatPmpError::Unrelated));
        assert_eq!(read_address(&address()), Err(NatPmpError::Unrelated), "the question itself");
        assert_eq!(read_address(&[2, 128]), Err(NatPmpError::Version));
    }

    proptest! {
        #[test]
        fn what_was_asked_for_comes_back(port: u16, external_port: u16, lifetime: u32, epoch: u32) {
            let mut answer = vec![0, 129, 0, 0];
            answer.extend_from_slice(&epoch.to_be_bytes());
            answer.extend_from_slice(&map(port, external_port, lifetime)[4..]);
            prop_assert_eq!(read_map(&answer, port), Ok(Granted { external_port, lifetime, epoch }));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..40), port: u16) {
            let _ = read_address(&bytes);
            let _ = read_map(&bytes, port);
        }
    }
}
