//! For tests: a network namespace of their own, so that they ask the real kernel and touch nothing of the host.
//!
//! A test runs its own binary once more through `unshare` (util-linux), as root or through a user namespace, and the
//! second run finds itself alone with a new `lo`. Where neither is possible the test fails and says so.

use std::process::Command;

const MARK: &str = "MESH_TEST_NETNS";

/// Runs `body` in a new network namespace; `test` is the full path of the calling test.
pub(crate) fn isolated(test: &str, body: impl AsyncFnOnce()) {
    if std::env::var_os(MARK).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("invariant: a test may make a runtime");
        runtime.block_on(body());
        return;
    }
    let mut unshare = Command::new("unshare");
    unshare.arg("--net");
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let output = unshare
        .arg(std::env::current_exe().expect("invariant: a test knows its own binary"))
        .args(["--exact", test, "--nocapture"])
        .env(MARK, "1")
        .output()
        .expect("invariant: unshare is part of every Linux distribution's base");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "in its own network namespace (root or user namespaces are needed):\n{stdout}{stderr}"
    );
    assert!(stdout.contains("1 passed"), "{test} names no test:\n{stdout}");
}
