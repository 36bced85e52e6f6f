//! `mesh-cni`: the plugin of the container runtime, see [`mesh_agent::kubernetes::podnet::plugin`].

use std::process::ExitCode;

#[cfg(target_os = "linux")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    mesh_agent::kubernetes::podnet::plugin::run().await
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("mesh-cni: pods run on Linux");
    ExitCode::FAILURE
}
