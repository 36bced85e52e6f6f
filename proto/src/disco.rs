//! Disco: the messages by which two agents find and check paths to each other.
//!
//! ```text
//! magic (6) | sender's WireGuard public key (32) | nonce (24) | sealed body (n) | tag (16)
//! ```
//!
//! The body is sealed with a key that both WireGuard keys give (see the engine), so a message also proves who
//! sent it. A body starts with a type byte and a version byte, which is 0; a reader ignores other types and
//! versions, and bytes behind what it knows.
//!
//! | type | message | body after type and version |
//! |---|---|---|
//! | 1 | Ping | transaction id (12), any number of zero bytes to probe the path MTU |
//! | 2 | Pong | transaction id (12), observed source address (18), all zero when the Ping came through a relay |
//! | 3 | CallMeMaybe | up to 32 candidates, 19 bytes each: kind (1), address (18) |
//! | 4 | Punch | see [`crate::punch`] |
//! | 5, 6 | LendMe, Lent | see [`crate::lend`] |
//! | 7, 8, 9 | PassOn, Passed, Whereabouts | see [`crate::pass`] |
//! | 10 | Pause | session (8): the beginning of the initiator's ephemeral key in the handshake that made it; stays (2): ms |
//!
//! An address is an IPv6 or IPv4-mapped address (16) and a port (2), both big-endian; decoded, it is canonical
//! (IPv4 where it is mapped). The kind of a candidate is 1 host, 2 port-mapped, 3 reflexive, 4 guess; every
//! other value is read as unknown, which is written as 0.

use std::net::SocketAddr;

use crate::{
    address::{self, ADDRESS_LEN},
    candidate::{Candidate, CandidateKind, MAX_CANDIDATES},
    key::{KEY_LEN, PublicKey},
    lend::{LendMe, Lent},
    pass::{PassOn, Passed, Whereabouts},
    punch::Punch,
};

/// First bytes of every disco message.
pub const MAGIC: [u8; 6] = *b"mdisco";
/// Length in bytes of the nonce (XChaCha20-Poly1305).
pub const NONCE_LEN: usize = 24;
/// Length in bytes of the authentication tag behind the sealed body.
pub const TAG_LEN: usize = 16;
/// Length in bytes of what stands before the sealed body.
pub const HEADER_LEN: usize = MAGIC.len() + KEY_LEN + NONCE_LEN;
/// Length in bytes of what both sides call a session.
pub const SESSION_NAME_LEN: usize = 8;
/// Length in bytes of a transaction id.
pub const TXID_LEN: usize = 12;

const CANDIDATE_LEN: usize = 1 + ADDRESS_LEN;
const VERSION: u8 = 0;
const TYPE_PING: u8 = 1;
const TYPE_PONG: u8 = 2;
const TYPE_CALL_ME_MAYBE: u8 = 3;
const TYPE_PUNCH: u8 = 4;
const TYPE_LEND_ME: u8 = 5;
const TYPE_LENT: u8 = 6;
const TYPE_PASS_ON: u8 = 7;
const TYPE_PASSED: u8 = 8;
const TYPE_WHEREABOUTS: u8 = 9;
const TYPE_PAUSE: u8 = 10;

/// Ties a Pong to its Ping.
pub type TxId = [u8; TXID_LEN];

/// The clear part of a disco message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Who sent the message.
    pub sender: PublicKey,
    /// Nonce of the sealed body.
    pub nonce: [u8; NONCE_LEN],
}

/// The opened body of a disco message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Asks for a Pong on the same path.
    Ping {
        /// Random, repeated by the Pong.
        txid: TxId,
        /// How many zero bytes stand at the end, to probe the path MTU.
        padding: u16,
    },
    /// Answers a Ping.
    Pong {
        /// The Ping's.
        txid: TxId,
        /// Where the Ping came from, as the answering side saw it; `None` through a relay. The unspecified
        /// IPv6 address with port 0, which is no source, would be read as `None`, too.
        observed: Option<SocketAddr>,
    },
    /// Asks the other side to probe these addresses now: the sender is about to probe, too.
    CallMeMaybe {
        /// The sender's candidates; those beyond [`MAX_CANDIDATES`] are cut by writer and reader.
        candidates: Vec<Candidate>,
    },
    /// Agrees on how two NATs are got through that plain probing does not get through.
    Punch(Punch),
    /// Asks the receiver to relay for the sender.
    LendMe(LendMe),
    /// Answers that it does.
    Lent(Lent),
    /// Asks the receiver to carry a message to a peer of its.
    PassOn(PassOn),
    /// Brings the receiver such a message.
    Passed(Passed),
    /// Says where the sender is.
    Whereabouts(Whereabouts),
    /// Says that the sender is restarted: what is sealed for its present session from now on, nobody can open.
    Pause {
        /// What both sides call that session. It makes the message good for this session alone.
        session: [u8; SESSION_NAME_LEN],
        /// For how long, in milliseconds, the sender still opens what was sealed before. It takes no part in handshakes any
        /// more; what comes later is for the process that goes on for it.
        stays: u16,
    },
}

/// Why bytes are not a disco message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than its fixed part, or a Ping longer than any datagram.
    #[error("disco message is truncated")]
    Truncated,
    /// Does not begin with the magic.
    #[error("not a disco message")]
    BadMagic,
    /// A type or version that this side does not know; to be ignored.
    #[error("unknown disco message type {0}")]
    UnknownType(u8),
}

impl Header {
    /// Encodes the header, to be followed by the sealed body and its tag.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..MAGIC.len()].copy_from_slice(&MAGIC);
        out[MAGIC.len()..MAGIC.len() + KEY_LEN].copy_from_slice(&self.sender.0);
        out[MAGIC.len() + KEY_LEN..].copy_from_slice(&self.nonce);
        out
    }

    /// Splits a datagram into its header and the sealed body with its tag.
    ///
    /// # Errors
    /// When the magic is missing or the datagram cannot hold a header and a tag.
    pub fn decode(datagram: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let rest = datagram.strip_prefix(&MAGIC).ok_or(DecodeError::BadMagic)?;
        let (sender, rest) = rest.split_first_chunk().ok_or(DecodeError::Truncated)?;
        let (nonce, sealed) = rest.split_first_chunk().ok_or(DecodeError::Truncated)?;
        if sealed.len() < TAG_LEN {
            return Err(DecodeError::Truncated);
        }
        Ok((Self { sender: PublicKey(*sender), nonce: *nonce }, sealed))
    }
}

impl Message {
    /// Encodes the body, to be sealed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ping { txid, padding } => {
                let mut out = [&[TYPE_PING, VERSION][..], txid].concat();
                out.resize(out.len() + usize::from(*padding), 0);
                out
            }
            Self::Pong { txid, observed } => {
                let observed = observed.map_or([0; ADDRESS_LEN], address::encode);
                [&[TYPE_PONG, VERSION][..], txid, &observed].concat()
            }
            Self::CallMeMaybe { candidates } => {
                let mut out = vec![TYPE_CALL_ME_MAYBE, VERSION];
                encode_candidates(&candidates[..candidates.len().min(MAX_CANDIDATES)], &mut out);
                out
            }
            Self::LendMe(asked) => [&[TYPE_LEND_ME, VERSION][..], &asked.encode()].concat(),
            Self::Lent(lent) => [&[TYPE_LENT, VERSION][..], &lent.encode()].concat(),
            Self::Punch(punch) => [&[TYPE_PUNCH, VERSION][..], &punch.encode()].concat(),
            Self::PassOn(asked) => [&[TYPE_PASS_ON, VERSION][..], &asked.encode()].concat(),
            Self::Passed(passed) => [&[TYPE_PASSED, VERSION][..], &passed.encode()].concat(),
            Self::Whereabouts(at) => [&[TYPE_WHEREABOUTS, VERSION][..], &at.encode()].concat(),
            Self::Pause { session, stays } => {
                [&[TYPE_PAUSE, VERSION][..], session, &stays.to_be_bytes()].concat()
            }
        }
    }

    /// Decodes an opened body, without its tag.
    ///
    /// # Errors
    /// When the body is truncated or of an unknown type or version.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let (&[kind, version], rest) = body.split_first_chunk().ok_or(DecodeError::Truncated)?;
        if version != VERSION {
            return Err(DecodeError::UnknownType(kind));
        }
        match kind {
            TYPE_PING => {
                let (txid, padding) = rest.split_first_chunk().ok_or(DecodeError::Truncated)?;
                let padding = u16::try_from(padding.len()).map_err(|_| DecodeError::Truncated)?;
                Ok(Self::Ping { txid: *txid, padding })
            }
            TYPE_PONG => {
                let (txid, rest) = rest.split_first_chunk().ok_or(DecodeError::Truncated)?;
                let (observed, _) = rest.split_first_chunk().ok_or(DecodeError::Truncated)?;
                let observed = (*observed != [0; ADDRESS_LEN]).then(|| address::decode(observed));
                Ok(Self::Pong { txid: *txid, observed })
            }
            TYPE_CALL_ME_MAYBE => Ok(Self::CallMeMaybe { candidates: decode_candidates(rest) }),
            TYPE_PUNCH => Punch::decode(rest).map(Self::Punch).ok_or(DecodeError::Truncated),
            TYPE_LEND_ME => LendMe::decode(rest).map(Self::LendMe).ok_or(DecodeError::Truncated),
            TYPE_LENT => Lent::decode(rest).map(Self::Lent).ok_or(DecodeError::Truncated),
            TYPE_PASS_ON => PassOn::decode(rest).map(Self::PassOn).ok_or(DecodeError::Truncated),
            TYPE_PASSED => Passed::decode(rest).map(Self::Passed).ok_or(DecodeError::Truncated),
            TYPE_WHEREABOUTS => {
                Whereabouts::decode(rest).map(Self::Whereabouts).ok_or(DecodeError::Truncated)
            }
            TYPE_PAUSE => {
                let (session, rest) = rest.split_first_chunk().ok_or(DecodeError::Truncated)?;
                let stays = rest.first_chunk().ok_or(DecodeError::Truncated)?;
                Ok(Self::Pause { session: *session, stays: u16::from_be_bytes(*stays) })
            }
            unknown => Err(DecodeError::UnknownType(unknown)),
        }
    }
}

/// Appends candidates as they stand in a body.
pub(crate) fn encode_candidates(candidates: &[Candidate], out: &mut Vec<u8>) {
    for candidate in candidates {
        out.push(encode_kind(candidate.kind));
        out.extend(address::encode(candidate.address));
    }
}

/// Reads candidates to the end of a body; those beyond [`MAX_CANDIDATES`] are cut.
pub(crate) fn decode_candidates(bytes: &[u8]) -> Vec<Candidate> {
    let (chunks, _) = bytes.as_chunks::<CANDIDATE_LEN>();
    chunks.iter().take(MAX_CANDIDATES).map(decode_candidate).collect()
}

fn encode_kind(kind: CandidateKind) -> u8 {
    match kind {
        CandidateKind::Host => 1,
        CandidateKind::PortMapped => 2,
        CandidateKind::Reflexive => 3,
        CandidateKind::Guess => 4,
        CandidateKind::Unknown => 0,
    }
}

fn decode_candidate(bytes: &[u8; CANDIDATE_LEN]) -> Candidate {
    let [kind, address @ ..] = bytes;
    let kind = match kind {
        1 => CandidateKind::Host,
        2 => CandidateKind::PortMapped,
        3 => CandidateKind::Reflexive,
        4 => CandidateKind::Guess,
        _ => CandidateKind::Unknown,
    };
    Candidate { address: address::decode(address), kind }
}
