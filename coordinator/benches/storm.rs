//! A thousand agents come back after their coordinator was killed: how long it takes, and what it costs the coordinator.
//!
//! The coordinator is the real program; the agents are QUIC sessions in this process, with an endpoint each, which dial
//! again as agents do. `STORM_NODES` sets how many there are.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench fails by panicking")]

use std::{
    collections::BTreeMap,
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
    storm::{News, Returned, all_come_back},
};

#[path = "../tests/serve/rig.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod rig;
#[path = "../tests/serve/storm.rs"]
mod storm;

/// Agents unless told otherwise.
const NODES: usize = 1000;
/// How long they may take to know of each other.
const PATIENCE: Duration = Duration::from_secs(120);

/// A coordinator that is killed when it is dropped.
struct Coordinator {
    child: Child,
    pin: KeyPin,
    address: SocketAddr,
}

fn main() {
    let nodes = std::env::var("STORM_NODES").map_or(NODES, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(nodes));
}

async fn run(nodes: usize) {
    let state = tempfile::tempdir().unwrap();
    let agents: Vec<_> = (0..nodes).map(|number| Arc::new(Agent::new(&format!("n{number}")))).collect();
    let pin = Identity::load_or_create(state.path()).unwrap().pin;
    let version = register(state.path(), &agents).await;
    let address = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();

    let coordinator = Coordinator::start(state.path(), pin, address);
    storm("with nothing", &coordinator, &agents, None).await;
    drop(coordinator);
    let began = Instant::now();
    let coordinator = Coordinator::start(state.path(), pin, address);
    println!("killed, and serving again after {:.2} s", began.elapsed().as_secs_f64());
    storm("with the latest map", &coordinator, &agents, Some(version)).await;
}

async fn register(state_dir: &Path, agents: &[Arc<Agent>]) -> Version {
    let options = MeshOptions {
        ipv4: "10.90.0.0/16".parse().unwrap(),
        coordinators: vec!["127.0.0.1:7443".to_owned()],
        relay_name: "pi".to_owned(),
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
    let version = registry.version();
    registry.close().await.unwrap();
    version
}

/// Lets everybody dial at the same moment, and prints what came of it.
async fn storm(what: &str, coordinator: &Coordinator, agents: &[Arc<Agent>], map: Option<Version>) {
    let (began, cpu) = (Instant::now(), coordinator.cpu());
    let returned = all_come_back(coordinator.address, agents, coordinator.pin, map).await;
    let (back, spent) = (began.elapsed(), coordinator.cpu() - cpu);
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
        "{} agents, {what}: all back after {:.2} s (median {:.2} s), {:.2} s of CPU; got {news:?}; failed attempts {failures:?}",
        agents.len(),
        back.as_secs_f64(),
        median.as_secs_f64(),
        spent.as_secs_f64(),
    );
    let mut meeting = tokio::task::JoinSet::new();
    for mut returned in returned {
        let others = agents.len() - 1;
        meeting.spawn(async move {
            returned.meet(others, PATIENCE).await;
            returned
        });
    }
    let _sessions = meeting.join_all().await;
    println!(
        "    everybody knows of everybody after {:.2} s, {:.2} s of CPU; the coordinator has {} MB",
        began.elapsed().as_secs_f64(),
        (coordinator.cpu() - cpu).as_secs_f64(),
        coordinator.memory_mb(),
    );
}

fn counts(returned: &[Returned], of: impl Fn(&Returned) -> String) -> BTreeMap<String, usize> {
    returned.iter().fold(BTreeMap::new(), |mut counts, returned| {
        *counts.entry(of(returned)).or_default() += 1;
        counts
    })
}

impl Coordinator {
    fn start(state_dir: &Path, pin: KeyPin, address: SocketAddr) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-coordinator"));
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

    /// Returns the CPU time that it has used so far.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).map(|text| text.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    fn memory_mb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
