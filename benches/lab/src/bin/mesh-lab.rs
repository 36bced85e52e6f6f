//! The command `mesh-lab`: see `mesh-lab --help`.

use std::process::ExitCode;

use clap::Parser as _;
use mesh_lab::cli::Arguments;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Arguments::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mesh-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
