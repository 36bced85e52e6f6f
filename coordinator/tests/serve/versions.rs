//! Other versions: recorded bytes of an agent of each version of the protocol, and one that speaks more or others.
//!
//! The state is restored from a backup of that time. What was recorded is never recorded again: see the agent's test of
//! the same name for how a new version is begun.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_coordinator::backup::{self, Backup};
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    control::{ALPN, ClientMessage, ServerMessage, frame},
    key::PublicKey,
    netmap::NodeId,
};
use quinn::crypto::rustls::HandshakeData;
use tempfile::TempDir;
use time::OffsetDateTime;

use super::rig::{Agent, Client, DEADLINE, Rig, client_config, dial, join_message, within};

/// The version that does not exist yet.
const NEXT: &[u8] = b"mesh-control/2";

/// The longest that a join token is valid: nobody asks for it when the node is known.
const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn recorded(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../proto/tests/sessions/{version}"))
}

fn read(folder: &Path, name: &str) -> Vec<u8> {
    hex::decode(fs::read_to_string(folder.join(name)).unwrap().trim()).unwrap()
}

/// Returns the agent of the recording, whose keys are as it had them.
fn agent(folder: &Path) -> Agent {
    let file = fs::read_to_string(folder.join("node.key")).unwrap();
    let body: serde_json::Value = serde_json::from_str(file.split_once('\n').unwrap().1).unwrap();
    let pkcs8 = STANDARD.decode(body["key"].as_str().unwrap()).unwrap();
    let mut decoder = frame::Decoder::default();
    decoder.handle_bytes(&read(folder, "agent.hex"));
    loop {
        let message = decoder.poll_message().unwrap().expect("it connects");
        if let ClientMessage::Connect { public_key, .. } = message {
            return Agent::of(pkcs8, public_key, "recorded");
        }
    }
}

fn peer(folder: &Path) -> Agent {
    let pkcs8 = read(folder, "peer.hex");
    Agent::of(pkcs8, PublicKey([2; 32]), "peer")
}

/// Makes the state of the recording, and writes down what a coordinator of today says.
async fn record(folder: &Path) {
    let rig = Rig::start().await;
    let keys = Agent::new("peer");
    fs::write(folder.join("peer.hex"), hex::encode(&keys.identity.pkcs8[..])).unwrap();
    let (agent, peer) = (agent(folder), peer(folder));
    let spec =
        mesh_coordinator::registry::TokenSpec { ttl: A_YEAR, uses: 1, tags: vec!["worker".to_owned()] };
    let token = rig.server.registry().create_token(spec).await.unwrap();
    let hello =
        ClientMessage::Hello(mesh_proto::control::Hello { version: "1".to_owned(), features: vec![] });
    let joining =
        [frame::encode(&hello).unwrap(), frame::encode(&join_message(&agent, token.clone())).unwrap()];
    fs::write(folder.join("join.hex"), hex::encode(joining.concat())).unwrap();
    rig.hello(&agent).await.join(&agent, token).await;
    rig.join(&peer).await;
    let snapshot = rig.server.registry().export().await.unwrap();
    let identity = mesh_coordinator::identity::Identity::load_or_create(rig.state.path()).unwrap();
    let text = Backup { identity, snapshot }.encode(OffsetDateTime::now_utc()).unwrap();
    fs::write(folder.join("coordinator.backup"), &text[..]).unwrap();

    let mut client = Client::dial(rig.address(), &agent, rig.server.pin()).await.unwrap();
    client.send.write_all(&read(folder, "agent.hex")).await.unwrap();
    let mut bytes = Vec::new();
    let mut relay = false;
    while !relay {
        let message = client.hear().await;
        relay = matches!(message, ServerMessage::RelayOpened(_));
        bytes.extend(frame::encode(&message).unwrap());
    }
    let (mut other, _) = rig.connect(&peer).await;
    let candidates = vec![Candidate { address: ([192, 0, 2, 2], 7).into(), kind: CandidateKind::Host }];
    other
        .say(&ClientMessage::Candidates { candidates: candidates.clone(), relays: vec![], home: None })
        .await;
    other.say(&ClientMessage::CallMeMaybe { to: NodeId(1), candidates }).await;
    let mut called = false;
    while !called {
        let message = client.hear().await;
        called = matches!(message, ServerMessage::CallMeMaybe { .. });
        bytes.extend(frame::encode(&message).unwrap());
    }
    rig.server.registry().rename_node(&"peer".parse().unwrap(), "renamed".parse().unwrap()).await.unwrap();
    let mut changed = false;
    while !changed {
        let message = client.hear().await;
        changed = matches!(message, ServerMessage::Delta { .. });
        bytes.extend(frame::encode(&message).unwrap());
    }
    fs::write(folder.join("coordinator.hex"), hex::encode(bytes)).unwrap();
}

#[tokio::test]
async fn a_recorded_agent_of_version_1_is_served() {
    let folder = recorded(1);
    if !folder.join("coordinator.hex").exists() && std::env::var_os("UPDATE_GOLDEN").is_some() {
        return record(&folder).await;
    }
    let state = TempDir::new().unwrap();
    let backup = Backup::decode(&fs::read(folder.join("coordinator.backup")).unwrap()).unwrap();
    backup::restore(state.path(), backup, OffsetDateTime::now_utc()).unwrap();
    let rig = Rig::start_in(state).await;
    let (agent, peer) = (agent(&folder), peer(&folder));

    // It joins again, as after an answer that got lost.
    let mut joining = Client::dial(rig.address(), &agent, rig.server.pin()).await.unwrap();
    joining.send.write_all(&read(&folder, "join.hex")).await.unwrap();
    let node = joining.hear_until(|message| match message {
        ServerMessage::Joined { node } => Some(node.clone()),
        _ => None,
    });
    assert_eq!(node.await.id, NodeId(1));

    let (mut other, _) = rig.connect(&peer).await;
    let mut client = Client::dial(rig.address(), &agent, rig.server.pin()).await.unwrap();
    client.send.write_all(&read(&folder, "agent.hex")).await.unwrap();
    let map = client.hear_until(|message| match message {
        ServerMessage::Map { map } => Some(map.clone()),
        _ => None,
    });
    let map = map.await;
    assert_eq!((map.this.id, map.peers.len()), (NodeId(1), 1));
    client.hear_until(|message| matches!(message, ServerMessage::RelayOpened(_)).then_some(())).await;
    let (mut reached, mut called) = (false, false);
    while !(reached && called) {
        match other.hear().await {
            ServerMessage::PeerStates { peers } => {
                reached |= peers.iter().any(|peer| peer.id == NodeId(1) && peer.candidates.len() == 2);
            }
            ServerMessage::CallMeMaybe { from, candidates } => {
                called |= (from, candidates.len()) == (NodeId(1), 1);
            }
            _ => {}
        }
    }
    rig.server.stop().await;
}

#[tokio::test]
async fn an_agent_that_speaks_a_newer_version_as_well_is_served() {
    let rig = Rig::start().await;
    let agent = Agent::new("newer");
    let config = client_config(&agent, rig.server.pin(), |tls| tls.alpn_protocols.insert(0, NEXT.to_vec()));
    let (_endpoint, connection) = dial(rig.address(), config).await.unwrap();
    let handshake = connection.handshake_data().unwrap().downcast::<HandshakeData>().unwrap();
    assert_eq!(handshake.protocol.as_deref(), Some(ALPN));
    rig.server.stop().await;
}

#[tokio::test]
async fn an_agent_of_another_version_is_told_and_counted() {
    let rig = Rig::start().await;
    let agent = Agent::new("newer");
    let config = client_config(&agent, rig.server.pin(), |tls| tls.alpn_protocols = vec![NEXT.to_vec()]);
    let error = dial(rig.address(), config).await.unwrap_err().to_string();
    assert!(error.contains("known protocol"), "{error}");
    let counted = async {
        while !rig.metrics().await.contains("version_mismatches_total 1") {
            tokio::time::sleep(DEADLINE / 500).await;
        }
    };
    within(counted).await;
    rig.server.stop().await;
}
