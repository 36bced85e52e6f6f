//! The goals as a picture: a panel for each, in it a bar for each implementation, with its spread.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{
    Kind, Load, Metric,
    goal::GOALS,
    report::{Report, short},
};
use crate::figure::Figure;

const COLUMNS: usize = 2;
/// A panel's width, its title included.
const PANEL_WIDTH: f64 = 480.0;
const TITLE_HEIGHT: f64 = 34.0;
const BAR_HEIGHT: f64 = 18.0;
const BAR_GAP: f64 = 6.0;
/// Where bars begin: names stand before.
const BAR_LEFT: f64 = 120.0;
/// The longest bar with its spread; the value stands behind it.
const BAR_WIDTH: f64 = 270.0;
const MARGIN: f64 = 20.0;

/// Draws a report as SVG; the style is in it, so that it stands alone.
#[must_use]
pub fn draw(report: &Report) -> String {
    let shown: BTreeSet<(Load, Metric)> = GOALS.iter().map(|goal| (goal.load, goal.metric)).collect();
    let panels: Vec<_> = shown
        .into_iter()
        .map(|(load, metric)| {
            let bar = |kind: Kind| Some((kind, report.figure(load, metric, kind)?));
            (load, metric, report.kinds().filter_map(bar).collect::<Vec<_>>())
        })
        .filter(|(.., bars)| !bars.is_empty())
        .collect();
    let height = TITLE_HEIGHT + (BAR_HEIGHT + BAR_GAP) * report.kinds().count() as f64 + MARGIN;
    let rows = panels.len().div_ceil(COLUMNS) as f64;
    let (width, total) = (PANEL_WIDTH * COLUMNS as f64 + MARGIN, height * rows + MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {total}\">\n{STYLE}\n\
         <rect class=\"page\" width=\"{width}\" height=\"{total}\"/>\n"
    );
    for (index, (load, metric, bars)) in panels.iter().enumerate() {
        let left = MARGIN + PANEL_WIDTH * (index % COLUMNS) as f64;
        let top = MARGIN + height * (index / COLUMNS) as f64;
        let _ = writeln!(
            out,
            "<text class=\"title\" x=\"{left}\" y=\"{}\">{}: {}</text>",
            top + BAR_HEIGHT,
            load.name(),
            metric.name()
        );
        panel(&mut out, (left, top + TITLE_HEIGHT), bars);
    }
    out.push_str("</svg>\n");
    out
}

fn panel(out: &mut String, (left, top): (f64, f64), bars: &[(Kind, Figure)]) {
    let most = bars.iter().map(|(_, figure)| figure.highest).fold(f64::MIN_POSITIVE, f64::max);
    let start = left + BAR_LEFT;
    let at = |value: f64| start + BAR_WIDTH * value / most;
    for (index, (kind, figure)) in bars.iter().enumerate() {
        let y = top + (BAR_HEIGHT + BAR_GAP) * index as f64;
        let (middle, text) = (y + BAR_HEIGHT / 2.0, y + BAR_HEIGHT - 4.5);
        let class = if kind.is_ours() { "ours" } else { "theirs" };
        let _ = writeln!(
            out,
            "<text class=\"name\" x=\"{:.1}\" y=\"{text:.1}\">{}</text>\
             <rect class=\"{class}\" x=\"{start:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR_HEIGHT}\"/>\
             <path class=\"spread\" d=\"M{:.1},{middle:.1} L{:.1},{middle:.1}\"/>\
             <text class=\"value\" x=\"{:.1}\" y=\"{text:.1}\">{}</text>",
            start - 8.0,
            kind.name(),
            at(figure.median) - start,
            at(figure.lowest),
            at(figure.highest),
            at(figure.highest) + 8.0,
            short(figure.median),
        );
    }
}

const STYLE: &str = "<style>
text{font:13px system-ui,sans-serif;fill:#1c2733}
.page{fill:#fff}.title{font-weight:600;font-size:15px}.name{text-anchor:end;fill:#4a5866}.value{font-weight:600}
.ours{fill:#2563eb}.theirs{fill:#b6c2cf}.spread{stroke:#1c2733;stroke-width:2;fill:none}
</style>";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Sample;

    #[test]
    fn a_bar_is_as_long_as_its_median() {
        let mut report = Report::of(&[Kind::Mesh, Kind::WireguardGo]);
        for (kind, value) in [(Kind::Mesh, 6.0), (Kind::WireguardGo, 3.0)] {
            report.add(0, Load::Tcp1, kind, Sample::from([(Metric::Received, value)]));
        }
        let svg = draw(&report);
        assert!(svg.contains("class=\"ours\" x=\"140.0\" y=\"54.0\" width=\"270.0\""), "{svg}");
        assert!(svg.contains("class=\"theirs\" x=\"140.0\" y=\"78.0\" width=\"135.0\""), "{svg}");
        assert_eq!(svg.matches("class=\"title\"").count(), 1, "only what was measured has a panel");
    }

    #[test]
    fn nothing_measured_is_an_empty_picture() {
        let svg = draw(&Report::of(&[Kind::Mesh]));
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && !svg.contains("NaN"));
    }
}
