//! Routes: prefixes behind a node, beyond its mesh addresses, that it offers to the mesh.
//!
//! ```text
//! node                                coordinator
//!   | -- Advertise (all of them) ---------> |   checks each, approves it by policy or leaves it to the operator
//!   | <------- Routes (what became of it) - |   now, and whenever that changes
//!   | <------- Delta (allowed_ips) -------- |   to everybody: the approved ones
//! ```
//!
//! A prefix belongs to one node at a time: of two that overlap, the one that could be approved first is, and the other is
//! refused until that is gone.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Routes that one node may offer.
pub const MAX_ROUTES: usize = 64;

/// Shortest IPv4 prefix: two /1 make a default route, a /8 is the largest private network.
const MIN_PREFIX_V4: u8 = 8;
/// Shortest IPv6 prefix: wider than any allocation to one site.
const MIN_PREFIX_V6: u8 = 16;

/// Prefixes whose addresses mean something else on every host (RFC 6890).
const SPECIAL: [&str; 8] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/127",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

/// What lies behind a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteKind {
    /// A network beside the node.
    Subnet,
    /// The node's own pods, in a range of the mesh's for them.
    Pods,
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

/// What a node offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RouteOffer {
    /// The prefix.
    pub prefix: IpNet,
    /// What lies behind it.
    pub kind: RouteKind,
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteState {
    /// The mesh sends it to the node.
    Approved,
    /// It waits for the operator.
    Pending,
    /// It cannot be had, or the operator does not want it.
    Refused,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

/// An offer, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteAnswer {
    /// The prefix.
    pub prefix: IpNet,
    /// What became of it.
    pub state: RouteState,
    /// Why, unless it is approved: a clause for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Why a prefix can be nobody's route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unroutable {
    /// A default route, or so much of one that a few of them make one.
    #[error("it is a default route, or nearly one")]
    TooWide,
    /// Loopback, link-local, multicast or unspecified addresses.
    #[error("its addresses are never routed")]
    Special,
}

/// Checks that a prefix may be some node's route.
///
/// # Errors
/// When it may be nobody's.
pub fn check_routable(prefix: &IpNet) -> Result<(), Unroutable> {
    let min = match prefix {
        IpNet::V4(_) => MIN_PREFIX_V4,
        IpNet::V6(_) => MIN_PREFIX_V6,
    };
    if prefix.prefix_len() < min {
        return Err(Unroutable::TooWide);
    }
    let is_special = |special: &str| overlap(&special.parse().expect("SPECIAL holds prefixes"), prefix);
    if SPECIAL.into_iter().any(is_special) { Err(Unroutable::Special) } else { Ok(()) }
}

/// Says whether two prefixes have an address in common.
#[must_use]
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Subnet => "subnet",
            Self::Pods => "pods",
            Self::Unknown => "unknown",
        })
    }
}

impl fmt::Display for RouteState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Approved => "approved",
            Self::Pending => "pending",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_prefixes_are_nobodys() {
        for (text, expected) in [
            ("10.244.1.0/24", Ok(())),
            ("10.0.0.0/8", Ok(())),
            ("fd00::/16", Ok(())),
            ("192.0.2.7/32", Ok(())),
            ("0.0.0.0/0", Err(Unroutable::TooWide)),
            ("128.0.0.0/1", Err(Unroutable::TooWide)),
            ("::/0", Err(Unroutable::TooWide)),
            ("2000::/3", Err(Unroutable::TooWide)),
            ("127.0.0.0/8", Err(Unroutable::Special)),
            ("169.254.169.254/32", Err(Unroutable::Special)),
            ("224.0.0.0/8", Err(Unroutable::Special)),
            ("fe80::/64", Err(Unroutable::Special)),
        ] {
            assert_eq!(check_routable(&text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_unknown() {
        let offer: RouteOffer =
            serde_json::from_str(r#"{"prefix":"10.0.0.0/24","kind":"services"}"#).unwrap();
        assert_eq!(offer.kind, RouteKind::Unknown);
        let answer: RouteAnswer =
            serde_json::from_str(r#"{"prefix":"10.0.0.0/24","state":"on-hold","more":1}"#).unwrap();
        assert_eq!((answer.state, answer.reason), (RouteState::Unknown, None));
    }
}
