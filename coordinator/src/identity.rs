//! The coordinator's key: who it is to agents.
//!
//! An Ed25519 key, made at the first start and kept as PKCS#8 (RFC 8410, section 7) in a file that only its
//! owner may read. Agents pin it, so it is never replaced by a new one: a file that cannot be used is an
//! error, and so is a missing one beside a database of earlier runs. For that reason the key is to be loaded
//! before the registry is opened.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use mesh_proto::key::{KeyPin, NodeKey};
use rustix::fs::OFlags;
use rustls::{crypto::aws_lc_rs::sign::any_eddsa_type, pki_types::PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::store::sqlite;

/// Name of the key file in the state directory.
const FILE_NAME: &str = "coordinator.key";

/// Mode of the state directory when it is made here.
const DIRECTORY_MODE: u32 = 0o700;

/// Mode of the key file.
const FILE_MODE: u32 = 0o600;

/// Permission bits that the key file must not have.
const OTHERS: u32 = 0o077;

/// Length of an Ed25519 seed (RFC 8032, section 5.1.5).
const SEED_LEN: usize = 32;

/// DER of an Ed25519 private key in PKCS#8 version 1 (RFC 8410, section 7): the seed follows it.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// More than any Ed25519 key in PKCS#8 takes.
const MAX_FILE_LEN: u64 = 1024;

/// The coordinator's key pair.
#[derive(Clone)]
pub struct Identity {
    /// The private key, in PKCS#8.
    pub pkcs8: Zeroizing<Vec<u8>>,
    /// The public key.
    pub node_key: NodeKey,
    /// What agents pin.
    pub pin: KeyPin,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file or directory could not be used.
    #[error("{}: {cause}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The file is not private.
    #[error("{}: has mode {mode:04o}, but must be readable by its owner alone: chmod 600 it", path.display())]
    Mode {
        /// Which one.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is damaged, truncated, or something else.
    #[error("{}: not an Ed25519 private key in PKCS#8; restore it from a backup", path.display())]
    Damaged {
        /// Which one.
        path: PathBuf,
    },
    /// The file is gone, and the agents of the mesh would not trust another key.
    #[error(
        "{}: missing, although {} is there; restore it from a backup: agents trust no other key",
        path.display(),
        database.display()
    )]
    Missing {
        /// Which one.
        path: PathBuf,
        /// What shows that it was there.
        database: PathBuf,
    },
    /// There is no randomness for a key.
    #[error("the system gives no randomness: {0}")]
    Randomness(getrandom::Error),
}

impl Identity {
    /// Loads the key of a state directory; makes both at the first start.
    ///
    /// # Errors
    /// When the file is damaged, not private, or missing beside a database; the error names it.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, IdentityError> {
        let path = path(state_dir);
        match OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&path) {
            Ok(file) => load(&path, file),
            Err(error) if error.kind() == ErrorKind::NotFound => create(state_dir, path),
            Err(cause) => Err(IdentityError::Io { path, cause }),
        }
    }

    /// Reads a private key in PKCS#8.
    #[must_use]
    pub fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Option<Self> {
        let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(&pkcs8[..])).ok()?;
        let spki = key.public_key()?;
        let node_key = NodeKey::from_spki(&spki)?;
        Some(Self { pkcs8, node_key, pin: KeyPin::of_spki(&spki) })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("pin", &self.pin).finish_non_exhaustive()
    }
}

/// Returns where the key of a state directory is.
#[must_use]
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE_NAME)
}

/// Puts a key into a state directory, in place of one that is there: the caller keeps that, and coordinators out.
///
/// # Errors
/// When the system refuses.
pub fn replace(state_dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    let path = path(state_dir);
    mesh_durable::replace(&path, FILE_MODE, &identity.pkcs8)
        .map_err(|cause| IdentityError::Io { path, cause })
}

fn load(path: &Path, file: File) -> Result<Identity, IdentityError> {
    let io_error = |cause| IdentityError::Io { path: path.to_owned(), cause };
    let metadata = file.metadata().map_err(io_error)?;
    if metadata.mode() & OTHERS != 0 {
        return Err(IdentityError::Mode { path: path.to_owned(), mode: metadata.mode() & 0o7777 });
    }
    // One allocation of the full size: growing would leave copies of the key behind.
    let mut pkcs8 = Zeroizing::new(Vec::with_capacity(MAX_FILE_LEN as usize));
    file.take(MAX_FILE_LEN).read_to_end(&mut pkcs8).map_err(io_error)?;
    Identity::from_pkcs8(pkcs8).ok_or_else(|| IdentityError::Damaged { path: path.to_owned() })
}

/// Makes a key, and the state directory with it; both are whole or not there.
fn create(state_dir: &Path, path: PathBuf) -> Result<Identity, IdentityError> {
    let database = sqlite::path(state_dir);
    if database.exists() {
        return Err(IdentityError::Missing { path, database });
    }
    let mut pkcs8 = Zeroizing::new([&PKCS8_PREFIX[..], &[0; SEED_LEN]].concat());
    getrandom::fill(&mut pkcs8[PKCS8_PREFIX.len()..]).map_err(IdentityError::Randomness)?;
    mesh_durable::make_directories(state_dir, DIRECTORY_MODE)
        .and_then(|_| mesh_durable::create(&path, FILE_MODE, &pkcs8))
        .map_err(|cause| IdentityError::Io { path: path.clone(), cause })?;
    Identity::from_pkcs8(pkcs8).ok_or(IdentityError::Damaged { path })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn key_file(dir: &Path) -> PathBuf {
        dir.join(FILE_NAME)
    }

    #[test]
    fn the_key_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let made = Identity::load_or_create(dir.path()).unwrap();
        let loaded = Identity::load_or_create(dir.path()).unwrap();
        assert_eq!(made.node_key, loaded.node_key);
        assert_eq!(made.pin, KeyPin::of_spki(&made.node_key.to_spki()));
        assert_eq!(fs::metadata(key_file(dir.path())).unwrap().mode() & 0o777, 0o600);
        assert!(!format!("{made:?}").contains(&hex::encode(&made.pkcs8[16..])));
    }

    #[test]
    fn a_key_truncated_anywhere_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        Identity::load_or_create(dir.path()).unwrap();
        let whole = fs::read(key_file(dir.path())).unwrap();
        for len in 0..whole.len() {
            fs::write(key_file(dir.path()), &whole[..len]).unwrap();
            let error = Identity::load_or_create(dir.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{len}: {error}");
            assert!(error.to_string().contains(FILE_NAME));
        }
        fs::write(key_file(dir.path()), &whole).unwrap();
        Identity::load_or_create(dir.path()).unwrap();
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Identity::load_or_create(dir.path()).unwrap();
        fs::set_permissions(key_file(dir.path()), PermissionsExt::from_mode(0o640)).unwrap();
        let error = Identity::load_or_create(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Mode { mode: 0o640, .. }), "{error}");
    }

    #[test]
    fn a_missing_key_beside_a_database_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(sqlite::path(dir.path()), "").unwrap();
        let error = Identity::load_or_create(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Missing { .. }), "{error}");
        assert!(!key_file(dir.path()).exists());
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", key_file(dir.path())).unwrap();
        assert!(matches!(Identity::load_or_create(dir.path()), Err(IdentityError::Io { .. })));
    }
}
