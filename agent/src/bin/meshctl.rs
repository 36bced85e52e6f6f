//! `meshctl`: see [`mesh_agent::meshctl`].

use std::process::ExitCode;

use clap::Parser;
use mesh_agent::meshctl;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    meshctl::run(meshctl::MeshctlCli::parse()).await
}
