//! The disk is full, read-only or broken, from any system call of the coordinator's on, SQLite's among them: what it does
//! not acknowledge it reports, what it has acknowledged is there, on the disk as it is and after a power cut, and with a
//! good disk it goes on.

use std::path::Path;

use mesh_coordinator::store::{Store as _, sqlite::SqliteStore};
use mesh_powercut::{Disk, Fault, Recording, workspace};
use mesh_proto::key::{NodeKey, PublicKey};

use crate::rig::{Coordinator, STATE, runtime, spec};

const FAULTS: [Fault; 5] = [Fault::Full, Fault::ReadOnly, Fault::Broken, Fault::Sync, Fault::Short];

/// Calls that succeed before the one that fails: as many as a start or all the changes make, and some more.
const CALLS: usize = 36;

const NAME: &str = "pi.example";

/// What the coordinator has acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Promised {
    /// Names of nodes that have joined, in order.
    nodes: Vec<String>,
    /// Changes, whatever they were.
    changes: usize,
}

/// When the disk begins to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Start,
    Changes,
}

#[test]
fn a_disk_that_fails_is_reported_and_loses_nothing_that_was_acknowledged() {
    let mut reported = 0;
    for from in [From::Start, From::Changes] {
        for (fault, call) in FAULTS.into_iter().flat_map(|fault| (0..CALLS).map(move |call| (fault, call))) {
            let what = format!("{fault:?} at {call} from {from:?} on");
            reported += usize::from(strike(from, fault, call, &what));
        }
    }
    println!("{reported} failures were reported");
    assert!(reported > 2 * CALLS, "{reported}");
}

/// Lets a coordinator live on a disk that fails; whether it had to report that.
fn strike(from: From, fault: Fault, call: usize, what: &str) -> bool {
    let root = workspace().unwrap();
    let state_dir = root.path().join(STATE);
    let recording = Recording::start(root.path());
    let mut promised = Promised::default();
    let failed = runtime().block_on(async {
        if from == From::Start {
            recording.set_fault(fault, call);
        }
        let coordinator = match Coordinator::start(&state_dir, NAME).await {
            Ok(coordinator) => coordinator,
            Err(error) => return Some(format!("{error:#}")),
        };
        if from == From::Changes {
            recording.set_fault(fault, call);
        }
        let failed = change(&coordinator, &mut promised, 1).await.err();
        recording.clear_fault();
        if failed.is_some() {
            // The same process goes on if it can; what it acknowledges now counts as much.
            let _ = change(&coordinator, &mut promised, 100).await;
        }
        let _ = coordinator.registry.close().await;
        failed.map(|error| format!("{error:#}"))
    });
    recording.clear_fault();
    let steps = recording.take_steps();
    drop(recording);
    if let Some(error) = &failed {
        assert!(!error.is_empty(), "{what}: it is not said what is wrong");
    }
    check(root.path(), &promised, what);
    let left = workspace().unwrap();
    Disk::after(&steps).lost().write_to(left.path()).unwrap();
    check(left.path(), &promised, &format!("{what}, and a power cut"));
    failed.is_some()
}

/// A token, nodes that join with it, and changes of them; as far as it goes.
async fn change(coordinator: &Coordinator, promised: &mut Promised, first: u8) -> anyhow::Result<()> {
    let registry = &coordinator.registry;
    let token = registry.create_token(spec(2)).await?;
    promised.changes += 1;
    for number in [first, first + 1] {
        coordinator.join(number, &token).await?;
        promised.nodes.push(format!("n{number}"));
        promised.changes += 1;
    }
    let name = format!("renamed{first}");
    registry.rename_node(&format!("n{first}").parse()?, name.parse()?).await?;
    promised.nodes.retain(|known| *known != format!("n{first}"));
    promised.nodes.push(name);
    promised.changes += 1;
    registry.connect(NodeKey([first; 32]), PublicKey([first + 50; 32])).await?;
    promised.changes += 1;
    Ok(())
}

/// Starts a coordinator on what is left: everything that was promised is there, and it goes on.
fn check(root: &Path, promised: &Promised, what: &str) {
    let state_dir = root.join(STATE);
    runtime().block_on(async {
        let coordinator = match Coordinator::start(&state_dir, NAME).await {
            Ok(coordinator) => coordinator,
            Err(error) => panic!("{what}: {error:#}"),
        };
        let nodes = coordinator.registry.nodes().await.unwrap();
        let names: Vec<_> = nodes.iter().map(|node| node.name.to_string()).collect();
        for name in &promised.nodes {
            assert!(names.contains(name), "{what}: {name} was acknowledged, but there is only {names:?}");
        }
        let token = coordinator.registry.create_token(spec(1)).await.unwrap();
        coordinator.join(200, &token).await.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        coordinator.stop().await;
        let store = SqliteStore::open(&state_dir).await.unwrap();
        let revision = store.range("").await.unwrap().revision;
        assert!(revision.0 as usize > promised.changes, "{what}: a change is missing");
        store.close().await.unwrap();
    });
}
