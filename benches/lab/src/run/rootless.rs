//! The lab without root.
//!
//! A plain user becomes root of a user namespace of its own, with a network and a mount namespace below it and a
//! private `/run`: there it may make namespaces, TUN devices and NATs, and nothing of it is seen outside. A process
//! with threads cannot enter a user namespace, so the program is replaced by itself under `unshare`; whatever ran
//! before in it (the first lines of `main`, other tests) runs again.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};

/// Tells the second incarnation that it is one.
pub(crate) const MARK: &str = "MESH_LAB_ROOTLESS";

/// Makes sure that the program is root, of the machine or of a user namespace.
///
/// Returns at once for root. For a plain user it does not return: the program starts anew.
///
/// # Errors
///
/// If user namespaces are not allowed, or the private `/run` cannot be made.
pub fn become_root() -> anyhow::Result<()> {
    if is_second() {
        return private_run();
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let allowed = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "true"])
        .output()
        .context("the lab needs root, or `unshare` (util-linux) to be without it")?;
    if !allowed.status.success() {
        let said = String::from_utf8_lossy(&allowed.stderr);
        anyhow::bail!("the lab needs root: this user may not make user namespaces ({})", said.trim());
    }
    let program = std::env::current_exe().context("own executable")?;
    let error = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(MARK, "1")
        .exec();
    Err(error).context("the program cannot be started again in a user namespace")
}

/// Whether this is the second incarnation, inside the user namespace.
pub fn is_second() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Puts an empty file system on `/run`, once.
fn private_run() -> anyhow::Result<()> {
    static ONCE: std::sync::OnceLock<Result<(), nix::Error>> = std::sync::OnceLock::new();
    let mounted =
        *ONCE.get_or_init(|| mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")));
    mounted.context("a private /run cannot be mounted")
}
