//! What was acknowledged survives a `kill -9`, and nothing is left half done.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use mesh_coordinator::{
    admin::{Client, TokenRequest},
    registry::{MeshOptions, Registry, RoutePolicy},
};
use mesh_proto::{
    key::{NodeKey, PublicKey},
    token::JoinToken,
};
use tokio::sync::Notify;

use crate::rig::Serving;

/// How long the coordinator works before each kill: enough to be hit in every phase of a commit.
const KILLED_AFTER_MS: [u64; 12] = [1, 2, 3, 5, 7, 11, 16, 23, 37, 53, 71, 97];

/// The name that the coordinator is started with.
const NAME: &str = "pi.example";

/// Makes tokens until the coordinator is killed, and returns those that were acknowledged.
async fn make_tokens(client: Client, killed: &AtomicBool, acknowledged: &Notify) -> Vec<JoinToken> {
    let mut tokens = Vec::new();
    loop {
        match client.create_token(&TokenRequest { ttl_s: 3600, uses: 1, tags: vec![] }).await {
            Ok(reply) => {
                tokens.push(reply.join.split(' ').nth(4).unwrap().parse().unwrap());
                acknowledged.notify_one();
            }
            Err(error) => {
                assert!(killed.load(Ordering::SeqCst), "{error}");
                return tokens;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_changes_survive_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut joined: u32 = 0;
    for patience in KILLED_AFTER_MS {
        let serving = Serving::start(dir.path(), &[NAME]);
        let killed = AtomicBool::new(false);
        let acknowledged = Notify::new();
        let kill = async {
            // On a slow disk nothing is acknowledged so soon: the last one lives until something was.
            if patience == KILLED_AFTER_MS[KILLED_AFTER_MS.len() - 1] {
                acknowledged.notified().await;
            }
            tokio::time::sleep(Duration::from_millis(patience)).await;
            killed.store(true, Ordering::SeqCst);
            serving.kill();
        };
        let (tokens, ()) = tokio::join!(make_tokens(Client::new(dir.path()), &killed, &acknowledged), kill);

        let options = MeshOptions {
            ipv4: "10.90.0.0/16".parse().unwrap(),
            coordinators: vec![format!("{NAME}:7443")],
            relay_name: "pi".to_owned(),
            routes: RoutePolicy::default(),
        };
        let registry = Registry::open(dir.path(), options).await.unwrap();
        assert_eq!(registry.nodes().await.unwrap().len(), joined as usize, "earlier joins are there");
        for token in tokens {
            joined += 1;
            let mut key = [1; 32];
            key[..4].copy_from_slice(&joined.to_be_bytes());
            let name = format!("n{joined}").parse().unwrap();
            let node = registry.join(NodeKey(key), token, name, PublicKey(key)).await.unwrap();
            assert_eq!(node.id.0, joined);
        }
    }
    assert!(joined > 0, "no token was acknowledged before a kill");
}
