//! Lives of a coordinator: a first start, changes, checkpoints, compaction, restarts, and a backup that is restored. The
//! power goes after every system call of them.

use std::{path::Path, time::Instant};

use mesh_coordinator::{
    backup::{self, Backup},
    store::sqlite,
};
use mesh_powercut::{Disk, Explored, Image, Recording, explore, workspace};
use mesh_proto::{
    key::{NodeKey, PublicKey},
    token::JoinToken,
};
use time::OffsetDateTime;

use crate::rig::{Coordinator, Past, STATE, runtime, spec};

/// Different states of the disk that a coordinator has to start from, at least.
const CRASH_POINTS: usize = 10_000;

/// Nodes of a mesh that has grown: enough that a change touches many pages of the database.
const GROWN: u8 = 24;

/// The name that the coordinator is started with.
const NAME: &str = "pi.example";

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_point() {
    let began = Instant::now();
    let mut images = 0;
    for (name, explored) in [("young", young()), ("grown", grown()), ("restored", restored())] {
        println!("{name}: {explored:?}");
        images += explored.images;
    }
    println!("the coordinator was started from {images} different disks in {:?}", began.elapsed());
    assert!(images >= CRASH_POINTS, "{images}");
}

/// From an empty directory on.
fn young() -> Explored {
    let root = workspace().unwrap();
    let state_dir = root.path().join(STATE);
    let mut past = Past::default();
    let recording = Recording::start(root.path());
    runtime().block_on(async {
        let coordinator = Coordinator::start(&state_dir, NAME).await.unwrap();
        past.promise(&coordinator, &recording).await;
        let registry = &coordinator.registry;
        let token = registry.create_token(spec(2)).await.unwrap();
        past.promise(&coordinator, &recording).await;
        for number in 1..=2 {
            coordinator.join(number, &token).await.unwrap();
            past.promise(&coordinator, &recording).await;
        }
        change(&coordinator, &mut past, &recording).await;
        coordinator.stop().await;

        // Other options are a change as well.
        let coordinator = Coordinator::start(&state_dir, "new.example").await.unwrap();
        past.promise(&coordinator, &recording).await;
        coordinator.registry.create_token(spec(1)).await.unwrap();
        past.promise(&coordinator, &recording).await;
        coordinator.stop().await;
    });
    let steps = recording.take_steps();
    drop(recording);
    explore(
        Disk::new(),
        &steps,
        |root| past.recover(root),
        |found, acknowledged| past.judge(found, acknowledged),
    )
}

/// With many nodes, a checkpoint in the middle, and a compaction.
fn grown() -> Explored {
    let root = workspace().unwrap();
    let state_dir = root.path().join(STATE);
    let mut past = Past::default();
    let recording = Recording::start(root.path());
    let start = runtime().block_on(async {
        let coordinator = Coordinator::start(&state_dir, NAME).await.unwrap();
        let token = coordinator.registry.create_token(spec(u32::from(GROWN) + 8)).await.unwrap();
        join_all(&coordinator, 1..=GROWN, &token).await;
        coordinator.stop().await;
        let coordinator = Coordinator::start(&state_dir, NAME).await.unwrap();
        past.promise(&coordinator, &recording).await;
        let start = Disk::after(&recording.take_steps());

        for number in GROWN + 1..=GROWN + 4 {
            coordinator.join(number, &token).await.unwrap();
            past.promise(&coordinator, &recording).await;
        }
        checkpoint(&state_dir);
        // The log begins again from its start, over what was there.
        change(&coordinator, &mut past, &recording).await;
        coordinator.compact(u64::from(GROWN)).await.unwrap();
        past.promise(&coordinator, &recording).await;
        coordinator.join(GROWN + 5, &token).await.unwrap();
        past.promise(&coordinator, &recording).await;
        coordinator.stop().await;
        let coordinator = Coordinator::start(&state_dir, NAME).await.unwrap();
        coordinator.join(GROWN + 6, &token).await.unwrap();
        past.promise(&coordinator, &recording).await;
        start
    });
    let steps = recording.take_steps();
    drop(recording);
    explore(start, &steps, |root| past.recover(root), |found, acknowledged| past.judge(found, acknowledged))
}

/// A coordinator was killed, and backups are put in its place: an older one of this mesh, and then another mesh's.
fn restored() -> Explored {
    let mut past = Past::default();
    let killed = runtime().block_on(killed(&mut past));
    let root = workspace().unwrap();
    killed.image.write_to(root.path()).unwrap();
    let recording = Recording::start(root.path());
    past.announce(past.latest(), &recording);
    let start = Disk::after(&recording.take_steps());
    runtime().block_on(async {
        let state_dir = root.path().join(STATE);
        for (day, bytes) in (20_000..).zip([killed.backup, killed.foreign]) {
            let file = root.path().join("mesh.backup");
            backup::write(&file, &bytes).unwrap();
            let backup = Backup::decode(&std::fs::read(file).unwrap()).unwrap();
            let revision = backup.snapshot.revision.next().0;
            let now = OffsetDateTime::UNIX_EPOCH + time::Duration::days(day);
            let restored = backup::restore(&state_dir, backup, now).unwrap();
            assert!(restored.kept.is_some());
            past.announce((restored.epoch, revision), &recording);
            let coordinator = Coordinator::start(&state_dir, NAME).await.unwrap();
            past.remember(&coordinator).await;
            coordinator.registry.create_token(spec(1)).await.unwrap();
            past.promise(&coordinator, &recording).await;
            coordinator.stop().await;
        }
    });
    let steps = recording.take_steps();
    drop(recording);
    explore(start, &steps, |root| past.recover(root), |found, acknowledged| past.judge(found, acknowledged))
}

/// What a coordinator has left that was killed, and backups to put in its place.
struct Killed {
    image: Image,
    backup: Vec<u8>,
    foreign: Vec<u8>,
}

async fn killed(past: &mut Past) -> Killed {
    let (root, elsewhere) = (workspace().unwrap(), workspace().unwrap());
    let other = Coordinator::start(elsewhere.path(), NAME).await.unwrap();
    other.registry.create_token(spec(1)).await.unwrap();
    let foreign = other.backup(other.registry.export().await.unwrap());
    other.stop().await;

    let recording = Recording::start(root.path());
    let coordinator = Coordinator::start(&root.path().join(STATE), NAME).await.unwrap();
    let token = coordinator.registry.create_token(spec(2)).await.unwrap();
    coordinator.join(1, &token).await.unwrap();
    let backup = coordinator.backup(coordinator.registry.export().await.unwrap());
    coordinator.join(2, &token).await.unwrap();
    past.remember(&coordinator).await;
    Killed { image: Disk::after(&recording.take_steps()).seen(), backup, foreign }
}

/// What happens to nodes that are there: a new name, a new key, removal, and a token that is made meanwhile.
async fn change(coordinator: &Coordinator, past: &mut Past, recording: &Recording) {
    let registry = &coordinator.registry;
    registry.rename_node(&"n1".parse().unwrap(), "renamed".parse().unwrap()).await.unwrap();
    past.promise(coordinator, recording).await;
    registry.connect(NodeKey([1; 32]), PublicKey([101; 32])).await.unwrap();
    past.promise(coordinator, recording).await;
    registry.remove_node(&"n2".parse().unwrap()).await.unwrap();
    past.promise(coordinator, recording).await;
    let token = registry.create_token(spec(1)).await.unwrap();
    past.promise(coordinator, recording).await;
    coordinator.join(2, &token).await.unwrap();
    past.promise(coordinator, recording).await;
}

async fn join_all(coordinator: &Coordinator, numbers: impl IntoIterator<Item = u8>, token: &JoinToken) {
    for number in numbers {
        coordinator.join(number, token).await.unwrap();
    }
}

/// Moves the log into the database, as SQLite does by itself when it has become long, and as `sqlite3` on a shell does.
fn checkpoint(state_dir: &Path) {
    let shell = rusqlite::Connection::open(sqlite::path(state_dir)).unwrap();
    shell.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
}
