//! `mesh-coordinator`: see [`mesh_coordinator::cli`].

use std::process::ExitCode;

use clap::Parser;
use mesh_coordinator::cli;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
