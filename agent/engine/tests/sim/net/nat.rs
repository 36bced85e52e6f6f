//! A NAT: the nine types of RFC 4787, with timers, hairpinning and port choice.
//!
//! Mapping says which external port a datagram leaves by: one for each inside endpoint (EIM), for each of its remote
//! addresses (ADM), or for each of its remote endpoints (APDM). Filtering says what may come in at that port: anything
//! (EIF), what comes from an address that the inside endpoint has sent to (ADF), or what belongs to a session that it
//! opened (APDF).
//!
//! As in a real connection tracker, replies to what came in leave by the port at which it came in, also where the
//! mapping would choose another. Without that, 24 of the 81 pairs of types that work in practice would not.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::rng::Rng;

/// Ports that are handed out where the inside port is not kept.
const DYNAMIC_PORTS: std::ops::Range<u64> = 1024..65_536;

/// After so many outbound datagrams, what has expired is thrown away.
const PURGE_INTERVAL: u32 = 4096;

/// Mapping behaviour (RFC 4787, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mapping {
    Eim,
    Adm,
    Apdm,
}

/// Filtering behaviour (RFC 4787, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Filtering {
    Eif,
    Adf,
    Apdf,
}

/// What a NAT is called.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NatType {
    pub(crate) mapping: Mapping,
    pub(crate) filtering: Filtering,
}

/// What keeps a mapping alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refresh {
    Outbound,
    Both,
}

/// How external ports are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortChoice {
    /// The inside port, where it is free.
    Preserving,
    /// Any.
    Random,
    /// The one at this distance from the last.
    Sequential(i16),
}

/// Whether inside hosts reach each other by their outside addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hairpin {
    Off,
    On,
}

/// What a probe does that comes before the inside has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EarlyProbe {
    /// Nothing.
    Dropped,
    /// It takes the port for its source, so that the inside's own probe to there leaves by another (Linux without an
    /// INPUT drop).
    TakesPort,
}

/// All that a NAT can be configured to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NatProfile {
    pub(crate) kind: NatType,
    pub(crate) timeout: Duration,
    pub(crate) refresh: Refresh,
    pub(crate) ports: PortChoice,
    pub(crate) hairpin: Hairpin,
    pub(crate) early_probe: EarlyProbe,
}

/// A NAT and its state.
#[derive(Debug)]
pub(crate) struct Nat {
    pub(crate) profile: NatProfile,
    rng: Rng,
    mappings: BTreeMap<MappingKey, u16>,
    ports: BTreeMap<u16, PortUse>,
    sessions: BTreeMap<(SocketAddr, SocketAddr), Session>,
    taken: BTreeMap<(u16, SocketAddr), Duration>,
    until_purge: u32,
    last_port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct MappingKey {
    inside: SocketAddr,
    remote_address: Option<IpAddr>,
    remote_port: Option<u16>,
}

#[derive(Debug)]
struct PortUse {
    inside: SocketAddr,
    used: Duration,
}

#[derive(Debug)]
struct Session {
    port: u16,
    used: Duration,
}

impl NatType {
    /// The nine types, as the matrix of nat.md orders them.
    pub(crate) const ALL: [Self; 9] = {
        use Filtering::{Adf, Apdf, Eif};
        use Mapping::{Adm, Apdm, Eim};
        [
            Self { mapping: Eim, filtering: Eif },
            Self { mapping: Eim, filtering: Adf },
            Self { mapping: Eim, filtering: Apdf },
            Self { mapping: Adm, filtering: Eif },
            Self { mapping: Adm, filtering: Adf },
            Self { mapping: Adm, filtering: Apdf },
            Self { mapping: Apdm, filtering: Eif },
            Self { mapping: Apdm, filtering: Adf },
            Self { mapping: Apdm, filtering: Apdf },
        ]
    };
}

impl std::fmt::Debug for NatType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}x{:?}", self.mapping, self.filtering)
    }
}

impl NatProfile {
    /// A NAT of this type that keeps ports, forgets after two minutes and does not hairpin.
    pub(crate) const fn new(kind: NatType) -> Self {
        Self {
            kind,
            timeout: Duration::from_secs(120),
            refresh: Refresh::Both,
            ports: PortChoice::Preserving,
            hairpin: Hairpin::Off,
            early_probe: EarlyProbe::Dropped,
        }
    }
}

impl Nat {
    /// Makes a NAT without any mapping.
    pub(crate) fn new(profile: NatProfile, mut rng: Rng) -> Self {
        Self {
            last_port: u16::try_from(rng.range(DYNAMIC_PORTS)).expect("ports have 16 bits"),
            profile,
            rng,
            mappings: BTreeMap::new(),
            ports: BTreeMap::new(),
            sessions: BTreeMap::new(),
            taken: BTreeMap::new(),
            until_purge: PURGE_INTERVAL,
        }
    }

    /// Forgets every mapping.
    pub(crate) fn reboot(&mut self) {
        self.mappings.clear();
        self.ports.clear();
        self.sessions.clear();
        self.taken.clear();
    }

    /// Sends a datagram out and returns the external port that it leaves by.
    pub(crate) fn send_out(&mut self, inside: SocketAddr, remote: SocketAddr, now: Duration) -> u16 {
        self.purge_sometimes(now);
        let live = |used: Duration, timeout: Duration| now.saturating_sub(used) < timeout;
        let timeout = self.profile.timeout;
        let port = match self.sessions.get(&(inside, remote)) {
            Some(session) if live(session.used, timeout) && self.is_mapped(session.port, inside, now) => {
                session.port
            }
            Some(_) | None => self.port_for(inside, remote, now),
        };
        self.sessions.insert((inside, remote), Session { port, used: now });
        self.ports.insert(port, PortUse { inside, used: now });
        port
    }

    /// Takes a datagram in at an external port and returns the inside endpoint that it goes to, if it may.
    pub(crate) fn take_in(&mut self, port: u16, remote: SocketAddr, now: Duration) -> Option<SocketAddr> {
        let admitted = self.admit(port, remote, now);
        let Some(inside) = admitted else {
            if self.profile.early_probe == EarlyProbe::TakesPort {
                self.taken.insert((port, remote), now);
            }
            return None;
        };
        let refreshes = self.profile.refresh == Refresh::Both;
        let session = self.sessions.entry((inside, remote)).or_insert(Session { port, used: now });
        session.port = port;
        if refreshes {
            session.used = now;
            self.ports.insert(port, PortUse { inside, used: now });
        }
        Some(inside)
    }

    /// Decides whether a datagram may come in, and where it goes.
    pub(crate) fn admit(&self, port: u16, remote: SocketAddr, now: Duration) -> Option<SocketAddr> {
        let inside = self.ports.get(&port)?.inside;
        if !self.is_mapped(port, inside, now) {
            return None;
        }
        let live = |session: &Session| now.saturating_sub(session.used) < self.profile.timeout;
        let admitted = match self.profile.kind.filtering {
            Filtering::Eif => true,
            Filtering::Adf => {
                let (first, last) = (SocketAddr::new(remote.ip(), 0), SocketAddr::new(remote.ip(), u16::MAX));
                self.sessions.range((inside, first)..=(inside, last)).any(|(_, session)| live(session))
            }
            Filtering::Apdf => self
                .sessions
                .get(&(inside, remote))
                .is_some_and(|session| session.port == port && live(session)),
        };
        admitted.then_some(inside)
    }

    fn port_for(&mut self, inside: SocketAddr, remote: SocketAddr, now: Duration) -> u16 {
        let key = match self.profile.kind.mapping {
            Mapping::Eim => MappingKey { inside, remote_address: None, remote_port: None },
            Mapping::Adm => MappingKey { inside, remote_address: Some(remote.ip()), remote_port: None },
            Mapping::Apdm => {
                MappingKey { inside, remote_address: Some(remote.ip()), remote_port: Some(remote.port()) }
            }
        };
        let mapped = self.mappings.get(&key).copied().filter(|port| self.is_mapped(*port, inside, now));
        let port = mapped.unwrap_or_else(|| {
            let port = self.free_port(inside, now);
            self.mappings.insert(key, port);
            port
        });
        let taken = self
            .taken
            .get(&(port, remote))
            .is_some_and(|seen| now.saturating_sub(*seen) < self.profile.timeout);
        if taken { self.random_port(now) } else { port }
    }

    fn free_port(&mut self, inside: SocketAddr, now: Duration) -> u16 {
        match self.profile.ports {
            PortChoice::Preserving if self.is_free(inside.port(), now) => inside.port(),
            PortChoice::Preserving | PortChoice::Random => self.random_port(now),
            PortChoice::Sequential(step) => self.next_port(step, now),
        }
    }

    fn next_port(&mut self, step: i16, now: Duration) -> u16 {
        loop {
            self.last_port = self.last_port.wrapping_add(step.cast_unsigned());
            if self.last_port != 0 && self.is_free(self.last_port, now) {
                return self.last_port;
            }
        }
    }

    fn random_port(&mut self, now: Duration) -> u16 {
        loop {
            let port = u16::try_from(self.rng.range(DYNAMIC_PORTS)).expect("ports have 16 bits");
            if self.is_free(port, now) {
                return port;
            }
        }
    }

    fn is_free(&self, port: u16, now: Duration) -> bool {
        self.ports.get(&port).is_none_or(|held| now.saturating_sub(held.used) >= self.profile.timeout)
    }

    fn is_mapped(&self, port: u16, inside: SocketAddr, now: Duration) -> bool {
        !self.is_free(port, now) && self.ports.get(&port).is_some_and(|held| held.inside == inside)
    }

    fn purge_sometimes(&mut self, now: Duration) {
        self.until_purge -= 1;
        if self.until_purge > 0 {
            return;
        }
        self.until_purge = PURGE_INTERVAL;
        let live = |used: Duration| now.saturating_sub(used) < self.profile.timeout;
        self.ports.retain(|_, held| live(held.used));
        self.sessions.retain(|_, session| live(session.used));
        self.taken.retain(|_, seen| live(*seen));
        let ports = &self.ports;
        self.mappings.retain(|_, port| ports.contains_key(port));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, host], port))
    }

    fn inside() -> SocketAddr {
        SocketAddr::from(([192, 168, 1, 10], 51820))
    }

    fn nat(profile: NatProfile) -> Nat {
        Nat::new(profile, Rng::new(7))
    }

    #[test]
    fn all_nine_types_map_and_filter_as_rfc_4787_words_it() {
        for kind in NatType::ALL {
            let mut nat = nat(NatProfile::new(kind));
            let port = nat.send_out(inside(), at(1, 1), SECOND);
            let admitted =
                [at(1, 1), at(1, 2), at(2, 1)].map(|remote| nat.admit(port, remote, SECOND).is_some());
            let filtering = match admitted {
                [true, true, true] => Filtering::Eif,
                [true, true, false] => Filtering::Adf,
                [true, false, false] => Filtering::Apdf,
                other => panic!("{kind:?} admits {other:?}"),
            };
            let ports = [at(1, 2), at(2, 1)].map(|remote| nat.send_out(inside(), remote, SECOND) == port);
            let mapping = match ports {
                [true, true] => Mapping::Eim,
                [true, false] => Mapping::Adm,
                [false, false] => Mapping::Apdm,
                other => panic!("{kind:?} maps {other:?}"),
            };
            assert_eq!(NatType { mapping, filtering }, kind);
            assert_eq!(nat.send_out(inside(), at(1, 1), SECOND), port, "a session keeps its port");
        }
    }

    #[test]
    fn mappings_expire_and_what_refreshes_them_is_configured() {
        for (refresh, alive) in [(Refresh::Both, true), (Refresh::Outbound, false)] {
            let profile = NatProfile { refresh, timeout: 30 * SECOND, ..NatProfile::new(NatType::ALL[2]) };
            let mut nat = nat(profile);
            let port = nat.send_out(inside(), at(1, 1), SECOND);
            assert_eq!(nat.take_in(port, at(1, 1), 25 * SECOND), Some(inside()));
            assert_eq!(nat.take_in(port, at(1, 1), 50 * SECOND).is_some(), alive);
            assert_eq!(nat.take_in(port, at(1, 1), 90 * SECOND), None);
        }
    }

    #[test]
    fn a_reboot_forgets_and_random_ports_move() {
        let profile = NatProfile { ports: PortChoice::Random, ..NatProfile::new(NatType::ALL[0]) };
        let mut nat = nat(profile);
        let port = nat.send_out(inside(), at(1, 1), SECOND);
        nat.reboot();
        assert_eq!(nat.take_in(port, at(1, 1), SECOND), None);
        assert_ne!(nat.send_out(inside(), at(1, 1), SECOND), port);
    }

    #[test]
    fn ports_are_preserved_while_they_are_free() {
        let mut nat = nat(NatProfile::new(NatType::ALL[0]));
        let neighbour = SocketAddr::from(([192, 168, 1, 11], 51820));
        assert_eq!(nat.send_out(inside(), at(1, 1), SECOND), 51820);
        assert_ne!(nat.send_out(neighbour, at(1, 1), SECOND), 51820);
    }

    #[test]
    fn replies_leave_by_the_port_at_which_the_question_came() {
        let mut nat = nat(NatProfile::new(NatType::ALL[7]));
        let port = nat.send_out(inside(), at(1, 1), SECOND);
        let other = nat.send_out(inside(), at(2, 1), SECOND);
        assert_ne!(port, other);
        assert_eq!(nat.take_in(port, at(2, 1), SECOND), Some(inside()));
        assert_eq!(nat.send_out(inside(), at(2, 1), SECOND), port);
    }

    #[test]
    fn an_early_probe_takes_the_port_from_the_answer() {
        let profile = NatProfile { early_probe: EarlyProbe::TakesPort, ..NatProfile::new(NatType::ALL[2]) };
        let mut nat = nat(profile);
        let port = nat.send_out(inside(), at(1, 1), SECOND);
        assert_eq!(nat.take_in(port, at(2, 1), SECOND), None);
        assert_ne!(nat.send_out(inside(), at(2, 1), SECOND), port);
        assert_eq!(nat.send_out(inside(), at(3, 1), SECOND), port);
    }
}
