//! The power goes after any system call that changes the state directory, and the disk is full, read-only or broken.

use std::{fs, path::Path, sync::Arc, time::Instant};

use mesh_powercut::{Disk, Explored, Fault, Recording, explore, workspace};
use mesh_proto::key::{KeyPin, NodeKey};

use super::{Identity, Membership, StateDir, StateError, load};
use crate::netmap::{
    CachedMap, Caches, KnownAddresses, coordinator_file,
    fixtures::{map, node},
    map_file,
};

/// Different states of the disk that an agent has to start from, at least.
const CRASH_POINTS: usize = 150;

/// Changes of a life; each fault strikes at each of their system calls.
const CALLS: usize = 60;

const FAULTS: [Fault; 5] = [Fault::Full, Fault::ReadOnly, Fault::Broken, Fault::Sync, Fault::Short];

const PIN: KeyPin = KeyPin([3; 32]);

/// How far the state has got: what was stored last of each kind, by number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    keys: Option<NodeKey>,
    membership: u64,
    map: u64,
    addresses: u64,
}

/// One change of the state.
#[derive(Debug, Clone, Copy)]
enum Change {
    Keys,
    Discard,
    Membership,
    Map { peers: u8 },
    Addresses,
}

/// A join that is refused, another one that is not, and news of the mesh.
const LIFE: [Change; 12] = [
    Change::Keys,
    Change::Discard,
    Change::Keys,
    Change::Membership,
    Change::Map { peers: 2 },
    Change::Addresses,
    Change::Map { peers: 30 },
    Change::Map { peers: 40 },
    Change::Membership,
    Change::Addresses,
    Change::Map { peers: 41 },
    Change::Membership,
];

/// An agent that changes its state.
struct Agent<'a> {
    root: &'a Path,
    identity: Identity,
    progress: Progress,
}

impl Agent<'_> {
    fn apply(&mut self, number: u64, change: Change) -> Result<(), StateError> {
        let path = self.root.join("var/lib/mesh");
        match change {
            Change::Keys => {
                let dir = StateDir::create(&path)?;
                self.identity.store(&dir)?;
                self.progress.keys = Some(self.identity.node_key());
            }
            Change::Discard => {
                self.progress.keys = None;
                Identity::discard(&StateDir::open(&path)?);
            }
            Change::Membership => {
                membership(&self.identity, number).store(&StateDir::open(&path)?)?;
                self.progress.membership = number;
            }
            Change::Map { peers } => {
                let cached = CachedMap { pin: PIN, map: ours(&self.identity, number, peers) };
                map_file(&StateDir::open(&path)?).store(&cached)?;
                self.progress.map = number;
            }
            Change::Addresses => {
                let mut known = KnownAddresses::default();
                known.set_worked(([192, 0, 2, 1], u16::try_from(number).unwrap()).into());
                coordinator_file(&StateDir::open(&path)?).store(&known)?;
                self.progress.addresses = number;
            }
        }
        Ok(())
    }
}

#[test]
fn what_was_stored_survives_a_power_cut_at_any_point() {
    let began = Instant::now();
    let root = workspace().unwrap();
    let identity = Identity::generate().unwrap();
    let mut agent = Agent { root: root.path(), identity: identity.clone(), progress: Progress::default() };
    let recording = Recording::start(root.path());
    let mut promised = vec![Progress::default()];
    for (number, change) in (1..).zip(LIFE) {
        if let Change::Discard = change {
            // From here on they may be gone.
            let without = Progress { keys: None, ..agent.progress };
            promise(&mut promised, without, &recording);
        }
        agent.apply(number, change).unwrap();
        promise(&mut promised, agent.progress, &recording);
    }
    let steps = recording.take_steps();
    drop(recording);
    let recover = |root: &Path| recover(root, &identity);
    let explored: Explored = explore(Disk::new(), &steps, recover, |found, acknowledged| {
        judge(found, promised[usize::try_from(acknowledged).unwrap()])
    });
    println!("the agent was started from {explored:?} in {:?}", began.elapsed());
    assert!(explored.images >= CRASH_POINTS, "{explored:?}");
}

#[test]
fn a_fault_is_reported_and_loses_nothing() {
    let mut failures = 0;
    for (fault, call) in FAULTS.into_iter().flat_map(|fault| (0..CALLS).map(move |call| (fault, call))) {
        let root = workspace().unwrap();
        let identity = Identity::generate().unwrap();
        let mut agent =
            Agent { root: root.path(), identity: identity.clone(), progress: Progress::default() };
        let recording = Recording::start(root.path());
        recording.set_fault(fault, call);
        for (number, change) in (1..).zip(LIFE) {
            if let Err(error) = agent.apply(number, change) {
                failures += 1;
                let text = error.to_string();
                assert!(text.contains("mesh"), "{fault:?} at {call}: the path is not named: {text}");
                break;
            }
        }
        recording.clear_fault();
        // Whatever failed, the state is what it was, or what it was to be.
        judge(&recover(root.path(), &identity), agent.progress).unwrap();
        // And with a good disk everything goes on.
        let mut agent = Agent { progress: Progress::default(), ..agent };
        for (number, change) in (20..).zip(LIFE) {
            agent.apply(number, change).unwrap_or_else(|error| panic!("{fault:?} at {call}: {error}"));
        }
        let steps = recording.take_steps();
        drop(recording);
        assert_eq!(recover(root.path(), &identity), Ok(agent.progress), "{fault:?} at {call}");
        let left = workspace().unwrap();
        Disk::after(&steps).lost().write_to(left.path()).unwrap();
        judge(&recover(left.path(), &identity), agent.progress).unwrap();
    }
    println!("{failures} failures were reported");
    assert!(failures > CALLS, "{failures}");
}

fn promise(promised: &mut Vec<Progress>, progress: Progress, recording: &Recording) {
    recording.acknowledge(promised.len() as u64);
    promised.push(progress);
}

/// Starts as `join` and `run` do.
fn recover(root: &Path, identity: &Identity) -> Result<Progress, String> {
    let dir = match StateDir::open(&root.join("var/lib/mesh")) {
        Ok(dir) => dir,
        Err(StateError::NotJoined { .. }) => return Ok(Progress::default()),
        Err(error) => return Err(error.to_string()),
    };
    let keys = Identity::find(&dir).map_err(|error| error.to_string())?;
    let keys = keys.map(|found| found.node_key());
    let member = match load(&dir) {
        Ok((_, member)) => member,
        Err(StateError::NotJoined { .. }) => return Ok(Progress { keys, ..Progress::default() }),
        Err(error) => return Err(error.to_string()),
    };
    let caches = Caches::load(&dir, &member);
    if let Some(map) = &caches.map
        && **map != ours(identity, map.version.serial, u8::try_from(map.peers.len()).unwrap())
    {
        return Err("the map is another one".to_owned());
    }
    Ok(Progress {
        keys,
        membership: member.coordinators[0].parse().unwrap(),
        map: caches.map.map_or(0, |map: Arc<_>| map.version.serial),
        addresses: caches.coordinator.as_slice().first().map_or(0, |address| address.port().into()),
    })
}

fn judge(found: &Result<Progress, String>, promised: Progress) -> Result<(), String> {
    let found = found.clone()?;
    let lost = (promised.keys.is_some() && found.keys != promised.keys)
        || found.membership < promised.membership
        || found.map < promised.map
        || found.addresses < promised.addresses;
    if lost { Err(format!("{promised:?} was stored, but {found:?} is found")) } else { Ok(()) }
}

fn membership(identity: &Identity, number: u64) -> Membership {
    let mut node = node(1);
    (node.node_key, node.public_key) = (identity.node_key(), identity.public_key());
    Membership { coordinators: vec![number.to_string()], pin: PIN, node, websocket_url: None }
}

fn ours(identity: &Identity, serial: u64, peers: u8) -> mesh_proto::netmap::NetworkMap {
    let mut map = map(serial, 2..2 + peers);
    (map.this.node_key, map.this.public_key) = (identity.node_key(), identity.public_key());
    map
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let root = workspace().unwrap();
    let path = root.path().join("mesh");
    let recording = Recording::start(root.path());
    let dir = StateDir::create(&path).unwrap();
    recording.set_fault(Fault::ReadOnly, 0);
    let error = Identity::generate().unwrap().store(&dir).unwrap_err().to_string();
    assert!(error.contains("wireguard.key: cannot write: Read-only file system"), "{error}");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
}
