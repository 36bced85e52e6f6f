//! Other versions: recorded bytes of a coordinator of each version of the protocol, and one that speaks more or others.
//!
//! What was recorded is never recorded again. Where a folder for a new version is begun, `UPDATE_GOLDEN=1` fills it: this
//! test first, then the coordinator's, which stands beside it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    control::{ALPN, ClientMessage, InstanceId, ServerMessage, frame},
    netmap::{NetworkMap, Node, NodeId},
    status::ConnectionState,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::super::{ControlConfig, ControlEvent, ControlHandle, StreamOptions, fake::FakeCoordinator, spawn};
use crate::{
    identity::{Identity, Membership, StateDir},
    nat64::{Mode, Nat64},
    netmap::fixtures::{map, node},
};

/// The version that does not exist yet.
const NEXT: &[u8] = b"mesh-control/2";

/// What is awaited comes by then.
const PATIENCE: Duration = Duration::from_secs(10);

const KEYS: [&str; 2] = ["node.key", "wireguard.key"];

struct Agent {
    handle: ControlHandle,
    events: mpsc::Receiver<ControlEvent>,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Agent {
    fn start(dir: &StateDir, identity: &Identity, fake: &FakeCoordinator) -> Self {
        let membership = Membership {
            coordinators: vec![fake.address().to_string()],
            pin: fake.pin(),
            node: this(identity),
            websocket_url: None,
        };
        let config = ControlConfig {
            identity: identity.clone(),
            membership,
            state_dir: dir.clone(),
            stream: StreamOptions::default(),
            stun: vec![],
            nat64: Nat64::new(Mode::Off),
            lends: false,
            network: None,
            instance: InstanceId([7; 16]),
        };
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let (handle, events) = spawn(config, &cancel, &tracker);
        Self { handle, events, cancel, tracker }
    }

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

    async fn stop(self) {
        self.cancel.cancel();
        self.tracker.close();
        timeout(PATIENCE, self.tracker.wait()).await.expect("every task ends");
    }
}

fn this(identity: &Identity) -> Node {
    Node { node_key: identity.node_key(), public_key: identity.public_key(), ..node(1) }
}

fn recorded(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../proto/tests/sessions/{version}"))
}

fn state_dir() -> (tempfile::TempDir, StateDir) {
    let parent = tempfile::tempdir().unwrap();
    let dir = StateDir::create(&parent.path().join("state")).unwrap();
    (parent, dir)
}

fn candidate(port: u16) -> Candidate {
    Candidate { address: ([192, 0, 2, 1], port).into(), kind: CandidateKind::Host }
}

/// Makes the keys and writes down what an agent of today says.
async fn record(folder: &Path) {
    let (_parent, dir) = state_dir();
    let identity = Identity::generate().unwrap();
    identity.store(&dir).unwrap();
    let fake = FakeCoordinator::start();
    let agent = Agent::start(&dir, &identity, &fake);
    agent.handle.set_candidates(vec![candidate(51820), candidate(51821)]);
    let mut session = fake.accept_silently().await;
    let mut bytes = Vec::new();
    let mut say = |message: &ClientMessage| bytes.extend(frame::encode(message).unwrap());
    let hello = session.recv().await;
    say(&hello);
    let observed = session.connection.remote_address();
    let welcome = mesh_proto::control::Welcome {
        version: "fake".to_owned(),
        features: vec![],
        observed,
        observer_ports: vec![],
    };
    session.send(ServerMessage::Welcome(welcome)).await;
    say(&session.recv().await);
    let map = NetworkMap { this: this(&identity), ..map(5, [2]) };
    session.send(ServerMessage::Map { map: Box::new(map) }).await;
    agent.handle.call_me_maybe(NodeId(2), vec![candidate(51820)]);
    let mut called = false;
    while !called {
        let message = session.recv().await;
        called = matches!(message, ClientMessage::CallMeMaybe { .. });
        say(&message);
    }
    fs::create_dir_all(folder).unwrap();
    for name in KEYS {
        fs::copy(dir.path().join(name), folder.join(name)).unwrap();
    }
    fs::write(folder.join("agent.hex"), hex::encode(bytes)).unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn a_recorded_coordinator_of_version_1_is_understood() {
    let folder = recorded(1);
    if !folder.exists() && std::env::var_os("UPDATE_GOLDEN").is_some() {
        return record(&folder).await;
    }
    let (_parent, dir) = state_dir();
    for name in KEYS {
        // The files of an agent of that version, too.
        let path = dir.path().join(name);
        fs::copy(folder.join(name), &path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let identity = Identity::load(&dir).unwrap();
    let bytes = fs::read_to_string(folder.join("coordinator.hex")).unwrap();
    let fake = FakeCoordinator::start();
    let mut agent = Agent::start(&dir, &identity, &fake);
    let mut session = fake.accept_silently().await;
    session.send_bytes(&hex::decode(bytes.trim()).unwrap()).await;

    let (mut names, mut relay, mut online, mut called) = (Vec::new(), false, false, false);
    while !(names == ["renamed"] && relay && online && called) {
        agent
            .event(|event| {
                match event {
                    ControlEvent::Map(map) => {
                        names = map.peers.iter().map(|peer| peer.name.to_string()).collect();
                    }
                    ControlEvent::RelayOpened(_) => relay = true,
                    ControlEvent::PeerStates(states) => {
                        online |= states.iter().any(|state| {
                            state.id == NodeId(2) && state.online && !state.candidates.is_empty()
                        });
                    }
                    ControlEvent::CallMeMaybe { from, .. } => called = from == NodeId(2),
                    ControlEvent::RelayPipe(..)
                    | ControlEvent::Observers(_)
                    | ControlEvent::Guess(_)
                    | ControlEvent::Admitted(_)
                    | ControlEvent::Fatal(_) => {}
                }
                Some(())
            })
            .await;
    }
    assert_eq!(agent.handle.status().state, ConnectionState::Connected);
    agent.stop().await;
}

#[tokio::test]
async fn a_coordinator_that_speaks_a_newer_version_as_well_is_understood() {
    let (_parent, dir) = state_dir();
    let identity = Identity::generate().unwrap();
    let fake = FakeCoordinator::speaking(&[NEXT, ALPN]);
    let agent = Agent::start(&dir, &identity, &fake);
    let session = fake.accept().await;
    let handshake = session.connection.handshake_data().unwrap();
    let handshake = handshake.downcast::<quinn::crypto::rustls::HandshakeData>().unwrap();
    assert_eq!(handshake.protocol.as_deref(), Some(ALPN));
    agent.stop().await;
}

#[tokio::test]
async fn a_coordinator_of_another_version_is_called_that() {
    let (_parent, dir) = state_dir();
    let identity = Identity::generate().unwrap();
    let fake = FakeCoordinator::speaking(&[NEXT]);
    let agent = Agent::start(&dir, &identity, &fake);
    fake.accept_connection().await.unwrap_err();
    let told = async {
        loop {
            match agent.handle.status().error {
                Some(error) if error.contains("speaks another version of the control protocol") => return,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(2 * PATIENCE, told).await.expect("the status says why");
    agent.stop().await;
}
