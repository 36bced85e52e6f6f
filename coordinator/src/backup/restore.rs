//! From a backup to a state directory.
//!
//! What the coordinator did after the backup is lost, so its serials come again with another meaning. The restored state
//! therefore gets a new epoch, and agents, which refuse a map that goes back within one, take it over.
//!
//! ```text
//! lock the directory           a running coordinator is in the way
//! fill restoring.new/          with the key and the database; an empty folder for what they replace; all synced
//! rename it to restoring/      from here on the restore has happened: what follows is done again until it is done
//! move the old state into it   key, database, and the log that belongs to that database alone
//! move the new state out of it
//! keep the old state           as before-restore-<time>
//! ```
//!
//! A crash before the rename leaves the old state, untouched, and one after it the new one: whoever starts a coordinator
//! calls [`resume`] first.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use time::OffsetDateTime;

use super::Backup;
use crate::{
    identity::{self, IdentityError},
    registry::{self, RegistryError},
    store::{
        StoreError,
        sqlite::{self, Offline},
    },
};

/// The folder of a restore that has not happened yet.
const DRAFT: &str = "restoring.new";

/// The folder of one that has happened, and is being put in its place.
const READY: &str = "restoring";

/// In it, what was there before.
const BEFORE: &str = "before";

/// Mode of the folders: they hold keys.
const MODE: u32 = 0o700;

/// What a restore has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The epoch of the maps from now on.
    pub epoch: u64,
    /// Where the state is that was there before.
    pub kept: Option<PathBuf>,
}

/// Why a backup could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The directory or the database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What the backup holds.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The files cannot be exchanged.
    #[error("{}: the restore did not end: {cause}; what was there before is still there", path.display())]
    Io {
        /// Where the restored state is.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// Makes a state directory of a backup; a state that is there already is kept beside it.
///
/// # Errors
/// When a coordinator runs there, or the system refuses.
pub fn restore(state_dir: &Path, backup: Backup, now: OffsetDateTime) -> Result<Restored, RestoreError> {
    let _offline = Offline::claim(state_dir)?;
    let (snapshot, epoch) = registry::begin_epoch(backup.snapshot, now)?;
    // One that was interrupted comes first: its result is what is replaced.
    finish(state_dir, now)?;
    let draft = state_dir.join(DRAFT);
    let made =
        discard(&draft).and_then(|()| make_folder(&draft)).and_then(|()| make_folder(&draft.join(BEFORE)));
    made.map_err(io_error(&draft))?;
    identity::replace(&draft, &backup.identity)?;
    sqlite::import(&draft, &snapshot)?;
    fs::rename(&draft, state_dir.join(READY))
        .and_then(|()| mesh_durable::sync_directory(state_dir))
        .map_err(io_error(&draft))?;
    Ok(Restored { epoch, kept: finish(state_dir, now)? })
}

/// Ends a restore that was interrupted after it had happened, and forgets one that was interrupted before.
///
/// # Errors
/// When a coordinator runs there, or the system refuses.
pub fn resume(state_dir: &Path) -> Result<(), RestoreError> {
    let (draft, ready) = (state_dir.join(DRAFT), state_dir.join(READY));
    if draft.exists() || ready.exists() {
        let _offline = Offline::claim(state_dir)?;
        discard(&draft).map_err(io_error(&draft))?;
        finish(state_dir, OffsetDateTime::now_utc())?;
    }
    Ok(())
}

/// Puts a restored state in its place, and returns where the old one is kept. It may be called again after each step.
fn finish(state_dir: &Path, now: OffsetDateTime) -> Result<Option<PathBuf>, RestoreError> {
    let ready = state_dir.join(READY);
    if !ready.exists() {
        return Ok(None);
    }
    swap(state_dir, &ready).map_err(io_error(&ready))?;
    let kept = keep(state_dir, &ready.join(BEFORE), now).map_err(io_error(&ready))?;
    discard(&ready).and_then(|()| mesh_durable::sync_directory(state_dir)).map_err(io_error(&ready))?;
    Ok(kept)
}

/// Exchanges the files. A file of the new state that is still here says that the one in its place is of the old state.
fn swap(state_dir: &Path, ready: &Path) -> io::Result<()> {
    let before = ready.join(BEFORE);
    if !before.exists() {
        // It has got its name: nothing is left to be exchanged.
        return Ok(());
    }
    let [database, beside @ ..] = sqlite::file_names();
    let mut old = Vec::new();
    if ready.join(&database).exists() {
        // A log is its database's: the new one must never find it.
        old.push(database.clone());
        old.extend(beside);
    }
    let key = identity::path(Path::new("")).display().to_string();
    if ready.join(&key).exists() {
        old.push(key.clone());
    }
    for name in old {
        move_if_present(&state_dir.join(&name), &before.join(&name))?;
    }
    sync_all([&before, state_dir])?;
    for name in [key, database] {
        move_if_present(&ready.join(&name), &state_dir.join(&name))?;
    }
    sync_all([state_dir, ready])
}

/// Gives the old state a name of its own, if there was one.
fn keep(state_dir: &Path, before: &Path, now: OffsetDateTime) -> io::Result<Option<PathBuf>> {
    let empty = match fs::read_dir(before) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(error),
    };
    if empty {
        return Ok(None);
    }
    let seconds = now.unix_timestamp();
    let names = (0..).map(|attempt| match attempt {
        0 => format!("before-restore-{seconds}"),
        attempt => format!("before-restore-{seconds}-{attempt}"),
    });
    let free = names.map(|name| state_dir.join(name)).find(|path| !path.exists());
    let kept = free.expect("some number was not used yet");
    fs::rename(before, &kept)?;
    sync_all([state_dir])?;
    Ok(Some(kept))
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(MODE).create(path)?;
    mesh_durable::sync_directory(mesh_durable::folder_of(path))
}

fn discard(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn move_if_present(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sync_all<const N: usize>(folders: [&Path; N]) -> io::Result<()> {
    folders.into_iter().try_for_each(mesh_durable::sync_directory)
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |cause| RestoreError::Io { path, cause }
}

#[cfg(test)]
mod tests {
    use ipnet::Ipv4Net;
    use mesh_proto::key::{NodeKey, PublicKey};

    use super::*;
    use crate::{
        identity::Identity,
        registry::{MeshOptions, Registry, RoutePolicy, TokenSpec},
    };

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(time::Duration::days(20_000));

    async fn open(state_dir: &Path) -> Registry {
        let options = MeshOptions {
            ipv4: Ipv4Net::new([10, 90, 0, 0].into(), 16).unwrap(),
            coordinators: vec!["pi.example:7443".to_owned()],
            relay_name: "pi".to_owned(),
            routes: RoutePolicy::default(),
        };
        Registry::open(state_dir, options).await.unwrap()
    }

    async fn join(registry: &Registry, number: u8) {
        let spec = TokenSpec { ttl: std::time::Duration::from_secs(60), uses: 1, tags: vec![] };
        let token = registry.create_token(spec).await.unwrap();
        let name = format!("n{number}").parse().unwrap();
        registry.join(NodeKey([number; 32]), token, name, PublicKey([number; 32])).await.unwrap();
    }

    async fn names(registry: &Registry) -> Vec<String> {
        registry.nodes().await.unwrap().iter().map(|node| node.name.to_string()).collect()
    }

    #[tokio::test]
    async fn a_restored_mesh_is_as_it_was_with_a_new_epoch_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        let registry = open(dir.path()).await;
        join(&registry, 1).await;
        join(&registry, 2).await;
        let snapshot = registry.export().await.unwrap();
        let backup = Backup { identity: identity.clone(), snapshot }.encode(NOW).unwrap();
        join(&registry, 3).await;
        let before = registry.version();

        let busy = restore(dir.path(), Backup::decode(&backup).unwrap(), NOW).unwrap_err();
        assert!(matches!(busy, RestoreError::Store(StoreError::InUse { .. })), "{busy}");
        assert_eq!(names(&registry).await, ["n1", "n2", "n3"], "a refused restore changes nothing");
        registry.close().await.unwrap();
        drop(registry);

        let restored = restore(dir.path(), Backup::decode(&backup).unwrap(), NOW).unwrap();
        let registry = open(dir.path()).await;
        assert_eq!(names(&registry).await, ["n1", "n2"]);
        assert!(registry.version() > before, "{:?} after {before:?}", registry.version());
        assert_eq!(registry.version().epoch, restored.epoch);
        join(&registry, 4).await;
        assert_eq!(names(&registry).await, ["n1", "n2", "n4"]);
        registry.close().await.unwrap();
        drop(registry);

        let kept = open(&restored.kept.unwrap()).await;
        assert_eq!(names(&kept).await, ["n1", "n2", "n3"], "the state before is still there");
    }

    #[tokio::test]
    async fn on_another_machine_it_is_the_same_coordinator() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let identity = Identity::load_or_create(dir.path()).unwrap();
        let registry = open(dir.path()).await;
        join(&registry, 1).await;
        let snapshot = registry.export().await.unwrap();
        let restored = restore(other.path(), Backup { identity: identity.clone(), snapshot }, NOW).unwrap();
        assert_eq!(restored.kept, None);
        assert_eq!(Identity::load_or_create(other.path()).unwrap().pin, identity.pin);
        assert_eq!(names(&open(other.path()).await).await, ["n1"]);
    }

    #[tokio::test]
    async fn each_restore_of_one_backup_begins_an_epoch_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        let snapshot = open(dir.path()).await.export().await.unwrap();
        let mut last = 0;
        for seconds in 0..3 {
            let other = tempfile::tempdir().unwrap();
            let backup = Backup { identity: identity.clone(), snapshot: snapshot.clone() };
            let now = NOW + time::Duration::seconds(seconds);
            let epoch = restore(other.path(), backup, now).unwrap().epoch;
            assert!(epoch > last);
            last = epoch;
        }
    }
}
