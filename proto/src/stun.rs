//! STUN binding (RFC 8489): what an agent asks to learn its reflexive address, and what a coordinator answers.
//!
//! Only binding requests and success responses are spoken; attributes other than (XOR-)MAPPED-ADDRESS are
//! skipped, as the RFC asks for attributes that need not be understood.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes 4 to 7 of every STUN message.
pub const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// Length of a message's header; a binding request has nothing else.
pub const HEADER_LEN: usize = 20;

const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;

/// Ties a response to its request; random, so that an off-path attacker cannot guess it.
pub type TransactionId = [u8; 12];

/// A STUN message that the mesh understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Asks where this came from.
    BindingRequest {
        /// Chosen by the client.
        transaction: TransactionId,
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
    /// Shorter than the header, or than the length in it says.
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

    /// Decodes a datagram.
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
            BINDING_REQUEST => Ok(Self::BindingRequest { transaction }),
            BINDING_SUCCESS => {
                let mapped = find_address(body, &transaction).ok_or(DecodeError::NoAddress)?;
                Ok(Self::BindingSuccess { transaction, mapped })
            }
            _ => Err(DecodeError::NotBinding),
        }
    }
}

/// Walks the attributes; XOR-MAPPED-ADDRESS wins over the older MAPPED-ADDRESS.
fn find_address(mut body: &[u8], transaction: &TransactionId) -> Option<SocketAddr> {
    let mut plain = None;
    while let Some((&[k0, k1, l0, l1], rest)) = body.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        let value = rest.get(..len)?;
        match u16::from_be_bytes([k0, k1]) {
            XOR_MAPPED_ADDRESS => return decode_address(value, &xor_mask(transaction)),
            MAPPED_ADDRESS => plain = decode_address(value, &[0; 16]),
            _ => {}
        }
        body = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    plain
}

fn encode_xor_address(address: SocketAddr, transaction: &TransactionId) -> Vec<u8> {
    let mask = xor_mask(transaction);
    let (family, ip) = match address.ip() {
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
    let unmasked: Vec<u8> = ip.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
    let ip = match family {
        FAMILY_V4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(unmasked).ok()?)),
        FAMILY_V6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(unmasked).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The mask of XOR-MAPPED-ADDRESS: the cookie, then the transaction id.
fn xor_mask(transaction: &TransactionId) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE);
    mask[4..].copy_from_slice(transaction);
    mask
}
