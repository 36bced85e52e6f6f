//! How two nodes agree to get through NATs that plain probing does not get through.
//!
//! The messages go through a relay, as disco messages of type 4. One side offers, the other answers; both say the same
//! things of themselves, and each works out alone what it is to do: open many sockets, probe many ports, or both.
//!
//! ```text
//! stage (1) | mapping (1) | id (12) | mapped address (18) | next port (2) | step (2) | rate (2) | budget (2)
//! ```
//!
//! Numbers are big-endian. Stages are 1 offer, 2 answer, 3 busy (ask again soon), 4 refused; others are read as refused.
//! Mappings are 0 unknown, 1 none, 2 EIM, 3 ADM, 4 APDM; others are read as unknown. A step of 0 says that ports cannot
//! be predicted; it counts modulo 65,536, so -1 is 0xffff. A reader ignores what stands behind.

use std::net::SocketAddr;

use crate::{
    address::{self, ADDRESS_LEN},
    disco::{TXID_LEN, TxId},
    status::Mapping,
};

/// Length in bytes of an encoded message.
pub const PUNCH_LEN: usize = 2 + TXID_LEN + ADDRESS_LEN + 8;

/// One message of the agreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Punch {
    /// What the message is for.
    pub stage: PunchStage,
    /// Ties an answer to its offer.
    pub id: TxId,
    /// How the sender's NAT maps, as far as it knows.
    pub mapping: Mapping,
    /// Where observers see the sender's own socket.
    pub mapped: SocketAddr,
    /// By which ports the sender's next mappings will leave, if they can be predicted.
    pub sequence: Option<Sequence>,
    /// How many probes the sender sends in a second.
    pub rate: u16,
    /// How many probes the sender sends at most.
    pub budget: u16,
}

/// What a [`Punch`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PunchStage {
    /// Asks for an answer.
    Offer,
    /// The sender begins now.
    Answer,
    /// The sender is at it with another node.
    Busy,
    /// It cannot be done, or not now.
    Refused,
}

/// Ports that a NAT will hand out, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// The next one.
    pub next: u16,
    /// How far each is from the one before, modulo 65,536; not 0.
    pub step: i16,
}

impl Sequence {
    /// Returns the port after `count` others.
    #[must_use]
    pub fn port(&self, count: u16) -> u16 {
        self.next.wrapping_add(count.wrapping_mul(self.step.cast_unsigned()))
    }
}

impl Punch {
    /// Encodes the message.
    #[must_use]
    pub fn encode(&self) -> [u8; PUNCH_LEN] {
        let stage = match self.stage {
            PunchStage::Offer => 1,
            PunchStage::Answer => 2,
            PunchStage::Busy => 3,
            PunchStage::Refused => 4,
        };
        let mapping = match self.mapping {
            Mapping::Unknown => 0,
            Mapping::None => 1,
            Mapping::Eim => 2,
            Mapping::Adm => 3,
            Mapping::Apdm => 4,
        };
        let (next, step) = self.sequence.map_or((0, 0), |sequence| (sequence.next, sequence.step));
        let numbers = [next, step.cast_unsigned(), self.rate, self.budget];
        let bytes = [&[stage, mapping][..], &self.id, &address::encode(self.mapped)].concat();
        let bytes = [bytes, numbers.iter().flat_map(|number| number.to_be_bytes()).collect()].concat();
        bytes.try_into().expect("its parts are as long as PUNCH_LEN says")
    }

    /// Decodes a message; `None` when it is truncated.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[stage, mapping], rest) = bytes.split_first_chunk()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (mapped, rest) = rest.split_first_chunk()?;
        let (numbers, _) = rest.split_first_chunk::<8>()?;
        let number = |at: usize| u16::from_be_bytes([numbers[at], numbers[at + 1]]);
        let step = number(2).cast_signed();
        Some(Self {
            stage: match stage {
                1 => PunchStage::Offer,
                2 => PunchStage::Answer,
                3 => PunchStage::Busy,
                _ => PunchStage::Refused,
            },
            id: *id,
            mapping: match mapping {
                1 => Mapping::None,
                2 => Mapping::Eim,
                3 => Mapping::Adm,
                4 => Mapping::Apdm,
                _ => Mapping::Unknown,
            },
            mapped: address::decode(mapped),
            sequence: (step != 0).then_some(Sequence { next: number(0), step }),
            rate: number(4),
            budget: number(6),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_wraps_both_ways() {
        assert_eq!([0, 1, 2].map(|n| Sequence { next: 65_500, step: 256 }.port(n)), [65_500, 220, 476]);
        assert_eq!([0, 1, 2].map(|n| Sequence { next: 1, step: -1 }.port(n)), [1, 0, 65_535]);
    }
}
