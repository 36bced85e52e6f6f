//! The picture: sites on an ellipse around the internet, nodes in their sites, paths as curves between nodes.

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::fmt::Write as _;

use super::{Edge, Look, Report, escape};
use crate::nat::NatType;
use crate::topology::{Gateway, Site};

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 800.0;
/// Where the sites' boxes have their centres.
const RADII: (f64, f64) = (455.0, 310.0);
const BOX: (f64, f64) = (220.0, 116.0);
const CLOUD: (f64, f64) = (92.0, 46.0);
/// How far curves are drawn towards the middle: 0 is a straight line, 1 passes through it.
const PULL: f64 = 0.72;
/// Distance of two nodes of a site.
const NODE_GAP: f64 = 100.0;

type Point = (f64, f64);

/// Draws the picture; the style is in it, so that it stands alone too.
pub(super) fn draw(report: &Report) -> String {
    let middle = (WIDTH / 2.0, HEIGHT / 2.0);
    let sites = &report.topology.sites;
    let count = sites.len().max(1) as f64;
    let centres: Vec<Point> = (0..sites.len())
        .map(|index| {
            let angle = TAU * (index as f64 / count) - TAU / 4.0;
            (middle.0 + RADII.0 * angle.cos(), middle.1 + RADII.1 * angle.sin())
        })
        .collect();
    let mut out =
        format!("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">\n{STYLE}\n");
    for (site, centre) in sites.iter().zip(&centres) {
        line(&mut out, site, *centre, middle);
    }
    let _ = write!(
        out,
        "<ellipse class=\"cloud\" cx=\"{}\" cy=\"{}\" rx=\"{}\" ry=\"{}\"/>\n<text class=\"name\" x=\"{}\" y=\"{}\">internet</text>\n",
        middle.0,
        middle.1,
        CLOUD.0,
        CLOUD.1,
        middle.0,
        middle.1 + 6.0
    );
    let mut places = BTreeMap::new();
    for (site, centre) in sites.iter().zip(&centres) {
        house(&mut out, site, *centre);
        let nodes: Vec<_> = report.nodes.iter().filter(|node| node.site == site.name).collect();
        let first = centre.0 - NODE_GAP * (nodes.len().saturating_sub(1)) as f64 / 2.0;
        for (index, node) in nodes.iter().enumerate() {
            places.insert(node.name.as_str(), (first + NODE_GAP * index as f64, centre.1 + 26.0));
        }
    }
    for edge in &report.edges {
        if let (Some(from), Some(to)) = (places.get(edge.from.as_str()), places.get(edge.to.as_str())) {
            path(&mut out, report.look(edge), edge, (*from, *to, middle));
        }
    }
    for node in &report.nodes {
        let Some((x, y)) = places.get(node.name.as_str()) else { continue };
        let role = if node.name == report.coordinator { "node coordinator" } else { "node" };
        let address = node.addresses.first().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(
            out,
            "<circle class=\"{role}\" cx=\"{x}\" cy=\"{y}\" r=\"9\"/><text class=\"small strong\" x=\"{x}\" y=\"{}\">{}</text>\
             <text class=\"small\" x=\"{x}\" y=\"{}\">{address}</text>",
            y - 14.0,
            escape(&node.name),
            y + 24.0
        );
    }
    legend(&mut out);
    out.push_str("</svg>\n");
    out
}

/// A site's access line.
fn line(out: &mut String, site: &Site, (x, y): Point, (mx, my): Point) {
    let _ = writeln!(out, "<line class=\"line\" x1=\"{x}\" y1=\"{y}\" x2=\"{mx}\" y2=\"{my}\"/>");
    let round_trip = site.line.up.delay + site.line.down.delay;
    let jitter = site.line.up.jitter.max(site.line.down.jitter);
    let mut text = format!("{} ms", round_trip.as_millis());
    if !jitter.is_zero() {
        let _ = write!(text, " ±{}", jitter.as_millis());
    }
    let at = |from: f64, to: f64| from + (to - from) * 0.45;
    let _ = writeln!(out, "<text class=\"delay\" x=\"{}\" y=\"{}\">{text}</text>", at(x, mx), at(y, my));
}

/// A site: its name, its NAT, its address.
fn house(out: &mut String, site: &Site, (x, y): Point) {
    let (width, height) = BOX;
    let (left, top) = (x - width / 2.0, y - height / 2.0);
    let nat = match &site.gateway {
        Gateway::Public => "no NAT".to_owned(),
        Gateway::Router(nat) => {
            let NatType { mapping, filtering } = nat.kind;
            format!("{mapping:?} x {filtering:?}").to_uppercase().replace(" X ", " x ")
        }
    };
    let address = site.outside.map(|address| address.to_string()).unwrap_or_default();
    let _ = writeln!(
        out,
        "<rect class=\"site\" x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" rx=\"12\"/>\
         <text class=\"name\" x=\"{x}\" y=\"{}\">{}</text><text class=\"small\" x=\"{x}\" y=\"{}\">{nat}</text>\
         <text class=\"small\" x=\"{x}\" y=\"{}\">{address}</text>",
        top - 8.0,
        escape(&site.name),
        top + 18.0,
        top + 36.0,
    );
}

/// A path between two nodes, bent towards the middle; both directions of a pair are drawn, slightly apart.
fn path(out: &mut String, look: Look, edge: &Edge, (from, to, middle): (Point, Point, Point)) {
    let pull = match look {
        Look::Lan => 0.0,
        Look::Direct | Look::Relay | Look::None => PULL,
    };
    let between = ((from.0 + to.0) / 2.0, (from.1 + to.1) / 2.0);
    // Perpendicular to the way, so that there and back do not cover each other.
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let length = dx.hypot(dy).max(1.0);
    let aside = (-dy / length * 7.0, dx / length * 7.0);
    let bend = |between: f64, middle: f64, aside: f64| between + (middle - between) * pull + aside;
    let control = (bend(between.0, middle.0, aside.0), bend(between.1, middle.1, aside.1));
    let rtt = edge.rtt_ms.map(|rtt| format!(", {rtt:.1} ms")).unwrap_or_default();
    let _ = writeln!(
        out,
        "<path class=\"path {}\" d=\"M{:.1},{:.1} Q{:.1},{:.1} {:.1},{:.1}\"><title>{} to {}: {} {}{rtt}; {}</title></path>",
        look.word(),
        from.0,
        from.1,
        control.0,
        control.1,
        to.0,
        to.1,
        escape(&edge.from),
        escape(&edge.to),
        look.word(),
        escape(&edge.via),
        escape(&edge.reason)
    );
}

fn legend(out: &mut String) {
    for (index, look) in Look::ALL.into_iter().enumerate() {
        let y = HEIGHT - 84.0 + 20.0 * index as f64;
        let word = look.word();
        let _ = writeln!(
            out,
            "<path class=\"path {word}\" d=\"M20,{y} L60,{y}\"/><text class=\"small left\" x=\"68\" y=\"{}\">{word}</text>",
            y + 4.0
        );
    }
}

const STYLE: &str = "<style>
text{font:15px system-ui,sans-serif;text-anchor:middle;fill:#1c2733}
.name{font-weight:600;font-size:17px}.small{font-size:12.5px;fill:#4a5866}.strong{font-weight:600;fill:#1c2733}.left{text-anchor:start}
.delay{font-size:12.5px;fill:#7a8794;paint-order:stroke;stroke:#fff;stroke-width:5px}
.site{fill:#f6f8fa;stroke:#c5ced8;stroke-width:1.5}.cloud{fill:#eef2f6;stroke:#c5ced8;stroke-width:1.5}
.line{stroke:#c5ced8;stroke-width:3;stroke-dasharray:2 6;stroke-linecap:round}
.node{fill:#fff;stroke:#1c2733;stroke-width:2}.coordinator{fill:#1c2733}
.path{fill:none;stroke-width:1.8;opacity:.85}.lan{stroke:#2563eb}.direct{stroke:#16915a}.relay{stroke:#e07b00;stroke-dasharray:7 5}.none{stroke:#c81e1e;stroke-dasharray:2 5}
.path:hover{stroke-width:4;opacity:1}
</style>";
