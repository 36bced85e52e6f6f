//! How a node that moved is found again through a peer that both sides know.
//!
//! Where neither the coordinator nor a relay brings the two together, a third node that has a way to both does. It
//! needs nobody's leave and no key: it carries one sealed message from one of its peers to another.
//!
//! ```text
//! A (moved)                      C (knows both)                    B (looks for A where it was)
//!   | -- PassOn(B, sealed) --------> |                                |
//!   |                                | -- Passed(sealed) -----------> |   opened with the key of A and B
//!   | <---------------- probes, and the same the other way, until both meet ---------------> |
//! ```
//!
//! What is carried is a whole disco message ([`crate::disco`]) from A to B, whose body is a [`Whereabouts`]. It is sealed
//! by the keys of A and B, so C can neither read nor make one; and A's key stands before it, so B knows how to open it.
//! A seal that only the two can make proves as much as a signature would, costs 16 bytes instead of 64, and needs
//! no key that peers do not have of each other already.
//!
//! C adds where it sees A: behind a NAT, with nobody else to ask, A may not know. What C says of that is worth a probe and no
//! more.
//!
//! C carries for one hop: the sealed message has to be of the peer that sent it, and a Passed carries nothing but a
//! Whereabouts. For a PassOn there is one Passed at most, which is no longer. B takes it only from a peer of its own map, so a
//! pair that policy keeps apart has nothing of it.
//!
//! A Whereabouts has a number that only grows: one that is not greater than the last is a recording. Numbers are
//! milliseconds of real time, so that they go on growing when a node restarts. Where its clock was put back meanwhile,
//! the peer's own Whereabouts says which number was seen, and the node goes on from there.
//!
//! | type | message | body after type and version |
//! |---|---|---|
//! | 7 | PassOn | number of the node that it is for (4), 14 zero bytes, a disco message |
//! | 8 | Passed | where the carrier sees its sender (18), all zero when that is through a relay, a disco message |
//! | 9 | Whereabouts | number (8), greatest number seen of the receiver (8), relays (1), 4 bytes each, candidates as in CallMeMaybe |
//!
//! The byte before the relays says in its lower 7 bits how many there are, and in its upper one whether the first of them
//! is the sender's home.

use std::net::SocketAddr;

use crate::{
    address::{self, ADDRESS_LEN},
    candidate::{Candidate, MAX_CANDIDATES},
    disco::{decode_candidates, encode_candidates},
    netmap::{NodeId, RelayId},
};

/// Most relays that a Whereabouts names.
pub const MAX_RELAYS: usize = 16;

const ID_LEN: usize = 4;
/// So that a Passed is no longer.
const RESERVED_LEN: usize = ADDRESS_LEN - ID_LEN;
const HAS_HOME: u8 = 0x80;

/// Asks the receiver to carry a message to a peer of its.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassOn {
    /// Who it is for.
    pub to: NodeId,
    /// A disco message of the sender's, sealed for that node.
    pub sealed: Vec<u8>,
}

/// Brings the receiver something of another peer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// Where the carrier sees who sent it; `None` through a relay.
    pub observed: Option<SocketAddr>,
    /// A disco message, sealed for the receiver.
    pub sealed: Vec<u8>,
}

/// Where the sender is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// Greater than that of every one before.
    pub number: u64,
    /// The greatest number that the sender has seen of the receiver; 0 if none.
    pub seen: u64,
    /// The relays at which it has a channel; those beyond [`MAX_RELAYS`] are cut.
    pub relays: Vec<RelayId>,
    /// Whether the first of them is the nearest to it.
    pub has_home: bool,
    /// Where it may be reached; those beyond [`MAX_CANDIDATES`] are cut.
    pub candidates: Vec<Candidate>,
}

impl PassOn {
    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&self.to.0.to_be_bytes()[..], &[0; RESERVED_LEN], &self.sealed].concat()
    }

    /// Decodes it; `None` when it is truncated.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        let (to, sealed) = body.split_first_chunk::<ID_LEN>()?;
        let (_, sealed) = sealed.split_first_chunk::<RESERVED_LEN>()?;
        Some(Self { to: NodeId(u32::from_be_bytes(*to)), sealed: sealed.to_vec() })
    }
}

impl Passed {
    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let observed = self.observed.map_or([0; ADDRESS_LEN], address::encode);
        [&observed[..], &self.sealed].concat()
    }

    /// Decodes it; `None` when it is truncated.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        let (observed, sealed) = body.split_first_chunk()?;
        let observed = (*observed != [0; ADDRESS_LEN]).then(|| address::decode(observed));
        Some(Self { observed, sealed: sealed.to_vec() })
    }
}

impl Whereabouts {
    /// Returns the nearest relay to the sender.
    #[must_use]
    pub fn home(&self) -> Option<RelayId> {
        self.relays.first().copied().filter(|_| self.has_home)
    }

    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let relays = &self.relays[..self.relays.len().min(MAX_RELAYS)];
        let count = u8::try_from(relays.len()).expect("few relays");
        let home = if self.has_home && count > 0 { HAS_HOME } else { 0 };
        let mut out = [self.number.to_be_bytes(), self.seen.to_be_bytes()].concat();
        out.push(home | count);
        out.extend(relays.iter().flat_map(|relay| relay.0.to_be_bytes()));
        encode_candidates(&self.candidates[..self.candidates.len().min(MAX_CANDIDATES)], &mut out);
        out
    }

    /// Decodes it; `None` when it is truncated.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        let (number, rest) = body.split_first_chunk()?;
        let (seen, rest) = rest.split_first_chunk()?;
        let (&first, rest) = rest.split_first()?;
        let count = usize::from(first & !HAS_HOME);
        let (named, candidates) = rest.split_at_checked(count * ID_LEN)?;
        let (named, _) = named.as_chunks::<ID_LEN>();
        let relays: Vec<_> =
            named.iter().take(MAX_RELAYS).map(|id| RelayId(u32::from_be_bytes(*id))).collect();
        Some(Self {
            number: u64::from_be_bytes(*number),
            seen: u64::from_be_bytes(*seen),
            has_home: first & HAS_HOME != 0 && !relays.is_empty(),
            relays,
            candidates: decode_candidates(candidates),
        })
    }
}
