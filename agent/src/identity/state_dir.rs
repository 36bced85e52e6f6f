//! The state directory: where a node keeps what must outlive the process.
//!
//! It is made with mode 0700, is never a symbolic link and not writable by others, so that nobody else can put
//! a file in its place. Files in it are 0600, written to a temporary file, synced and renamed, and the
//! directory is synced after that: at any moment there is a whole old file or a whole new one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, FlockOperation};
use zeroize::Zeroizing;

use super::error::{DamageKind, StateError};

/// Mode of the directory.
const DIR_MODE: u32 = 0o700;
/// Mode of every file in it.
const FILE_MODE: u32 = 0o600;
/// Permission bits that let others write.
const OTHERS_WRITE: u32 = 0o022;
/// Permission bits that let others do anything.
const OTHERS: u32 = 0o077;
/// Far more than a network map of the largest control message takes.
const MAX_FILE_LEN: u64 = 16 << 20;

/// A state directory that exists and can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    path: PathBuf,
}

/// A state directory that was made a moment ago, and can be taken back.
#[derive(Debug)]
pub(crate) struct CreatedDir {
    pub(crate) dir: StateDir,
    /// The directories that were not there before, outermost first.
    made: Vec<PathBuf>,
}

/// Keeps a second agent out of the directory until it is dropped (or its process dies).
#[derive(Debug)]
pub struct StateLock {
    _directory: File,
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrecy {
    /// Nobody but this user: checked.
    Secret,
    /// Anybody.
    Plain,
}

impl StateDir {
    /// Opens a state directory that is there.
    ///
    /// # Errors
    /// When it is missing, not a directory of its own, writable by others, or not usable by this user.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::NotJoined { dir: path.to_owned() });
            }
            Err(error) => return Err(StateError::io("look at the state directory", path)(error)),
        };
        if metadata.is_symlink() {
            return Err(StateError::NotADirectory { path: path.to_owned(), what: "a symbolic link" });
        }
        if !metadata.is_dir() {
            return Err(StateError::NotADirectory { path: path.to_owned(), what: "not a directory" });
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & OTHERS_WRITE != 0 {
            return Err(StateError::Mode { path: path.to_owned(), mode, wanted: DIR_MODE });
        }
        rustix::fs::access(path, Access::READ_OK | Access::EXEC_OK)
            .map_err(|error| StateError::io("read the state directory", path)(error.into()))?;
        rustix::fs::access(path, Access::WRITE_OK)
            .map_err(|error| StateError::io("write to the state directory", path)(error.into()))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Opens a state directory, which is made first if it is missing.
    ///
    /// # Errors
    /// As [`Self::open`], or when it cannot be made.
    pub fn create(path: &Path) -> Result<Self, StateError> {
        Self::create_revocably(path).map(|created| created.dir)
    }

    /// As [`Self::create`], but what was made can be taken back.
    pub(crate) fn create_revocably(path: &Path) -> Result<CreatedDir, StateError> {
        let made = mesh_durable::make_directories(path, DIR_MODE)
            .map_err(StateError::io("make the state directory", path))?;
        match Self::open(path) {
            Ok(dir) => Ok(CreatedDir { dir, made }),
            Err(error) => {
                mesh_durable::remove_directories(&made);
                Err(error)
            }
        }
    }

    /// Returns the directory's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns where a process listens that waits until this one ends.
    #[must_use]
    pub fn successor_socket(&self) -> PathBuf {
        self.join("successor")
    }

    /// Returns the path of a file in the directory.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Takes the directory for this process.
    ///
    /// # Errors
    /// When another process has it.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let directory = self.open_itself()?;
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(StateLock { _directory: directory }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::InUse { path: self.path.clone() }),
            Err(error) => Err(StateError::io("lock the state directory", &self.path)(error.into())),
        }
    }

    /// Reads a whole file; `None` if there is none.
    pub(super) fn read(
        &self,
        name: &str,
        secrecy: Secrecy,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
        let path = self.join(name);
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StateError::io("read", path)(error)),
        };
        let metadata = file.metadata().map_err(StateError::io("read", &path))?;
        match secrecy {
            Secrecy::Secret => check_secret(&path, &metadata)?,
            Secrecy::Plain => {}
        }
        if metadata.len() > MAX_FILE_LEN {
            return Err(StateError::Damaged { path, why: DamageKind::Length(metadata.len()) });
        }
        let capacity = usize::try_from(metadata.len()).expect("MAX_FILE_LEN fits in memory") + 1;
        let mut content = Zeroizing::new(Vec::with_capacity(capacity));
        file.take(MAX_FILE_LEN).read_to_end(&mut content).map_err(StateError::io("read", path))?;
        Ok(Some(content))
    }

    /// Writes a whole file beside its final place, synced; [`Self::rename`] puts it there.
    pub(super) fn write_temporary(&self, name: &str, content: &[u8]) -> Result<PathBuf, StateError> {
        let path = self.join(&format!(".{name}.new"));
        mesh_durable::write_draft(&path, FILE_MODE, content)
            .map_err(StateError::io("write", self.join(name)))?;
        Ok(path)
    }

    /// Removes a file for good, if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<(), StateError> {
        mesh_durable::remove(&self.join(name)).map_err(StateError::io("remove", self.join(name)))
    }

    /// Moves a file of the directory to another name in it.
    pub(super) fn rename(&self, from: &Path, name: &str) -> Result<(), StateError> {
        fs::rename(from, self.join(name)).map_err(StateError::io("write", self.join(name)))
    }

    /// Makes renames last.
    pub(super) fn sync(&self) -> Result<(), StateError> {
        mesh_durable::sync_directory(&self.path)
            .map_err(StateError::io("sync the state directory", &self.path))
    }

    fn open_itself(&self) -> Result<File, StateError> {
        File::open(&self.path).map_err(StateError::io("open the state directory", &self.path))
    }
}

impl CreatedDir {
    /// Removes the directories that were made, as far as nothing is in them.
    pub(crate) fn revoke(self) {
        mesh_durable::remove_directories(&self.made);
    }
}

fn check_secret(path: &Path, metadata: &fs::Metadata) -> Result<(), StateError> {
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(StateError::Mode { path: path.to_owned(), mode, wanted: FILE_MODE });
    }
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        return Err(StateError::Owner { path: path.to_owned(), owner: metadata.uid(), user });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_directory_is_private_and_can_be_taken_back() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let created = StateDir::create_revocably(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, DIR_MODE);
        created.revoke();
        assert!(!parent.path().join("a").exists());
    }

    #[test]
    fn a_directory_with_something_in_it_is_not_taken_back() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a");
        let created = StateDir::create_revocably(&path).unwrap();
        fs::write(path.join("file"), "x").unwrap();
        created.revoke();
        assert!(path.exists());
    }

    #[test]
    fn links_files_and_open_doors_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        let real = parent.path().join("real");
        fs::create_dir(&real).unwrap();
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(matches!(
            StateDir::create(&link),
            Err(StateError::NotADirectory { what: "a symbolic link", .. })
        ));
        let file = parent.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(StateDir::create(&file), Err(StateError::NotADirectory { .. })));
        fs::set_permissions(&real, fs::Permissions::from_mode(0o777)).unwrap();
        let error = StateDir::open(&real).unwrap_err();
        assert!(error.to_string().contains("real: has mode 0777"), "{error}");
        let error = StateDir::open(&parent.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("none: this node has not joined"), "{error}");
    }

    #[test]
    fn only_one_process_holds_the_lock() {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::create(&parent.path().join("state")).unwrap();
        let lock = dir.lock().unwrap();
        assert!(matches!(dir.lock(), Err(StateError::InUse { .. })));
        drop(lock);
        assert!(dir.lock().is_ok());
    }
}
