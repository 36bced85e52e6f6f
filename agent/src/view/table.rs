//! Tables and texts for people. They fit [`WIDTH`] columns.

use std::fmt::Write as _;

use mesh_proto::{
    kubernetes::KubernetesStatus,
    status::{
        ConnectionState, ControlTransport, CoordinatorStatus, FamilyState, Mapping, PathKind, PeerStatus,
        PortMapping, RelayStatus, RelayTransport, SelfStatus, Status,
    },
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::units;
use crate::local_api::Why;

/// Widest line of a table.
pub const WIDTH: usize = 100;

const HEADINGS: [&str; 10] = ["NODE", "ADDRESS", "ON", "PATH", "RTT", "LOSS", "SHOOK", "TX", "RX", "MTU"];
const COLUMNS: usize = HEADINGS.len();
const GAP: usize = 1;
/// The columns that are cut when a row is too wide, in this order, and the widths that they keep.
const SHRINKABLE: [(usize, usize); 3] = [(3, 26), (0, 10), (1, 13)];

type Row = [String; COLUMNS];

/// Writes the table of `meshctl status`.
#[must_use]
pub fn status(status: &Status, now: OffsetDateTime) -> String {
    let mut out = self_lines(&status.this);
    if let Some(kubernetes) = &status.this.kubernetes {
        out.push_str(&kubernetes_line(kubernetes));
    }
    out.push('\n');
    let rows: Vec<Row> = status.peers.iter().map(|peer| row(peer, now)).collect();
    let widths = widths(&rows);
    out.push_str(&line(&HEADINGS.map(str::to_owned), &widths));
    for (peer, row) in status.peers.iter().zip(&rows) {
        out.push_str(&line(row, &widths));
        if peer.path.kind != PathKind::Direct {
            let _ = writeln!(out, "  {}", cut(&peer.path.reason, WIDTH - 2));
        }
    }
    if status.peers.is_empty() {
        out.push_str("no other nodes yet\n");
    }
    for warning in &status.this.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    out
}

/// Writes the text of `meshctl why`.
#[must_use]
pub fn why(why: &Why) -> String {
    let mut out = format!("{}: {}\n", why.node, why.reason);
    if !why.paths.is_empty() {
        out.push_str("\npaths\n");
    }
    for path in &why.paths {
        let mark = if path.primary { '*' } else { ' ' };
        let rtt = path.rtt_ms.map_or_else(|| "-".to_owned(), units::millis);
        let answered = path.last_answer.as_deref().map_or_else(|| "never".to_owned(), clock);
        let loss = if path.loss_measured { units::percent(path.loss) } else { "-".to_owned() };
        let _ = writeln!(out, " {mark} {:<48} rtt {rtt:<8} loss {loss:<4} answered {answered}", path.path);
    }
    if !why.decisions.is_empty() {
        out.push_str("\ndecisions\n");
    }
    for decision in &why.decisions {
        let lasted = decision.lasted_s.map_or_else(|| "now".to_owned(), units::span);
        let _ = writeln!(
            out,
            "   {}  {lasted:<6} {:<32} {}",
            clock(&decision.at),
            decision.path,
            decision.reason
        );
    }
    out
}

pub(super) fn family(state: FamilyState) -> &'static str {
    match state {
        FamilyState::Works => "works",
        FamilyState::Silent => "not answered",
        FamilyState::None => "no route",
        FamilyState::Unknown => "not known",
    }
}

fn self_lines(this: &SelfStatus) -> String {
    let addresses: Vec<_> = this.addresses.iter().map(ToString::to_string).collect();
    let ready = if this.ready { "ready" } else { "not ready" };
    format!(
        "{}  {}  {} mtu {}  {ready}\ncoordinator  {}\nrelay        {}\nnat          {}, port mapping {}{}\n",
        this.name,
        addresses.join("  "),
        this.interface,
        this.mtu,
        coordinator(&this.coordinator),
        relay(this.relay.as_ref()),
        mapping(this.nat.mapping),
        port_mapping(this.nat.port_mapping),
        if this.nat.udp_blocked { ", udp blocked" } else { "" },
    )
}

fn kubernetes_line(kubernetes: &KubernetesStatus) -> String {
    let ranges: Vec<_> = kubernetes.pod_ranges.iter().map(ToString::to_string).collect();
    let pods = if ranges.is_empty() { String::new() } else { format!(", pods {}", ranges.join(" ")) };
    let api = kubernetes.api.state.as_str();
    let line =
        format!("kubernetes   {}: {}{pods}, api server {api}", kubernetes.node, kubernetes.state.as_str());
    cut(&line, WIDTH) + "\n"
}

pub(super) fn coordinator(coordinator: &CoordinatorStatus) -> String {
    let mut text = match coordinator.state {
        ConnectionState::Connected => "connected",
        ConnectionState::Connecting => "connecting",
        ConnectionState::Offline => "offline",
        ConnectionState::Unknown => "unknown",
    }
    .to_owned();
    if let Some(address) = &coordinator.address {
        let _ = write!(text, ", {address}");
    }
    match coordinator.transport {
        Some(ControlTransport::Quic) => text.push_str(" by quic"),
        Some(ControlTransport::Websocket) => text.push_str(" by websocket"),
        Some(ControlTransport::Unknown) | None => {}
    }
    if let Some(rtt) = coordinator.rtt_ms {
        let _ = write!(text, ", {}", units::millis(rtt));
    }
    if let Some(error) = &coordinator.error {
        let _ = write!(text, " ({error})");
    }
    text
}

pub(super) fn relay(relay: Option<&RelayStatus>) -> String {
    let Some(relay) = relay else { return "none".to_owned() };
    let transport = match relay.transport {
        RelayTransport::Udp => "udp",
        RelayTransport::Websocket => "websocket",
        RelayTransport::Unknown => "unknown carrier",
    };
    let rtt = relay.rtt_ms.map_or_else(String::new, |rtt| format!(", {}", units::millis(rtt)));
    format!("{} by {transport}{rtt}", relay.name)
}

pub(super) fn mapping(mapping: Mapping) -> &'static str {
    match mapping {
        Mapping::Eim => "endpoint-independent mapping (eim)",
        Mapping::Adm => "address-dependent mapping (adm)",
        Mapping::Apdm => "address- and port-dependent mapping (apdm)",
        Mapping::None => "none",
        Mapping::Unknown => "unknown",
    }
}

pub(super) fn port_mapping(protocol: PortMapping) -> &'static str {
    match protocol {
        PortMapping::Pcp => "pcp",
        PortMapping::NatPmp => "nat-pmp",
        PortMapping::Upnp => "upnp",
        PortMapping::None => "none",
        PortMapping::Unknown => "unknown",
    }
}

fn row(peer: &PeerStatus, now: OffsetDateTime) -> Row {
    let path = &peer.path;
    let via = match path.kind {
        PathKind::Direct => format!("direct {}", path.address.map(|a| a.to_string()).unwrap_or_default()),
        PathKind::Relay => format!("relay {}", path.relay.as_deref().unwrap_or_default()),
        PathKind::None | PathKind::Unknown => "-".to_owned(),
    };
    let dash = || "-".to_owned();
    let handshake =
        peer.last_handshake.as_deref().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    [
        peer.name.clone(),
        peer.addresses.first().map_or_else(dash, ToString::to_string),
        if peer.online { "yes" } else { "no" }.to_owned(),
        via,
        path.rtt_ms.map_or_else(dash, units::millis),
        if path.kind == PathKind::None || !peer.loss_measured { dash() } else { units::percent(peer.loss) },
        handshake.map_or_else(dash, |at| units::age((now - at).try_into().unwrap_or_default())),
        units::bytes(peer.tx_bytes),
        units::bytes(peer.rx_bytes),
        path.mtu.map_or_else(dash, |mtu| mtu.to_string()),
    ]
}

fn widths(rows: &[Row]) -> [usize; COLUMNS] {
    let mut widths = HEADINGS.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for (column, keep) in SHRINKABLE {
        let total = widths.iter().sum::<usize>() + GAP * (COLUMNS - 1);
        let excess = total.saturating_sub(WIDTH);
        widths[column] = (widths[column].saturating_sub(excess)).max(keep.min(widths[column]));
    }
    widths
}

fn line(cells: &Row, widths: &[usize; COLUMNS]) -> String {
    let padded: Vec<_> =
        cells.iter().zip(widths).map(|(cell, width)| format!("{:<width$}", cut(cell, *width))).collect();
    let mut line = padded.join(&" ".repeat(GAP)).trim_end().to_owned();
    line.push('\n');
    line
}

/// Cuts a text to a width, with an ellipsis where something is missing.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// The time of day of a timestamp.
fn clock(timestamp: &str) -> String {
    OffsetDateTime::parse(timestamp, &Rfc3339).map_or_else(
        |_| timestamp.to_owned(),
        |at| format!("{:02}:{:02}:{:02}", at.hour(), at.minute(), at.second()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::status::tests::document;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    #[test]
    fn a_status_shows_every_peer_and_why_it_is_relayed() {
        let expected = "\
pi  10.90.0.1  mesh0 mtu 1280  ready
coordinator  connected, 203.0.113.1:7443 by quic, 8.50ms
relay        pi by udp, 8.00ms
nat          endpoint-independent mapping (eim), port mapping none

NODE    ADDRESS   ON  PATH                      RTT    LOSS SHOOK TX   RX MTU
country 10.90.0.3 yes direct 198.51.100.7:51820 18.2ms 0%   1m    123K 52 1280
office  10.90.0.2 yes relay pi                  18.2ms 0%   1m    123K 52 1280
  relayed: no direct path has answered; forward UDP 51820 on either side
";
        assert_eq!(status(&document(), now()), expected);
    }

    #[test]
    fn a_loss_that_was_not_measured_lately_is_not_shown() {
        let mut document = document();
        document.peers[0].loss_measured = false;
        let text = status(&document, now());
        let lines: Vec<_> = text.lines().filter(|line| line.contains("18.2ms")).collect();
        assert!(lines[0].contains("18.2ms -    1m") && lines[1].contains("18.2ms 0%   1m"), "{text}");
    }

    #[test]
    fn the_widest_status_fits() {
        let mut document = document();
        for peer in &mut document.peers {
            peer.name = "a".repeat(63);
            peer.addresses = vec!["fd12:3456:789a:bcde:f012:3456:789a:bcde".parse().unwrap()];
            peer.path.kind = PathKind::Direct;
            peer.path.address = Some("[2001:db8:1234:5678:9abc:def0:1234:5678]:51820".parse().unwrap());
            peer.path.rtt_ms = Some(12_345.0);
            peer.loss = 1.0;
            (peer.tx_bytes, peer.rx_bytes) = (u64::MAX, u64::MAX);
        }
        let text = status(&document, now());
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= WIDTH, "{widest} columns:\n{text}");
        assert!(text.contains('…'));
    }
}
