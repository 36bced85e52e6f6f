//! What a run looked like, as one HTML page that needs nothing else: a picture of sites, NATs, nodes and the paths
//! between them, the table of all ordered pairs, and the story in order of time.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use mesh_proto::status::PathKind;

mod html;
mod svg;

use crate::mesh::Mesh;
use crate::topology::Topology;

/// A report in the making.
#[derive(Debug, Clone)]
pub struct Report {
    /// The heading.
    pub title: String,
    /// The network.
    pub topology: Topology,
    /// The host of the coordinator and its relay.
    pub coordinator: String,
    /// The nodes.
    pub nodes: Vec<ReportNode>,
    /// The ordered pairs of nodes.
    pub edges: Vec<Edge>,
    /// What happened, in order.
    pub story: Vec<Chapter>,
}

/// A node in a report.
#[derive(Debug, Clone)]
pub struct ReportNode {
    /// Its name, which is its host's too.
    pub name: String,
    /// The site where it is.
    pub site: String,
    /// Its mesh addresses.
    pub addresses: Vec<IpAddr>,
}

/// The path from one node to another, as the first one sees it.
#[derive(Debug, Clone)]
pub struct Edge {
    /// Who says so.
    pub from: String,
    /// About whom.
    pub to: String,
    /// Direct, relayed or none.
    pub kind: PathKind,
    /// The endpoint on a direct path, the relay's name on another.
    pub via: String,
    /// The path's round trip as its probes see it.
    pub rtt_ms: Option<f64>,
    /// The round trip of a ping over the mesh, if one was sent and answered.
    pub ping: Option<Duration>,
    /// Why the peer is on this path.
    pub reason: String,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Chapter {
    /// When, since the start.
    pub at: Duration,
    /// What.
    pub text: String,
}

impl Report {
    /// Asks every node of a mesh what it sees. Nodes that do not answer have no edges.
    pub fn of(mesh: &Mesh, title: &str, coordinator: &str) -> Self {
        let mut nodes = Vec::new();
        let mut edges = Vec::new();
        for node in mesh.nodes() {
            let status = node.status().ok();
            nodes.push(ReportNode {
                name: node.name().to_owned(),
                site: node.host().site(),
                addresses: status.as_ref().map(|status| status.this.addresses.clone()).unwrap_or_default(),
            });
            for peer in status.map(|status| status.peers).unwrap_or_default() {
                let address = peer.path.address.map(|address| address.to_string());
                edges.push(Edge {
                    from: node.name().to_owned(),
                    to: peer.name,
                    kind: peer.path.kind,
                    via: address.or(peer.path.relay).unwrap_or_default(),
                    rtt_ms: peer.path.rtt_ms,
                    ping: None,
                    reason: peer.path.reason,
                });
            }
        }
        let topology = mesh.network().topology().clone();
        Self {
            title: title.to_owned(),
            topology,
            coordinator: coordinator.to_owned(),
            nodes,
            edges,
            story: Vec::new(),
        }
    }

    /// Notes what a ping over the mesh took.
    pub fn set_ping(&mut self, from: &str, to: &str, round_trip: Option<Duration>) {
        for edge in self.edges.iter_mut().filter(|edge| edge.from == from && edge.to == to) {
            edge.ping = round_trip;
        }
    }

    /// Adds a chapter to the story.
    pub fn tell(&mut self, at: Duration, text: &str) {
        self.story.push(Chapter { at, text: text.to_owned() });
    }

    /// The picture alone.
    pub fn svg(&self) -> String {
        svg::draw(self)
    }

    /// The whole page.
    pub fn html(&self) -> String {
        html::page(self)
    }

    /// Writes the whole page to a file.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, self.html()).with_context(|| format!("report {}", path.display()))
    }

    /// How an edge is to be drawn.
    fn look(&self, edge: &Edge) -> Look {
        let site = |name: &str| self.nodes.iter().find(|node| node.name == name).map(|node| &node.site);
        match edge.kind {
            PathKind::Direct if site(&edge.from) == site(&edge.to) => Look::Lan,
            PathKind::Direct => Look::Direct,
            PathKind::Relay => Look::Relay,
            PathKind::None | PathKind::Unknown => Look::None,
        }
    }
}

/// The looks of edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Lan,
    Direct,
    Relay,
    None,
}

impl Look {
    /// In the order of the legend.
    const ALL: [Self; 4] = [Self::Lan, Self::Direct, Self::Relay, Self::None];

    /// The word for it, which is also its class in the style sheet.
    fn word(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::None => "none",
        }
    }
}

/// Text made safe for HTML and SVG.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::village;

    fn report() -> Report {
        let node = |name: &&str| ReportNode {
            name: (*name).to_owned(),
            site: match *name {
                "home-a" | "home-b" => "home",
                "macbook" => "lte",
                same => same,
            }
            .to_owned(),
            addresses: vec!["10.90.0.1".parse().unwrap()],
        };
        let edge = |from: &str, to: &str, kind| Edge {
            from: from.to_owned(),
            to: to.to_owned(),
            kind,
            via: "203.0.113.1:51820".to_owned(),
            rtt_ms: Some(12.5),
            ping: None,
            reason: "5 < 6 & \"so\"".to_owned(),
        };
        let mut report = Report {
            title: "The village".to_owned(),
            topology: village::topology(),
            coordinator: village::COORDINATOR_HOST.to_owned(),
            nodes: village::NODES.iter().map(node).collect(),
            edges: vec![
                edge("home-a", "home-b", PathKind::Direct),
                edge("pi", "country", PathKind::Direct),
                edge("office", "country", PathKind::Relay),
            ],
            story: Vec::new(),
        };
        report.set_ping("pi", "country", Some(Duration::from_micros(43_210)));
        report.tell(Duration::from_millis(1500), "six joins");
        report
    }

    #[test]
    fn picture_shows_every_site_node_and_kind_of_path() {
        let svg = report().svg();
        for text in [
            "pi",
            "country",
            "office",
            "home-a",
            "home-b",
            "macbook",
            "EIM x APDF",
            "APDM x APDF",
            "internet",
        ] {
            assert!(svg.contains(&format!(">{text}")), "{text}");
        }
        for look in [Look::Lan, Look::Direct, Look::Relay] {
            assert!(svg.contains(&format!("class=\"path {}\"", look.word())));
        }
    }

    #[test]
    fn page_is_whole_and_escaped() {
        let html = report().html();
        assert!(html.contains("43.2 ms") && html.contains("1.5 s") && html.contains("six joins"));
        assert!(html.contains("5 &lt; 6 &amp; &quot;so&quot;") && !html.contains("5 < 6"));
        for tag in ["svg", "table", "html", "style", "ol"] {
            let open = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
            assert_eq!(open, html.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}
