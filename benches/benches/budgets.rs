//! `make bench`: see [`mesh_benches`]. Arguments say how the names of the groups begin that run; without any, all do.

use std::path::Path;

use mesh_benches::{figure, first_packet, footprint, memory, startup, throughput};
use mesh_lab::Lab;

type Group = (&'static str, fn(&Lab) -> anyhow::Result<Vec<figure::Figure>>);

const GROUPS: [Group; 6] = [
    ("startup", startup::measure),
    ("first-packet", first_packet::measure),
    ("footprint", footprint::measure),
    ("memory", memory::measure),
    ("memory-kubernetes", memory::kubernetes::measure),
    ("throughput", throughput::measure),
];

fn main() -> anyhow::Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let mut figures = Vec::new();
    let mut failures = Vec::new();
    for (name, measure) in GROUPS {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| name.starts_with(wanted.as_str())) {
            continue;
        }
        eprintln!("measuring {name} ...");
        match Lab::new("bench").and_then(|lab| measure(&lab)) {
            Ok(group) => figures.extend(group),
            Err(error) => failures.push(format!("{name}: {error:#}")),
        }
    }
    println!("{}", figure::table(&figures));
    let file = if wanted.is_empty() { "budgets".to_owned() } else { wanted.join("-") };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    figure::write_json(&figures, &folder.join(file).with_extension("json"))?;
    anyhow::ensure!(failures.is_empty(), "not measured: {}", failures.join("; "));
    Ok(())
}
