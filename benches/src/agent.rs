//! Looks at an agent through its local API, without the start-up time of a process.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use mesh_lab::Node;

/// How often an agent is looked at: well below what is measured.
const POLL: Duration = Duration::from_millis(2);
/// How long anything may take before a measurement is given up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until an agent's interface, addresses and routes are up.
///
/// # Errors
/// When they are not in time.
pub fn wait_ready(node: &Node) -> anyhow::Result<()> {
    let started = Instant::now();
    while !is_ready(&node.socket()) {
        ensure!(started.elapsed() < PATIENCE, "{} is not ready in time", node.name());
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn is_ready(socket: &Path) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: mesh-agent.local\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"ready\":true"))
}
