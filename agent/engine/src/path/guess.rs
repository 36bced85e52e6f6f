//! A guess for peers that stand beside the coordinator: a pure function.
//!
//! Such a peer asks the coordinator for its reflexive address from inside, and learns a private one. Its router's
//! public address is known to everyone else, though: it is where they reach the coordinator. Most home routers keep
//! the port of a mapping where they can, so the peer is tried at that address with its own port. Probing decides.

use std::net::{IpAddr, SocketAddr};

use mesh_proto::candidate::{Candidate, CandidateKind};

/// Most guesses: one for each port of the peer's at each address of the coordinator's.
const MAX_GUESSES: usize = 4;

/// Returns guesses for a peer none of whose IPv4 candidates is public: IPv6, if it has that, is of no use to who has not.
///
/// `observers` are where this node reaches the coordinator, and relays that know its address.
pub(crate) fn guesses(
    candidates: &[Candidate],
    observers: impl Iterator<Item = SocketAddr>,
) -> Vec<Candidate> {
    if candidates.iter().any(|candidate| candidate.address.is_ipv4() && is_public(candidate.address.ip())) {
        return Vec::new();
    }
    let mut ports: Vec<u16> = candidates
        .iter()
        .filter(|candidate| candidate.kind == CandidateKind::Host && candidate.address.is_ipv4())
        .map(|candidate| candidate.address.port())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    let outside = observers.map(|observer| observer.ip()).filter(|ip| ip.is_ipv4() && is_public(*ip));
    let guess = |ip, port| Candidate { address: SocketAddr::new(ip, port), kind: CandidateKind::Guess };
    outside.flat_map(|ip| ports.iter().map(move |port| guess(ip, *port))).take(MAX_GUESSES).collect()
}

/// Whether an address is reached from everywhere: not one of a local network's or a carrier's own.
pub(crate) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let is_carriers = v4.octets()[0] == 100 && (64..128).contains(&v4.octets()[1]);
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || is_carriers)
        }
        IpAddr::V6(v6) => !(v6.is_unique_local() || v6.is_loopback() || v6.is_unicast_link_local()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(address: &str, kind: CandidateKind) -> Candidate {
        Candidate { address: address.parse().unwrap(), kind }
    }

    fn observers() -> impl Iterator<Item = SocketAddr> {
        ["203.0.113.1:7443", "192.168.1.2:7443"].into_iter().map(|text| text.parse().unwrap())
    }

    #[test]
    fn a_peer_with_private_addresses_alone_is_tried_at_the_coordinators() {
        let beside = [
            candidate("192.168.1.2:51820", CandidateKind::Host),
            candidate("192.168.1.2:51820", CandidateKind::Reflexive),
            candidate("[fd00::2]:51820", CandidateKind::Host),
            candidate("[2001:db8::2]:51820", CandidateKind::Host),
        ];
        assert_eq!(guesses(&beside, observers()), [candidate("203.0.113.1:51820", CandidateKind::Guess)]);
    }

    #[test]
    fn nobody_else_is_guessed() {
        let elsewhere = [
            candidate("192.168.1.2:51820", CandidateKind::Host),
            candidate("198.51.100.7:40000", CandidateKind::Reflexive),
        ];
        assert_eq!(guesses(&elsewhere, observers()), []);
        assert_eq!(guesses(&[], observers()), []);
    }
}
