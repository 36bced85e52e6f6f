//! The lab works for a plain user too, where the kernel lets one make user namespaces.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Debian's `nobody`.
const NOBODY: u32 = 65534;

/// A copy of `mesh-lab` where every user may read it, removed on drop.
struct PublicCopy(std::path::PathBuf);

impl PublicCopy {
    fn make() -> std::io::Result<Self> {
        let directory = std::env::temp_dir().join(format!("mesh-lab-test-{}", std::process::id()));
        std::fs::create_dir(&directory)?;
        let copy = Self(directory);
        std::fs::set_permissions(&copy.0, std::fs::Permissions::from_mode(0o755))?;
        std::fs::copy(env!("CARGO_BIN_EXE_mesh-lab"), copy.program())?;
        Ok(copy)
    }

    fn program(&self) -> std::path::PathBuf {
        self.0.join("mesh-lab")
    }
}

impl Drop for PublicCopy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn nine_types_are_measured_by_a_plain_user() {
    let copy = PublicCopy::make().unwrap();
    let mut command = Command::new(copy.program());
    command.arg("nat-check");
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    assert!(said.contains("9 of 9 as wanted"), "{said}");
}
