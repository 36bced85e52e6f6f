//! The text of `meshctl netcheck`.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use mesh_proto::{
    candidate::CandidateKind,
    netreport::{Filtering, Ipv6Report, NetReport, Reach},
    status::{FamilyState, NatLifetime},
};

use super::{
    table::{coordinator, family, mapping, port_mapping, relay},
    units,
};
use crate::portmap;

/// A clock that is this much off, in milliseconds, is said to be wrong: certificates and tokens are judged by hours, logs
/// are compared by seconds.
const CLOCK_TOLERANCE_MS: f64 = 1000.0;
/// And one that is this much off is a person's business at any time: Kubernetes' tokens and certificates are refused by hosts
/// that are a minute or more behind.
const CLOCK_WARNING_MS: f64 = 60_000.0;

/// Writes the text of `meshctl netcheck`.
#[must_use]
pub fn netcheck(report: &NetReport) -> String {
    let mut out = String::new();
    let mut line = |heading: &str, text: &str| {
        let _ = writeln!(out, "{heading:<14} {text}");
    };
    let nat = &report.nat;
    line("udp", if nat.status.udp_blocked { "blocked" } else { "works" });
    line("nat", mapping(nat.status.mapping));
    line("filtering", filtering(nat.filtering));
    line("lifetime", &lifetime(nat.status.lifetime));
    line("hairpin", known(nat.hairpin, ["yes", "no", "not applicable, or unknown"]));
    let mapped = nat.status.mapped_address.map(|address| {
        let note = if is_private(address) { ", behind another nat" } else { "" };
        format!(", {address}{note}")
    });
    let mapped = mapped.unwrap_or_default();
    line("port mapping", &format!("{}{mapped}", port_mapping(nat.status.port_mapping)));
    line("ipv4", family(nat.status.ipv4));
    line("ipv6", &ipv6(nat.status.ipv6, &report.ipv6));
    for (index, prefix) in nat.status.nat64.iter().enumerate() {
        line(if index == 0 { "nat64" } else { "" }, &prefix.to_string());
    }
    line("uplink mtu", &report.uplink_mtu.map_or_else(|| "unknown".to_owned(), |mtu| mtu.to_string()));
    line("coordinator", &coordinator(&report.coordinator));
    line("clock", &clock(report.clock_offset_ms));
    let portal =
        ["yes: somebody answers in the coordinator's place; sign in with a browser", "no", "unknown"];
    line("captive portal", known(report.captive_portal, portal));
    let proxy = report.proxy.as_ref().map(|proxy| {
        let use_of_it = if proxy.in_use { "in use" } else { "not in use" };
        format!("{}, {use_of_it}", proxy.url)
    });
    line("proxy", proxy.as_deref().unwrap_or("none"));
    line("relay", &relay(report.relay.as_ref()));
    for (index, relay) in report.relays.iter().enumerate() {
        let text = format!("{}: udp {}; tcp {}", relay.name, reach(&relay.udp), reach(&relay.tcp));
        line(if index == 0 { "relays" } else { "" }, &text);
    }
    for (index, seen) in report.observers.iter().enumerate() {
        let text = format!("{} sees {}, {}", seen.address, seen.mapped, units::millis(seen.rtt_ms));
        line(if index == 0 { "observers" } else { "" }, &text);
    }
    for (index, candidate) in report.candidates.iter().enumerate() {
        let text = format!("{} ({})", candidate.address, kind(candidate.kind));
        line(if index == 0 { "candidates" } else { "" }, &text);
    }
    out
}

fn filtering(filtering: Filtering) -> &'static str {
    match filtering {
        Filtering::Eif => "endpoint-independent (eif)",
        Filtering::Adf => "address-dependent (adf)",
        Filtering::Apdf => "address- and port-dependent (apdf)",
        Filtering::EifOrAdf => "endpoint-independent or address-dependent (eif or adf)",
        Filtering::AdfOrApdf => "address-dependent, perhaps port-dependent (adf or apdf)",
        Filtering::None => "none",
        Filtering::Unknown => "unknown",
    }
}

fn kind(kind: CandidateKind) -> &'static str {
    match kind {
        CandidateKind::Host => "host",
        CandidateKind::PortMapped => "port-mapped",
        CandidateKind::Reflexive => "reflexive",
        CandidateKind::Guess => "guess",
        CandidateKind::Unknown => "unknown",
    }
}

fn ipv6(state: FamilyState, report: &Ipv6Report) -> String {
    let measured = known(report.reachable, ["works", "does not get out", family(state)]);
    match report.address {
        Some(address) => format!("{measured}, {address}"),
        None => format!("{measured}, no global address"),
    }
}

fn reach(reach: &Reach) -> String {
    match (reach.reachable, reach.rtt_ms) {
        (Some(true), Some(rtt)) => format!("answers in {}", units::millis(rtt)),
        (Some(true), None) => "answers".to_owned(),
        (Some(false), _) => "does not answer".to_owned(),
        (None, _) => "has no known address".to_owned(),
    }
}

fn clock(offset_ms: Option<f64>) -> String {
    let Some(offset) = offset_ms else { return "unknown".to_owned() };
    let side = if offset < 0.0 { "ahead of" } else { "behind" };
    let note = if offset.abs() > CLOCK_TOLERANCE_MS { ": set it" } else { "" };
    format!("{} {side} the coordinator's{note}", units::span(offset.abs() / 1e3))
}

/// Says that this host's clock and the coordinator's are far apart; which of them is wrong is not known here.
pub(super) fn clock_warning(offset_ms: Option<f64>) -> Option<String> {
    let offset = offset_ms.filter(|offset| offset.abs() >= CLOCK_WARNING_MS)?;
    let side = if offset < 0.0 { "ahead of" } else { "behind" };
    let apart = units::span(offset.abs() / 1e3);
    Some(format!(
        "this host's clock is {apart} {side} the coordinator's: set the one that is wrong; the mesh works, but certificates and tokens may be refused"
    ))
}

fn known(value: Option<bool>, [yes, no, unknown]: [&'static str; 3]) -> &'static str {
    match value {
        Some(true) => yes,
        Some(false) => no,
        None => unknown,
    }
}

/// Whether a router that has this address is behind a NAT itself.
fn is_private(address: SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V4(v4) => portmap::is_private(v4),
        IpAddr::V6(_) => false,
    }
}

/// How long mappings live that nobody uses.
fn lifetime(known: NatLifetime) -> String {
    let bounds = match (known.outlived_s, known.exceeded_s) {
        (Some(more), Some(less)) => format!("more than {more}s, less than {less}s"),
        (Some(more), None) => format!("more than {more}s"),
        (None, Some(less)) => format!("less than {less}s"),
        (None, None) => "not measured yet".to_owned(),
    };
    let kept = known.keepalive_s.map(|seconds| format!("; kept by a datagram each {seconds}s"));
    bounds + &kept.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        netreport::{NatReport, ObserverReport, ProxyReport, RelayReport},
        status::PortMapping,
    };

    use super::*;
    use crate::view::document;

    fn report() -> NetReport {
        let this = document().this;
        NetReport {
            nat: NatReport { status: this.nat, filtering: Filtering::Apdf, hairpin: Some(false) },
            candidates: this.candidates,
            coordinator: this.coordinator,
            relay: this.relay,
            relays: vec![RelayReport {
                name: "pi".into(),
                udp: Reach {
                    reachable: Some(true),
                    address: Some("203.0.113.1:7443".parse().unwrap()),
                    rtt_ms: Some(8.0),
                },
                tcp: Reach::default(),
            }],
            observers: vec![ObserverReport {
                address: "203.0.113.1:7443".parse().unwrap(),
                mapped: "198.51.100.2:40000".parse().unwrap(),
                rtt_ms: 8.0,
            }],
            ipv6: Ipv6Report::default(),
            captive_portal: None,
            proxy: Some(ProxyReport { url: "http://proxy:3128".into(), in_use: false }),
            clock_offset_ms: Some(-2500.0),
            uplink_mtu: Some(1492),
        }
    }

    #[test]
    fn a_report_is_read_line_by_line() {
        let text = netcheck(&report());
        for expected in [
            "udp            works\n",
            "nat            endpoint-independent mapping (eim)\n",
            "filtering      address- and port-dependent (apdf)\n",
            "lifetime       more than 100s, less than 160s; kept by a datagram each 80s\n",
            "hairpin        no\n",
            "port mapping   none\n",
            "ipv6           not answered, no global address\n",
            "uplink mtu     1492\n",
            "clock          2.50s ahead of the coordinator's: set it\n",
            "captive portal unknown\n",
            "proxy          http://proxy:3128, not in use\n",
            "relays         pi: udp answers in 8.00ms; tcp has no known address\n",
            "observers      203.0.113.1:7443 sees 198.51.100.2:40000, 8.00ms\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn a_netcheck_shows_where_the_port_is_mapped() {
        let mut report = report();
        report.nat.status.port_mapping = PortMapping::Upnp;
        report.nat.status.mapped_address = Some("203.0.113.1:51820".parse().unwrap());
        assert!(netcheck(&report).contains("\nport mapping   upnp, 203.0.113.1:51820\n"));
        report.nat.status.mapped_address = Some("100.64.0.1:51820".parse().unwrap());
        assert!(netcheck(&report).contains("\nport mapping   upnp, 100.64.0.1:51820, behind another nat\n"));
    }
}
