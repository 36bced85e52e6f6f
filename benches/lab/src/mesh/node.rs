//! One node of a mesh: a host with an agent.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_proto::status::{PeerStatus, Status};
use nix::sys::signal::Signal;

use super::binaries::Binaries;
use super::daemon::Daemon;
use crate::process::{Finished, HostCommand};
use crate::topology::{Host, Network};

/// The interface of every agent; hosts have their own namespaces.
const INTERFACE: &str = "mesh0";
/// Longer than `join` may try before it gives up by itself.
const JOIN_PATIENCE: Duration = Duration::from_secs(60);
/// How long `meshctl status` may take on a busy machine.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// A node of a running mesh.
#[derive(Debug)]
pub struct Node {
    name: String,
    network: Arc<Network>,
    binaries: Binaries,
    directory: PathBuf,
    agent: Daemon,
}

impl Node {
    pub(super) fn new(
        network: &Arc<Network>,
        name: &str,
        binaries: &Binaries,
        extra: &[String],
    ) -> anyhow::Result<Self> {
        network.host(name)?;
        let directory = network.lab().directory().join("nodes").join(name);
        std::fs::create_dir_all(&directory)?;
        let mut args = vec!["run".into(), "--state-dir".into(), directory.join("state").into()];
        args.extend([
            "--socket".into(),
            directory.join("sock").into(),
            "--interface".into(),
            INTERFACE.into(),
        ]);
        args.extend(extra.iter().map(Into::into));
        let agent = Daemon::new(Arc::clone(network), name, binaries.agent.clone(), args);
        Ok(Self {
            name: name.to_owned(),
            network: Arc::clone(network),
            binaries: binaries.clone(),
            directory,
            agent,
        })
    }

    /// Its name, in the mesh and as a host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host on which it runs.
    pub fn host(&self) -> &Host {
        self.network.host(&self.name).expect("a node is made only for a host that exists, and hosts stay")
    }

    /// The agent's daemon.
    pub fn agent(&self) -> &Daemon {
        &self.agent
    }

    /// The agent's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// The agent's local socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("sock")
    }

    /// Runs a join line, as `mesh-coordinator token create` prints it, for this node.
    ///
    /// # Errors
    ///
    /// If the line is none, or `join` fails; with what it printed.
    pub fn join(&self, line: &str) -> anyhow::Result<()> {
        self.try_join(line)?.success().map(drop)
    }

    /// As [`Node::join`], but a refusal is an answer and not an error.
    ///
    /// # Errors
    ///
    /// If the line is none, or `join` does not end.
    pub fn try_join(&self, line: &str) -> anyhow::Result<Finished> {
        let mut words = line.split_whitespace();
        ensure!(words.next() == Some("mesh-agent"), "not a join line: {line}");
        self.agent_command()
            .args(words)
            .args(["--name", &self.name])
            .arg("--state-dir")
            .arg(self.state_dir())
            .timeout(JOIN_PATIENCE)
            .output()
    }

    /// Starts the agent.
    ///
    /// # Errors
    ///
    /// If it cannot be started. Whether it becomes ready is another question: see [`Node::is_ready`].
    pub fn start(&self) -> anyhow::Result<()> {
        self.agent.start()
    }

    /// Sends the agent a signal; SIGKILL is waited for.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill(&self, signal: Signal) -> anyhow::Result<()> {
        self.agent.kill(signal)
    }

    /// Stops the agent in order and starts it again.
    ///
    /// # Errors
    ///
    /// If it does not stop, or ends with a failure.
    pub fn restart(&self) -> anyhow::Result<()> {
        self.agent.restart()
    }

    /// A `mesh-agent` command on this node.
    pub fn agent_command(&self) -> HostCommand {
        self.host().command(&self.binaries.agent)
    }

    /// Runs `meshctl` with these arguments against this node's agent.
    ///
    /// # Errors
    ///
    /// If it does not end in time. A failure exit is no error.
    pub fn meshctl(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Result<Finished> {
        self.meshctl_command().args(args).output()
    }

    /// A `meshctl` command against this node's agent.
    pub fn meshctl_command(&self) -> HostCommand {
        self.host().command(&self.binaries.meshctl).arg("--socket").arg(self.socket())
    }

    /// What `meshctl status --json` says.
    ///
    /// # Errors
    ///
    /// If the agent does not answer, or with something else than a status.
    pub fn status(&self) -> anyhow::Result<Status> {
        let json = self.status_json()?;
        serde_json::from_value(json).with_context(|| format!("status of {}", self.name))
    }

    /// What `meshctl status --json` says, unread.
    ///
    /// # Errors
    ///
    /// If the agent does not answer, or not with JSON.
    pub fn status_json(&self) -> anyhow::Result<serde_json::Value> {
        let finished = self.meshctl_command().args(["status", "--json"]).timeout(STATUS_PATIENCE).output()?;
        let finished = finished.success()?;
        serde_json::from_str(&finished.stdout)
            .with_context(|| format!("status of {}: {}", self.name, finished.stdout))
    }

    /// The status, as the agent's local API answers it: for those who look many times a second.
    ///
    /// # Errors
    ///
    /// As [`Node::get`].
    pub fn peek(&self) -> anyhow::Result<Status> {
        Ok(serde_json::from_value(self.get("/v1/status")?)?)
    }

    /// What the agent's local API answers to a GET of this path, as `/v1/why/NODE`; no program is started for it.
    ///
    /// # Errors
    ///
    /// If the agent does not answer, or not with JSON.
    pub fn get(&self, path: &str) -> anyhow::Result<serde_json::Value> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(STATUS_PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: mesh-agent.local\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{path} of {}: {head}", self.name);
        serde_json::from_str(body).with_context(|| format!("{path} of {}: {body}", self.name))
    }

    /// What this node says of another.
    ///
    /// # Errors
    ///
    /// If the agent does not answer, or does not know it.
    pub fn peer(&self, name: &str) -> anyhow::Result<PeerStatus> {
        let status = self.status()?;
        let found = status.peers.into_iter().find(|peer| peer.name == name);
        found.with_context(|| format!("{} does not know {name}", self.name))
    }

    /// Whether interface, addresses and routes are up.
    pub fn is_ready(&self) -> bool {
        self.meshctl(["status", "--check", "ready"]).is_ok_and(|finished| finished.status.success())
    }

    /// The node's IPv4 address in the mesh.
    ///
    /// # Errors
    ///
    /// If the agent does not answer, or has none yet.
    pub fn address(&self) -> anyhow::Result<Ipv4Addr> {
        let v4 = |address: &IpAddr| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        };
        let status = self.status()?;
        status
            .this
            .addresses
            .iter()
            .find_map(v4)
            .with_context(|| format!("{} has no mesh address", self.name))
    }

    /// All of the node's addresses in the mesh, IPv4 first.
    ///
    /// # Errors
    ///
    /// If the agent does not answer, or has none yet.
    pub fn addresses(&self) -> anyhow::Result<Vec<IpAddr>> {
        let mut addresses = self.status()?.this.addresses;
        addresses.sort();
        ensure!(!addresses.is_empty(), "{} has no mesh address", self.name);
        Ok(addresses)
    }

    /// Where the agent's files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}
