//! `make bench-wire`: see [`mesh_benches::wire`].
//!
//! `ROUNDS` and `SECONDS` change how often and how long; arguments name the links, loads and peers that are wanted;
//! without any, it is the LAN, all of the others and all of our own ways: `cargo bench -p mesh-benches --bench wire -- tcp-1 wireguard-go`. The word `profile` has perf
//! sample the daemons in one run more of each load.

use std::path::Path;

use anyhow::Context as _;
use mesh_benches::wire::{self, Kind, Link, Load, Plan, Profiling, peers, plot};
use mesh_lab::Lab;

/// Five rounds are the least of which a median says something on a shared machine.
const ROUNDS: usize = 5;
const SECONDS: u32 = 3;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let all = [Kind::PEERS, Kind::WAYS].concat();
    let kinds = named(&words, &all, |kind| kind.name()).unwrap_or(all);
    let profile = if words.iter().any(|word| word == "profile") { Profiling::On } else { Profiling::Off };
    let (rounds, seconds) = (setting("ROUNDS", ROUNDS)?, setting("SECONDS", SECONDS)?);
    let mut failures = 0;
    for link in named(&words, &Link::ALL, |link| link.name()).unwrap_or(vec![Link::Lan]) {
        let loads = named(&words, &Load::ALL, |load| load.name()).unwrap_or(link.loads().to_vec());
        let peers = peers::get(Path::new(peers::FOLDER), |kind| kinds.contains(&kind));
        let ways = match link {
            Link::Lan => Kind::WAYS.into_iter().filter(|way| kinds.contains(way)).collect(),
            Link::Lossy | Link::Narrow | Link::Uplink => Vec::new(),
        };
        let plan = Plan { rounds, seconds, loads, link, ways, profile };
        let report = wire::measure(&Lab::new("wire")?, peers, &plan)?;
        println!("{}", report.table());
        let file = match link {
            Link::Lan => "wire".to_owned(),
            Link::Lossy | Link::Narrow | Link::Uplink => format!("wire-{}", link.name()),
        };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        report.write_json(&folder.join(&file).with_extension("json"))?;
        std::fs::write(folder.join(&file).with_extension("svg"), plot::draw(&report))?;
        println!("also written: target/bench/{file}.json, target/bench/{file}.svg");
        failures += report.failures().len();
    }
    anyhow::ensure!(failures == 0, "{failures} runs failed");
    Ok(())
}

/// Those that the words name, if they name any.
fn named<T: Copy>(words: &[String], all: &[T], name: impl Fn(T) -> &'static str) -> Option<Vec<T>> {
    let named: Vec<T> =
        all.iter().copied().filter(|one| words.iter().any(|word| word == name(*one))).collect();
    (!named.is_empty()).then_some(named)
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> anyhow::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let Ok(text) = std::env::var(name) else { return Ok(default) };
    text.parse().with_context(|| format!("{name} is not a number: {text}"))
}
