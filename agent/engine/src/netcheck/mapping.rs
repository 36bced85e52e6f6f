//! What a NAT does with the ports of mappings, from what observers saw: a pure function (RFC 4787, section 4.1).
//!
//! Servers that answer STUN are believed first. A peer stands behind a NAT of its own, which may change the source port
//! of what comes in: Linux does when both sides' first packets cross. So one peer that disagrees proves nothing, while
//! one that agrees from another address does: a NAT that maps by destination gives another port there.
//!
//! | who | what it saw | what that proves |
//! |---|---|---|
//! | all servers | this host's own public address | there is no NAT, whatever peers see |
//! | everyone | this host's own address | there is no NAT |
//! | two servers | the same, or not | what the NAT does, whatever peers see |
//! | a server and a peer that was sent to first | the same | that the NAT maps all destinations alike |
//! | three or more, peers among them | all of them something else | what the NAT does |
//! | a peer that has sent first | what it has sent to | nothing: the NAT answers from there, whatever it does otherwise |

use std::{collections::BTreeSet, net::SocketAddr};

use mesh_proto::status::Mapping;

use super::Observer;
use crate::path::guess::is_public;

/// So many mappings seen, all different, are not all some peer's NAT's doing.
const MIN_DIFFERENT: usize = 3;

/// An observer, and the address at which it saw this node.
pub(super) type Seen = (SocketAddr, SocketAddr, Observer);

/// Tells the mapping behaviour from who saw one socket where: pairs of an observer, which has no NAT of its own before it,
/// and the address that it saw. `is_own` tells this host's own addresses.
#[must_use]
pub fn mapping_of(seen: &[(SocketAddr, SocketAddr)], is_own: impl Fn(SocketAddr) -> bool) -> Mapping {
    let seen: Vec<Seen> = seen.iter().map(|(by, mapped)| (*by, *mapped, Observer::Dedicated)).collect();
    mapping(&seen, is_own)
}

/// Tells the mapping behaviour. `is_own` tells this host's own addresses.
pub(super) fn mapping(seen: &[Seen], is_own: impl Fn(SocketAddr) -> bool) -> Mapping {
    if seen.is_empty() {
        return Mapping::Unknown;
    }
    let mut by_servers = seen.iter().filter(|(.., observer)| *observer == Observer::Dedicated).peekable();
    // A private address may be seen by servers of this node's own network alone.
    let is_outside = by_servers.peek().is_some()
        && by_servers.all(|(_, mapped, _)| is_own(*mapped) && is_public(mapped.ip()));
    if is_outside || seen.iter().all(|(_, mapped, _)| is_own(*mapped)) {
        return Mapping::None;
    }
    // An observer on this node's own network sees it untranslated, which says nothing about the NAT.
    let is_proof = |(_, mapped, observer): &&Seen| !is_own(*mapped) && *observer != Observer::Caller;
    let seen: Vec<Seen> = seen.iter().filter(is_proof).copied().collect();
    let dedicated: Vec<Seen> =
        seen.iter().filter(|(.., observer)| *observer == Observer::Dedicated).copied().collect();
    let of_dedicated = Comparison::of(&dedicated);
    match of_dedicated.verdict() {
        Mapping::Unknown => {}
        known => return known,
    }
    let all = Comparison::of(&seen);
    let different = seen.iter().map(|(_, mapped, _)| mapped).collect::<BTreeSet<_>>().len();
    if all.agree_by_address {
        Mapping::Eim
    } else if different >= MIN_DIFFERENT {
        match all.verdict() {
            // Two ports of one server see the same: ports do not matter, whatever a peer's NAT has made of them.
            Mapping::Apdm if of_dedicated.agree_by_port => Mapping::Adm,
            verdict => verdict,
        }
    } else {
        Mapping::Unknown
    }
}

/// What comparing each two observers gave.
#[derive(Debug, Default)]
struct Comparison {
    differ_by_port: bool,
    differ_by_address: bool,
    agree_by_address: bool,
    agree_by_port: bool,
}

impl Comparison {
    fn of(seen: &[Seen]) -> Self {
        let mut comparison = Self::default();
        for (index, (a, a_mapped, _)) in seen.iter().enumerate() {
            for (b, b_mapped, _) in &seen[index + 1..] {
                match (a.ip() == b.ip(), a_mapped == b_mapped) {
                    (true, false) => comparison.differ_by_port = true,
                    (false, false) => comparison.differ_by_address = true,
                    (false, true) => comparison.agree_by_address = true,
                    (true, true) => comparison.agree_by_port = true,
                }
            }
        }
        comparison
    }

    fn verdict(&self) -> Mapping {
        match (self.differ_by_port, self.differ_by_address, self.agree_by_address) {
            (true, ..) => Mapping::Apdm,
            (false, true, _) => Mapping::Adm,
            (false, false, true) => Mapping::Eim,
            (false, false, false) => Mapping::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_told_apart() {
        use Observer::{Caller, Dedicated, Peer};
        let (one, one_too, two) = ("192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1");
        let two_too = "192.0.2.2:2";
        let (three, four) = ("192.0.2.3:1", "192.0.2.4:1");
        let (own, near) = ("10.0.0.5:51820", "10.0.0.9:1");
        let public = "203.0.113.5:51820";
        let (p, q, r) = ("203.0.113.1:5", "203.0.113.1:6", "203.0.113.1:7");
        type Row<'a> = (&'a [(&'a str, &'a str, Observer)], Mapping);
        let table: &[Row<'_>] = &[
            (&[], Mapping::Unknown),
            (&[(one, p, Dedicated)], Mapping::Unknown),
            (&[(one, own, Dedicated)], Mapping::None),
            (&[(one, p, Dedicated), (two, p, Dedicated)], Mapping::Eim),
            (&[(one, p, Dedicated), (two, q, Dedicated)], Mapping::Adm),
            (&[(one, p, Dedicated), (one_too, q, Dedicated)], Mapping::Apdm),
            (&[(one, p, Dedicated), (one_too, p, Dedicated)], Mapping::Unknown),
            (&[(one, p, Dedicated), (near, own, Dedicated)], Mapping::Unknown),
            // Peers, whose own NATs may rewrite what they see.
            (&[(one, p, Dedicated), (two, p, Peer), (three, q, Peer), (four, r, Peer)], Mapping::Eim),
            (&[(one, p, Dedicated), (two, q, Peer)], Mapping::Unknown),
            (&[(one, p, Dedicated), (two, q, Peer), (three, r, Peer)], Mapping::Adm),
            (&[(one, p, Dedicated), (two, q, Dedicated), (three, p, Peer)], Mapping::Adm),
            (
                &[(one, p, Dedicated), (one_too, p, Dedicated), (two, q, Peer), (two_too, r, Peer)],
                Mapping::Adm,
            ),
            // No NAT, but peers behind translators of their own.
            (&[(one, public, Dedicated), (two, p, Peer), (three, q, Peer), (four, r, Peer)], Mapping::None),
            (&[(one, public, Dedicated), (one_too, public, Dedicated), (two, q, Caller)], Mapping::None),
            (&[(one, public, Dedicated), (two, p, Dedicated)], Mapping::Unknown),
            (&[(one, public, Peer), (two, public, Peer)], Mapping::None),
            (&[(one, public, Peer), (two, p, Peer)], Mapping::Unknown),
            // Beside the server, which sees a private address: only peers see the NAT.
            (&[(near, own, Dedicated), (two, p, Peer)], Mapping::Unknown),
            (&[(near, own, Dedicated), (two, p, Caller)], Mapping::Unknown),
            (&[(near, own, Dedicated), (two, p, Peer), (three, p, Peer)], Mapping::Eim),
            (&[(near, own, Dedicated), (two, own, Peer)], Mapping::None),
            // Peers that have sent first see what they sent to.
            (&[(one, p, Dedicated), (two, p, Caller), (three, p, Caller)], Mapping::Unknown),
            (&[(one, p, Dedicated), (two, p, Caller), (three, p, Peer)], Mapping::Eim),
            (&[(one, p, Dedicated), (two, q, Caller), (three, r, Caller)], Mapping::Unknown),
            (&[(one, p, Dedicated), (two, q, Dedicated), (three, p, Caller)], Mapping::Adm),
        ];
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (row, (seen, expected)) in table.iter().enumerate() {
            let seen: Vec<Seen> =
                seen.iter().map(|(by, mapped, observer)| (parse(by), parse(mapped), *observer)).collect();
            let is_own = |address| [own, public].map(parse).contains(&address);
            assert_eq!(mapping(&seen, is_own), *expected, "row {row}");
        }
    }
}
