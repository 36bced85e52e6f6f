//! The two private keys and their files.
//!
//! `node.key` holds the Ed25519 node key as PKCS#8 (RFC 8410), `wireguard.key` the X25519 WireGuard key, both
//! in base64 inside a sealed file. `node.key` is written last: without it there is no identity yet.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_engine::config::PrivateKey;
use mesh_proto::key::{NodeKey, PublicKey};
use rustls::{crypto::aws_lc_rs::sign::any_eddsa_type, pki_types::PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{
    error::{DamageKind, StateError},
    sealed,
    state_dir::{Secrecy, StateDir},
};

/// File of the Ed25519 node key.
pub(super) const NODE_KEY_FILE: &str = "node.key";
/// File of the X25519 WireGuard key.
pub(super) const WIREGUARD_KEY_FILE: &str = "wireguard.key";

/// What stands before the 32 seed bytes in the PKCS#8 form of an Ed25519 key (RFC 8410, section 7).
const ED25519_PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A node's two key pairs. `Debug` shows the public halves alone.
#[derive(Clone)]
pub struct Identity {
    node_pkcs8: Zeroizing<Vec<u8>>,
    node_key: NodeKey,
    wireguard: PrivateKey,
    public_key: PublicKey,
}

/// Content of a key file.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct KeyBody {
    key: String,
}

impl Identity {
    /// Makes a new identity. It lives in memory until [`Self::store`] is called.
    ///
    /// # Errors
    /// When the operating system has no random numbers.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed)?;
        let mut wireguard = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *wireguard)?;
        let pkcs8 = Zeroizing::new([&ED25519_PKCS8_PREFIX[..], &*seed].concat());
        Ok(Self::from_parts(pkcs8, wireguard).expect("any 32 bytes are the seed of an Ed25519 key"))
    }

    /// Reads the identity of a node that has joined.
    ///
    /// # Errors
    /// When a key file is missing, damaged, or open to others.
    pub fn load(dir: &StateDir) -> Result<Self, StateError> {
        let missing = |name| StateError::Missing { path: dir.join(name) };
        let node = read_key(dir, NODE_KEY_FILE)?.ok_or_else(|| missing(NODE_KEY_FILE))?;
        let wireguard = read_key(dir, WIREGUARD_KEY_FILE)?.ok_or_else(|| missing(WIREGUARD_KEY_FILE))?;
        let content = |name, why: &str| StateError::Damaged {
            path: dir.join(name),
            why: DamageKind::Content(why.to_owned()),
        };
        let wireguard = <[u8; 32]>::try_from(wireguard.as_slice())
            .map(Zeroizing::new)
            .map_err(|_| content(WIREGUARD_KEY_FILE, "not an X25519 key"))?;
        Self::from_parts(node, wireguard)
            .ok_or_else(|| content(NODE_KEY_FILE, "not an Ed25519 key in PKCS#8 form"))
    }

    /// Reads the identity if there is one: `None` before the first join.
    ///
    /// # Errors
    /// As [`Self::load`], when there is a node key.
    pub fn find(dir: &StateDir) -> Result<Option<Self>, StateError> {
        match dir.read(NODE_KEY_FILE, Secrecy::Secret)? {
            Some(_) => {
                // Whoever wrote it may have been killed before that, and a join relies on it.
                dir.sync()?;
                Self::load(dir).map(Some)
            }
            None => Ok(None),
        }
    }

    /// Writes both keys.
    ///
    /// # Errors
    /// When one of them could not be written.
    pub fn store(&self, dir: &StateDir) -> Result<(), StateError> {
        write_key(dir, WIREGUARD_KEY_FILE, &self.wireguard.0[..])?;
        write_key(dir, NODE_KEY_FILE, &self.node_pkcs8)
    }

    /// Removes the keys from the directory: they were never used.
    pub(crate) fn discard(dir: &StateDir) {
        // A node key without the other would be a damaged identity: it goes for good before that. Nothing is lost if
        // both stay, as the next join uses them.
        let _ = dir.remove(NODE_KEY_FILE).and_then(|()| dir.remove(WIREGUARD_KEY_FILE));
    }

    /// Returns the public half of the node key.
    #[must_use]
    pub fn node_key(&self) -> NodeKey {
        self.node_key
    }

    /// Returns the public half of the WireGuard key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// Returns the private half of the WireGuard key, for the engine.
    #[must_use]
    pub fn wireguard_key(&self) -> &PrivateKey {
        &self.wireguard
    }

    /// Returns the private half of the node key, for TLS.
    pub(crate) fn node_key_pkcs8(&self) -> PrivatePkcs8KeyDer<'_> {
        PrivatePkcs8KeyDer::from(self.node_pkcs8.as_slice())
    }

    fn from_parts(node_pkcs8: Zeroizing<Vec<u8>>, wireguard: Zeroizing<[u8; 32]>) -> Option<Self> {
        let signer = any_eddsa_type(&PrivatePkcs8KeyDer::from(node_pkcs8.as_slice())).ok()?;
        let node_key = NodeKey::from_spki(signer.public_key()?.as_ref())?;
        let secret = StaticSecret::from(*wireguard);
        let public_key = PublicKey(*x25519_dalek::PublicKey::from(&secret).as_bytes());
        Some(Self { node_pkcs8, node_key, wireguard: PrivateKey(wireguard), public_key })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("node_key", &self.node_key)
            .field("public_key", &self.public_key)
            .finish_non_exhaustive()
    }
}

fn read_key(dir: &StateDir, name: &'static str) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
    let Some(file) = dir.read(name, Secrecy::Secret)? else { return Ok(None) };
    let damaged = |why| StateError::Damaged { path: dir.join(name), why };
    let body: KeyBody = sealed::open(name, &file).map_err(damaged)?.value;
    let key =
        STANDARD.decode(&body.key).map_err(|_| damaged(DamageKind::Content("not base64".to_owned())))?;
    Ok(Some(Zeroizing::new(key)))
}

fn write_key(dir: &StateDir, name: &'static str, key: &[u8]) -> Result<(), StateError> {
    let body = KeyBody { key: STANDARD.encode(key) };
    let content = sealed::seal(name, 1, &body).expect("a text is always JSON");
    let new = dir.write_temporary(name, &content)?;
    dir.rename(&new, name)?;
    dir.sync()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn stored() -> (tempfile::TempDir, StateDir, Identity) {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::create(&parent.path().join("state")).unwrap();
        let identity = Identity::generate().unwrap();
        identity.store(&dir).unwrap();
        (parent, dir, identity)
    }

    #[test]
    fn an_identity_survives_the_disk() {
        let (_parent, dir, identity) = stored();
        let again = Identity::load(&dir).unwrap();
        assert_eq!((again.node_key(), again.public_key()), (identity.node_key(), identity.public_key()));
        assert_eq!(again.wireguard.0, identity.wireguard.0);
        for name in [NODE_KEY_FILE, WIREGUARD_KEY_FILE] {
            assert_eq!(fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(!format!("{identity:?}").contains(&STANDARD.encode(&identity.node_pkcs8[16..])));
    }

    #[test]
    fn a_key_file_cut_or_turned_over_is_an_error_that_names_it() {
        for name in [NODE_KEY_FILE, WIREGUARD_KEY_FILE] {
            let (_parent, dir, _) = stored();
            let whole = fs::read(dir.join(name)).unwrap();
            for at in 0..whole.len() {
                fs::write(dir.join(name), &whole[..at]).unwrap();
                let error = Identity::find(&dir).unwrap_err().to_string();
                assert!(error.contains(&format!("{name}: is damaged")), "cut at {at}: {error}");
                let mut flipped = whole.clone();
                flipped[at] ^= 1;
                fs::write(dir.join(name), &flipped).unwrap();
                assert!(Identity::find(&dir).is_err(), "flipped at {at}");
            }
        }
    }

    #[test]
    fn a_key_file_that_others_may_read_is_refused() {
        for name in [NODE_KEY_FILE, WIREGUARD_KEY_FILE] {
            let (_parent, dir, _) = stored();
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o640)).unwrap();
            let error = Identity::load(&dir).unwrap_err().to_string();
            assert!(
                error.contains(&format!("{name}: has mode 0640")) && error.contains("chmod 600"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_key_file_that_is_a_link_is_refused() {
        let (_parent, dir, _) = stored();
        fs::rename(dir.join(NODE_KEY_FILE), dir.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.join(NODE_KEY_FILE)).unwrap();
        assert!(matches!(Identity::find(&dir), Err(StateError::Io { .. })));
    }

    #[test]
    fn a_lost_wireguard_key_is_an_error_and_a_lost_node_key_no_identity() {
        let (_parent, dir, _) = stored();
        fs::remove_file(dir.join(WIREGUARD_KEY_FILE)).unwrap();
        assert!(matches!(Identity::find(&dir), Err(StateError::Missing { .. })));
        let (_parent, dir, _) = stored();
        fs::remove_file(dir.join(NODE_KEY_FILE)).unwrap();
        assert!(Identity::find(&dir).unwrap().is_none());
        assert!(matches!(Identity::load(&dir), Err(StateError::Missing { .. })));
    }
}
