//! IPv4 from a network that has IPv6 alone: through a translator, whose prefix is known ([`mesh_proto::nat64`]).
//!
//! Everything that is told to this node as an IPv4 address is also looked for behind the prefix while IPv4 itself leads
//! nowhere: relays, observers, and the candidates of peers. What an observer then sees of this node is an address of the
//! translator's, an IPv4 one, and a reflexive candidate like any other: peers with IPv4 send to it, and their packets come
//! in from behind the prefix.

use std::net::{IpAddr, SocketAddr};

use mesh_proto::{
    candidate::{Candidate, MAX_CANDIDATES},
    nat64::Nat64Prefix,
};

use crate::config::{Ipv4Way, Nat64, RelayCarrier, RelayConfig};

/// What is translated, and whether anything is to be now.
#[derive(Debug, Default)]
pub(crate) struct Translation {
    config: Nat64,
    /// Whether IPv4 was found to be silent.
    silent: bool,
}

impl Translation {
    /// Takes over a configuration; returns whether it is another one.
    pub(crate) fn set_config(&mut self, config: Nat64) -> bool {
        let before = std::mem::replace(&mut self.config, config);
        before != self.config
    }

    /// IPv4 is silent, or not (any more); returns whether anything follows from that.
    pub(crate) fn set_silent(&mut self, silent: bool) -> bool {
        let before = self.is_on();
        self.silent = silent;
        before != self.is_on()
    }

    /// Returns the prefixes behind which addresses are looked for now.
    fn prefixes(&self) -> &[Nat64Prefix] {
        if self.is_on() { &self.config.prefixes } else { &[] }
    }

    /// Whether IPv4 addresses are looked for behind a prefix.
    pub(crate) fn is_on(&self) -> bool {
        !self.config.prefixes.is_empty() && (self.silent || self.config.ipv4 == Ipv4Way::Absent)
    }

    /// Returns where an endpoint is sent to.
    pub(crate) fn reach(&self, endpoint: SocketAddr) -> SocketAddr {
        self.prefixes().iter().find_map(|prefix| prefix.embed_endpoint(endpoint)).unwrap_or(endpoint)
    }

    /// Adds to endpoints where they are besides.
    pub(crate) fn endpoints(&self, endpoints: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut all = endpoints.to_vec();
        for endpoint in self.behind_prefixes(endpoints.iter().copied()) {
            if !all.contains(&endpoint) {
                all.push(endpoint);
            }
        }
        all
    }

    /// Adds to a relay's addresses where they are besides.
    pub(crate) fn relay(&self, config: &RelayConfig) -> RelayConfig {
        let carrier = match &config.carrier {
            RelayCarrier::Udp(addresses) => RelayCarrier::Udp(self.endpoints(addresses)),
            RelayCarrier::Stream => RelayCarrier::Stream,
        };
        RelayConfig { carrier, ..config.clone() }
    }

    /// Returns candidates with those besides that can be reached instead, which go first: there is only so much room.
    pub(crate) fn candidates(&self, candidates: &[Candidate]) -> Vec<Candidate> {
        let behind = candidates.iter().flat_map(|candidate| {
            let endpoints = self.behind_prefixes(std::iter::once(candidate.address));
            endpoints.map(|address| Candidate { address, kind: candidate.kind })
        });
        let mut all: Vec<Candidate> = behind.take(MAX_CANDIDATES / 2).collect();
        all.extend(candidates.iter().copied().filter(|candidate| {
            // Known from before.
            !self.prefixes().iter().any(|prefix| is_behind(*prefix, candidate.address.ip()))
        }));
        all
    }

    /// Returns the IPv4 address that is meant by one behind a prefix.
    pub(crate) fn meant(&self, ip: IpAddr) -> Option<IpAddr> {
        let IpAddr::V6(v6) = ip else { return None };
        self.config.prefixes.iter().find_map(|prefix| prefix.extract(v6)).map(IpAddr::V4)
    }

    fn behind_prefixes(
        &self,
        endpoints: impl Iterator<Item = SocketAddr>,
    ) -> impl Iterator<Item = SocketAddr> {
        let prefixes = self.prefixes();
        endpoints.flat_map(move |endpoint| {
            prefixes.iter().filter_map(move |prefix| prefix.embed_endpoint(endpoint))
        })
    }
}

fn is_behind(prefix: Nat64Prefix, ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if prefix.extract(v6).is_some())
}

#[cfg(test)]
mod tests {
    use mesh_proto::candidate::CandidateKind;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn translation(ipv4: Ipv4Way) -> Translation {
        let mut translation = Translation::default();
        assert!(translation.set_config(Nat64 { prefixes: vec!["64:ff9b::/96".parse().unwrap()], ipv4 }));
        translation
    }

    #[test]
    fn nothing_is_translated_while_ipv4_works() {
        let mut translation = translation(Ipv4Way::Present);
        let endpoints = [at("192.0.2.1:7"), at("[2001:db8::1]:7")];
        assert_eq!(translation.endpoints(&endpoints), endpoints);
        assert!(translation.set_silent(true) && !translation.set_silent(true));
        let translated = at("[64:ff9b::c000:201]:7");
        assert_eq!(translation.endpoints(&endpoints), [endpoints[0], endpoints[1], translated]);
        assert_eq!(translation.endpoints(&[endpoints[0], translated]), [endpoints[0], translated]);
        assert_eq!(
            (translation.reach(endpoints[0]), translation.reach(endpoints[1])),
            (translated, endpoints[1])
        );
        assert!(translation.set_silent(false));
    }

    #[test]
    fn candidates_behind_the_prefix_go_first_and_come_once() {
        let translation = translation(Ipv4Way::Absent);
        let candidate = |text, kind| Candidate { address: at(text), kind };
        let own = candidate("192.168.1.2:7", CandidateKind::Host);
        let outside = candidate("192.0.2.1:7", CandidateKind::Reflexive);
        let translated = candidate("[64:ff9b::c000:201]:7", CandidateKind::Reflexive);
        let all = translation.candidates(&[own, outside]);
        assert_eq!(all, [translated, own, outside]);
        assert_eq!(translation.candidates(&all), all);
        assert_eq!(translation.meant(translated.address.ip()), Some(outside.address.ip()));
        assert_eq!(translation.meant(outside.address.ip()), None);
    }
}
