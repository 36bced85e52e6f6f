//! `make bench-restart`: see [`mesh_benches::restart`]. `TRIALS` says how often an agent is restarted each way.

use std::path::Path;

use anyhow::Context as _;
use mesh_benches::restart;
use mesh_benches::roam::report;

/// How often unless told otherwise.
const TRIALS: usize = 50;

fn main() -> anyhow::Result<()> {
    let trials = std::env::var("TRIALS").ok().filter(|text| !text.is_empty());
    let trials: Option<usize> =
        trials.map(|text| text.parse()).transpose().context("TRIALS is not a number")?;
    let all = restart::measure(trials.unwrap_or(TRIALS))?;
    println!("{}", report::table(&all));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/restart.json");
    report::write_json(&all, &file)?;
    println!("time by time: target/bench/restart.json");
    let missed = all.iter().filter(|series| series.is_missed()).count();
    anyhow::ensure!(missed == 0, "{missed} budgets are missed");
    Ok(())
}
