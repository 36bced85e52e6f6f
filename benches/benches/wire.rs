//! `make bench-wire`: see [`mesh_benches::wire`].
//!
//! `ROUNDS` and `SECONDS` change how often and how long; arguments name the loads and the peers that are wanted, and
//! without any, all are: `cargo bench -p mesh-benches --bench wire -- tcp-1 wireguard-go`.

use std::path::Path;

use anyhow::Context as _;
use mesh_benches::wire::{self, Kind, Load, Plan, peers, plot};
use mesh_lab::Lab;

/// Five rounds are the least of which a median says something on a shared machine.
const ROUNDS: usize = 5;
const SECONDS: u32 = 3;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let loads = wanted(&words, &Load::ALL, |load| load.name());
    let kinds = wanted(&words, &Kind::PEERS, |kind| kind.name());
    let plan = Plan { rounds: setting("ROUNDS", ROUNDS)?, seconds: setting("SECONDS", SECONDS)?, loads };
    let peers = peers::get(Path::new(peers::FOLDER), |kind| kinds.contains(&kind));

    let report = wire::measure(&Lab::new("wire")?, peers, &plan)?;
    println!("{}", report.table());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    report.write_json(&folder.join("wire.json"))?;
    std::fs::write(folder.join("wire.svg"), plot::draw(&report))?;
    println!("also written: target/bench/wire.json, target/bench/wire.svg");
    anyhow::ensure!(report.failures().is_empty(), "{} runs failed", report.failures().len());
    Ok(())
}

/// Those that the words name; all of them if they name none.
fn wanted<T: Copy>(words: &[String], all: &[T], name: impl Fn(T) -> &'static str) -> Vec<T> {
    let named: Vec<T> =
        all.iter().copied().filter(|one| words.iter().any(|word| word == name(*one))).collect();
    if named.is_empty() { all.to_vec() } else { named }
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> anyhow::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let Ok(text) = std::env::var(name) else { return Ok(default) };
    text.parse().with_context(|| format!("{name} is not a number: {text}"))
}
