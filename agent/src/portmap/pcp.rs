//! PCP, the Port Control Protocol (RFC 6887): version 2, the opcodes ANNOUNCE and MAP, for UDP.
//!
//! ```text
//! request   version, opcode, 0 0 | lifetime | client address (16)                  then for MAP:
//! answer    version, R+opcode, 0, result | lifetime | epoch | 0 (12)               then for MAP:
//! MAP       nonce (12) | protocol, 0 0 0 | internal port, external port | external address (16)
//! ```
//!
//! An answer counts only if its nonce, protocol and internal port are those of the question (section 11.4): nobody who
//! has not seen the question can make one up. A NAT-PMP router answers with version 0 (section 9).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use super::wire::Reader;

/// The version that is spoken.
const VERSION: u8 = 2;
/// Asks for the router's epoch, and tells that it has lost its mappings.
const ANNOUNCE: u8 = 0;
/// Makes, renews and removes a mapping.
const MAP: u8 = 1;
/// Set in the opcode of an answer.
const ANSWER: u8 = 0x80;
/// UDP's number among IP protocols.
const UDP: u8 = 17;
/// Longest message (section 7).
pub(super) const MAX_LEN: usize = 1100;

/// Proves that an answer, a renewal or a removal comes from who asked for the mapping.
pub(super) type Nonce = [u8; 12];

/// What a mapping is asked for with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MapRequest {
    /// This node, as the router sees it.
    pub(super) client: Ipv4Addr,
    pub(super) nonce: Nonce,
    pub(super) internal_port: u16,
    /// What would be liked; port 0 and an unspecified address for anything.
    pub(super) suggested: SocketAddrV4,
    /// In seconds; 0 removes.
    pub(super) lifetime: u32,
}

/// A mapping as the router has made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) external: SocketAddrV4,
    /// In seconds.
    pub(super) lifetime: u32,
    pub(super) epoch: u32,
}

/// Why a datagram is no good answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PcpError {
    /// It ends too soon.
    #[error("the answer is cut short")]
    Truncated,
    /// It is not an answer to what was asked.
    #[error("not an answer to this question")]
    Unrelated,
    /// The external address is no IPv4 address that can be reached.
    #[error("the external address makes no sense")]
    Address,
    /// The router speaks another version.
    #[error("the router speaks another version")]
    Version,
    /// The router says no.
    #[error("the router refused with code {0}")]
    Refused(u8),
}

/// Writes the question for the router's epoch.
pub(super) fn announce(client: Ipv4Addr) -> Vec<u8> {
    header(ANNOUNCE, 0, client)
}

/// Writes the question for a mapping.
pub(super) fn map(request: &MapRequest) -> Vec<u8> {
    let mut out = header(MAP, request.lifetime, request.client);
    out.extend_from_slice(&request.nonce);
    out.extend_from_slice(&[UDP, 0, 0, 0]);
    out.extend_from_slice(&request.internal_port.to_be_bytes());
    out.extend_from_slice(&request.suggested.port().to_be_bytes());
    out.extend_from_slice(&request.suggested.ip().to_ipv6_mapped().octets());
    out
}

/// Reads the answer to [`announce`], or the news that a router sends by itself: its epoch.
pub(super) fn read_announce(datagram: &[u8]) -> Result<u32, PcpError> {
    let (_, epoch) = read_header(&mut Reader(datagram), ANNOUNCE)?;
    Ok(epoch)
}

/// Reads the answer to [`map`].
pub(super) fn read_map(datagram: &[u8], request: &MapRequest) -> Result<Granted, PcpError> {
    let mut reader = Reader(datagram);
    // What was refused is told with the fields of the question, but older routers leave them out.
    let (lifetime, epoch) = read_header(&mut reader, MAP)?;
    let nonce = reader.array::<12>().ok_or(PcpError::Truncated)?;
    let [protocol, ..] = reader.array::<4>().ok_or(PcpError::Truncated)?;
    let internal_port = reader.u16().ok_or(PcpError::Truncated)?;
    let external_port = reader.u16().ok_or(PcpError::Truncated)?;
    let address = Ipv6Addr::from(reader.array::<16>().ok_or(PcpError::Truncated)?);
    if nonce != request.nonce || protocol != UDP || internal_port != request.internal_port {
        return Err(PcpError::Unrelated);
    }
    let address = address.to_ipv4_mapped().ok_or(PcpError::Address)?;
    Ok(Granted { external: SocketAddrV4::new(address, external_port), lifetime, epoch })
}

fn header(opcode: u8, lifetime: u32, client: Ipv4Addr) -> Vec<u8> {
    let mut out = vec![VERSION, opcode, 0, 0];
    out.extend_from_slice(&lifetime.to_be_bytes());
    out.extend_from_slice(&client.to_ipv6_mapped().octets());
    out
}

/// Returns lifetime and epoch.
fn read_header(reader: &mut Reader<'_>, opcode: u8) -> Result<(u32, u32), PcpError> {
    let [version, answered, _, result] = reader.array::<4>().ok_or(PcpError::Truncated)?;
    if answered & ANSWER == 0 {
        return Err(PcpError::Unrelated);
    }
    match version {
        VERSION => {}
        older if older < VERSION => return Err(PcpError::Version),
        _ => return Err(PcpError::Unrelated),
    }
    if answered != ANSWER | opcode {
        return Err(PcpError::Unrelated);
    }
    if result != 0 {
        return Err(PcpError::Refused(result));
    }
    let lifetime = reader.u32().ok_or(PcpError::Truncated)?;
    let epoch = reader.u32().ok_or(PcpError::Truncated)?;
    reader.array::<12>().ok_or(PcpError::Truncated)?;
    Ok((lifetime, epoch))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> MapRequest {
        MapRequest {
            client: Ipv4Addr::new(192, 168, 1, 10),
            nonce: *b"abcdefghijkl",
            internal_port: 51820,
            suggested: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 51820),
            lifetime: 7200,
        }
    }

    /// What a router answers to a request.
    fn answer(request: &[u8], external: SocketAddrV4) -> Vec<u8> {
        let mut out = vec![2, request[1] | 0x80, 0, 0];
        out.extend_from_slice(&request[4..8]);
        out.extend_from_slice(&77_u32.to_be_bytes());
        out.extend_from_slice(&[0; 12]);
        out.extend_from_slice(&request[24..42]);
        out.extend_from_slice(&external.port().to_be_bytes());
        out.extend_from_slice(&external.ip().to_ipv6_mapped().octets());
        out
    }

    #[test]
    fn requests_are_these_bytes() {
        let client = "00000000000000000000ffffc0a8010a";
        assert_eq!(hex::encode(announce(request().client)), format!("0200000000000000{client}"));
        let map = hex::encode(map(&request()));
        let opcode = "6162636465666768696a6b6c11000000ca6cca6c00000000000000000000ffff00000000";
        assert_eq!(map, format!("0201000000001c20{client}{opcode}"));
    }

    #[test]
    fn a_mapping_is_read_from_these_bytes() {
        let bytes = hex::decode(
            "0281000000000e10000000050000000000000000000000006162636465666768696a6b6c11000000ca6cca6d\
             00000000000000000000ffffcb007101",
        );
        let granted = Granted { external: "203.0.113.1:51821".parse().unwrap(), lifetime: 3600, epoch: 5 };
        assert_eq!(read_map(&bytes.unwrap(), &request()), Ok(granted));
    }

    #[test]
    fn answers_to_other_questions_do_not_count() {
        let good = answer(&map(&request()), "203.0.113.1:1".parse().unwrap());
        assert!(read_map(&good, &request()).is_ok());
        for (at, what) in [(24, "nonce"), (35, "nonce"), (36, "protocol"), (41, "port"), (1, "opcode")] {
            let mut other = good.clone();
            other[at] ^= 2;
            assert_eq!(read_map(&other, &request()), Err(PcpError::Unrelated), "{what}");
        }
        assert_eq!(read_map(&map(&request()), &request()), Err(PcpError::Unrelated), "the question itself");
        assert_eq!(read_map(&good[..59], &request()), Err(PcpError::Truncated));
        let mut v6 = good.clone();
        v6[44] = 0x20;
        assert_eq!(read_map(&v6, &request()), Err(PcpError::Address));
        let mut refused = good;
        refused[3] = 2;
        assert_eq!(read_map(&refused, &request()), Err(PcpError::Refused(2)));
        assert_eq!(read_announce(&[0, 0x80, 0, 1, 0, 0, 0, 9]), Err(PcpError::Version), "a NAT-PMP router");
    }

    proptest! {
        #[test]
        fn what_was_asked_for_comes_back(port: u16, external: u16, address: u32, lifetime: u32, nonce: [u8; 12]) {
            let request = MapRequest { internal_port: port, lifetime, nonce, ..request() };
            let external = SocketAddrV4::new(address.into(), external);
            let granted = read_map(&answer(&map(&request), external), &request);
            prop_assert_eq!(granted, Ok(Granted { external, lifetime, epoch: 77 }));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = read_announce(&bytes);
            prop_assert!(read_map(&bytes, &request()).is_err());
        }
    }
}
