//! A thousand agents come back after their coordinator was killed: how long it takes, and what it costs the coordinator.
//!
//! The coordinator is the real program; the agents are QUIC sessions in this process, with an endpoint each, which dial
//! again as agents do. They have the processors in common with it: what they use themselves is shown, too. Once all are
//! there, one of them changes, and it is shown what telling everybody costs. After that as many as [`simulated`] has come
//! to a coordinator in this process, without sockets.
//!
//! `STORM_NODES` sets how many there are, `STORM_SIMULATED` how many without sockets, `STORM_COORDINATOR` names another
//! program to compare with.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench fails by panicking")]

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_coordinator::{
    admin,
    identity::Identity,
    registry::{MeshOptions, Registry, RoutePolicy, TokenSpec},
};
use mesh_proto::{key::KeyPin, netmap::Version};

use self::{
    rig::Agent,
    storm::{Knows, News, Returned, all_come_back},
};

#[path = "../../tests/serve/rig.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod rig;
mod simulated;
#[path = "../../tests/serve/storm.rs"]
mod storm;

/// Agents unless told otherwise.
const NODES: usize = 1000;
/// Agents without sockets unless told otherwise.
const SIMULATED: usize = 10_000;
/// How long they may take to know of each other.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long nothing has to be said before everything is.
const QUIET: Duration = Duration::from_millis(1500);

/// CPU time that was used.
#[derive(Clone, Copy)]
struct Spent {
    coordinator: Duration,
    agents: Duration,
}

/// A coordinator that is killed when it is dropped.
struct Coordinator {
    child: Child,
    pin: KeyPin,
    address: SocketAddr,
}

fn main() {
    let number = |name, or| std::env::var(name).map_or(or, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(number("STORM_NODES", NODES)));
    runtime.block_on(simulated::run(number("STORM_SIMULATED", SIMULATED)));
}

async fn run(nodes: usize) {
    let state = tempfile::tempdir().unwrap();
    let agents: Vec<_> = (0..nodes).map(|number| Arc::new(Agent::new(&format!("n{number}")))).collect();
    let pin = Identity::load_or_create(state.path()).unwrap().pin;
    let address = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    register(state.path(), address, &agents).await;

    let coordinator = Coordinator::start(state.path(), pin, address);
    let with = |version: Option<Version>| agents.iter().map(move |agent| (agent.clone(), version)).collect();
    let returned = storm("with nothing", &coordinator, with(None)).await;
    let version = returned.iter().map(|returned| returned.known().unwrap()).max();
    drop(returned);
    drop(coordinator);
    let began = Instant::now();
    let coordinator = Coordinator::start(state.path(), pin, address);
    println!("killed, and serving again after {:.2} s", began.elapsed().as_secs_f64());
    let returned = storm("with the latest map", &coordinator, with(version)).await;
    one_changes(state.path(), &coordinator, returned).await;
    // While all are away.
    administer(state.path(), &["node", "rename", "n2", "once-n2"]);
    administer(state.path(), &["node", "remove", "n3"]);
    drop(coordinator);
    let coordinator = Coordinator::start(state.path(), pin, address);
    let others = agents.iter().filter(|agent| agent.name != "n3");
    let others = others.map(|agent| (agent.clone(), version)).collect();
    storm("with an older map", &coordinator, others).await;
}

/// Lets one node change while all are there, and prints what it costs to tell the others.
async fn one_changes(state_dir: &Path, coordinator: &Coordinator, mut returned: Vec<Returned>) {
    let before = (received(&returned), coordinator.spent());
    administer(state_dir, &["node", "rename", "n1", "once-n1"]);
    returned = told("has another name", before, coordinator, returned).await;
    let before = (received(&returned), coordinator.spent());
    returned[0].move_elsewhere().await;
    told("is somewhere else", before, coordinator, returned).await;
}

/// Waits until everybody was told, and prints what that took.
async fn told(
    what: &str,
    (bytes, spent): (u64, Spent),
    coordinator: &Coordinator,
    returned: Vec<Returned>,
) -> Vec<Returned> {
    let mut hearing = tokio::task::JoinSet::new();
    for mut returned in returned {
        hearing.spawn(async move {
            returned.hear_until_quiet(QUIET).await;
            returned
        });
    }
    let returned = hearing.join_all().await;
    let spent = coordinator.spent().since(spent);
    let others = returned.len() - 1;
    let each = (received(&returned) - bytes) / u64::try_from(others).unwrap();
    println!("    one {what}: {each} bytes to each of {others}, {spent} within {QUIET:?}");
    returned
}

fn received(returned: &[Returned]) -> u64 {
    returned.iter().map(Returned::received).sum()
}

/// Speaks to the coordinator as an operator does.
fn administer(state_dir: &Path, arguments: &[&str]) {
    let mut command = Command::new(program());
    let status = command.args(arguments).arg("--state-dir").arg(state_dir).stdout(Stdio::null()).status();
    assert!(status.unwrap().success(), "{arguments:?}");
}

fn program() -> String {
    std::env::var("STORM_COORDINATOR").unwrap_or_else(|_| env!("CARGO_BIN_EXE_mesh-coordinator").to_owned())
}

/// Registers agents with a coordinator that is not running, and will be at an address.
async fn register(state_dir: &Path, address: SocketAddr, agents: &[Arc<Agent>]) {
    let options = MeshOptions {
        ipv4: "10.90.0.0/16".parse().unwrap(),
        coordinators: vec![address.to_string()],
        relay_name: "127.0.0.1".to_owned(),
        routes: RoutePolicy::default(),
    };
    let registry = Registry::open(state_dir, options).await.unwrap();
    let uses = u32::try_from(agents.len()).unwrap();
    let spec = TokenSpec { ttl: Duration::from_secs(3600), uses, tags: vec![] };
    let token = registry.create_token(spec).await.unwrap();
    for agent in agents {
        let name = agent.name.parse().unwrap();
        registry.join(agent.identity.node_key, token.clone(), name, agent.public_key).await.unwrap();
    }
    registry.close().await.unwrap();
}

/// Lets everybody dial at the same moment, and prints what came of it.
async fn storm(
    what: &str,
    coordinator: &Coordinator,
    agents: Vec<(Arc<Agent>, Option<Version>)>,
) -> Vec<Returned> {
    let (began, spent, count) = (Instant::now(), coordinator.spent(), agents.len());
    let returned = all_come_back(coordinator.address, agents, coordinator.pin).await;
    let back = began.elapsed();
    let mut times: Vec<Duration> = returned.iter().map(|returned| returned.at - began).collect();
    times.sort();
    let median = times[times.len() / 2];
    let failures = counts(&returned, |returned| returned.failures.to_string());
    let news = counts(&returned, |returned| match returned.news {
        News::Whole(_) => "a whole map".to_owned(),
        News::Delta(_) => "a delta".to_owned(),
        News::Nothing => "nothing new".to_owned(),
    });
    println!(
        "{count} agents, {what}: all back after {:.2} s (median {:.2} s), {}; got {news:?}; failed attempts {failures:?}",
        back.as_secs_f64(),
        median.as_secs_f64(),
        coordinator.spent().since(spent),
    );
    let mut meeting = tokio::task::JoinSet::new();
    for mut returned in returned {
        meeting.spawn(async move {
            returned.meet(Knows { others: count - 1, reach: true }, PATIENCE).await;
            returned
        });
    }
    let returned = meeting.join_all().await;
    let [resident, most] = coordinator.memory_mb();
    println!(
        "    everybody knows where everybody is after {:.2} s, {}, {} kB to each; \
         the coordinator has {resident} MB and had {most}",
        began.elapsed().as_secs_f64(),
        coordinator.spent().since(spent),
        received(&returned) / 1000 / u64::try_from(count).unwrap(),
    );
    returned
}

fn counts(returned: &[Returned], of: impl Fn(&Returned) -> String) -> BTreeMap<String, usize> {
    returned.iter().fold(BTreeMap::new(), |mut counts, returned| {
        *counts.entry(of(returned)).or_default() += 1;
        counts
    })
}

impl Coordinator {
    fn start(state_dir: &Path, pin: KeyPin, address: SocketAddr) -> Self {
        let mut command = Command::new(program());
        command.env_clear().arg("serve").arg("--state-dir").arg(state_dir);
        command.args(["--listen-tcp", "127.0.0.1:0", "--metrics", "off", "--name", "127.0.0.1"]);
        command.arg("--listen-udp").arg(address.to_string());
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let socket = admin::socket_path(state_dir);
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { child, pin, address }
    }

    /// Returns the CPU time that was used so far.
    fn spent(&self) -> Spent {
        Spent { coordinator: cpu(&self.child.id().to_string()), agents: cpu("self") }
    }

    /// Returns how much of it is in memory, now and at most so far.
    fn memory_mb(&self) -> [u64; 2] {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        ["VmRSS:", "VmHWM:"].map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
        })
    }
}

impl Spent {
    fn since(self, earlier: Self) -> Self {
        Self { coordinator: self.coordinator - earlier.coordinator, agents: self.agents - earlier.agents }
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (coordinator, agents) = (self.coordinator.as_secs_f64(), self.agents.as_secs_f64());
        write!(f, "{coordinator:.2} s of CPU (and the agents {agents:.2})")
    }
}

/// Returns the CPU time of a process so far.
fn cpu(process: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(|text| text.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
