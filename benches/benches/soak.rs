//! `make bench-soak`: see [`mesh_benches::soak`]. `MINUTES` changes how long.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use mesh_benches::{figure, soak};
use mesh_lab::Lab;

/// Five rekeys, and enough for a leak of a few bytes per second to show.
const MINUTES: f64 = 10.0;

fn main() -> anyhow::Result<()> {
    let minutes = match std::env::var("MINUTES") {
        Ok(text) => text.parse().with_context(|| format!("MINUTES is not a number: {text}"))?,
        Err(_) => MINUTES,
    };
    let soaked = soak::run(&Lab::new("soak")?, Duration::from_secs_f64(minutes * 60.0))?;
    let figures = soaked.figures()?;
    println!(
        "{minutes} minutes: {} loads, {} files through the relay, {} answers\n\n{}",
        soaked.loads,
        soaked.files,
        soaked.answers,
        figure::table(&figures)
    );
    soaked.write_json(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/soak.json"))?;
    println!("look by look: target/bench/soak.json");
    let grown: Vec<_> = figures.iter().filter(|figure| figure.kept == Some(false)).collect();
    ensure!(grown.is_empty(), "{} figures have grown", grown.len());
    Ok(())
}
