//! STUN binding (RFC 8489): what an agent asks to learn its reflexive address, and what a coordinator answers.
//!
//! ```text
//! type (2) | length of the attributes (2) | magic cookie (4) | transaction id (12) | attributes
//! attribute: type (2) | length (2) | value | zero bytes up to a multiple of 4
//! ```
//!
//! Only binding requests (type `0x0001`) and success responses (`0x0101`) are spoken, and all numbers are
//! big-endian. A request is written without attributes, or with RESPONSE-PORT (`0x0027`; RFC 5780, section 7.5: a port and
//! two zero bytes) alone, which asks for the response at another port of the same address: so a node finds out whether a
//! mapping that has been silent is still there. A response is written with XOR-MAPPED-ADDRESS (`0x0020`) alone. In a
//! response from elsewhere MAPPED-ADDRESS (`0x0001`) serves where the former is missing. Every other attribute is
//! skipped, also those that the RFC wants understood: none of them could change where a request came from.
//! Addresses are canonical on both ways, IPv4 where they are IPv4-mapped.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use crate::address;

/// Bytes 4 to 7 of every STUN message.
pub const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// Length in bytes of a message's header; a binding request that the mesh sends has nothing else.
pub const HEADER_LEN: usize = 20;

const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const RESPONSE_PORT: u16 = 0x0027;
const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;

/// Ties a response to its request; chosen at random, so that an off-path attacker cannot guess it.
pub type TransactionId = [u8; 12];

/// A STUN message that the mesh understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Asks where this came from.
    BindingRequest {
        /// Chosen by the client.
        transaction: TransactionId,
    },
    /// Asks where this came from, and to be told at another port of the same address. A server that does not know of this
    /// answers as if it were a [`Message::BindingRequest`].
    BindingRequestFor {
        /// Chosen by the client.
        transaction: TransactionId,
        /// Where the response goes.
        port: NonZeroU16,
    },
    /// Says where the request came from.
    BindingSuccess {
        /// The request's.
        transaction: TransactionId,
        /// The source of the request, as the server saw it.
        mapped: SocketAddr,
    },
}

/// Why bytes are not a STUN message that the mesh understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than the header, or than the length in the header says.
    #[error("stun message is truncated")]
    Truncated,
    /// Not a binding request or success response with the magic cookie.
    #[error("not a stun binding")]
    NotBinding,
    /// A success response without a readable address.
    #[error("stun response carries no address")]
    NoAddress,
}

impl Message {
    /// Encodes the message; a response carries XOR-MAPPED-ADDRESS alone.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::BindingRequest { transaction } => {
                [&BINDING_REQUEST[..], &[0, 0], &MAGIC_COOKIE, transaction].concat()
            }
            Self::BindingRequestFor { transaction, port } => {
                let [p0, p1] = port.get().to_be_bytes();
                let [k0, k1] = RESPONSE_PORT.to_be_bytes();
                let attribute = [k0, k1, 0, 4, p0, p1, 0, 0];
                [&BINDING_REQUEST[..], &[0, 8], &MAGIC_COOKIE, transaction, &attribute].concat()
            }
            Self::BindingSuccess { transaction, mapped } => {
                let value = encode_xor_address(*mapped, transaction);
                let value_len = u16::try_from(value.len()).expect("an address has up to 20 bytes");
                [
                    &BINDING_SUCCESS[..],
                    &(value_len + 4).to_be_bytes(),
                    &MAGIC_COOKIE,
                    transaction,
                    &XOR_MAPPED_ADDRESS.to_be_bytes(),
                    &value_len.to_be_bytes(),
                    &value,
                ]
                .concat()
            }
        }
    }

    /// Decodes a datagram; what stands behind the length in its header is ignored.
    ///
    /// The caller compares the transaction id with its own: nothing else tells an answer from a forgery.
    ///
    /// # Errors
    /// When it is truncated, not a binding, or a response without an address.
    pub fn decode(datagram: &[u8]) -> Result<Self, DecodeError> {
        let (header, body) = datagram.split_first_chunk::<HEADER_LEN>().ok_or(DecodeError::Truncated)?;
        let [t0, t1, l0, l1, c0, c1, c2, c3, transaction @ ..] = *header;
        if [c0, c1, c2, c3] != MAGIC_COOKIE {
            return Err(DecodeError::NotBinding);
        }
        let body = body.get(..usize::from(u16::from_be_bytes([l0, l1]))).ok_or(DecodeError::Truncated)?;
        match [t0, t1] {
            BINDING_REQUEST => Ok(match find_response_port(body) {
                Some(port) => Self::BindingRequestFor { transaction, port },
                None => Self::BindingRequest { transaction },
            }),
            BINDING_SUCCESS => {
                let mapped = find_address(body, &transaction).ok_or(DecodeError::NoAddress)?;
                Ok(Self::BindingSuccess { transaction, mapped })
            }
            _ => Err(DecodeError::NotBinding),
        }
    }
}

/// Walks the attributes, as far as they are whole.
fn attributes(mut body: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (&[k0, k1, l0, l1], rest) = body.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        let value = rest.get(..len)?;
        body = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_be_bytes([k0, k1]), value))
    })
}

/// Finds the address; XOR-MAPPED-ADDRESS wins over the older MAPPED-ADDRESS.
fn find_address(body: &[u8], transaction: &TransactionId) -> Option<SocketAddr> {
    let mut plain = None;
    for (kind, value) in attributes(body) {
        match kind {
            XOR_MAPPED_ADDRESS => return decode_address(value, &xor_mask(transaction)),
            MAPPED_ADDRESS => plain = decode_address(value, &[0; 16]),
            _ => {}
        }
    }
    plain
}

/// Finds the port that the response is wanted at.
fn find_response_port(body: &[u8]) -> Option<NonZeroU16> {
    let (_, value) = attributes(body).find(|(kind, _)| *kind == RESPONSE_PORT)?;
    NonZeroU16::new(u16::from_be_bytes(*value.first_chunk()?))
}

fn encode_xor_address(address: SocketAddr, transaction: &TransactionId) -> Vec<u8> {
    let mask = xor_mask(transaction);
    let (family, ip) = match address.ip().to_canonical() {
        IpAddr::V4(v4) => (FAMILY_V4, v4.octets().to_vec()),
        IpAddr::V6(v6) => (FAMILY_V6, v6.octets().to_vec()),
    };
    let port = address.port().to_be_bytes();
    let mut out = vec![0, family, port[0] ^ mask[0], port[1] ^ mask[1]];
    out.extend(ip.iter().zip(mask).map(|(byte, mask)| byte ^ mask));
    out
}

fn decode_address(value: &[u8], mask: &[u8; 16]) -> Option<SocketAddr> {
    let (&[_, family, p0, p1], ip) = value.split_first_chunk()?;
    let port = u16::from_be_bytes([p0 ^ mask[0], p1 ^ mask[1]]);
    let ip = match family {
        FAMILY_V4 => IpAddr::from(unmask::<4>(ip, mask)?),
        FAMILY_V6 => IpAddr::from(unmask::<16>(ip, mask)?),
        _ => return None,
    };
    Some(address::canonical(SocketAddr::new(ip, port)))
}

/// Removes the mask from an address of exactly `N` bytes.
fn unmask<const N: usize>(ip: &[u8], mask: &[u8; 16]) -> Option<[u8; N]> {
    let mut ip: [u8; N] = ip.try_into().ok()?;
    ip.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    Some(ip)
}

/// The mask of XOR-MAPPED-ADDRESS: the cookie, then the transaction id.
fn xor_mask(transaction: &TransactionId) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE);
    mask[4..].copy_from_slice(transaction);
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRANSACTION: TransactionId = *b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae";

    /// Writes a success response with the given attributes.
    fn response(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (kind, value) in attributes {
            body.extend(kind.to_be_bytes());
            body.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let len = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&BINDING_SUCCESS[..], &len, &MAGIC_COOKIE, &TRANSACTION, &body].concat()
    }

    fn mapped(datagram: &[u8]) -> Result<SocketAddr, DecodeError> {
        match Message::decode(datagram)? {
            Message::BindingSuccess { mapped, .. } => Ok(mapped),
            Message::BindingRequest { .. } | Message::BindingRequestFor { .. } => panic!("not a response"),
        }
    }

    /// The addresses of the sample responses of RFC 5769, sections 2.2 and 2.3, among attributes like theirs:
    /// SOFTWARE (padded) before, MESSAGE-INTEGRITY and FINGERPRINT behind.
    #[test]
    fn the_sample_addresses_of_rfc_5769_are_understood() {
        let software: (u16, &[u8]) = (0x8022, b"test vector");
        let behind: [(u16, &[u8]); 2] = [(0x0008, &[0x2b; 20]), (0x8028, &[0xc0; 4])];
        let v4 = [0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43];
        let v6 = [
            0x00, 0x02, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc, 0x25, 0xf4, 0xb5,
            0xbe, 0xd2, 0xb9, 0xd9,
        ];
        for (value, expected) in
            [(&v4[..], "192.0.2.1:32853"), (&v6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853")]
        {
            let datagram = response(&[software, (XOR_MAPPED_ADDRESS, value), behind[0], behind[1]]);
            assert_eq!(mapped(&datagram), Ok(expected.parse().unwrap()));
        }
    }

    #[test]
    fn the_plain_address_serves_where_the_masked_one_is_missing() {
        let plain: (u16, &[u8]) = (MAPPED_ADDRESS, &[0, FAMILY_V4, 0, 5, 192, 0, 2, 7]);
        assert_eq!(mapped(&response(&[plain])), Ok("192.0.2.7:5".parse().unwrap()));
        let masked = encode_xor_address("192.0.2.8:6".parse().unwrap(), &TRANSACTION);
        let both = response(&[plain, (XOR_MAPPED_ADDRESS, &masked)]);
        assert_eq!(mapped(&both), Ok("192.0.2.8:6".parse().unwrap()));
    }

    #[test]
    fn an_address_of_the_wrong_length_is_none() {
        for (family, len) in [(FAMILY_V4, 3), (FAMILY_V4, 5), (FAMILY_V6, 15), (FAMILY_V6, 20), (3, 4)] {
            let value = [&[0, family, 0, 5][..], &vec![1; len]].concat();
            assert_eq!(mapped(&response(&[(XOR_MAPPED_ADDRESS, &value)])), Err(DecodeError::NoAddress));
        }
        assert_eq!(mapped(&response(&[])), Err(DecodeError::NoAddress));
    }

    #[test]
    fn a_mapped_address_is_answered_and_read_as_ipv4() {
        let message = |mapped: &str| Message::BindingSuccess {
            transaction: TRANSACTION,
            mapped: mapped.parse().unwrap(),
        };
        assert_eq!(message("[::ffff:192.0.2.1]:5").encode(), message("192.0.2.1:5").encode());
        let value = [&[0, FAMILY_V6, 0, 5][..], &[0; 10], &[0xff, 0xff, 192, 0, 2, 1]].concat();
        assert_eq!(mapped(&response(&[(MAPPED_ADDRESS, &value)])), Ok("192.0.2.1:5".parse().unwrap()));
    }
}
