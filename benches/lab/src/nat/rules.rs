//! A NAT profile written as an nftables script.
//!
//! Two things make all nine types from one template:
//! - the map `port_of` is learned *after* source translation and so is right for every way of mapping; packets from
//!   new senders are translated back by it;
//! - where ports are kept, the sets `owners` and `taken` see to it that no two hosts are given one port;
//! - the set `contacts` holds, per inside endpoint, the addresses it has sent to: the filtering state in the words of RFC 4787.
//!
//! `nft` 1.0.6 has quirks that shape the text: a newline must stand before `}`, and `iifname` never matches in postrouting.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;

use super::{
    Allocator, EVERY_PORT, EarlyProbe, Egress, Filtering, Hairpin, Mapping, Nat, Protocol, Refresh, Step,
};

/// Where a router stands.
#[derive(Debug, Clone)]
pub struct Place {
    /// The outside address.
    pub outside: Ipv4Addr,
    /// The network inside.
    pub inside: Ipv4Net,
    /// Addresses of the hosts that ports are forwarded to, in the order of [`Nat::forwards`].
    pub forwards: Vec<Ipv4Addr>,
    /// The IPv6 side, if the site has one.
    pub v6: Option<PlaceV6>,
    /// The network that the outside address is in, and its router, if the site stands behind another.
    pub uplink: Option<(Ipv4Net, Ipv4Addr)>,
}

/// The IPv6 side of a router, which translates nothing.
#[derive(Debug, Clone, Copy)]
pub struct PlaceV6 {
    /// The address on the access line.
    pub outside: Ipv6Addr,
    /// The address on the LAN, a /64.
    pub gateway: Ipv6Addr,
    /// What is let in.
    pub filter: FilterV6,
}

/// What a router lets in over IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterV6 {
    /// Answers only.
    Stateful,
    /// Everything.
    Open,
}

/// The interface towards the internet, on every router.
pub const OUTSIDE_INTERFACE: &str = "wan";

/// Borne by packets from outside that a port mapping daemon on the router has let in.
pub(crate) const MAPPED_MARK: u32 = 0x6d61;

/// Borne by connections that came to a port that the NAT itself has given to a host: for those its filter alone holds.
const LEARNED_MARK: u32 = 0x6c65;

/// First port, and number of ports, of the range from which symmetric mappings are drawn.
const SYMMETRIC_PORTS: (u16, u16) = (30_000, 20_000);

/// The same for hosts whose own port another one has: nobody's own ports are there.
const DRAWN_PORTS: (u16, u16) = (10_000, 20_000);

/// Such a port is drawn by these, one after the other, until one is found that nobody has.
const DRAWS: [u32; 3] = [0xbeef, 0xcafe, 0xf00d];

/// For how long a drawn port is its host's: longer than a test.
const DRAWN_SECONDS: u32 = 3600;

/// After so many, ports that count on begin anew: more than a test opens.
const SEQUENCE_LEN: u16 = 4096;

/// Writes the whole rule set, which replaces what was loaded before.
pub fn script(nat: &Nat, place: &Place) -> String {
    let mut out = String::from("flush ruleset\n");
    if nat.allocator != Allocator::Routed {
        translation(&mut out, nat, place);
        input(&mut out, nat.early_probe);
    }
    egress(&mut out, nat.egress);
    if place.v6.is_some_and(|v6| v6.filter == FilterV6::Stateful) {
        out.push_str(
            "table ip6 filter {\n chain f {\n  type filter hook forward priority 0; policy accept;\n  \
             iifname \"wan\" ct state established,related accept\n  iifname \"wan\" drop\n }\n}\n",
        );
    }
    out
}

/// The table that translates and filters IPv4.
fn translation(out: &mut String, nat: &Nat, place: &Place) {
    out.push_str("table ip nat {\n");
    state(out, nat);
    draw(out, nat, place);
    prerouting(out, nat, place);
    postrouting(out, nat, place);
    learn(out, nat);
    forward(out, nat, place);
    out.push_str("}\n");
}

/// Notes which inside endpoint has which outside port, by what has been translated. Where the first packet came from
/// outside, the inside endpoint is who answers. What keeps a connection tracked keeps its port, or the kernel would give
/// that port to another host and then find it taken, for some destinations alone.
fn learn(out: &mut String, nat: &Nat) {
    out.push_str(" chain learn {\n  type filter hook postrouting priority 300; policy accept;\n");
    for direction in ["original", "reply"] {
        let outbound = format!("  oifname \"wan\" meta l4proto udp ct direction {direction}");
        note(out, nat, &outbound, "udp sport", direction);
    }
    out.push_str(" }\n");
    if nat.refresh == Refresh::Any {
        out.push_str(" chain refresh {\n  type filter hook prerouting priority mangle; policy accept;\n");
        for (direction, other) in [("original", "reply"), ("reply", "original")] {
            let inbound =
                format!("  iifname \"wan\" meta l4proto udp ct state established ct direction {direction}");
            note(out, nat, &inbound, "udp dport", other);
        }
        out.push_str(" }\n");
    }
}

/// Notes of packets that match: `port` is the outside one, and its owner's packets go in the direction of `owner`.
fn note(out: &mut String, nat: &Nat, packets: &str, port: &str, owner: &str) {
    let inside = format!("ct {owner} ip saddr . ct {owner} proto-src");
    let _ = writeln!(out, "{packets} update @port_of {{ {port} : {inside} }}");
    if keeps_ports(nat) {
        let _ = writeln!(out, "{packets} update @owners {{ {port} . {inside} }}");
        let _ = writeln!(out, "{packets} update @taken {{ {port} }}");
    }
}

/// Whether ports stay what they are inside, unless another host has the same one: then that host's port is drawn.
fn keeps_ports(nat: &Nat) -> bool {
    nat.allocator == Allocator::Typed && nat.kind.mapping == Mapping::Eim
}

/// The set and the map, whose entries live as long as a mapping.
fn state(out: &mut String, nat: &Nat) {
    let seconds = nat.udp_timeout.as_secs();
    let tail = format!("  flags dynamic,timeout\n  timeout {seconds}s\n  size 65536\n }}\n");
    let _ = write!(
        out,
        " map port_of {{\n  type inet_service : ipv4_addr . inet_service\n{tail} set contacts {{\n  \
         type ipv4_addr . inet_service . ipv4_addr\n{tail}"
    );
    if keeps_ports(nat) {
        let _ = write!(
            out,
            " set owners {{\n  type inet_service . ipv4_addr . inet_service\n{tail} set taken {{\n  type inet_service\n{tail}"
        );
    }
    if nat.refresh == Refresh::Outbound {
        let _ =
            write!(out, " set sent {{\n  type ipv4_addr . inet_service . ipv4_addr . inet_service\n{tail}");
    }
}

/// Gives a host a port of its own instead of the one that another host has. No number that nft computes can be compared to a
/// port: the sets hold marks.
fn draw(out: &mut String, nat: &Nat, place: &Place) {
    if !keeps_ports(nat) {
        return;
    }
    let tail = format!("  flags dynamic,timeout\n  timeout {DRAWN_SECONDS}s\n  size 65536\n }}\n");
    let _ = write!(
        out,
        " set draws {{\n  type mark\n{tail} set drawn {{\n  type mark . ipv4_addr . inet_service\n{tail} chain draw {{\n"
    );
    let (first, count) = DRAWN_PORTS;
    for seed in DRAWS {
        let port = format!("jhash ip saddr . udp sport mod {count} seed {seed} offset {first}");
        let owner = "meta mark . ip saddr . udp sport";
        let translate = format!("snat to {}:{port}", place.outside);
        let _ = write!(
            out,
            "  meta mark set {port}\n  {owner} @drawn {translate}\n  \
             meta mark != @draws update @draws {{ meta mark }} update @drawn {{ {owner} }} {translate}\n"
        );
    }
    out.push_str(" }\n");
}

fn prerouting(out: &mut String, nat: &Nat, place: &Place) {
    let outside = place.outside;
    // With hairpin, packets from inside to the outside address are translated back too.
    let from = match nat.hairpin {
        Hairpin::On => "",
        Hairpin::Off => "iifname \"wan\" ",
    };
    out.push_str(" chain pre {\n  type nat hook prerouting priority dstnat; policy accept;\n");
    for (forward, host) in nat.forwards.iter().zip(&place.forwards) {
        let protocol = name(forward.protocol);
        let _ = match forward.port {
            EVERY_PORT => {
                writeln!(out, "  {from}ip daddr {outside} meta l4proto {protocol} dnat to {host}")
            }
            port => {
                let to = forward.to;
                writeln!(out, "  {from}ip daddr {outside} {protocol} dport {port} dnat to {host}:{to}")
            }
        };
    }
    let _ = write!(
        out,
        "  {from}ip daddr {outside} meta l4proto udp ct mark set {LEARNED_MARK} dnat to udp dport map @port_of\n }}\n"
    );
}

fn postrouting(out: &mut String, nat: &Nat, place: &Place) {
    let Place { outside, inside, .. } = place;
    let (first, count) = SYMMETRIC_PORTS;
    out.push_str(" chain post {\n  type nat hook postrouting priority srcnat; policy accept;\n");
    if nat.hairpin == Hairpin::On {
        let _ = writeln!(out, "  ip saddr {inside} ip daddr {inside} ct status dnat snat to {outside}");
    }
    let udp = match (nat.allocator, nat.kind.mapping) {
        (Allocator::Masquerade, _) => "masquerade".to_owned(),
        (Allocator::Sequential(step), _) => format!("snat to {outside}:{}", sequence(step)),
        (Allocator::Typed | Allocator::Routed, Mapping::Eim) => format!("snat to {outside}"),
        (Allocator::Typed | Allocator::Routed, Mapping::Adm) => format!(
            "snat to {outside}:jhash ip saddr . udp sport . ip daddr mod {count} seed 0xfeed offset {first}"
        ),
        (Allocator::Typed | Allocator::Routed, Mapping::Apdm) => "masquerade fully-random".to_owned(),
    };
    if keeps_ports(nat) {
        // The kernel alone would give one port to several hosts, as long as they send to different destinations.
        let _ = write!(
            out,
            "  oifname \"wan\" udp sport . ip saddr . udp sport @owners snat to {outside}\n  \
             oifname \"wan\" udp sport @taken jump draw\n"
        );
    }
    let _ = writeln!(out, "  oifname \"wan\" meta l4proto udp {udp}");
    let _ = write!(out, "  oifname \"wan\" snat to {outside}\n }}\n");
}

/// An expression that gives ports in order. nft writes a bare number in the byte order of this machine, so a step of 1
/// becomes one of 256, with a carry of 1 after 256 of them; a map's values are ports as they should be.
fn sequence(step: Step) -> String {
    let (first, count) = SYMMETRIC_PORTS;
    let port = |number: u16| match step {
        Step::Up1 | Step::Up256 => first + number,
        Step::Up2 => first + 2 * number,
        Step::Down1 => first + count - number,
    };
    match step {
        Step::Up256 => format!("numgen inc mod {count} offset {first}"),
        Step::Up1 | Step::Up2 | Step::Down1 => {
            let ports: Vec<String> =
                (0..SEQUENCE_LEN).map(|number| format!("{number} : {}", port(number))).collect();
            format!("numgen inc mod {SEQUENCE_LEN} map {{ {} }}", ports.join(", "))
        }
    }
}

fn forward(out: &mut String, nat: &Nat, place: &Place) {
    out.push_str(
        " chain filt {\n  type filter hook forward priority 0; policy accept;\n  \
         oifname \"wan\" meta l4proto udp update @contacts { ip saddr . udp sport . ip daddr }\n",
    );
    if nat.refresh == Refresh::Outbound {
        // The tracked connection lives on by what comes in; this entry does not.
        out.push_str(
            "  oifname \"wan\" meta l4proto udp update @sent { ip saddr . udp sport . ip daddr . udp dport }\n  \
             iifname \"wan\" meta l4proto udp ip daddr . udp dport . ip saddr . udp sport != @sent drop\n",
        );
    }
    out.push_str("  iifname \"wan\" ct state established,related accept\n");
    for (forward, host) in nat.forwards.iter().zip(&place.forwards) {
        let protocol = name(forward.protocol);
        let _ = match forward.port {
            EVERY_PORT => {
                writeln!(out, "  iifname \"wan\" ip daddr {host} meta l4proto {protocol} accept")
            }
            _ => {
                writeln!(out, "  iifname \"wan\" ip daddr {host} {protocol} dport {} accept", forward.to)
            }
        };
    }
    let _ = writeln!(
        out,
        "  iifname \"wan\" meta mark {MAPPED_MARK} ct mark != {LEARNED_MARK} ct status dnat accept"
    );
    out.push_str(match nat.kind.filtering {
        Filtering::Eif => "  iifname \"wan\" meta l4proto udp ct status dnat accept\n",
        Filtering::Adf => "  iifname \"wan\" ip daddr . udp dport . ip saddr @contacts accept\n",
        Filtering::Apdf => "",
    });
    out.push_str("  iifname \"wan\" drop\n }\n");
}

/// Drops UDP that is for the router itself, which would otherwise be tracked and take the port.
fn input(out: &mut String, early_probe: EarlyProbe) {
    match early_probe {
        EarlyProbe::Dropped => out.push_str(
            "table ip inp {\n chain input {\n  type filter hook input priority 0; policy accept;\n  \
             iifname \"wan\" meta l4proto udp drop\n }\n}\n",
        ),
        EarlyProbe::MovesMapping => {}
    }
}

fn egress(out: &mut String, egress: Egress) {
    let rules = match egress {
        Egress::Open => return,
        Egress::NoUdp => "  oifname \"wan\" meta l4proto udp udp dport != 53 drop\n".to_owned(),
        Egress::OnlyTcp443 => {
            "  oifname \"wan\" udp dport 53 accept\n  oifname \"wan\" tcp dport 443 accept\n  oifname \"wan\" drop\n"
                .to_owned()
        }
        Egress::OnlyProxy(proxy) => format!(
            "  oifname \"wan\" ip daddr {} tcp dport {} accept\n  oifname \"wan\" drop\n",
            proxy.ip(),
            proxy.port()
        ),
        Egress::Portal(page) => {
            let _ = write!(
                out,
                "table ip portal {{\n chain pre {{\n  type nat hook prerouting priority -110; policy accept;\n  \
                 iifname \"lan\" meta l4proto tcp dnat to {page}\n }}\n}}\n"
            );
            "  oifname \"wan\" meta l4proto udp udp dport != 53 drop\n".to_owned()
        }
    };
    let _ = write!(
        out,
        "table inet egress {{\n chain f {{\n  type filter hook forward priority -10; policy accept;\n{rules} }}\n}}\n"
    );
}

fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Udp => "udp",
        Protocol::Tcp => "tcp",
    }
}
