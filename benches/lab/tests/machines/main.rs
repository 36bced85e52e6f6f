//! The packages on real Debians with systemd, in the network of the village: `make test-machines`.
//!
//! `MESH_PACKAGES` names the directory with the packages, as `make deb` leaves it.

#![expect(clippy::unwrap_used, reason = "a test may fail that way")]

use std::path::PathBuf;
use std::time::Duration;

use mesh_lab::machine::Machine;
use mesh_lab::mesh::wait_until;

mod packages;
mod restart;
mod village;

/// In which units start and agents become ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// How packages are installed: no question is asked, and what an administrator has changed stays.
const INSTALL: &str = "DEBIAN_FRONTEND=noninteractive dpkg --force-confold -i";

/// The directory with the packages.
fn packages() -> PathBuf {
    let directory =
        std::env::var_os("MESH_PACKAGES").expect("MESH_PACKAGES is not set: see `make test-machines`");
    PathBuf::from(directory)
}

/// A shell's pattern of a package's file inside a machine.
fn package(name: &str) -> String {
    format!("{}/{name}_*.deb", packages().canonicalize().unwrap().display())
}

/// Names the coordinator, starts it and returns a token's line.
fn start_coordinator(machine: &Machine, name: &str) -> String {
    machine
        .shell(&format!(
            "sed -i 's|^#name = .*|name = [\"{name}\"]|' /etc/mesh/coordinator.toml\n\
             systemctl enable --now mesh-coordinator"
        ))
        .unwrap();
    wait_until(PATIENCE, "the coordinator answers", || {
        Ok(machine.run("mesh-coordinator", ["node", "list"])?.status.success())
    })
    .unwrap();
    machine.shell("mesh-coordinator token create --uses 10").unwrap()
}

/// Waits until the agent of a machine is ready.
fn wait_ready(machine: &Machine) {
    wait_until(PATIENCE, "the agent is ready", || {
        Ok(machine.run("meshctl", ["status", "--check", "ready"])?.status.success())
    })
    .unwrap_or_else(|error| {
        let log = machine.shell("journalctl -u mesh-agent --no-pager | tail -30").unwrap_or_default();
        panic!("{error:#}\n{log}")
    });
}

/// What a unit is doing, and how often it was started again.
fn property(machine: &Machine, unit: &str, name: &str) -> String {
    machine.shell(&format!("systemctl show --value -p {name} {unit}")).unwrap()
}

/// A node's first address in the mesh.
fn address(machine: &Machine) -> String {
    wait_ready(machine);
    let status: serde_json::Value =
        serde_json::from_str(&machine.shell("meshctl status --json").unwrap()).unwrap();
    status["self"]["addresses"][0].as_str().unwrap().to_owned()
}
