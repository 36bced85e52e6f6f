use std::{sync::Arc, time::Duration};

use mesh_proto::{
    key::{NodeKey, PublicKey},
    netmap::Version,
};

use super::*;
use crate::{
    registry::{ChangeKind, MeshOptions, Registry, TokenSpec},
    store::memory::MemoryStore,
};

async fn registry() -> Registry {
    let options = MeshOptions {
        ipv4: "10.90.0.0/16".parse().unwrap(),
        coordinators: vec![],
        relay_name: "pi".to_owned(),
        routes: RoutePolicy { pod_ranges: vec![net("10.244.0.0/16")], approved: vec![net("192.168.0.0/17")] },
    };
    Registry::with_store(Arc::new(MemoryStore::default()), options).await.unwrap()
}

async fn join(registry: &Registry, number: u8) -> Node {
    let spec = TokenSpec { ttl: Duration::from_secs(60), uses: 1, tags: vec![] };
    let token = registry.create_token(spec).await.unwrap();
    let name = format!("n{number}").parse().unwrap();
    registry.join(NodeKey([number; 32]), token, name, PublicKey([number; 32])).await.unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

async fn offer(registry: &Registry, node: &Node, kind: RouteKind, prefixes: &[&str]) {
    let offers = prefixes.iter().map(|prefix| RouteOffer { prefix: net(prefix), kind }).collect();
    registry.advertise(node.id, offers).await.unwrap();
}

/// What a node is told: `PREFIX STATE REASON`.
fn told(registry: &Registry, node: &Node) -> Vec<String> {
    let text = |answer: RouteAnswer| {
        let reason = answer.reason.unwrap_or_default();
        format!("{} {} {reason}", answer.prefix, answer.state).trim_end().to_owned()
    };
    registry.route_answers(node.id).into_iter().map(text).collect()
}

/// What the mesh sends a node beyond its addresses.
async fn sent(registry: &Registry, node: &Node) -> Vec<IpNet> {
    let node = registry.map_for(node.id).await.unwrap().this;
    node.allowed_ips[node.addresses.len()..].to_vec()
}

#[tokio::test]
async fn policy_approves_forbids_or_leaves_it_to_the_operator() {
    let registry = registry().await;
    let node = join(&registry, 1).await;
    offer(&registry, &node, RouteKind::Pods, &["10.244.1.7/24"]).await;
    assert_eq!(told(&registry, &node), ["10.244.1.0/24 approved"]);
    assert_eq!(sent(&registry, &node).await, [net("10.244.1.0/24")]);

    let subnets = ["192.168.7.0/24", "172.16.0.0/24", "10.244.9.0/24", "10.90.7.0/24", "0.0.0.0/1"];
    offer(&registry, &node, RouteKind::Subnet, &subnets).await;
    assert_eq!(
        told(&registry, &node),
        [
            "0.0.0.0/1 refused it is a default route, or nearly one",
            "10.90.7.0/24 refused it overlaps the mesh's own range 10.90.0.0/16",
            "10.244.9.0/24 refused it overlaps the mesh's range for pods, 10.244.0.0/16",
            "172.16.0.0/24 pending it waits for the operator: mesh-coordinator route approve",
            "192.168.7.0/24 approved",
        ]
    );
    assert_eq!(sent(&registry, &node).await, [net("192.168.7.0/24")], "pods are not offered any more");
    offer(&registry, &node, RouteKind::Pods, &["10.96.0.0/24"]).await;
    let outside = "10.96.0.0/24 refused it is not inside the mesh's range for pods, 10.244.0.0/16";
    assert_eq!(told(&registry, &node), [outside]);
}

#[tokio::test]
async fn the_operator_has_the_last_word_and_it_is_remembered() {
    let registry = registry().await;
    let node = join(&registry, 1).await;
    let prefix = net("172.16.0.0/24");
    let early = registry.approve_route(&node.name, prefix).await.unwrap();
    assert_eq!((early.state, early.kind), (RouteState::Pending, None), "the node does not offer it yet");
    offer(&registry, &node, RouteKind::Subnet, &["172.16.0.0/24", "192.168.1.0/24"]).await;
    assert_eq!(sent(&registry, &node).await, [prefix, net("192.168.1.0/24")]);

    let revoked = registry.revoke_route(&node.name, net("192.168.1.0/24")).await.unwrap();
    assert_eq!(revoked.state, RouteState::Refused);
    offer(&registry, &node, RouteKind::Subnet, &[]).await;
    assert_eq!(sent(&registry, &node).await, []);
    offer(&registry, &node, RouteKind::Subnet, &["172.16.0.0/24", "192.168.1.0/24"]).await;
    assert_eq!(
        told(&registry, &node),
        ["172.16.0.0/24 approved", "192.168.1.0/24 refused the operator has revoked it"]
    );
    registry.approve_route(&node.name, net("192.168.1.0/24")).await.unwrap();
    assert_eq!(sent(&registry, &node).await.len(), 2);
    let nobody = registry.approve_route(&"nobody".parse().unwrap(), prefix).await;
    assert!(matches!(nobody, Err(RegistryError::UnknownNode(_))));
    let forbidden = registry.approve_route(&node.name, net("127.0.0.0/8")).await.unwrap();
    assert_eq!(forbidden.state, RouteState::Pending);
    offer(&registry, &node, RouteKind::Subnet, &["127.0.0.0/8"]).await;
    assert_eq!(sent(&registry, &node).await, [], "some things no word makes possible");
}

#[tokio::test]
async fn of_two_that_overlap_the_older_one_stays_until_it_is_gone() {
    let registry = registry().await;
    let (one, two) = (join(&registry, 1).await, join(&registry, 2).await);
    offer(&registry, &two, RouteKind::Pods, &["10.244.1.0/24"]).await;
    offer(&registry, &one, RouteKind::Pods, &["10.244.0.0/23"]).await;
    assert_eq!(told(&registry, &one), ["10.244.0.0/23 refused it overlaps 10.244.1.0/24 of n2"]);
    assert_eq!(sent(&registry, &one).await, []);
    // Saying it again, or being renamed, changes nothing.
    offer(&registry, &two, RouteKind::Pods, &["10.244.1.0/24"]).await;
    offer(&registry, &one, RouteKind::Pods, &["10.244.0.0/23"]).await;
    assert_eq!(sent(&registry, &two).await, [net("10.244.1.0/24")]);

    let mut changes = registry.watch();
    registry.remove_node(&two.name).await.unwrap();
    assert_eq!(told(&registry, &one), ["10.244.0.0/23 approved"]);
    let mut kinds = Vec::new();
    while let Ok(change) = changes.try_recv() {
        kinds.push(change.kind);
    }
    assert!(kinds.contains(&ChangeKind::RoutesSet(one.id)), "{kinds:?}");
    let has_route = |kind: &ChangeKind| matches!(kind, ChangeKind::NodeSet(node) if node.allowed_ips.contains(&net("10.244.0.0/23")));
    assert!(kinds.iter().any(has_route), "{kinds:?}");
    assert_eq!(registry.routes().len(), 1, "nothing is left of the one that was removed");
}

#[tokio::test]
async fn the_same_offer_writes_nothing_and_an_endless_one_is_cut() {
    let registry = registry().await;
    let node = join(&registry, 1).await;
    offer(&registry, &node, RouteKind::Pods, &["10.244.1.0/24"]).await;
    let before: Version = registry.version();
    offer(&registry, &node, RouteKind::Pods, &["10.244.1.0/24"]).await;
    assert_eq!(registry.version(), before);
    let many: Vec<String> = (0..=255).map(|third| format!("172.16.{third}.0/24")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    offer(&registry, &node, RouteKind::Subnet, &many).await;
    assert_eq!(told(&registry, &node).len(), MAX_ROUTES);
    for third in 0..=255 {
        let spoken = registry.approve_route(&node.name, net(&format!("172.17.{third}.0/24"))).await;
        assert!(spoken.is_ok() == (third < MAX_ROUTES), "{third}");
    }
}
