//! The page around the picture.

use std::fmt::Write as _;

use super::{Edge, Report, escape, svg};

/// Writes the whole page.
pub(super) fn page(report: &Report) -> String {
    let title = escape(&report.title);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>{STYLE}</head>\n\
         <body><h1>{title}</h1>\n{}",
        svg::draw(report)
    );
    matrix(&mut out, report);
    pairs(&mut out, report);
    if !report.story.is_empty() {
        out.push_str("<h2>What happened</h2>\n<ol>\n");
        for chapter in &report.story {
            let _ = writeln!(
                out,
                "<li><time>{:.1} s</time> {}</li>",
                chapter.at.as_secs_f64(),
                escape(&chapter.text)
            );
        }
        out.push_str("</ol>\n");
    }
    out.push_str("</body></html>\n");
    out
}

/// Who reaches whom, at a glance: a row says what its node sees.
fn matrix(out: &mut String, report: &Report) {
    out.push_str("<h2>Paths</h2>\n<table><tr><th></th>");
    for node in &report.nodes {
        let _ = write!(out, "<th>{}</th>", escape(&node.name));
    }
    out.push_str("</tr>\n");
    for from in &report.nodes {
        let _ = write!(out, "<tr><th>{}</th>", escape(&from.name));
        for to in &report.nodes {
            let edge = report.edges.iter().find(|edge| edge.from == from.name && edge.to == to.name);
            let _ = match edge {
                Some(edge) => {
                    write!(out, "<td class=\"{}\">{}</td>", report.look(edge).word(), round_trip(edge))
                }
                None => write!(out, "<td></td>"),
            };
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
}

/// Every ordered pair with all that is known.
fn pairs(out: &mut String, report: &Report) {
    out.push_str(
        "<h2>Pairs</h2>\n<table><tr><th>from</th><th>to</th><th>path</th><th>by</th><th>round trip</th><th>ping</th><th>why</th></tr>\n",
    );
    for edge in &report.edges {
        let word = report.look(edge).word();
        let probe = edge.rtt_ms.map(|rtt| format!("{rtt:.1} ms")).unwrap_or_default();
        let ping = edge.ping.map(|ping| format!("{:.1} ms", ping.as_secs_f64() * 1000.0)).unwrap_or_default();
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"{word}\">{word}</td><td>{}</td><td>{probe}</td><td>{ping}</td><td>{}</td></tr>",
            escape(&edge.from),
            escape(&edge.to),
            escape(&edge.via),
            escape(&edge.reason)
        );
    }
    out.push_str("</table>\n");
}

/// The ping if there was one, else what the path's probes see.
fn round_trip(edge: &Edge) -> String {
    let ping = edge.ping.map(|ping| ping.as_secs_f64() * 1000.0);
    ping.or(edge.rtt_ms).map(|rtt| format!("{rtt:.1} ms")).unwrap_or_default()
}

const STYLE: &str = "<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#1c2733}
table{border-collapse:collapse;margin:.5em 0 1.5em}th,td{padding:.25em .7em;border:1px solid #dde3ea;text-align:left}th{background:#f6f8fa}
td.lan{background:#e3ecff}td.direct{background:#ddf3e7}td.relay{background:#fdecd2}td.none{background:#fbdcdc}
time{display:inline-block;min-width:4.5em;color:#7a8794}
</style>";
