//! `make bench-roam`: see [`mesh_benches::roam`].
//!
//! `TRIALS` says how often each kind is made to happen, `KINDS` which ones, by their names and with commas between them;
//! `PEERS=none` leaves nebula out.

use std::path::Path;

use anyhow::Context as _;
use mesh_benches::roam::{self, Kind, nebula, report};
use mesh_benches::wire::{self, peers};

fn main() -> anyhow::Result<()> {
    let trials = std::env::var("TRIALS").ok().filter(|text| !text.is_empty());
    let trials: Option<usize> =
        trials.map(|text| text.parse()).transpose().context("TRIALS is not a number")?;
    let kinds = kinds(&std::env::var("KINDS").unwrap_or_default())?;
    let mut all = Vec::new();
    let mut failures = Vec::new();
    for kind in &kinds {
        eprintln!("{} ...", kind.name());
        match roam::measure(*kind, trials.unwrap_or(kind.trials())) {
            Ok(series) => {
                print!("{}", report::table(&series));
                all.extend(series);
            }
            Err(error) => failures.push(format!("{}: {error:#}", kind.name())),
        }
    }
    if std::env::var("PEERS").as_deref() != Ok("none") {
        let peers = peers::get(nebula::folder(), |kind| kind == wire::Kind::Nebula);
        failures.extend(peers.missing);
        for program in &peers.found {
            eprintln!("beside it: {}", program.version);
            for kind in kinds.iter().filter(|kind| Kind::OF_NETWORK.contains(kind)) {
                eprintln!("{} over nebula ...", kind.name());
                match nebula::measure(program, *kind, trials.unwrap_or(kind.trials())) {
                    Ok(series) => all.extend(series),
                    Err(error) => failures.push(format!("nebula, {}: {error:#}", kind.name())),
                }
            }
        }
    }
    println!("\n{}", report::table(&all));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/roam.json");
    report::write_json(&all, &file)?;
    println!("time by time: target/bench/roam.json");
    let missed = all.iter().filter(|series| series.is_missed()).count();
    anyhow::ensure!(failures.is_empty(), "not measured: {}", failures.join("; "));
    anyhow::ensure!(missed == 0, "{missed} budgets are missed");
    Ok(())
}

fn kinds(names: &str) -> anyhow::Result<Vec<Kind>> {
    let names: Vec<&str> = names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let find = |name: &&str| {
        let found = Kind::ALL.into_iter().find(|kind| kind.name() == *name);
        found.with_context(|| {
            let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            format!("there is no kind {name}, but {}", known.join(", "))
        })
    };
    if names.is_empty() { Ok(Kind::ALL.to_vec()) } else { names.iter().map(find).collect() }
}
