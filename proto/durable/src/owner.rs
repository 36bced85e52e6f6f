//! Whose files they are: a command that an administrator runs writes into a directory of a service that is somebody else.

use std::{io, os::unix::fs::MetadataExt as _, path::Path};

use nix::unistd::{Gid, Uid, geteuid};

/// Lets this process, where it is root, be the user and the group that a directory belongs to, for good. What it writes
/// there is theirs then, from its first byte on; and it cannot write what they could not.
///
/// Nothing happens where the directory is missing or root's own, or where this process is not root.
///
/// # Errors
/// When the directory cannot be looked at, or the system refuses.
pub fn act_as_owner_of(folder: &Path) -> io::Result<()> {
    let owner = match folder.metadata() {
        Ok(metadata) => (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let (user, group) = owner;
    if user.is_root() || !geteuid().is_root() {
        return Ok(());
    }
    // In this order: who is not root any more may change neither its groups nor its group.
    #[cfg(not(target_os = "macos"))]
    nix::unistd::setgroups(&[group])?;
    nix::unistd::setgid(group)?;
    nix::unistd::setuid(user)?;
    Ok(())
}
