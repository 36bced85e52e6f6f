//! Ten times as many agents as there are sockets for: sessions in memory, to see that a change costs as much as it has
//! listeners, and no more.
//!
//! The registry, the hub, the board and the sessions are the coordinator's own; below them are pipes instead of QUIC, and
//! on their other ends nothing is read but counted. The CPU time is that of this process, so of both ends.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use mesh_coordinator::{
    control::{ControlStats, Coordinator, Door, Hub, Link, Ports},
    front::{Front, FrontSocket, observer},
    registry::{MeshOptions, Registry, RoutePolicy, TokenSpec},
    relay::{Limits, RelayCore, RelayHandle},
    store::memory::MemoryStore,
};
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    control::{ClientMessage, Hello, frame},
    key::{NodeKey, PublicKey},
    netmap::Node,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::cpu;

/// What a pipe holds.
const PIPE: usize = 64 << 10;
/// Nothing more comes if nothing came for so long: longer than news of as many nodes wait to be shown.
const QUIET: Duration = Duration::from_secs(3);

/// A coordinator without ports of its own that matter, and what its agents have heard.
struct World {
    registry: Registry,
    door: Door<Coordinator>,
    heard: Arc<AtomicU64>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

/// Shows what a change costs with so many agents, and with fewer.
pub(crate) async fn run(most: usize) {
    println!("without sockets, both ends in one process:");
    for count in [most / 8, most / 4, most / 2, most].into_iter().filter(|count| *count > 0) {
        let (began, spent) = (Instant::now(), cpu("self"));
        let world = World::start().await;
        let nodes = world.register(count).await;
        println!("{count} agents: registered after {:.2} s", began.elapsed().as_secs_f64());
        let mut ends = Vec::new();
        for node in &nodes {
            ends.push(world.connect(node).await);
        }
        world.wait_until_quiet().await;
        println!(
            "    everybody knows where everybody is after {:.2} s, {:.2} s of CPU, {} kB to each",
            began.elapsed().as_secs_f64(),
            (cpu("self") - spent).as_secs_f64(),
            world.heard.load(Relaxed) / 1000 / u64::try_from(count).unwrap(),
        );
        let before = (world.heard.load(Relaxed), cpu("self"));
        world.registry.rename_node(&nodes[0].name, "another".parse().unwrap()).await.unwrap();
        world.tell("has another name", before, count).await;
        let before = (world.heard.load(Relaxed), cpu("self"));
        say(&mut ends[0], &whereabouts(2)).await;
        world.tell("is somewhere else", before, count).await;
        world.cancel.cancel();
        world.tracker.close();
        drop(ends);
        world.tracker.wait().await;
    }
}

impl World {
    async fn start() -> Self {
        let options = MeshOptions {
            ipv4: "10.90.0.0/16".parse().unwrap(),
            coordinators: vec!["127.0.0.1:7443".to_owned()],
            relay_name: "pi".to_owned(),
            routes: RoutePolicy::default(),
        };
        let registry = Registry::with_store(Arc::new(MemoryStore::new()), options).await.unwrap();
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let anywhere = (Ipv4Addr::LOCALHOST, 0).into();
        let (relay, inbox) = RelayHandle::channel();
        let core = RelayCore::new(Instant::now(), Limits::default());
        let front = Front::new(FrontSocket::bind(anywhere).unwrap(), core, inbox);
        tracker.spawn(front.run(cancel.clone()));
        let observer = observer::Observer::new(observer::bind(Some(anywhere), anywhere).unwrap());
        let stats = Arc::new(ControlStats::default());
        let (hub, handle) = Hub::new(registry.clone(), relay.clone(), stats.clone());
        let hub_cancel = cancel.clone();
        tracker.spawn(async move { hub.run(hub_cancel).await.unwrap() });
        let ports = Ports { relay, knocker: observer.knocker() };
        let coordinator = Coordinator::new(registry.clone(), handle, ports, stats.clone());
        let door = Door::new(Arc::new(coordinator), stats);
        Self { registry, door, heard: Arc::default(), tracker, cancel }
    }

    async fn register(&self, count: usize) -> Vec<Node> {
        let uses = u32::try_from(count).unwrap();
        let spec = TokenSpec { ttl: Duration::from_secs(3600), uses, tags: vec![] };
        let token = self.registry.create_token(spec).await.unwrap();
        let mut nodes = Vec::new();
        for number in 0..uses {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            let name = format!("n{number}").parse().unwrap();
            let joined = self.registry.join(NodeKey(key), token.clone(), name, PublicKey(key)).await;
            nodes.push(joined.unwrap());
        }
        nodes
    }

    /// Lets a node come with the latest map; returns where it speaks.
    async fn connect(&self, node: &Node) -> tokio::io::WriteHalf<DuplexStream> {
        let source = IpAddr::from(Ipv4Addr::LOCALHOST);
        let place = loop {
            match self.door.try_enter_tcp(source) {
                Some(place) => break place,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        let (near, far) = duplex(PIPE);
        let (reader, writer) = split(near);
        let link = Link::new(node.node_key, (source, 1).into(), reader, writer);
        self.tracker.spawn(self.door.clone().serve(place, async { Some(link) }, self.cancel.clone()));
        let (mut ear, mut mouth) = split(far);
        let heard = self.heard.clone();
        self.tracker.spawn(async move {
            let mut bytes = vec![0; PIPE];
            while let Ok(len @ 1..) = ear.read(&mut bytes).await {
                heard.fetch_add(len as u64, Relaxed);
            }
        });
        say(&mut mouth, &ClientMessage::Hello(Hello { version: "bench".to_owned(), features: vec![] })).await;
        let map = Some(self.registry.version());
        say(&mut mouth, &ClientMessage::Connect { public_key: node.public_key, map, instance: None }).await;
        say(&mut mouth, &whereabouts(1)).await;
        mouth
    }

    async fn wait_until_quiet(&self) {
        let mut last = None;
        loop {
            let heard = self.heard.load(Relaxed);
            if last.replace(heard) == Some(heard) {
                return;
            }
            tokio::time::sleep(QUIET).await;
        }
    }

    /// Waits until everybody was told of something, and prints what that took.
    async fn tell(&self, what: &str, (heard, spent): (u64, Duration), count: usize) {
        self.wait_until_quiet().await;
        let count = u64::try_from(count).unwrap();
        let each = (self.heard.load(Relaxed) - heard) / count;
        let spent = cpu("self") - spent;
        println!(
            "    one {what}: {each} bytes to each, {:.2} s of CPU, {} µs for each",
            spent.as_secs_f64(),
            spent.as_micros() / u128::from(count),
        );
    }
}

async fn say(mouth: &mut tokio::io::WriteHalf<DuplexStream>, message: &ClientMessage) {
    mouth.write_all(&frame::encode(message).unwrap()).await.unwrap();
}

fn whereabouts(last: u8) -> ClientMessage {
    let candidate = Candidate { address: ([192, 0, 2, last], 51820).into(), kind: CandidateKind::Host };
    ClientMessage::Candidates { candidates: vec![candidate; 2], relays: vec![], home: None }
}
