//! Candidates: addresses at which a node may be reached on the underlay.
//!
//! As JSON, a candidate is `{"address":"203.0.113.1:51820","kind":"reflexive"}`; as disco bytes, see
//! [`crate::disco`]. Either way a decoded address is canonical (IPv4 where it is IPv4-mapped, no scope id), so
//! one address is one candidate, and a list of more than [`MAX_CANDIDATES`] is cut when it is read.

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::address;

/// Most candidates of one node that are accepted; what goes beyond is cut by the reader.
///
/// Probing costs a packet per pair: this bounds what one peer can make another one send.
pub const MAX_CANDIDATES: usize = 32;

/// How a candidate address was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CandidateKind {
    /// An address of one of the node's own interfaces.
    Host,
    /// A mapping that a NAT was asked for (PCP, NAT-PMP, UPnP-IGD) or that a person forwarded.
    PortMapped,
    /// What an observer (STUN, a relay, a peer's Pong) saw datagrams come from.
    Reflexive,
    /// A guess that probing has to confirm, such as the coordinator's public address with the node's own port.
    Guess,
    /// A kind that this version does not know: may be probed, ranks last.
    #[serde(other)]
    Unknown,
}

/// One address at which a node may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Candidate {
    /// The socket address, canonical once it was read.
    #[serde(deserialize_with = "address::deserialize")]
    pub address: SocketAddr,
    /// How it was learned.
    pub kind: CandidateKind,
}

/// Reads a list of candidates and cuts it to [`MAX_CANDIDATES`].
pub(crate) fn deserialize_capped<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Candidate>, D::Error> {
    let mut candidates = Vec::deserialize(deserializer)?;
    candidates.truncate(MAX_CANDIDATES);
    Ok(candidates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_and_a_scope_id_are_undone() {
        for (given, expected) in [("[::ffff:192.0.2.1]:5", "192.0.2.1:5"), ("[fe80::1%3]:5", "[fe80::1]:5")] {
            let json = format!(r#"{{"address":"{given}","kind":"host"}}"#);
            let candidate: Candidate = serde_json::from_str(&json).unwrap();
            assert_eq!(
                candidate,
                Candidate { address: expected.parse().unwrap(), kind: CandidateKind::Host }
            );
        }
    }

    #[test]
    fn a_list_that_is_too_long_is_cut() {
        let candidate = Candidate { address: "192.0.2.1:5".parse().unwrap(), kind: CandidateKind::Host };
        let json = serde_json::to_string(&vec![candidate; MAX_CANDIDATES + 1]).unwrap();
        let got = deserialize_capped(&mut serde_json::Deserializer::from_str(&json)).unwrap();
        assert_eq!(got, [candidate; MAX_CANDIDATES]);
    }
}
