//! From a backup to a state directory.
//!
//! What the coordinator did after the backup is lost, so its serials come again with another meaning. The restored state
//! therefore gets a new epoch, and agents, which refuse a map that goes back within one, take it over.
//!
//! ```text
//! lock the directory         a running coordinator is in the way
//! keep what is there         key and database, in a folder beside them
//! put the key                replaced as a whole
//! put the database           complete under another name, then renamed
//! ```
//!
//! After a crash anywhere in between the same command does it again; nothing of the old state is lost.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use time::OffsetDateTime;

use super::Backup;
use crate::{
    identity::{self, IdentityError},
    registry::{self, RegistryError},
    store::{StoreError, sqlite::Offline},
};

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
    /// What was there before cannot be kept.
    #[error("{}: the state that is there cannot be kept: {cause}", path.display())]
    Keep {
        /// Where it should be kept.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
}

/// Makes a state directory of a backup; a state that is there already is kept beside it.
///
/// # Errors
/// When a coordinator runs there, or the system refuses.
pub fn restore(state_dir: &Path, backup: Backup, now: OffsetDateTime) -> Result<Restored, RestoreError> {
    let offline = Offline::claim(state_dir)?;
    let (snapshot, epoch) = registry::begin_epoch(backup.snapshot, now)?;
    let mut present = offline.files();
    present.extend(Some(identity::path(state_dir)).filter(|key| key.exists()));
    let kept = match &present[..] {
        [] => None,
        present => {
            let folder = state_dir.join(format!("before-restore-{}", now.unix_timestamp()));
            keep(&folder, present).map_err(|cause| RestoreError::Keep { path: folder.clone(), cause })?;
            Some(folder)
        }
    };
    identity::replace(state_dir, &backup.identity)?;
    offline.replace(&snapshot)?;
    Ok(Restored { epoch, kept })
}

/// Gives the files a second name in a folder. Names that are there are of an attempt in the same second.
fn keep(folder: &Path, files: &[PathBuf]) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    for file in files {
        let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        match fs::hard_link(file, folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use ipnet::Ipv4Net;
    use mesh_proto::key::{NodeKey, PublicKey};

    use super::*;
    use crate::{
        identity::Identity,
        registry::{MeshOptions, Registry, TokenSpec},
    };

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(time::Duration::days(20_000));

    async fn open(state_dir: &Path) -> Registry {
        let options = MeshOptions {
            ipv4: Ipv4Net::new([10, 90, 0, 0].into(), 16).unwrap(),
            coordinators: vec!["pi.example:7443".to_owned()],
            relay_name: "pi".to_owned(),
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
