//! All ordered pairs: who reaches whom, how, and how fast.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_proto::status::PathKind;

use super::stage::{Colour, Stage, millis};
use crate::mesh::wait_until;
use crate::report::{Edge, Report};
use crate::topology::Reach;
use crate::traffic::Echo;
use crate::village::{COORDINATOR_HOST, NODES, Village};

/// How long the pairs may take to answer for the first time, on a busy machine.
const ANSWER_PATIENCE: Duration = Duration::from_secs(15);
/// Within this time of the first packet, pairs are direct whose NATs let it happen.
const DIRECT_BUDGET: Duration = Duration::from_secs(2);
/// For pairs that a node tries one after the other, each for some seconds.
const PUNCH_PATIENCE: Duration = Duration::from_secs(40);
/// The node from which `meshctl status` is shown.
const WITNESS: &str = "home-a";
/// Pings per pair and round, of which the fastest counts.
const PINGS: u32 = 3;
/// How often pairs are asked that are slower than their lines.
const ROUNDS: u32 = 4;
/// What both agents, two schedulers and the simulated lines may add to a round trip.
const OVERHEAD: Duration = Duration::from_millis(15);
/// The width of a cell, as of ` direct 103.4/103`.
const CELL: usize = 16;
/// The width of the first column.
const MARGIN: usize = 8;

/// An ordered pair: what should be, and what is.
#[derive(Debug)]
struct Pair<'a> {
    from: &'static str,
    to: &'static str,
    wanted: Reach,
    /// What `from` says of it; `None` if it does not know the other.
    edge: Option<&'a Edge>,
    is_right: bool,
    ping: Option<Duration>,
    /// What the lines alone take, and how much more is still good.
    line: Duration,
    margin: Duration,
}

/// Waits until all pairs have answered, and until those are direct that can be.
pub(super) fn meet(stage: &mut Stage, village: &Village, echo: &Echo) -> anyhow::Result<()> {
    let started = Instant::now();
    echo.wait_all(started, ANSWER_PATIENCE)?;
    let first_packets = echo.wait_first(ANSWER_PATIENCE);
    let flows = echo.flows();
    let slowest = flows.iter().filter_map(|flow| flow.first_reply).max().unwrap_or_default();
    let lost = flows.iter().filter(|flow| !flow.first_answered).count();
    let text = format!(
        "all {} ordered pairs answer, the slowest after {}; {lost} first packets lost",
        flows.len(),
        millis(slowest)
    );
    stage.promise(first_packets.is_ok(), &text);
    std::thread::sleep(DIRECT_BUDGET.saturating_sub(started.elapsed()));
    let reach = |from: &str, to: &str| village.network().reach(from, to).ok();
    let late = village.wrong_paths(|from, to| reach(from, to) != Some(Reach::Punched))?;
    stage.promise(late.is_empty(), &format!("pairs that need no effort are direct within {DIRECT_BUDGET:?}"));
    let punched = wait_until(PUNCH_PATIENCE, "every pair is on the path that its NATs allow", || {
        let wrong = village.wrong_paths(|_, _| true)?;
        anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("; "));
        Ok(true)
    });
    let text = match &punched {
        Ok(()) => {
            format!("pairs that take many sockets and ports are direct after {}", millis(started.elapsed()))
        }
        Err(error) => format!("{error:#}"),
    };
    stage.promise(punched.is_ok(), &text);
    Ok(())
}

/// Shows the table, and holds it against what NATs and lines allow.
pub(super) fn show_table(stage: &mut Stage, village: &Village, report: &mut Report) -> anyhow::Result<()> {
    let pings = settled_pings(village)?;
    for (from, to, ping) in &pings {
        report.set_ping(from, to, *ping);
    }
    let pairs =
        pings.iter().map(|&pinged| look_at(village, report, pinged)).collect::<anyhow::Result<Vec<_>>>()?;
    stage.say(
        "path and round trip of every ordered pair: a ping over the mesh / what the lines alone take, in ms",
    );
    stage.show(table(stage, &pairs));

    let wrong: Vec<String> = pairs.iter().filter(|pair| !pair.is_right).map(Pair::complaint).collect();
    let count = |wanted| pairs.iter().filter(|pair| pair.wanted == wanted).count();
    let text = match wrong.is_empty() {
        true => format!(
            "{} on the LAN, {} direct, {} direct with an effort, {} by relay, as their NATs allow",
            count(Reach::Lan),
            count(Reach::Direct),
            count(Reach::Punched),
            count(Reach::Relay)
        ),
        false => format!("pairs are not on the path that their NATs allow: {}", wrong.join("; ")),
    };
    stage.promise(wrong.is_empty(), &text);

    let is_slow = |pair: &&Pair<'_>| pair.ping.is_none_or(|ping| ping > pair.line + pair.margin);
    let slow: Vec<String> = pairs
        .iter()
        .filter(is_slow)
        .map(|pair| {
            format!("{} to {}: {}", pair.from, pair.to, pair.ping.map_or("no reply".to_owned(), millis))
        })
        .collect();
    let text = match slow.is_empty() {
        true => "round trips are those of the lines".to_owned(),
        false => format!("round trips are not those of the lines: {}", slow.join("; ")),
    };
    stage.promise(slow.is_empty(), &text);
    Ok(())
}

/// Shows one node's own view.
pub(super) fn show_status(stage: &mut Stage, village: &Village) -> anyhow::Result<()> {
    let finished = village.node(WITNESS)?.meshctl(["status"])?.success()?;
    stage.say(&format!("{WITNESS} $ meshctl status"));
    stage.show(finished.stdout);
    Ok(())
}

impl Pair<'_> {
    fn complaint(&self) -> String {
        let is = match self.edge {
            Some(edge) => format!("{:?} {} ({})", edge.kind, edge.via, edge.reason).to_lowercase(),
            None => "unknown".to_owned(),
        };
        format!("{} to {} should be {} and is {is}", self.from, self.to, self.wanted.word())
    }
}

fn look_at<'a>(village: &Village, report: &'a Report, (from, to, ping): Pinged) -> anyhow::Result<Pair<'a>> {
    let network = village.network();
    let wanted = network.reach(from, to)?;
    let edge = report.edges.iter().find(|edge| edge.from == from && edge.to == to);
    let is_right = edge.is_some_and(|edge| match wanted {
        Reach::Lan => edge.kind == PathKind::Direct && is_on_lan(village, to, &edge.via),
        Reach::Direct | Reach::Punched => edge.kind == PathKind::Direct,
        Reach::Relay => edge.kind == PathKind::Relay && !edge.reason.is_empty(),
    });
    let (line, margin) = expected(village, from, to)?;
    Ok(Pair { from, to, wanted, edge, is_right, ping, line, margin })
}

/// What the lines between two nodes take on the path that their NATs allow, and how much more is still good.
fn expected(village: &Village, from: &str, to: &str) -> anyhow::Result<(Duration, Duration)> {
    let network = village.network();
    let relay = (network.reach(from, to)? == Reach::Relay).then_some(COORDINATOR_HOST);
    let margin = OVERHEAD + jitter(village, from)? + jitter(village, to)?;
    Ok((network.round_trip(from, to, relay)?, margin))
}

/// Whether an endpoint stands on the LAN of a host.
fn is_on_lan(village: &Village, host: &str, endpoint: &str) -> bool {
    let address = village.network().host(host).map(|host| host.address().to_string());
    address.is_ok_and(|address| endpoint.rsplit_once(':').is_some_and(|(ip, _)| ip == address))
}

/// By how much the line of a host lengthens a round trip at worst.
fn jitter(village: &Village, host: &str) -> anyhow::Result<Duration> {
    let network = village.network();
    let line = network.line(&network.host(host)?.site())?;
    Ok(line.up.jitter + line.down.jitter)
}

fn table(stage: &Stage, pairs: &[Pair<'_>]) -> String {
    let heading = NODES.map(|name| format!("{name:>CELL$}")).concat();
    let row = |from: &str| {
        let cells = NODES.map(|to| match pairs.iter().find(|pair| pair.from == from && pair.to == to) {
            Some(pair) => cell(stage, pair),
            None => " ".repeat(CELL),
        });
        format!("{from:<MARGIN$}{}", cells.concat())
    };
    let rows = NODES.map(row).join("\n");
    format!("{:<MARGIN$}{heading}\n{rows}", "from")
}

fn cell(stage: &Stage, pair: &Pair<'_>) -> String {
    let ping = pair.ping.map_or("-".to_owned(), |ping| format!("{:.1}", ping.as_secs_f64() * 1000.0));
    let kind = match pair.edge.map(|edge| edge.kind) {
        Some(PathKind::Direct) if pair.wanted == Reach::Lan => "lan",
        Some(PathKind::Direct) => "direct",
        Some(PathKind::Relay) => "relay",
        Some(PathKind::None | PathKind::Unknown) | None => "none",
    };
    let colour = match (pair.is_right, pair.wanted) {
        (false, _) => Colour::Bad,
        (true, Reach::Lan) => Colour::Lan,
        (true, Reach::Direct | Reach::Punched) => Colour::Direct,
        (true, Reach::Relay) => Colour::Relay,
    };
    stage.paint(colour, &format!("{:>CELL$}", format!("{kind} {ping}/{}", pair.line.as_millis())))
}

type Pinged = (&'static str, &'static str, Option<Duration>);

/// The fastest ping of every ordered pair. Pairs that are slower than their lines are asked again: what else runs on
/// the machine delays some replies, a wrong path delays all.
fn settled_pings(village: &Village) -> anyhow::Result<Vec<Pinged>> {
    let all = NODES.into_iter().flat_map(|from| NODES.into_iter().map(move |to| (from, to, None)));
    let mut pings: Vec<Pinged> = all.filter(|(from, to, _)| from != to).collect();
    for _ in 0..ROUNDS {
        let mut again = Vec::new();
        for pair in &mut pings {
            let (from, to, ping) = *pair;
            let (line, margin) = expected(village, from, to)?;
            if ping.is_none_or(|ping| ping > line + margin) {
                again.push(pair);
            }
        }
        ping_all(village, again);
    }
    Ok(pings)
}

/// Pings these pairs a few times; from each node in turn, all nodes at the same time.
fn ping_all(village: &Village, pairs: Vec<&mut Pinged>) {
    let ping = |from: &str, to: &str| -> anyhow::Result<Option<Duration>> {
        let address = village.node(to)?.address()?;
        let ping = village.node(from)?.host().ping_many(address, PINGS)?;
        Ok(ping.round_trips.into_iter().min())
    };
    let mut by_node: BTreeMap<&str, Vec<&mut Pinged>> = BTreeMap::new();
    for pair in pairs {
        by_node.entry(pair.0).or_default().push(pair);
    }
    std::thread::scope(|scope| {
        for pairs in by_node.into_values() {
            scope.spawn(move || {
                for pair in pairs {
                    let found = ping(pair.0, pair.1).ok().flatten();
                    pair.2 = pair.2.into_iter().chain(found).min();
                }
            });
        }
    });
}
