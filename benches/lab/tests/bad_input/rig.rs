//! What all these tests stand on: a coordinator, hosts on one LAN, and looks at what a refused command left.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_lab::{
    Filtering, Finished, Host, HostCommand, Lab, Mapping, Mesh, MeshOptions, Nat, Node, Site, Topology,
};

/// The host of the coordinator.
pub(crate) const COORDINATOR: &str = "coord";
/// Where the coordinator shows its metrics.
const METRICS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 9743);
/// For the machine's busiest moments.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A mesh whose nodes share one LAN; only the coordinator runs.
pub(crate) fn mesh(nodes: &[&str]) -> (Lab, Mesh) {
    let lab = Lab::new("badinput").unwrap();
    let lan = Site::behind("lan", Nat::new(Mapping::Eim, Filtering::Apdf));
    let lan = nodes.iter().fold(lan, |lan, node| lan.host(node));
    let network = lab.build(Topology::new().site(Site::public(COORDINATOR)).site(lan)).unwrap();
    let address = network.outside(COORDINATOR).unwrap().to_string();
    let mesh = Mesh::new(network, &MeshOptions::new(COORDINATOR, &address, nodes)).unwrap();
    mesh.start_coordinator().unwrap();
    (lab, mesh)
}

/// The words of a join line.
pub(crate) struct JoinLine {
    pub(crate) coordinator: String,
    pub(crate) token: String,
    pub(crate) hash: String,
}

impl JoinLine {
    pub(crate) fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["mesh-agent", "join", coordinator, "--token", token, "--ca-cert-hash", hash] = words[..] else {
            panic!("another join line than expected: {line}")
        };
        Self { coordinator: coordinator.to_owned(), token: token.to_owned(), hash: hash.to_owned() }
    }

    /// The join command of a node.
    pub(crate) fn command(&self, node: &Node, state_dir: &Path) -> HostCommand {
        self.after(node.agent_command(), state_dir)
    }

    /// Puts the arguments after a program's own.
    pub(crate) fn after(&self, command: HostCommand, state_dir: &Path) -> HostCommand {
        command
            .args(["join", &self.coordinator, "--token", &self.token, "--ca-cert-hash", &self.hash])
            .arg("--state-dir")
            .arg(state_dir)
    }
}

/// The settings of one `mesh-agent run`.
pub(crate) struct Run {
    pub(crate) interface: &'static str,
    pub(crate) port: u16,
    pub(crate) state_dir: PathBuf,
    pub(crate) socket: PathBuf,
}

impl Run {
    pub(crate) fn of(node: &Node) -> Self {
        Self { interface: "mesh0", port: 51820, state_dir: node.state_dir(), socket: node.socket() }
    }

    /// Puts the arguments after a program's own; it is expected to end by itself.
    pub(crate) fn after(&self, command: HostCommand) -> HostCommand {
        command
            .args(["run", "--interface", self.interface, "--listen-port", &self.port.to_string()])
            .arg("--state-dir")
            .arg(&self.state_dir)
            .arg("--socket")
            .arg(&self.socket)
            .timeout(PATIENCE)
    }
}

/// A program of the mesh on a host, run by a shell script as its `"$@"`, in a mount namespace of its own.
pub(crate) fn scripted(host: &Host, script: &str, program: &Path) -> HostCommand {
    host.command("sh").args(["-c", script, "sh"]).arg(program)
}

/// A program of the mesh on a host, run as root without these capabilities.
pub(crate) fn without_capabilities(host: &Host, dropped: &[&str], program: &Path) -> HostCommand {
    let dropped: Vec<String> = dropped.iter().map(|name| format!("-{name}")).collect();
    host.command("setpriv").arg(format!("--bounding-set={}", dropped.join(","))).arg(program)
}

/// Asserts that a command failed, and says every one of these.
pub(crate) fn assert_fails(finished: &Finished, code: i32, words: &[&str]) {
    assert_eq!(finished.code(), code, "{finished:?}");
    assert_eq!(finished.stdout, "", "errors go to stderr");
    for word in words {
        assert!(finished.stderr.contains(word), "{word:?} is missing in: {}", finished.stderr);
    }
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
}

/// The coordinator's metrics by name, with labels.
pub(crate) fn metrics(mesh: &Mesh) -> BTreeMap<String, u64> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(METRICS)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let netns = mesh.coordinator().host().unwrap().netns();
    let text = netns.enter(ask).unwrap().unwrap();
    let samples = text.lines().filter(|line| line.starts_with("mesh_"));
    samples
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

/// The resident memory of a process, in KiB.
pub(crate) fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
