//! `join` against a coordinator in the test's hands.

use std::{fs, path::PathBuf, time::Duration};

use mesh_proto::{
    control::{ClientMessage, RefusalCode, SERVICE_ACCOUNTS, ServerMessage},
    key::KeyPin,
    netmap::Node,
    token::{InvalidToken, JoinToken},
};

use super::super::{
    JoinError, JoinRequest, JoinRight, StreamOptions,
    fake::{FakeCoordinator, FakeSession},
    join,
};
use crate::{
    identity::{self, StateDir},
    nat64::{Mode, Nat64},
    netmap::fixtures::node,
};

struct Bench {
    _parent: tempfile::TempDir,
    fake: FakeCoordinator,
    request: JoinRequest,
}

fn bench() -> Bench {
    let parent = tempfile::tempdir().unwrap();
    let fake = FakeCoordinator::start();
    let request = JoinRequest {
        state_dir: parent.path().join("new/state"),
        coordinators: vec![fake.address().to_string()],
        right: JoinRight::Token(JoinToken::from_random([1; 5], [2; 16])),
        pin: fake.pin(),
        name: "pi".parse().unwrap(),
        stream: StreamOptions::default(),
        nat64: Nat64::new(Mode::Off),
        patience: Duration::from_secs(20),
    };
    Bench { _parent: parent, fake, request }
}

impl Bench {
    fn parent_is_empty(&self) -> bool {
        fs::read_dir(self._parent.path()).unwrap().next().is_none()
    }

    fn key_file(&self) -> PathBuf {
        self.request.state_dir.join("node.key")
    }
}

/// Answers a Join with the node that asked.
async fn register(mut session: FakeSession) -> Node {
    let ClientMessage::Join { token, name, public_key } = session.recv().await else { panic!("not a Join") };
    assert_eq!(*token.reveal(), *JoinToken::from_random([1; 5], [2; 16]).reveal());
    let node = Node { name, public_key, node_key: session.node_key, ..node(1) };
    session.send(ServerMessage::Joined { node: node.clone() }).await;
    assert!(session.try_recv().await.is_none(), "nothing follows");
    node
}

#[tokio::test]
async fn a_join_keeps_its_identity_and_a_second_one_changes_nothing() {
    let bench = bench();
    let (joined, registered) =
        tokio::join!(join(bench.request.clone()), async { register(bench.fake.accept().await).await });
    assert_eq!(joined.unwrap(), registered);
    let dir = StateDir::open(&bench.request.state_dir).unwrap();
    let (identity, membership) = identity::load(&dir).unwrap();
    assert_eq!(membership.node, registered);
    assert_eq!(membership.coordinators, [bench.fake.address().to_string()]);

    let keys = fs::read(bench.key_file()).unwrap();
    let (again, registered) =
        tokio::join!(join(bench.request.clone()), async { register(bench.fake.accept().await).await });
    assert_eq!(again.unwrap().node_key, identity.node_key());
    assert_eq!(registered.public_key, identity.public_key());
    assert_eq!(fs::read(bench.key_file()).unwrap(), keys);

    let elsewhere = JoinRequest { pin: KeyPin([0; 32]), ..bench.request.clone() };
    let error = join(elsewhere).await.unwrap_err();
    assert!(matches!(error, JoinError::OtherMesh { .. }), "{error}");
    assert_eq!(identity::load(&dir).unwrap().1, membership);
}

#[tokio::test]
async fn a_wrong_hash_is_refused_before_anything_is_sent() {
    let bench = bench();
    let request = JoinRequest { pin: KeyPin([0; 32]), ..bench.request.clone() };
    let (joined, accepted) = tokio::join!(join(request), bench.fake.accept_connection());
    let error = joined.unwrap_err();
    assert!(matches!(error, JoinError::PinMismatch(_)));
    assert!(error.to_string().contains("the coordinator's key does not match"), "{error}");
    // The handshake failed on the coordinator's side, too: no stream, no client key, no token.
    assert!(accepted.is_err());
    assert!(bench.parent_is_empty());
}

#[tokio::test]
async fn a_refused_token_and_one_that_is_none_are_the_same_error_and_leave_nothing() {
    let bench = bench();
    let (joined, ()) = tokio::join!(join(bench.request.clone()), async {
        let mut session = bench.fake.accept().await;
        assert!(matches!(session.recv().await, ClientMessage::Join { .. }));
        assert!(bench.key_file().exists(), "the keys are written before the token leaves");
        session.refuse(RefusalCode::Token, None).await;
    });
    let error = joined.unwrap_err();
    assert_eq!(error.to_string(), JoinError::from(InvalidToken).to_string());
    assert!(bench.parent_is_empty());
}

#[tokio::test]
async fn a_service_account_s_token_is_read_for_a_coordinator_that_takes_it() {
    let bench = bench();
    let file = bench._parent.path().join("token");
    let request = JoinRequest { right: JoinRight::ServiceAccount(file.clone()), ..bench.request.clone() };
    fs::write(&file, "e30.e30.c2ln\n").unwrap();
    let (joined, ()) = tokio::join!(join(request.clone()), async {
        let mut session = bench.fake.accept().await;
        assert!(session.try_recv().await.is_none(), "an older coordinator does not hear of the token");
    });
    assert!(matches!(joined, Err(JoinError::NoServiceAccounts)), "{joined:?}");

    let (joined, ()) = tokio::join!(join(request.clone()), async {
        let mut session = bench.fake.accept_with(&[SERVICE_ACCOUNTS]).await;
        let message = session.recv().await;
        let ClientMessage::JoinServiceAccount { token, name, .. } = message else { panic!("{message:?}") };
        assert_eq!((token.reveal(), name.as_str()), ("e30.e30.c2ln", "pi"));
        session.refuse(RefusalCode::ServiceAccount, None).await;
    });
    let error = joined.unwrap_err().to_string();
    assert!(error.starts_with("the ServiceAccount's token does not admit this node: "), "{error}");
    assert!(!bench.request.state_dir.exists());

    fs::write(&file, "no token").unwrap();
    let (joined, _) = tokio::join!(join(request), bench.fake.accept_with(&[SERVICE_ACCOUNTS]));
    let error = joined.unwrap_err().to_string();
    assert!(error.contains("cannot be used: not a token of a ServiceAccount"), "{error}");
}

#[tokio::test]
async fn a_refusal_keeps_what_was_there_before() {
    let bench = bench();
    tokio::join!(async { join(bench.request.clone()).await.unwrap() }, async {
        register(bench.fake.accept().await).await
    });
    let keys = fs::read(bench.key_file()).unwrap();
    let (joined, ()) = tokio::join!(join(bench.request.clone()), async {
        let mut session = bench.fake.accept().await;
        session.recv().await;
        session.refuse(RefusalCode::NameTaken, None).await;
    });
    assert!(matches!(joined, Err(JoinError::NameTaken(_))));
    assert_eq!(fs::read(bench.key_file()).unwrap(), keys);
}

#[tokio::test]
async fn an_answer_that_is_lost_is_asked_for_again_with_the_same_keys() {
    let bench = bench();
    let request = JoinRequest { patience: Duration::from_secs(1), ..bench.request.clone() };
    let lose = async {
        let mut session = bench.fake.accept().await;
        session.recv().await;
        session.node_key
    };
    let (joined, first) = tokio::join!(join(request), lose);
    assert!(matches!(joined, Err(JoinError::Unconfirmed { .. })), "{joined:?}");
    let (joined, second) =
        tokio::join!(join(bench.request.clone()), async { register(bench.fake.accept().await).await });
    assert_eq!(joined.unwrap().node_key, first);
    assert_eq!(second.node_key, first);
}

#[tokio::test]
async fn a_busy_coordinator_is_asked_again() {
    let bench = bench();
    let (joined, _) = tokio::join!(join(bench.request.clone()), async {
        let mut session = bench.fake.accept().await;
        session.recv().await;
        session.refuse(RefusalCode::Busy, Some(10)).await;
        register(bench.fake.accept().await).await
    });
    assert!(joined.is_ok());
}

#[tokio::test]
async fn a_failed_join_says_what_it_tried() {
    let parent = tempfile::tempdir().unwrap();
    let request = JoinRequest {
        state_dir: parent.path().join("state"),
        coordinators: vec!["no-such-host.invalid".to_owned(), "127.0.0.1:9".to_owned()],
        right: JoinRight::Token(JoinToken::from_random([1; 5], [2; 16])),
        pin: KeyPin([0; 32]),
        name: "pi".parse().unwrap(),
        stream: StreamOptions::default(),
        nat64: Nat64::new(Mode::Off),
        patience: Duration::from_secs(1),
    };
    let error = join(request.clone()).await.unwrap_err().to_string();
    assert!(error.contains("not reached in 1 s"), "{error}");
    assert!(error.contains("no-such-host.invalid:7443: "), "{error}");
    assert!(error.contains("127.0.0.1:9: no answer"), "{error}");
    let unclear = JoinRequest { coordinators: vec!["https://x".to_owned()], ..request };
    assert!(matches!(join(unclear).await, Err(JoinError::Address(_))));
    assert!(fs::read_dir(parent.path()).unwrap().next().is_none());
}
