//! `make bench-relay`: see [`mesh_benches::relay`].

use std::path::Path;

use mesh_benches::{figure, relay};
use mesh_lab::Lab;

fn main() -> anyhow::Result<()> {
    let figures = relay::measure(&Lab::new("relay")?)?;
    println!("{}", figure::table(&figures));
    figure::write_json(&figures, &Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/relay.json"))
}
