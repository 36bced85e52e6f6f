//! What every store does: one suite, run over each implementation.

use std::{sync::Arc, time::Duration};

use super::{
    Batch, Compare, Event, Op, Outcome, Revision, Store, StoreError, Transaction, Watch, memory::MemoryStore,
    sqlite::SqliteStore,
};

/// How long a watch may take to see a change that was committed.
const DEADLINE: Duration = Duration::from_secs(10);

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.to_owned(), value: value.as_bytes().to_vec() }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.to_owned() }
}

fn event(revision: u64, key: &str, value: Option<&str>) -> Event {
    Event {
        revision: Revision(revision),
        key: key.to_owned(),
        value: value.map(|value| value.as_bytes().to_vec()),
    }
}

async fn apply(store: &dyn Store, ops: &[Op]) -> u64 {
    let transaction = Transaction { compares: vec![], ops: ops.to_vec() };
    match store.commit(transaction).await.unwrap() {
        Outcome::Committed(revision) => revision.0,
        Outcome::Conflict => panic!("conflict without a comparison"),
    }
}

async fn compare_and_put(store: &dyn Store, key: &str, mod_revision: u64, value: &str) -> Outcome {
    let compares = vec![Compare { key: key.to_owned(), mod_revision: Revision(mod_revision) }];
    store.commit(Transaction { compares, ops: vec![put(key, value)] }).await.unwrap()
}

async fn next(watch: &mut dyn Watch) -> Batch {
    tokio::time::timeout(DEADLINE, watch.next()).await.expect("a watch sees a change").unwrap()
}

async fn keys_have_values_and_revisions(store: &dyn Store) {
    assert_eq!(store.get("a").await.unwrap(), None);
    assert_eq!(apply(store, &[put("a", "1"), put("b", "1")]).await, 1);
    assert_eq!(apply(store, &[put("a", "2")]).await, 2);
    let a = store.get("a").await.unwrap().unwrap();
    assert_eq!((&a.value[..], a.create_revision.0, a.mod_revision.0), (&b"2"[..], 1, 2));
    assert_eq!(apply(store, &[delete("a")]).await, 3);
    assert_eq!(apply(store, &[put("a", "3")]).await, 4);
    let a = store.get("a").await.unwrap().unwrap();
    assert_eq!((a.create_revision.0, a.mod_revision.0), (4, 4), "a deleted key is made again");
    assert_eq!(apply(store, &[delete("nothing")]).await, 4, "no effect, no revision");
    assert_eq!(apply(store, &[]).await, 4);
}

async fn ranges_are_by_prefix_and_in_order(store: &dyn Store) {
    apply(store, &[put("n/2", "b"), put("n/10", "c"), put("n/1", "a"), put("m", "x"), put("n0", "x")]).await;
    let snapshot = store.range("n/").await.unwrap();
    let keys: Vec<_> = snapshot.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["n/1", "n/10", "n/2"]);
    assert_eq!(snapshot.revision, Revision(1));
    assert_eq!(store.range("").await.unwrap().entries.len(), 5);
    assert_eq!(store.range("z").await.unwrap().entries, []);
}

async fn a_transaction_is_all_or_nothing(store: &dyn Store) {
    assert_eq!(compare_and_put(store, "a", 0, "1").await, Outcome::Committed(Revision(1)));
    assert_eq!(compare_and_put(store, "a", 0, "2").await, Outcome::Conflict);
    assert_eq!(compare_and_put(store, "a", 1, "2").await, Outcome::Committed(Revision(2)));
    let compare = |key: &str, revision| Compare { key: key.to_owned(), mod_revision: Revision(revision) };
    let transaction = Transaction {
        compares: vec![compare("a", 2), compare("b", 7)],
        ops: vec![put("c", "1"), delete("a")],
    };
    assert_eq!(store.commit(transaction).await.unwrap(), Outcome::Conflict);
    assert_eq!(store.get("c").await.unwrap(), None);
    assert!(store.get("a").await.unwrap().is_some());
    let twice = Transaction { compares: vec![], ops: vec![put("d", "1"), delete("d")] };
    assert!(matches!(store.commit(twice).await, Err(StoreError::DuplicateKey { .. })));
    assert_eq!(store.range("").await.unwrap().revision, Revision(2));
}

async fn one_of_many_concurrent_writers_wins(store: Arc<dyn Store>) {
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { compare_and_put(&*store, "one", 0, &writer.to_string()).await })
        })
        .collect();
    let mut won = 0;
    for writer in writers {
        won += usize::from(writer.await.unwrap() != Outcome::Conflict);
    }
    assert_eq!(won, 1);
}

async fn a_watch_sees_every_change_once_and_in_order(store: &dyn Store) {
    apply(store, &[put("n/1", "a"), put("m", "x")]).await;
    apply(store, &[put("n/1", "b")]).await;
    let mut watch = store.watch("n/", Revision(2)).await.unwrap();
    let batch = next(&mut *watch).await;
    assert_eq!(batch, Batch { revision: Revision(2), events: vec![event(2, "n/1", Some("b"))] });
    assert!(
        tokio::time::timeout(Duration::from_millis(20), watch.next()).await.is_err(),
        "nothing has happened"
    );
    apply(store, &[put("n/3", "d"), put("n/2", "c"), delete("n/1"), put("m", "y")]).await;
    let batch = next(&mut *watch).await;
    let expected = vec![event(3, "n/1", None), event(3, "n/2", Some("c")), event(3, "n/3", Some("d"))];
    assert_eq!(batch, Batch { revision: Revision(3), events: expected }, "by key within a revision");
    apply(store, &[put("m", "z")]).await;
    assert_eq!(next(&mut *watch).await, Batch { revision: Revision(4), events: vec![] });
    apply(store, &[put("n/4", "e")]).await;
    apply(store, &[put("n/5", "f")]).await;
    let batch = next(&mut *watch).await;
    let mut seen = batch.events;
    while seen.len() < 2 {
        seen.extend(next(&mut *watch).await.events);
    }
    assert_eq!(seen, [event(5, "n/4", Some("e")), event(6, "n/5", Some("f"))]);
}

async fn compacted_history_is_refused_and_present_values_stay(store: &dyn Store) {
    for value in ["1", "2", "3", "4"] {
        apply(store, &[put("a", value)]).await;
    }
    let mut behind = store.watch("", Revision(1)).await.unwrap();
    store.compact(Revision(2)).await.unwrap();
    store.compact(Revision(1)).await.unwrap();
    assert!(matches!(
        store.watch("", Revision(2)).await,
        Err(StoreError::Compacted { compacted: Revision(2) })
    ));
    assert!(matches!(behind.next().await, Err(StoreError::Compacted { .. })));
    let mut watch = store.watch("", Revision(3)).await.unwrap();
    let batch = next(&mut *watch).await;
    assert_eq!(batch.events, [event(3, "a", Some("3")), event(4, "a", Some("4"))]);
    store.compact(Revision(1000)).await.unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().mod_revision, Revision(4));
    assert!(store.watch("", Revision(5)).await.is_ok(), "the future is never compacted");
}

/// Runs every check on a store of its own.
macro_rules! conformance {
    ($name:ident, $store:expr) => {
        mod $name {
            use super::*;

            #[tokio::test]
            async fn keys_have_values_and_revisions() {
                let (store, _keep) = $store.await;
                super::keys_have_values_and_revisions(&store).await;
            }

            #[tokio::test]
            async fn ranges_are_by_prefix_and_in_order() {
                let (store, _keep) = $store.await;
                super::ranges_are_by_prefix_and_in_order(&store).await;
            }

            #[tokio::test]
            async fn a_transaction_is_all_or_nothing() {
                let (store, _keep) = $store.await;
                super::a_transaction_is_all_or_nothing(&store).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn one_of_many_concurrent_writers_wins() {
                let (store, _keep) = $store.await;
                super::one_of_many_concurrent_writers_wins(Arc::new(store)).await;
            }

            #[tokio::test]
            async fn a_watch_sees_every_change_once_and_in_order() {
                let (store, _keep) = $store.await;
                super::a_watch_sees_every_change_once_and_in_order(&store).await;
            }

            #[tokio::test]
            async fn compacted_history_is_refused_and_present_values_stay() {
                let (store, _keep) = $store.await;
                super::compacted_history_is_refused_and_present_values_stay(&store).await;
            }
        }
    };
}

conformance!(memory, async { (MemoryStore::new(), ()) });
conformance!(sqlite, async {
    let dir = tempfile::tempdir().unwrap();
    (SqliteStore::open(dir.path()).await.unwrap(), dir)
});
