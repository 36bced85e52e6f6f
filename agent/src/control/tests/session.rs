//! The running client against a coordinator in the test's hands.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_engine::config::RelayCarrier;
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    control::{ClientMessage, InstanceId, PeerState, RefusalCode, RelayChannel, ServerMessage},
    netmap::{MapDelta, NetworkMap, Node, NodeId, Relay, RelayId, Version},
    relay::ChannelId,
    status::ConnectionState,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::super::{
    ControlConfig, ControlEvent, ControlHandle, StreamOptions,
    fake::{FakeCoordinator, FakeSession},
    spawn,
};
use crate::{
    identity::{Identity, Membership, StateDir},
    nat64::{Mode, Nat64},
    netmap::fixtures::{delta, map, node},
};

/// An event that does not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(10);

struct Bench {
    _parent: tempfile::TempDir,
    dir: StateDir,
    identity: Identity,
    fake: FakeCoordinator,
}

struct Agent {
    handle: ControlHandle,
    events: mpsc::Receiver<ControlEvent>,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Bench {
    fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::create(&parent.path().join("state")).unwrap();
        Self { _parent: parent, dir, identity: Identity::generate().unwrap(), fake: FakeCoordinator::start() }
    }

    fn this(&self) -> Node {
        Node { node_key: self.identity.node_key(), public_key: self.identity.public_key(), ..node(1) }
    }

    fn map(&self, serial: u64, peers: impl IntoIterator<Item = u8>) -> NetworkMap {
        let mut map = map(serial, peers);
        map.mesh.coordinators.clear();
        NetworkMap { this: self.this(), ..map }
    }

    fn agent(&self) -> Agent {
        self.agent_of(vec![self.fake.address().to_string()])
    }

    fn agent_of(&self, coordinators: Vec<String>) -> Agent {
        let membership =
            Membership { coordinators, pin: self.fake.pin(), node: self.this(), websocket_url: None };
        let config = ControlConfig {
            identity: self.identity.clone(),
            membership,
            state_dir: self.dir.clone(),
            stream: StreamOptions::default(),
            stun: vec![],
            nat64: Nat64::new(Mode::Off),
            lends: false,
            instance: InstanceId([7; 16]),
            network: None,
        };
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let (handle, events) = spawn(config, &cancel, &tracker);
        Agent { handle, events, cancel, tracker }
    }

    /// Waits for the agent up to its Connect, and returns the version that it has.
    async fn accept(&self) -> (FakeSession, Option<Version>) {
        let mut session = self.fake.accept().await;
        let ClientMessage::Connect { map, public_key, .. } = session.recv().await else {
            panic!("not a Connect")
        };
        assert_eq!((session.node_key, public_key), (self.identity.node_key(), self.identity.public_key()));
        (session, map)
    }

    /// As [`Self::accept`], and answers with a map.
    async fn accept_with(&self, map: NetworkMap) -> FakeSession {
        let (mut session, _) = self.accept().await;
        session.send(whole(map)).await;
        session
    }
}

impl Agent {
    /// Waits for the first event that `pick` takes.
    async fn event<T>(&mut self, mut pick: impl FnMut(ControlEvent) -> Option<T>) -> T {
        let wait = async {
            loop {
                if let Some(picked) = pick(self.events.recv().await.expect("the client runs")) {
                    return picked;
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("the event comes")
    }

    async fn map(&mut self) -> Arc<NetworkMap> {
        self.event(|event| match event {
            ControlEvent::Map(map) => Some(map),
            _ => None,
        })
        .await
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.tracker.close();
        timeout(PATIENCE, self.tracker.wait()).await.expect("every task ends");
    }
}

fn whole(map: NetworkMap) -> ServerMessage {
    ServerMessage::Map { map: Box::new(map) }
}

fn candidates(port: u16) -> Vec<Candidate> {
    vec![Candidate { address: ([192, 0, 2, 1], port).into(), kind: CandidateKind::Host }]
}

fn resync(message: ClientMessage) -> Option<()> {
    matches!(message, ClientMessage::Resync).then_some(())
}

fn ping(message: ClientMessage) -> Option<()> {
    matches!(message, ClientMessage::Ping { .. }).then_some(())
}

fn sent_candidates(message: ClientMessage) -> Option<Vec<Candidate>> {
    match message {
        ClientMessage::Candidates { candidates, .. } => Some(candidates),
        _ => None,
    }
}

#[tokio::test]
async fn maps_deltas_and_news_come_through() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    let mut session = bench.accept_with(bench.map(5, [2, 3])).await;
    assert_eq!(agent.map().await.peers.len(), 2);
    let change = MapDelta { changed: vec![node(4)], ..delta(5, 6) };
    session.send(ServerMessage::Delta { delta: change }).await;
    assert_eq!(agent.map().await.peers.len(), 3);

    // An address inside the mesh is no candidate.
    let inside = Candidate { address: "10.90.0.2:51820".parse().unwrap(), kind: CandidateKind::Host };
    let told = [candidates(7), vec![inside]].concat();
    let state = PeerState {
        id: NodeId(2),
        online: true,
        candidates: told.clone(),
        relays: vec![],
        home: None,
        observed: None,
    };
    session.send(ServerMessage::PeerStates { peers: vec![state] }).await;
    let states = agent.event(|event| match event {
        ControlEvent::PeerStates(states) => Some(states),
        _ => None,
    });
    assert_eq!(states.await[0].candidates, candidates(7));

    // Nobody calls but peers.
    for from in [NodeId(99), NodeId(3)] {
        session.send(ServerMessage::CallMeMaybe { from, candidates: told.clone() }).await;
    }
    let call = agent.event(|event| match event {
        ControlEvent::CallMeMaybe { from, candidates } => Some((from, candidates)),
        _ => None,
    });
    assert_eq!(call.await, (NodeId(3), candidates(7)));

    let status = agent.handle.status();
    assert_eq!(status.state, ConnectionState::Connected);
    assert_eq!(status.address, Some(bench.fake.address().to_string()));
    agent.stop().await;
}

#[tokio::test]
async fn a_delta_with_a_gap_asks_for_a_whole_map() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    let mut session = bench.accept_with(bench.map(5, [2])).await;
    agent.map().await;
    for (from, to) in [(7, 8), (8, 9)] {
        session.send(ServerMessage::Delta { delta: delta(from, to) }).await;
    }
    session.recv_until(resync).await;
    session.send(whole(bench.map(9, [2, 3]))).await;
    assert_eq!(agent.map().await.version.serial, 9);
    agent.stop().await;
}

#[tokio::test]
async fn an_older_map_is_refused_and_the_newer_one_kept_over_a_restart() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    let mut session = bench.accept_with(bench.map(5, [2, 3])).await;
    agent.map().await;
    let older = Version { epoch: 0, serial: 99 };
    session.send(whole(NetworkMap { version: older, ..bench.map(0, []) })).await;
    session.send(whole(bench.map(4, []))).await;
    let told = async {
        while !agent.handle.status().error.is_some_and(|error| error.contains("its map is not taken over")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, told).await.expect("the status says so");
    // A delta on the older map does not make the client ask for that map again.
    session.send(ServerMessage::Delta { delta: delta(4, 5) }).await;
    session.send(whole(bench.map(6, [2]))).await;
    let map = agent.map().await;
    assert_eq!((map.version.serial, map.peers.len()), (6, 1));
    assert_eq!(agent.handle.status().error, None);
    agent.stop().await;

    let mut agent = bench.agent();
    assert_eq!(agent.map().await.version.serial, 6, "from the disk");
    let (mut session, version) = bench.accept().await;
    assert_eq!(version, Some(Version { epoch: 1, serial: 6 }));
    session.send(whole(bench.map(5, []))).await;
    session.send(whole(bench.map(7, [2, 4]))).await;
    assert_eq!(agent.map().await.version.serial, 7);
    agent.stop().await;
}

#[tokio::test]
async fn a_map_that_lost_nearly_all_peers_is_asked_for_again() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    let mut session = bench.accept_with(bench.map(5, 2..=9)).await;
    agent.map().await;
    session.send(whole(bench.map(6, []))).await;
    session.recv_until(resync).await;
    session.send(whole(bench.map(6, 2..=8))).await;
    assert_eq!(agent.map().await.peers.len(), 7, "it was a partial read");
    session.send(whole(bench.map(7, [2]))).await;
    session.recv_until(resync).await;
    session.send(whole(bench.map(7, [2]))).await;
    assert_eq!(agent.map().await.peers.len(), 1, "it is meant");
    agent.stop().await;
}

#[tokio::test]
async fn after_a_lost_connection_the_latest_candidates_are_said_again() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    agent.handle.set_candidates(candidates(1));
    let mut session = bench.accept_with(bench.map(5, [2])).await;
    assert_eq!(session.recv_until(sent_candidates).await, candidates(1));
    agent.map().await;
    session.connection.close(1u32.into(), b"gone");
    // Set while there is nobody to tell: only the latest is said.
    for port in 2..=9 {
        agent.handle.set_candidates(candidates(port));
        agent.handle.call_me_maybe(NodeId(2), candidates(port));
    }
    let (mut session, version) = bench.accept().await;
    assert_eq!(version.unwrap().serial, 5);
    assert_eq!(session.recv_until(sent_candidates).await, candidates(9));
    let ClientMessage::CallMeMaybe { to, candidates: told } = session.recv().await else { panic!("no call") };
    assert_eq!((to, told), (NodeId(2), candidates(9)));
    agent.stop().await;
}

#[tokio::test]
async fn a_coordinator_that_asks_for_time_gets_it() {
    let bench = Bench::new();
    let agent = bench.agent();
    let (session, _) = bench.accept().await;
    let asked = Duration::from_millis(700);
    let refused = Instant::now();
    session.refuse(RefusalCode::Busy, Some(700)).await;
    bench.accept().await;
    assert!(refused.elapsed() >= asked, "{:?}", refused.elapsed());
    agent.stop().await;
}

#[tokio::test]
async fn a_removed_node_is_told_so_and_stops() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    let (session, _) = bench.accept().await;
    session.refuse(RefusalCode::NotRegistered, None).await;
    let reason = agent.event(|event| match event {
        ControlEvent::Fatal(reason) => Some(reason),
        _ => None,
    });
    assert_eq!(reason.await, "because");
    assert!(agent.events.recv().await.is_none(), "no more events");
    agent.stop().await;
}

#[tokio::test]
async fn somebody_with_another_key_is_never_spoken_to() {
    let bench = Bench::new();
    let impostor = FakeCoordinator::start();
    let agent = bench.agent_of(vec![impostor.address().to_string()]);
    assert!(impostor.accept_connection().await.is_err());
    assert!(impostor.accept_connection().await.is_err(), "it tries on");
    let error = agent.handle.status().error.unwrap();
    assert!(
        error.contains("key does not match") && error.contains(&impostor.address().to_string()),
        "{error}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn without_the_coordinator_everything_comes_from_the_disk() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    let mut session = bench.accept_with(bench.map(5, [2, 3])).await;
    let state = PeerState {
        id: NodeId(2),
        online: true,
        candidates: candidates(7),
        relays: vec![RelayId(0)],
        home: None,
        observed: None,
    };
    session.send(ServerMessage::PeerStates { peers: vec![state] }).await;
    agent
        .event(|event| match event {
            ControlEvent::PeerStates(_) => Some(()),
            _ => None,
        })
        .await;
    let worked: SocketAddr = "198.51.100.2:9".parse().unwrap();
    agent.handle.path_worked(NodeId(2), worked);
    // The answer shows that the call before it was done.
    agent.handle.set_candidates(candidates(1));
    session.recv_until(sent_candidates).await;
    agent.stop().await;

    let Bench { dir, identity, fake, _parent } = bench;
    let address = fake.address();
    let pinned = fake.identity.clone();
    drop((session, fake));
    let bench = Bench {
        dir,
        identity,
        fake: FakeCoordinator::with_identity(pinned, ([127, 0, 0, 1], 0).into()),
        _parent,
    };
    let mut agent = bench.agent_of(vec!["no-such-host.invalid".to_owned()]);
    let mut events = Vec::new();
    for _ in 0..3 {
        events.push(timeout(PATIENCE, agent.events.recv()).await.unwrap().unwrap());
    }
    let [ControlEvent::Map(map), ControlEvent::PeerStates(states), ControlEvent::Observers(observers)] =
        &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!(map.peers.len(), 2);
    assert!(!states[0].online);
    assert_eq!(states[0].candidates[0].address, worked);
    assert_eq!(states[0].candidates[1..], candidates(7));
    assert_eq!(observers, &[address], "where the coordinator was");
    agent.stop().await;
}

#[tokio::test]
async fn a_connection_that_does_not_answer_after_a_change_of_network_is_made_again() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    let mut silent = bench.accept_with(bench.map(5, [2])).await;
    agent.map().await;
    silent.stop_answering();
    agent.handle.network_changed();
    silent.recv_until(ping).await;
    let asked = Instant::now();
    // No Pong: the client gives up on it long before the idle timeout.
    let (mut session, _) = bench.accept().await;
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    // The new connection answers, and stays.
    agent.handle.network_changed();
    agent.handle.reopen_relay(RelayId(0));
    session.recv_until(|message| matches!(message, ClientMessage::RelayOpen).then_some(())).await;
    session.send(whole(bench.map(6, [2, 3]))).await;
    assert_eq!(agent.map().await.version.serial, 6);
    agent.stop().await;
}

#[tokio::test]
async fn a_coordinator_that_restarted_unnoticed_is_found_out_by_a_heartbeat() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    let mut silent = bench.accept_with(bench.map(5, [2])).await;
    agent.map().await;
    silent.stop_answering();
    silent.recv_until(ping).await;
    let (_session, version) = bench.accept().await;
    assert_eq!(version.unwrap().serial, 5);
    agent.stop().await;
}

#[tokio::test]
async fn a_sign_of_the_coordinator_cuts_a_long_wait_short() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    for serial in 5..8 {
        // Short sessions do not take the backoff back: the third wait is 2 s at least.
        let session = bench.accept_with(bench.map(serial, [2])).await;
        agent.map().await;
        session.connection.close(0_u32.into(), b"");
    }
    while agent.handle.status().state == ConnectionState::Connected {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let signed = Instant::now();
    agent.handle.reopen_relay(RelayId(0));
    bench.accept().await;
    assert!(signed.elapsed() < Duration::from_secs(2), "{:?}", signed.elapsed());
    agent.stop().await;
}

#[tokio::test]
async fn the_relay_of_the_coordinator_is_where_the_coordinator_is() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    let relay =
        Relay { id: RelayId(0), name: "pi".to_owned(), key: None, addresses: vec!["192.0.2.9:7".to_owned()] };
    let mut session = bench.accept_with(NetworkMap { relays: vec![relay], ..bench.map(5, []) }).await;
    session.recv_until(|message| matches!(message, ClientMessage::RelayOpen).then_some(())).await;
    let channel =
        RelayChannel { relay: RelayId(0), channel: ChannelId(7), key: [1; 32], bind_lifetime_s: None };
    session.send(ServerMessage::RelayOpened(channel)).await;
    let config = agent.event(|event| match event {
        ControlEvent::RelayOpened(config) => Some(config),
        _ => None,
    });
    let want = vec![bench.fake.address(), "192.0.2.9:7".parse().unwrap()];
    assert_eq!(config.await.carrier, RelayCarrier::Udp(want));
    let relays = |message| match message {
        ClientMessage::Candidates { relays, .. } => Some(relays),
        _ => None,
    };
    assert_eq!(session.recv_until(relays).await, [RelayId(0)]);
    assert_eq!(agent.handle.relay_names()[&RelayId(0)], "pi");
    agent.stop().await;
}

#[tokio::test]
async fn a_node_beside_the_coordinator_guesses_where_the_name_leads() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    // Joined by its loopback address, it hears of the public one from the map.
    let mut named = bench.map(5, []);
    named.mesh.coordinators = vec!["203.0.113.1:7443".to_owned()];
    let session = bench.accept_with(named).await;
    let guess = agent.event(|event| match event {
        ControlEvent::Guess(guess) => Some(guess),
        _ => None,
    });
    assert_eq!(guess.await, Some("203.0.113.1".parse().unwrap()));
    drop(session);
    agent.stop().await;
}

#[tokio::test]
async fn a_relay_that_stands_alone_has_a_connection_of_its_own() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    let alone = FakeCoordinator::start();
    let relay = Relay {
        id: RelayId(4),
        name: "alone".to_owned(),
        key: Some(alone.key()),
        addresses: vec![alone.address().to_string()],
    };
    let with_relay = NetworkMap { relays: vec![relay], ..bench.map(5, []) };
    let mut session = bench.accept_with(with_relay).await;
    for channel in [ChannelId(7), ChannelId(8)] {
        let mut at_relay = alone.accept().await;
        assert_eq!(at_relay.node_key, bench.identity.node_key());
        assert!(matches!(at_relay.recv().await, ClientMessage::RelayOpen));
        let opened = RelayChannel { relay: RelayId(4), channel, key: [1; 32], bind_lifetime_s: Some(900) };
        at_relay.send(ServerMessage::RelayOpened(opened)).await;
        let config = agent.event(|event| match event {
            ControlEvent::RelayOpened(config) => Some(config),
            _ => None,
        });
        let config = config.await;
        assert_eq!((config.channel, config.carrier), (channel, RelayCarrier::Udp(vec![alone.address()])));
        // Lost: it is opened again.
        at_relay.connection.close(1u32.into(), b"gone");
    }
    let relays = |message| match message {
        ClientMessage::Candidates { relays, .. } => Some(relays),
        _ => None,
    };
    assert_eq!(session.recv_until(relays).await, [RelayId(4)]);

    // Removed from the map: the connection is closed, and the coordinator hears of it.
    let at_relay = alone.accept_connection().await.unwrap();
    session.send(whole(bench.map(6, []))).await;
    timeout(PATIENCE, at_relay.closed()).await.unwrap();
    assert_eq!(session.recv_until(relays).await, []);
    agent.stop().await;
}
