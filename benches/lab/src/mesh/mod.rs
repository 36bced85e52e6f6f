//! A mesh on a network, from the real binaries: a coordinator on one host, agents on others.
//!
//! [`Mesh::new`] starts nothing. Then either [`Mesh::start`] brings everything up, or a test or demo goes step by step:
//! [`Mesh::start_coordinator`], [`Mesh::join`] per node, [`Mesh::wait_ready`]. All processes end with the mesh.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};

mod binaries;
mod cache;
mod daemon;
mod leftovers;
mod logs;
mod node;
mod paths;
mod relay;
mod service;

pub use binaries::Binaries;
pub use daemon::Daemon;
pub use leftovers::Before;
pub use node::Node;
pub use paths::Primary;
pub use service::{Ending, Service};

use crate::process::{Finished, HostCommand};
use crate::topology::Network;

/// How long the coordinator may take until it makes tokens.
const COORDINATOR_PATIENCE: Duration = Duration::from_secs(15);
/// How long agents may take until they are ready; far beyond the budget, for machines that are busy with builds.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// How often [`wait_until`] looks.
const POLL: Duration = Duration::from_millis(50);

/// What a mesh consists of.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// The host of the coordinator.
    pub coordinator: String,
    /// What `--name` says, by which nodes find the coordinator.
    pub name: String,
    /// The hosts of the nodes.
    pub nodes: Vec<String>,
    /// Further arguments of `mesh-coordinator serve`.
    pub coordinator_args: Vec<String>,
    /// Further arguments of `mesh-agent run`, on every node.
    pub agent_args: Vec<String>,
    /// And on single ones.
    pub agent_args_of: BTreeMap<String, Vec<String>>,
}

impl MeshOptions {
    /// A coordinator on `coordinator`, found as `name`, and agents on `nodes`.
    pub fn new(coordinator: &str, name: &str, nodes: &[&str]) -> Self {
        Self {
            coordinator: coordinator.to_owned(),
            name: name.to_owned(),
            nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
            coordinator_args: Vec::new(),
            agent_args: Vec::new(),
            agent_args_of: BTreeMap::new(),
        }
    }
}

/// A mesh on a network.
#[derive(Debug)]
pub struct Mesh {
    nodes: BTreeMap<String, Node>,
    coordinator: Daemon,
    coordinator_dir: PathBuf,
    binaries: Binaries,
    network: Arc<Network>,
}

/// One ordered pair of nodes: what a ping took, or why there was no reply.
#[derive(Debug)]
pub struct Pair {
    /// Who asked.
    pub from: String,
    /// Who was asked.
    pub to: String,
    /// The round trip of one echo over the mesh.
    pub round_trip: anyhow::Result<Duration>,
}

impl Mesh {
    /// Prepares a mesh; nothing is started.
    ///
    /// # Errors
    ///
    /// If the binaries are not built, or a host is missing.
    pub fn new(network: impl Into<Arc<Network>>, options: &MeshOptions) -> anyhow::Result<Self> {
        let network = network.into();
        let binaries = Binaries::find()?;
        network.host(&options.coordinator)?;
        let coordinator_dir = network.lab().directory().join("coordinator");
        let mut args = vec!["serve".into(), "--state-dir".into(), coordinator_dir.clone().into()];
        args.extend(["--name".into(), options.name.clone().into()]);
        args.extend(options.coordinator_args.iter().map(Into::into));
        let coordinator =
            Daemon::new(Arc::clone(&network), &options.coordinator, binaries.coordinator.clone(), args);
        let node = |name: &String| {
            let own = options.agent_args_of.get(name).into_iter().flatten();
            let args: Vec<_> = options.agent_args.iter().chain(own).cloned().collect();
            let node = Node::new(&network, name, &binaries, &args)?;
            Ok((name.clone(), node))
        };
        let nodes = options.nodes.iter().map(node).collect::<anyhow::Result<_>>()?;
        Ok(Self { nodes, coordinator, coordinator_dir, binaries, network })
    }

    /// Starts the coordinator, joins all nodes and waits until they are ready.
    ///
    /// # Errors
    ///
    /// If any of it fails.
    pub fn start(&self) -> anyhow::Result<()> {
        self.start_coordinator()?;
        let line = self.token(&["--uses", &self.nodes.len().to_string()])?;
        self.for_each_node(|node| {
            node.join(&line).with_context(|| format!("{} does not join", node.name()))?;
            node.start()
        })?;
        self.wait_ready(READY_PATIENCE)
    }

    /// Starts the coordinator and waits until it answers its administrator.
    ///
    /// # Errors
    ///
    /// If it ends, or does not answer in time.
    pub fn start_coordinator(&self) -> anyhow::Result<()> {
        self.coordinator.start()?;
        wait_until(COORDINATOR_PATIENCE, "the coordinator answers", || {
            if !self.coordinator.is_running() {
                bail!("it has ended: {}", self.coordinator.log()?);
            }
            Ok(self.administer(["node", "list"])?.success().is_ok())
        })
    }

    /// Makes a token with these options of `token create` and returns the join line.
    ///
    /// # Errors
    ///
    /// If the coordinator does not answer or prints something else.
    pub fn token(&self, options: &[&str]) -> anyhow::Result<String> {
        let args = ["token", "create"].iter().chain(options);
        let finished = self.administer(args)?.success()?;
        let line = finished.stdout.trim_end_matches('\n');
        if !line.starts_with("mesh-agent join ") || line.contains('\n') {
            bail!("`token create` printed something else than one join line: {line:?}");
        }
        Ok(line.to_owned())
    }

    /// Joins one node with a token of its own, and starts its agent.
    ///
    /// # Errors
    ///
    /// If it cannot join.
    pub fn join(&self, node: &str) -> anyhow::Result<()> {
        let node = self.node(node)?;
        node.join(&self.token(&[])?)?;
        node.start()
    }

    /// Stops all agents and then the coordinator, in order.
    ///
    /// # Errors
    ///
    /// If one does not stop in time, or ends with a failure.
    pub fn stop(&self) -> anyhow::Result<()> {
        self.for_each_node(|node| node.agent().stop())?;
        self.coordinator.stop()
    }

    /// Waits until every agent is ready.
    ///
    /// # Errors
    ///
    /// If one is not within `patience`.
    pub fn wait_ready(&self, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        self.for_each_node(|node| {
            let left = deadline.saturating_duration_since(Instant::now());
            wait_until(left, &format!("{} is ready", node.name()), || Ok(node.is_ready()))
        })
    }

    /// Runs `mesh-coordinator` with these arguments beside the running coordinator, as its administrator does.
    ///
    /// # Errors
    ///
    /// If it does not end. A failure exit is no error.
    pub fn administer(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Result<Finished> {
        self.coordinator_command()?.args(args).arg("--state-dir").arg(&self.coordinator_dir).output()
    }

    /// A bare `mesh-coordinator` command on the coordinator's host.
    ///
    /// # Errors
    ///
    /// If the host is missing.
    pub fn coordinator_command(&self) -> anyhow::Result<HostCommand> {
        Ok(self.coordinator.host()?.command(&self.binaries.coordinator))
    }

    /// Every daemon there is, the coordinator first; for those who kill at random.
    pub fn daemons(&self) -> Vec<&Daemon> {
        std::iter::once(&self.coordinator).chain(self.nodes().map(Node::agent)).collect()
    }

    /// The coordinator's daemon.
    pub fn coordinator(&self) -> &Daemon {
        &self.coordinator
    }

    /// The coordinator's state directory.
    pub fn coordinator_dir(&self) -> &PathBuf {
        &self.coordinator_dir
    }

    /// A node by name.
    ///
    /// # Errors
    ///
    /// If there is none of that name.
    pub fn node(&self, name: &str) -> anyhow::Result<&Node> {
        self.nodes.get(name).with_context(|| format!("there is no node {name}"))
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The programs under test.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The network.
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// Sends one echo from `from` to the mesh address of `to`.
    ///
    /// # Errors
    ///
    /// If there is no reply within two seconds, or `to` has no address yet.
    pub fn ping(&self, from: &str, to: &str) -> anyhow::Result<Duration> {
        self.node(from)?.host().ping(self.node(to)?.address()?)
    }

    /// Pings every ordered pair once; from each node in turn, all nodes at the same time.
    pub fn ping_all(&self) -> Vec<Pair> {
        let addresses: BTreeMap<&str, Result<_, String>> = self
            .nodes()
            .map(|node| (node.name(), node.address().map_err(|error| format!("{error:#}"))))
            .collect();
        let from_one = |from: &Node| -> Vec<Pair> {
            let others = self.nodes().filter(|to| to.name() != from.name());
            let pair = |to: &Node| {
                let address = addresses[to.name()].clone().map_err(|error| anyhow!(error));
                let round_trip = address.and_then(|address| from.host().ping(address));
                Pair { from: from.name().to_owned(), to: to.name().to_owned(), round_trip }
            };
            others.map(pair).collect()
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.nodes().map(|from| scope.spawn(move || from_one(from))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
        })
    }

    /// Waits until every ordered pair answers a ping over the mesh.
    ///
    /// # Errors
    ///
    /// With the pairs that do not, after `patience`.
    pub fn wait_connected(&self, patience: Duration) -> anyhow::Result<()> {
        wait_until(patience, "every pair answers", || {
            let silent = self.ping_all().into_iter().filter_map(|pair| {
                let error = pair.round_trip.err()?;
                Some(format!("{} to {}: {error:#}", pair.from, pair.to))
            });
            let silent: Vec<String> = silent.collect();
            if silent.is_empty() { Ok(true) } else { bail!("{}", silent.join("; ")) }
        })
    }

    /// Does something with all nodes at the same time; the first failure in order of names is returned.
    fn for_each_node(&self, work: impl Fn(&Node) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
        let work = &work;
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.nodes().map(|node| scope.spawn(move || work(node))).collect();
            let results = threads.into_iter().map(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            results.collect()
        })
    }
}

/// Looks until `predicate` is true. Its errors count as "not yet"; the last one is reported.
///
/// # Errors
///
/// If it is not true within `patience`; it is looked at least once.
pub fn wait_until(
    patience: Duration,
    what: &str,
    mut predicate: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let error = match predicate() {
            Ok(true) => return Ok(()),
            Ok(false) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= deadline {
            let failure = format!("not within {patience:?}: {what}");
            return Err(match error {
                Some(error) => error.context(failure),
                None => anyhow!(failure),
            });
        }
        std::thread::sleep(POLL);
    }
}
