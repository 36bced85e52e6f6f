//! The registry over both stores: who gets in, and what others see of it.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use mesh_proto::{
    control::RefusalCode,
    key::{NodeKey, PublicKey},
    netmap::{NodeId, Version},
    token::JoinToken,
};

use super::{ChangeKind, MeshOptions, Registry, RegistryError, RoutePolicy, TokenSpec, view::View};
use crate::store::{Store, memory::MemoryStore, sqlite::SqliteStore};

fn options() -> MeshOptions {
    MeshOptions {
        ipv4: "10.90.0.0/16".parse().unwrap(),
        coordinators: vec!["pi.example:7443".to_owned()],
        relay_name: "pi".to_owned(),
        routes: RoutePolicy::default(),
    }
}

fn spec(uses: u32) -> TokenSpec {
    TokenSpec { ttl: Duration::from_secs(3600), uses, tags: vec!["worker".to_owned()] }
}

fn node_key(n: u32) -> NodeKey {
    let mut key = [1; 32];
    key[..4].copy_from_slice(&n.to_be_bytes());
    NodeKey(key)
}

fn public_key(n: u32) -> PublicKey {
    PublicKey(node_key(n).0)
}

async fn in_memory() -> (Registry, Arc<dyn Store>) {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    (Registry::with_store(Arc::clone(&store), options()).await.unwrap(), store)
}

async fn join(registry: &Registry, n: u32, token: &JoinToken) -> Result<super::Node, RegistryError> {
    let name = format!("n{n}").parse().unwrap();
    registry.join(node_key(n), token.clone(), name, public_key(n)).await
}

#[tokio::test]
async fn a_node_gets_an_id_addresses_and_tags_and_keeps_them() {
    let (registry, _) = in_memory().await;
    let token = registry.create_token(spec(2)).await.unwrap();
    let first = join(&registry, 1, &token).await.unwrap();
    let second = join(&registry, 2, &token).await.unwrap();
    assert_eq!((first.id, second.id), (NodeId(1), NodeId(2)));
    assert_eq!(first.addresses[0], IpAddr::from([10, 90, 0, 1]));
    assert!(matches!(first.addresses[1], IpAddr::V6(address) if address.octets()[0] == 0xfd));
    let allowed: Vec<_> = first.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(allowed, ["10.90.0.1/32".to_owned(), format!("{}/128", first.addresses[1])]);
    assert_eq!(first.tags, ["worker"]);
    let again = join(&registry, 1, &token).await.unwrap();
    assert_eq!(again, first, "the token is used up, but the node is registered");
    assert!(matches!(join(&registry, 3, &token).await, Err(RegistryError::Token)));
}

#[tokio::test]
async fn every_bad_token_is_refused_alike() {
    let (registry, _) = in_memory().await;
    let (other, _) = in_memory().await;
    let good = registry.create_token(spec(1)).await.unwrap();
    let used_up = registry.create_token(spec(1)).await.unwrap();
    join(&registry, 1, &used_up).await.unwrap();
    let expired = registry.create_token(TokenSpec { ttl: Duration::from_nanos(1), ..spec(1) }).await.unwrap();
    let text = good.reveal();
    let last = if text.ends_with('0') { "1" } else { "0" };
    let wrong_secret = format!("{}{last}", &text[..text.len() - 1]).parse().unwrap();
    let elsewhere = other.create_token(spec(1)).await.unwrap();
    let mut messages = Vec::new();
    for bad in [used_up, expired, wrong_secret, elsewhere] {
        let error = join(&registry, 2, &bad).await.unwrap_err();
        let refusal = error.refusal().unwrap();
        assert_eq!(refusal.code, RefusalCode::Token);
        messages.push(refusal);
    }
    assert!(messages.windows(2).all(|pair| pair[0] == pair[1]), "{messages:?}");
    assert_eq!(registry.nodes().await.unwrap().len(), 1, "nothing was written");
    join(&registry, 2, &good).await.unwrap();
}

#[tokio::test]
async fn a_refused_name_or_key_does_not_use_up_the_token() {
    let (registry, _) = in_memory().await;
    let token = registry.create_token(spec(2)).await.unwrap();
    let first = join(&registry, 1, &token).await.unwrap();
    let taken =
        registry.join(node_key(2), token.clone(), first.name.clone(), public_key(2)).await.unwrap_err();
    assert_eq!(taken.refusal().unwrap().code, RefusalCode::NameTaken);
    let taken =
        registry.join(node_key(2), token.clone(), "n2".parse().unwrap(), public_key(1)).await.unwrap_err();
    assert!(matches!(taken, RegistryError::PublicKeyTaken));
    join(&registry, 2, &token).await.unwrap();
}

/// Lets two nodes join at once with a one-use token, each at a coordinator of its own on the same store.
async fn two_join_at_once(store: Arc<dyn Store>, tries: u32) {
    let one = Registry::with_store(Arc::clone(&store), options()).await.unwrap();
    let other = Registry::with_store(store, options()).await.unwrap();
    for attempt in 0..tries {
        let token = one.create_token(spec(1)).await.unwrap();
        let racers = [one.clone(), other.clone()].into_iter().zip([2 * attempt, 2 * attempt + 1]);
        let racers: Vec<_> = racers
            .map(|(registry, n)| {
                let token = token.clone();
                tokio::spawn(async move { join(&registry, n, &token).await })
            })
            .collect();
        let mut joined = 0;
        for racer in racers {
            match racer.await.unwrap() {
                Ok(_) => joined += 1,
                Err(error) => assert!(matches!(error, RegistryError::Token), "{error}"),
            }
        }
        assert_eq!(joined, 1, "attempt {attempt}");
    }
    let nodes = View::load(&*one.inner.store).await.unwrap().nodes().cloned().collect::<Vec<_>>();
    assert_eq!(nodes.len(), tries as usize);
    let addresses: std::collections::BTreeSet<_> = nodes.iter().flat_map(|node| &node.addresses).collect();
    assert_eq!(addresses.len(), 2 * nodes.len(), "no address is given twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_one_use_token_admits_one_of_two_nodes_in_memory() {
    two_join_at_once(Arc::new(MemoryStore::new()), 1000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_one_use_token_admits_one_of_two_nodes_in_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    two_join_at_once(Arc::new(SqliteStore::open(dir.path()).await.unwrap()), 1000).await;
}

#[tokio::test]
async fn a_removed_node_is_gone_for_all_and_old_tokens_do_not_bring_it_back() {
    let (registry, _) = in_memory().await;
    let token = registry.create_token(spec(10)).await.unwrap();
    let removed = join(&registry, 1, &token).await.unwrap();
    let witness = join(&registry, 2, &token).await.unwrap();
    let before = registry.map_for(witness.id).await.unwrap();
    assert_eq!(registry.remove_node(&removed.name).await.unwrap(), removed.id);
    let changes = registry.changes_since(before.version).await.unwrap().unwrap();
    assert_eq!(
        changes.iter().map(|change| &change.kind).collect::<Vec<_>>(),
        [&ChangeKind::NodeRemoved(removed.id)]
    );
    assert!(registry.map_for(witness.id).await.unwrap().peers.is_empty());
    assert!(matches!(registry.map_for(removed.id).await, Err(RegistryError::NotRegistered)));
    assert!(matches!(registry.connect(node_key(1), public_key(1)).await, Err(RegistryError::NotRegistered)));
    assert!(matches!(join(&registry, 1, &token).await, Err(RegistryError::Token)));
    let approval = registry.create_token(spec(1)).await.unwrap();
    let again = join(&registry, 1, &approval).await.unwrap();
    assert_eq!(again.id, NodeId(3), "ids are never used again");
    assert!(matches!(
        registry.remove_node(&"nobody".parse().unwrap()).await,
        Err(RegistryError::UnknownNode(_))
    ));
}

#[tokio::test]
async fn a_node_can_change_its_name_and_its_wireguard_key() {
    let (registry, _) = in_memory().await;
    let token = registry.create_token(spec(2)).await.unwrap();
    let node = join(&registry, 1, &token).await.unwrap();
    join(&registry, 2, &token).await.unwrap();
    let mut watch = registry.watch();
    let renamed = registry.rename_node(&node.name, "pi".parse().unwrap()).await.unwrap();
    assert_eq!(watch.recv().await.unwrap().kind, ChangeKind::NodeSet(renamed.clone()));
    assert!(matches!(
        registry.rename_node(&renamed.name, "n2".parse().unwrap()).await,
        Err(RegistryError::NameTaken(_))
    ));
    assert_eq!(registry.connect(node_key(1), public_key(9)).await.unwrap(), node.id);
    let change = watch.recv().await.unwrap();
    assert!(matches!(change.kind, ChangeKind::NodeSet(node) if node.public_key == public_key(9)));
    assert_eq!(registry.connect(node_key(1), public_key(9)).await.unwrap(), node.id);
    assert!(watch.try_recv().is_err(), "nothing has changed");
    assert!(matches!(registry.connect(node_key(1), public_key(2)).await, Err(RegistryError::PublicKeyTaken)));
    join(&registry, 3, &token).await.unwrap_err();
    let freed = registry.create_token(spec(1)).await.unwrap();
    registry.join(node_key(3), freed, "n1".parse().unwrap(), public_key(1)).await.unwrap();
}

#[tokio::test]
async fn a_full_range_refuses_and_a_removed_node_makes_room() {
    let small = MeshOptions { ipv4: "10.90.0.0/30".parse().unwrap(), ..options() };
    let registry = Registry::with_store(Arc::new(MemoryStore::new()), small).await.unwrap();
    let token = registry.create_token(spec(10)).await.unwrap();
    let first = join(&registry, 1, &token).await.unwrap();
    join(&registry, 2, &token).await.unwrap();
    let full = join(&registry, 3, &token).await.unwrap_err();
    assert_eq!(full.refusal().unwrap().code, RefusalCode::Busy);
    registry.remove_node(&first.name).await.unwrap();
    let third = join(&registry, 3, &token).await.unwrap();
    assert_eq!((third.id, third.addresses[0]), (NodeId(3), first.addresses[0]));
}

#[tokio::test]
async fn everything_survives_a_restart_and_returning_nodes_get_what_they_missed() {
    let dir = tempfile::tempdir().unwrap();
    let open = async |options| Registry::open(dir.path(), options).await;
    let registry = open(options()).await.unwrap();
    let token = registry.create_token(spec(5)).await.unwrap();
    let first = join(&registry, 1, &token).await.unwrap();
    let map = registry.map_for(first.id).await.unwrap();
    let second = join(&registry, 2, &token).await.unwrap();
    drop(registry);

    let registry = open(options()).await.unwrap();
    assert_eq!(registry.nodes().await.unwrap(), [first.clone(), second.clone()]);
    let missed = registry.changes_since(map.version).await.unwrap().expect("the history is on disk");
    assert_eq!(missed.len(), 1);
    let mut caught_up = map.clone();
    caught_up.apply(super::mapgen::delta(first.id, map.version, &missed)).unwrap();
    assert_eq!(caught_up, registry.map_for(first.id).await.unwrap());
    assert_eq!(join(&registry, 3, &token).await.unwrap().id, NodeId(3));
    assert_eq!(registry.changes_since(Version { epoch: 2, serial: 3 }).await.unwrap(), None);
    assert_eq!(registry.changes_since(Version { epoch: 1, serial: 1 << 40 }).await.unwrap(), None);
    drop(registry);

    let moved = MeshOptions { coordinators: vec!["new.example:7443".to_owned()], ..options() };
    let registry = open(moved).await.unwrap();
    assert_eq!(registry.changes_since(map.version).await.unwrap(), None, "no delta carries the new names");
    let whole = registry.map_for(first.id).await.unwrap();
    assert_eq!(whole.mesh.coordinators, ["new.example:7443"]);
    assert_eq!((whole.mesh.ipv6, whole.relays[0].addresses.len()), (map.mesh.ipv6, 1));
    drop(registry);

    let other = MeshOptions { ipv4: "10.91.0.0/16".parse().unwrap(), ..options() };
    assert!(matches!(open(other).await.err(), Some(RegistryError::Ipv4RangeChanged { .. })));
}

#[tokio::test]
async fn who_was_removed_is_known_after_a_restart_and_a_new_join() {
    let (registry, store) = in_memory().await;
    let token = registry.create_token(spec(5)).await.unwrap();
    join(&registry, 1, &token).await.unwrap();
    let (second, third) =
        (join(&registry, 2, &token).await.unwrap(), join(&registry, 3, &token).await.unwrap());
    let before = registry.version();
    registry.remove_node(&second.name).await.unwrap();
    let between = registry.version();
    registry.remove_node(&third.name).await.unwrap();
    let token = registry.create_token(spec(5)).await.unwrap();
    assert_eq!(join(&registry, 2, &token).await.unwrap().id, NodeId(4));
    let again = Registry::with_store(store, options()).await.unwrap();
    for registry in [registry, again] {
        assert_eq!(registry.removed_since(before), [second.id, third.id]);
        assert_eq!(registry.removed_since(between), [third.id]);
        assert_eq!(registry.removed_since(registry.version()), []);
        assert_eq!(registry.removed_since(Version { epoch: 9, serial: 0 }), []);
    }
}

#[tokio::test]
async fn a_damaged_value_is_named() {
    let (_, store) = in_memory().await;
    let ops = vec![crate::store::Op::Put { key: "nodes/0000000001".to_owned(), value: b"{".to_vec() }];
    store.commit(crate::store::Transaction { compares: vec![], ops }).await.unwrap();
    let error = Registry::with_store(store, options()).await.err().unwrap();
    assert!(error.to_string().contains("nodes/0000000001"), "{error}");
}

#[tokio::test]
async fn a_state_directory_that_is_a_file_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path: &Path = file.path();
    let error = Registry::open(path, options()).await.err().unwrap();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}
