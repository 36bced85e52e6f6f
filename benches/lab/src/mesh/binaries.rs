//! Finding the programs under test.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::bail;

/// The directory that is looked at first.
const VARIABLE: &str = "MESH_BIN_DIR";

/// The three programs of the mesh.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `mesh-coordinator`.
    pub coordinator: PathBuf,
    /// `mesh-agent`.
    pub agent: PathBuf,
    /// `meshctl`.
    pub meshctl: PathBuf,
}

impl Binaries {
    /// Looks in `$MESH_BIN_DIR`; else beside this program and one directory up, where tests find what cargo built
    /// in the same profile; else in `target/release` and `target/debug` of the workspace.
    ///
    /// # Errors
    ///
    /// If no directory has all three, with those that were looked at.
    pub fn find() -> anyhow::Result<Self> {
        let directories = directories();
        for directory in &directories {
            let of = |name: &str| Some(directory.join(name)).filter(|path| path.is_file());
            if let (Some(coordinator), Some(agent), Some(meshctl)) =
                (of("mesh-coordinator"), of("mesh-agent"), of("meshctl"))
            {
                return Ok(Self { coordinator, agent, meshctl });
            }
        }
        let looked: Vec<_> = directories.iter().map(|directory| directory.display().to_string()).collect();
        bail!(
            "mesh-coordinator, mesh-agent and meshctl are not in {}: run `cargo build -p mesh-agent -p mesh-coordinator`, \
             or set {VARIABLE}",
            looked.join(", ")
        )
    }
}

fn directories() -> Vec<PathBuf> {
    if let Some(directory) = std::env::var_os(VARIABLE) {
        return vec![directory.into()];
    }
    let mut found = Vec::new();
    if let Ok(program) = std::env::current_exe() {
        found.extend(program.ancestors().skip(1).take(2).map(Path::to_owned));
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    found.extend(["release", "debug"].map(|profile| target.join(profile)));
    let mut seen = BTreeSet::new();
    found.retain(|directory| seen.insert(directory.clone()));
    found
}
