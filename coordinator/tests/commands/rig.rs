//! A running `mesh-coordinator serve`, and commands beside it.

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use mesh_coordinator::admin;

/// How long `serve` may take to start.
const DEADLINE: Duration = Duration::from_secs(20);

/// A coordinator or relay that is killed when it is dropped.
pub(crate) struct Serving(Child);

impl Serving {
    /// Starts a coordinator and waits until it can be administered.
    pub(crate) fn start(state_dir: &Path, names: &[&str]) -> Self {
        Self::start_at(state_dir, "127.0.0.1:0", names)
    }

    /// Starts a coordinator on this UDP port.
    pub(crate) fn start_at(state_dir: &Path, udp: &str, names: &[&str]) -> Self {
        let mut command = command(state_dir);
        command.args(["serve", "--listen-udp", udp, "--listen-tcp", "127.0.0.1:0", "--metrics", "off"]);
        for name in names {
            command.args(["--name", name]);
        }
        let serving = Self::spawn(command);
        let socket = admin::socket_path(state_dir);
        let deadline = Instant::now() + DEADLINE;
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "the coordinator does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        serving
    }

    /// Starts a daemon.
    pub(crate) fn spawn(mut command: Command) -> Self {
        Self(command.stderr(Stdio::null()).spawn().unwrap())
    }

    /// Kills the coordinator as the kernel does when memory is short.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Stops the coordinator and returns whether it ended well.
    pub(crate) fn stop(mut self) -> bool {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.0.wait().unwrap().success()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns a command of the program that has the state directory and nothing else from its surroundings.
pub(crate) fn command(state_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-coordinator"));
    command.env_clear().env("MESH_STATE_DIR", state_dir).stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub(crate) fn run(state_dir: &Path, args: &[&str]) -> Output {
    command(state_dir).args(args).output().unwrap()
}

/// Runs a command that must work, and returns what it prints.
pub(crate) fn done(state_dir: &Path, args: &[&str]) -> String {
    let output = run(state_dir, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    assert_eq!(errors, "", "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail with this exit code, and returns its complaint.
pub(crate) fn failed(state_dir: &Path, args: &[&str], code: i32) -> String {
    let output = run(state_dir, args);
    assert_eq!(output.status.code(), Some(code), "{args:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}
