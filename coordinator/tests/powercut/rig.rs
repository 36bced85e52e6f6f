//! What the coordinator is asked for, what it has acknowledged, and what is found of that after a cut.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use mesh_coordinator::{
    backup,
    identity::Identity,
    registry::{MeshOptions, Registry, RoutePolicy, TokenSpec},
    store::{Event, Revision, Snapshot, Store, StoreError, sqlite::SqliteStore},
};
use mesh_powercut::Recording;
use mesh_proto::{
    key::{KeyPin, NodeKey, PublicKey},
    netmap::Node,
    token::JoinToken,
};
use time::OffsetDateTime;

/// Where the state is in a recorded directory: it has to be made, too.
pub(crate) const STATE: &str = "var/state";

/// One in so many of the coordinators that start after a cut is also asked for something new.
const GOES_ON: usize = 8;

/// How many have started.
static STARTS: AtomicUsize = AtomicUsize::new(0);

/// Which state of a mesh: epoch and revision.
pub(crate) type At = (u64, u64);

/// Before there is a mesh.
const NOTHING: At = (0, 0);

/// Everything that a coordinator has acknowledged, and would have next.
#[derive(Default)]
pub(crate) struct Past {
    /// What the store held at each revision, and whose it was.
    states: BTreeMap<At, (KeyPin, Snapshot)>,
    /// What each acknowledgement promised.
    promised: Vec<At>,
    /// Every change.
    history: BTreeMap<(At, String), Option<Vec<u8>>>,
}

/// Which of the states that ever were is found after a cut, or why none is.
pub(crate) type Found = Result<At, String>;

/// A coordinator at work, without its sockets.
pub(crate) struct Coordinator {
    pub(crate) identity: Identity,
    pub(crate) registry: Registry,
    store: SqliteStore,
}

pub(crate) fn options(name: &str) -> MeshOptions {
    MeshOptions {
        ipv4: "10.90.0.0/16".parse().unwrap(),
        coordinators: vec![format!("{name}:7443")],
        relay_name: "pi".to_owned(),
        routes: RoutePolicy::default(),
    }
}

pub(crate) fn spec(uses: u32) -> TokenSpec {
    TokenSpec { ttl: Duration::from_secs(3600), uses, tags: vec!["worker".to_owned()] }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

impl Coordinator {
    /// Starts as `serve` does.
    pub(crate) async fn start(state_dir: &Path, name: &str) -> anyhow::Result<Self> {
        backup::resume(state_dir)?;
        let identity = Identity::load_or_create(state_dir)?;
        let store = SqliteStore::open(state_dir).await?;
        let registry = Registry::with_store(Arc::new(store.clone()), options(name)).await?;
        Ok(Self { identity, registry, store })
    }

    pub(crate) async fn join(&self, number: u8, token: &JoinToken) -> anyhow::Result<Node> {
        let name = format!("n{number}").parse().unwrap();
        let keys = (NodeKey([number; 32]), PublicKey([number; 32]));
        Ok(self.registry.join(keys.0, token.clone(), name, keys.1).await?)
    }

    pub(crate) async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        self.store.compact(Revision(revision)).await
    }

    /// Lets a node join, and looks whether it is told of all others.
    async fn go_on(&self) -> anyhow::Result<()> {
        let before = self.registry.nodes().await?.len();
        let token = self.registry.create_token(spec(1)).await?;
        let node = self.join(200, &token).await?;
        anyhow::ensure!(self.registry.nodes().await?.len() == before + 1, "a node cannot join");
        let map = self.registry.map_for(node.id).await?;
        anyhow::ensure!(map.peers.len() == before, "the map of a new node is not whole");
        Ok(())
    }

    /// Takes everything down, so that another one can start.
    pub(crate) async fn stop(self) {
        self.registry.close().await.unwrap();
    }

    pub(crate) fn backup(&self, snapshot: Snapshot) -> Vec<u8> {
        let backup = backup::Backup { identity: self.identity.clone(), snapshot };
        backup.encode(OffsetDateTime::UNIX_EPOCH).unwrap().to_vec()
    }
}

impl Past {
    /// Remembers the state that the coordinator has acknowledged just now, and says so to the recording.
    pub(crate) async fn promise(&mut self, coordinator: &Coordinator, recording: &Recording) {
        self.remember(coordinator).await;
        self.announce(self.latest(), recording);
    }

    /// Remembers a state that may be found without having been promised.
    pub(crate) async fn remember(&mut self, coordinator: &Coordinator) {
        let snapshot = coordinator.registry.export().await.unwrap();
        let at = at(&snapshot);
        for event in history(&coordinator.store, at.1).await {
            self.history.insert(((at.0, event.revision.0), event.key), event.value);
        }
        self.states.insert(at, (coordinator.identity.pin, snapshot));
    }

    /// Notes that a state is acknowledged now, which is remembered later or was before.
    pub(crate) fn announce(&mut self, at: At, recording: &Recording) {
        self.promised.push(at);
        recording.acknowledge(self.promised.len() as u64);
    }

    /// Returns the latest state that is remembered.
    pub(crate) fn latest(&self) -> At {
        *self.states.keys().next_back().unwrap()
    }

    /// Starts a coordinator on what is left. The registry reads nothing but what the store says here, which is
    /// compared: so it is not opened each time.
    pub(crate) fn recover(&self, root: &Path) -> Found {
        let state_dir = root.join(STATE);
        let found = runtime().block_on(async {
            backup::resume(&state_dir)?;
            let identity = Identity::load_or_create(&state_dir)?;
            let store = SqliteStore::open(&state_dir).await?;
            let snapshot = store.range("").await?;
            let at = at(&snapshot);
            self.compare(at, identity.pin, &snapshot, &history(&store, at.1).await)?;
            if STARTS.fetch_add(1, Ordering::Relaxed).is_multiple_of(GOES_ON) {
                let registry =
                    Registry::with_store(Arc::new(store.clone()), options("after.example")).await?;
                let coordinator = Coordinator { identity, registry, store };
                coordinator.go_on().await?;
                coordinator.stop().await;
            } else {
                store.close().await?;
            }
            Ok::<_, anyhow::Error>(at)
        });
        found.map_err(|error| format!("{error:#}"))
    }

    /// Says what is wrong with what was found.
    pub(crate) fn judge(&self, found: &Found, acknowledged: u64) -> Result<(), String> {
        let found = *found.as_ref()?;
        let last = acknowledged.checked_sub(1).map(|last| usize::try_from(last).unwrap());
        match last.map(|last| self.promised[last]) {
            Some(promised) if found < promised => {
                Err(format!("{promised:?} was acknowledged, but {found:?} is found"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Compares a state with what it was.
    fn compare(&self, at: At, pin: KeyPin, snapshot: &Snapshot, events: &[Event]) -> anyhow::Result<()> {
        if at == NOTHING {
            anyhow::ensure!(
                snapshot.entries.is_empty() && events.is_empty(),
                "half of a first start is found"
            );
            return Ok(());
        }
        let (was_pin, was) = self.states.get(&at).with_context(|| format!("{at:?} never was"))?;
        anyhow::ensure!(*was_pin == pin, "the key is of another state than {at:?}");
        anyhow::ensure!(was == snapshot, "{at:?} is not as it was");
        for event in events {
            let known = self.history.get(&((at.0, event.revision.0), event.key.clone()));
            anyhow::ensure!(known == Some(&event.value), "the history says what never was: {event:?}");
        }
        Ok(())
    }
}

/// Returns which state this is; before the first one there is nothing.
fn at(snapshot: &Snapshot) -> At {
    let epoch = snapshot.entries.iter().find(|entry| entry.key == "meta/epoch");
    let epoch = epoch.map_or(0, |entry| std::str::from_utf8(&entry.value).unwrap().parse().unwrap());
    (epoch, snapshot.revision.0)
}

/// Returns what the store still knows of its past, up to a revision.
async fn history(store: &SqliteStore, until: u64) -> Vec<Event> {
    let from = match store.watch("", Revision(1)).await {
        Ok(_) => Revision(1),
        Err(StoreError::Compacted { compacted }) => compacted.next(),
        Err(error) => panic!("{error}"),
    };
    if from.0 > until {
        return Vec::new();
    }
    let batch = store.watch("", from).await.unwrap().next().await.unwrap();
    batch.events.into_iter().filter(|event| event.revision.0 <= until).collect()
}
