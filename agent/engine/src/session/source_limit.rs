//! A limit on handshakes per source address.
//!
//! The library's cookies make senders prove their address, but then let them send as much as they like, and each
//! initiation costs two X25519 operations. So every address has a small allowance of its own (as in wireguard-go's
//! `ratelimiter`), and a flood from one leaves the others alone.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

/// Initiations per second and address: one address may stand for a network with many nodes behind a NAT.
const PER_SECOND: u32 = 20;
/// Initiations at once: all those nodes may have lost their power together.
const BURST: u32 = 100;
/// Addresses that are remembered; when there are more, the limit of all is the library's.
const MAX_SOURCES: usize = 1024;

/// The allowances.
#[derive(Debug, Default)]
pub(super) struct SourceLimit {
    sources: BTreeMap<IpAddr, Allowance>,
}

#[derive(Debug, Clone, Copy)]
struct Allowance {
    left: f64,
    at: Instant,
}

impl SourceLimit {
    /// Whether an address has something left; takes one from it.
    pub(super) fn admit(&mut self, source: IpAddr, now: Instant) -> bool {
        let source = network(source);
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            let refilled = Duration::from_secs(u64::from(BURST / PER_SECOND));
            self.sources.retain(|_, allowance| now.saturating_duration_since(allowance.at) < refilled);
            if self.sources.len() >= MAX_SOURCES {
                return true;
            }
        }
        let allowance = self.sources.entry(source).or_insert(Allowance { left: f64::from(BURST), at: now });
        let earned = now.saturating_duration_since(allowance.at).as_secs_f64() * f64::from(PER_SECOND);
        allowance.left = (allowance.left + earned).min(f64::from(BURST));
        allowance.at = now;
        if allowance.left < 1.0 {
            return false;
        }
        allowance.left -= 1.0;
        true
    }
}

/// One host has a whole IPv6 /64.
fn network(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_has_its_own_allowance_which_comes_back() {
        let now = Instant::now();
        let mut limit = SourceLimit::default();
        let admitted = |limit: &mut SourceLimit, source: &str, now| {
            (0..1000).filter(|_| limit.admit(source.parse().unwrap(), now)).count()
        };
        assert_eq!(admitted(&mut limit, "192.0.2.1", now), 100);
        assert_eq!(admitted(&mut limit, "192.0.2.2", now), 100);
        assert_eq!(admitted(&mut limit, "2001:db8::1", now), 100);
        assert_eq!(admitted(&mut limit, "2001:db8::2", now), 0);
        assert_eq!(admitted(&mut limit, "192.0.2.1", now + Duration::from_secs(1)), 20);
    }

    #[test]
    fn many_sources_are_forgotten_when_they_are_quiet() {
        let now = Instant::now();
        let mut limit = SourceLimit::default();
        for number in 0..100_000u32 {
            limit.admit(IpAddr::V4(number.into()), now + Duration::from_millis(u64::from(number)));
            assert!(limit.sources.len() <= MAX_SOURCES);
        }
        assert!(limit.sources.len() > 1);
    }
}
