//! What a mesh on a network should come to: the path of every pair, and its round trip.

use std::time::Duration;

use super::{Gateway, Ipv6, Network, Site};
use crate::linksim::Line;
use crate::nat::Nat;
use crate::nat::punching::reach;

/// How two hosts should come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Over the LAN on which both are.
    Lan,
    /// Straight through their NATs.
    Direct,
    /// Straight through their NATs, after some seconds on a relay: it takes many sockets, or ports that were predicted.
    Punched,
    /// Through a relay, because nothing gets through their NATs.
    Relay,
}

impl Reach {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Direct | Self::Punched => "direct",
            Self::Relay => "relay",
        }
    }
}

impl Network {
    /// How two hosts should come together where they are now, by the types of their NATs: where both have IPv6, no NAT is
    /// in the way, and what filters there are let answers in.
    ///
    /// # Errors
    ///
    /// If there is no such host, or it is nowhere.
    pub fn reach(&self, from: &str, to: &str) -> anyhow::Result<Reach> {
        let (from, to) = (self.host(from)?.site(), self.host(to)?.site());
        if from == to {
            return Ok(Reach::Lan);
        }
        if self.has_ipv6(&from) && self.has_ipv6(&to) {
            return Ok(Reach::Direct);
        }
        Ok(reach(self.nat_or_open(&from)?.as_ref(), self.nat_or_open(&to)?.as_ref()))
    }

    /// What the lines add to a round trip between two hosts, by a relay on a third host if one is named.
    ///
    /// # Errors
    ///
    /// If there is no such host, or it is nowhere.
    pub fn round_trip(&self, from: &str, to: &str, relay: Option<&str>) -> anyhow::Result<Duration> {
        let hop = |from: &str, to: &str| -> anyhow::Result<Duration> {
            let (from, to) = (self.host(from)?.site(), self.host(to)?.site());
            if from == to {
                return Ok(Duration::ZERO);
            }
            let share = |Line { up, down }: Line| up.delay + down.delay;
            Ok(share(self.line(&from)?) + share(self.line(&to)?))
        };
        match relay {
            Some(relay) => Ok(hop(from, relay)? + hop(relay, to)?),
            None => hop(from, to),
        }
    }

    /// Whether a site's hosts have IPv6 addresses.
    pub fn has_ipv6(&self, name: &str) -> bool {
        self.topology().sites.iter().any(|site| site.name == name && site.ipv6 != Ipv6::None)
    }

    /// A site's NAT; a public site has none.
    fn nat_or_open(&self, name: &str) -> anyhow::Result<Option<Nat>> {
        let is_public = |site: &&Site| site.name == name && site.gateway == Gateway::Public;
        if self.topology().sites.iter().any(|site| is_public(&site)) {
            return Ok(None);
        }
        self.nat(name).map(Some)
    }
}
