//! `make bench-shards`: see [`mesh_benches::shards`].

use std::path::Path;

use mesh_benches::{figure, shards};
use mesh_lab::Lab;

fn main() -> anyhow::Result<()> {
    let figures = shards::measure(&Lab::new("shards")?)?;
    println!("{}", figure::table(&figures));
    figure::write_json(&figures, &Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/shards.json"))
}
