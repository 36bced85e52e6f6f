//! Files that are whole, the old one or the new one, after the power has gone at any moment.
//!
//! ```text
//! write a draft beside it -> sync the draft -> rename or link it -> sync the directory
//! ```
//!
//! Content is safe when its file was synced, a name when its directory was (`fsync(2)`), so nothing here returns before
//! both were. A draft that could not be written is removed: the disk may be full. One that a crash has left is replaced.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

mod owner;

pub use owner::act_as_owner_of;

/// Writes a file in place of one that is there: until this returns it is the one or the other.
///
/// # Errors
/// When the system refuses; what was there before is still there then.
pub fn replace(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let draft = draft_of(path)?;
    write_draft(&draft, mode, content)?;
    let renamed = fs::rename(&draft, path);
    if renamed.is_err() {
        discard(&draft);
    }
    renamed?;
    sync_directory(folder_of(path))
}

/// Writes a file that must not be there yet.
///
/// # Errors
/// When it is there, or the system refuses.
pub fn create(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let draft = draft_of(path)?;
    write_draft(&draft, mode, content)?;
    // A link, unlike a rename, never replaces what another process has made meanwhile.
    let linked = fs::hard_link(&draft, path);
    discard(&draft);
    linked?;
    sync_directory(folder_of(path))
}

/// Writes and syncs a file that is to get its name later. One that is there is removed, never written into: it may be
/// a link to something else. The content is written as it is read: it may be longer than what memory is there for.
///
/// # Errors
/// When it cannot be read, or the system refuses; nothing is left of the draft then.
pub fn write_draft(draft: &Path, mode: u32, mut content: impl Read) -> io::Result<()> {
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(draft)?;
    let written = io::copy(&mut content, &mut file).and_then(|_| file.sync_all());
    if written.is_err() {
        discard(draft);
    }
    written
}

/// Removes a file for good; nothing happens if there is none.
///
/// # Errors
/// When the system refuses.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(folder_of(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a directory and those that lead to it, as far as they are missing, and returns which were, outermost first.
///
/// Those that are there may have been made by a process that was killed before it could sync them, so all are synced, as
/// far as this user may.
///
/// # Errors
/// When the system refuses; nothing is left of what was made then.
pub fn make_directories(path: &Path, mode: u32) -> io::Result<Vec<PathBuf>> {
    let named = path.ancestors().take_while(|ancestor| !ancestor.as_os_str().is_empty());
    let mut missing: Vec<_> =
        named.take_while(|ancestor| fs::symlink_metadata(ancestor).is_err()).map(Path::to_owned).collect();
    missing.reverse();
    for present in path.ancestors().skip(missing.len()).filter(|ancestor| ancestor.parent().is_some()) {
        let _ = sync_directory(folder_of(present));
    }
    let mut made = Vec::new();
    for directory in missing {
        let outcome = match DirBuilder::new().mode(mode).create(&directory) {
            Ok(()) => {
                made.push(directory.clone());
                sync_directory(folder_of(&directory))
            }
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            remove_directories(&made);
            return Err(error);
        }
    }
    Ok(made)
}

/// Takes back what [`make_directories`] has made, as far as nothing is in it.
pub fn remove_directories(made: &[PathBuf]) {
    for directory in made.iter().rev() {
        if fs::remove_dir(directory).is_err() {
            break;
        }
    }
}

/// Makes what was created, renamed and removed in a directory last.
///
/// # Errors
/// When the system refuses.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Returns the directory that a file is in.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Hidden, so that nobody takes it for a file of its own.
fn draft_of(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let mut draft = std::ffi::OsString::from(".");
    draft.push(name);
    draft.push(".new");
    Ok(path.with_file_name(draft))
}

/// What is left of a draft is worthless; if it stays, the next one replaces it.
fn discard(draft: &Path) {
    let _ = fs::remove_file(draft);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_file_is_private_and_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(dir.path().join(".file.new"), "left by a crash").unwrap();
        replace(&path, 0o600, b"old").unwrap();
        replace(&path, 0o600, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
        assert!(replace(&dir.path().join("missing/file"), 0o600, b"x").is_err());
    }

    #[test]
    fn what_is_there_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        create(&path, 0o600, b"first").unwrap();
        assert_eq!(create(&path, 0o600, b"second").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn directories_are_made_and_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let made = make_directories(&path, 0o700).unwrap();
        assert_eq!(made, [dir.path().join("a"), path.clone()]);
        assert_eq!(make_directories(&path, 0o700).unwrap(), Vec::<PathBuf>::new());
        remove_directories(&made);
        assert!(!dir.path().join("a").exists());
    }

    #[cfg(target_os = "linux")]
    mod faults {
        use mesh_powercut::{Fault, Recording, workspace};

        use super::*;

        const FAULTS: [Fault; 5] = [Fault::Full, Fault::ReadOnly, Fault::Broken, Fault::Sync, Fault::Short];

        /// Steps of a replacement and more.
        const STEPS: usize = 8;

        #[test]
        fn a_replacement_that_fails_leaves_the_old_file_and_no_draft() {
            for (fault, step) in
                FAULTS.into_iter().flat_map(|fault| (0..STEPS).map(move |step| (fault, step)))
            {
                let root = workspace().unwrap();
                let path = root.path().join("file");
                let recording = Recording::start(root.path());
                replace(&path, 0o600, b"the old content").unwrap();
                recording.set_fault(fault, step);
                let replaced = replace(&path, 0o600, b"the new content");
                let struck = recording.clear_fault();
                let content = fs::read(&path).unwrap();
                match replaced {
                    Ok(()) => assert_eq!(content, b"the new content", "{fault:?} at {step}"),
                    Err(error) => {
                        assert!(struck, "{fault:?} at {step}: {error}");
                        // Only the last step, the sync of the directory, comes after the rename.
                        let old = content == b"the old content";
                        assert!(old || content == b"the new content", "{fault:?} at {step}");
                    }
                }
                replace(&path, 0o600, b"the third content").unwrap();
                assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "{fault:?} at {step}");
            }
        }
    }
}
