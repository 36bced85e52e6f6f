//! The reference model: which pairs of hosts can be connected, and which directly.
//!
//! It looks at the underlay's configuration alone, never at an engine. Its answers follow the matrix of 81 pairs of NAT
//! types: plain simultaneous probing with adopted peer-reflexive addresses makes 73 of them direct. The other 8 have
//! address-and-port-dependent filtering on both sides and a mapping that varies on at least one: neither side can name
//! the port that the other will open.

use crate::net::{
    EarlyProbe, Filtering, Hairpin, HostId, INTERNET, Mapping, NatId, NatType, Net, PortChoice,
};

/// Whether a pair can have a direct path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direct {
    /// Plain probing finds one.
    Yes,
    /// None exists, or none that plain probing finds.
    No,
    /// Depends on timing or luck: either is right.
    Maybe,
}

/// Decides whether plain simultaneous probing makes a pair of single NATs direct.
pub(crate) fn plain_pair_is_direct(a: NatType, b: NatType) -> bool {
    let both_filter_ports = a.filtering == Filtering::Apdf && b.filtering == Filtering::Apdf;
    let both_map_alike = a.mapping == Mapping::Eim && b.mapping == Mapping::Eim;
    !both_filter_ports || both_map_alike
}

/// Decides whether many sockets on one side and many ports on the other make a pair direct that plain probing does not.
pub(crate) fn is_punchable(sides: [NatType; 2]) -> bool {
    sides.iter().any(|side| side.mapping == Mapping::Eim)
}

/// Decides whether two attached hosts can have a direct path.
pub(crate) fn direct(net: &Net, a: HostId, b: HostId) -> Direct {
    let (Some((realm_a, _)), Some((realm_b, _))) = (net.place(a), net.place(b)) else {
        return Direct::No;
    };
    if realm_a == realm_b && realm_a != INTERNET {
        return Direct::Yes;
    }
    let is_cut = match (net.uplink_of(a), net.uplink_of(b)) {
        (Some(up_a), Some(up_b)) => net.is_cut(up_a, up_b),
        (None, _) | (_, None) => true,
    };
    if net.address_v6(a).is_some() && net.address_v6(b).is_some() && !is_cut {
        return Direct::Yes;
    }
    let (above_a, above_b) = (net.nats_above(realm_a), net.nats_above(realm_b));
    let shared = above_a.iter().copied().find(|nat| above_b.contains(nat));
    match shared {
        Some(nat) if net.profile(nat).hairpin == Hairpin::Off => {
            // Behind one NAT that does not turn traffic round: only a host that stands right inside it can be named.
            let right_inside = |host, above: &[NatId]| above.first() == Some(&nat) && !net.has_firewall(host);
            if right_inside(a, &above_a) || right_inside(b, &above_b) { Direct::Yes } else { Direct::Maybe }
        }
        Some(_) | None => {
            let cut = shared.is_none() && is_cut;
            let sides = [(a, &above_a), (b, &above_b)].map(|(host, above)| effective_type(net, host, above));
            let surprising = above_a
                .iter()
                .chain(&above_b)
                .any(|nat| net.profile(*nat).early_probe == EarlyProbe::TakesPort);
            // The port of a new mapping is the inside port, if that is free: it can be guessed.
            let guessable = |nat: &NatId| {
                let profile = net.profile(*nat);
                profile.ports == PortChoice::Preserving && profile.kind.mapping != Mapping::Eim
            };
            let certain =
                above_a.len() <= 1 && above_b.len() <= 1 && !above_a.iter().chain(&above_b).any(guessable);
            let sequential = above_a
                .iter()
                .chain(&above_b)
                .any(|nat| matches!(net.profile(*nat).ports, PortChoice::Sequential(_)));
            let firewalled = net.has_firewall(a) || net.has_firewall(b);
            match (cut, plain_pair_is_direct(sides[0], sides[1])) {
                (true, _) => Direct::No,
                (false, true) if surprising => Direct::Maybe,
                (false, true) => Direct::Yes,
                (false, false)
                    if certain && !firewalled && !surprising && !is_punchable(sides) && !sequential =>
                {
                    Direct::No
                }
                (false, false) => Direct::Maybe,
            }
        }
    }
}

/// The type that a host's whole way to the internet has: as strict as its strictest part.
///
/// To a NAT that filters, another NAT below it that maps by destination is many inside endpoints, one for each
/// destination. What is let in for one of them is not let in for the one that others know: that is as strict as
/// filtering by port.
fn effective_type(net: &Net, host: HostId, above: &[NatId]) -> NatType {
    let firewall = if net.has_firewall(host) { Filtering::Apdf } else { Filtering::Eif };
    let open = NatType { mapping: Mapping::Eim, filtering: firewall };
    above.iter().map(|nat| net.profile(*nat).kind).fold(open, |below, nat| {
        let filtering = match nat.filtering {
            Filtering::Adf if below.mapping != Mapping::Eim => Filtering::Apdf,
            as_it_is => as_it_is,
        };
        NatType { mapping: below.mapping.max(nat.mapping), filtering: below.filtering.max(filtering) }
    })
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::{IpAddr, SocketAddr},
        time::Duration,
    };

    use super::*;
    use crate::{
        net::{LinkProfile, NatProfile, Outgoing},
        rng::Rng,
    };

    const PROBE_INTERVAL: Duration = Duration::from_millis(50);
    const ROUNDS: u32 = 12;
    const PORT: u16 = 51820;

    /// An agent that probes the other's advertised address, answers, and adopts peer-reflexive addresses.
    struct Agent {
        host: HostId,
        remotes: BTreeSet<SocketAddr>,
        answered: bool,
    }

    fn outgoing(host: HostId, destination: SocketAddr, len: usize) -> Outgoing {
        Outgoing { host, port: PORT, destination, bytes: vec![0; len] }
    }

    fn observed(net: &mut Net, host: HostId, stun: SocketAddr) -> SocketAddr {
        let (due, flight) = net.send(outgoing(host, stun, 0), Duration::ZERO).unwrap();
        net.arrive(flight, due).unwrap().source
    }

    /// Sends a datagram and returns what the other agent saw.
    fn exchange(net: &mut Net, from: HostId, to: SocketAddr, now: Duration) -> Option<(HostId, SocketAddr)> {
        let (due, flight) = net.send(outgoing(from, to, 100), now).ok()?;
        let delivery = net.arrive(flight, due).ok()?;
        Some((delivery.host, delivery.source))
    }

    fn becomes_direct(a: NatType, b: NatType) -> bool {
        let mut net = Net::new(Rng::new(81));
        let link = LinkProfile::clean(Duration::from_micros(1));
        let uplink = net.add_uplink(link);
        let server = net.add_host(None);
        let stun: IpAddr = [203, 0, 113, 1].into();
        net.attach(server, INTERNET, stun, Some(uplink));
        let mut agents = [(a, 1), (b, 2)].map(|(kind, number)| {
            let uplink = net.add_uplink(link);
            let wan = IpAddr::from([198, 51, 100, number]);
            let (_, lan) = net.add_nat(NatProfile::new(kind), INTERNET, wan, Some(uplink));
            let host = net.add_host(None);
            net.attach(host, lan, IpAddr::from([192, 168, number, 10]), None);
            Agent { host, remotes: BTreeSet::new(), answered: false }
        });
        let advertised = agents.each_ref().map(|agent| observed(&mut net, agent.host, (stun, 7443).into()));
        agents[0].remotes.insert(advertised[1]);
        agents[1].remotes.insert(advertised[0]);
        for round in 0..ROUNDS {
            let now = Duration::from_millis(1) + round * PROBE_INTERVAL;
            for (me, other) in [(0, 1), (1, 0)] {
                for remote in agents[me].remotes.clone() {
                    let Some((seen_by, source)) = exchange(&mut net, agents[me].host, remote, now) else {
                        continue;
                    };
                    assert_eq!(seen_by, agents[other].host);
                    agents[other].remotes.insert(source);
                    let answer = exchange(&mut net, agents[other].host, source, now);
                    agents[me].answered |= answer.is_some_and(|(host, _)| host == agents[me].host);
                }
            }
        }
        agents.iter().all(|agent| agent.answered)
    }

    #[test]
    fn the_modelled_nats_agree_with_the_matrix_of_81_pairs() {
        let pairs = || NatType::ALL.into_iter().flat_map(|a| NatType::ALL.map(|b| (a, b)));
        for (a, b) in pairs() {
            assert_eq!(becomes_direct(a, b), plain_pair_is_direct(a, b), "{a:?} with {b:?}");
        }
        assert_eq!(pairs().filter(|(a, b)| plain_pair_is_direct(*a, *b)).count(), 73);
    }
}
