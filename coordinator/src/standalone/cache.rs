//! The relay's map on disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use mesh_proto::netmap::NetworkMap;

const FILE_NAME: &str = "relay-map.json";

/// The map names every node.
const MODE: u32 = 0o600;

/// Where the map is kept.
#[derive(Debug, Clone)]
pub(super) struct MapCache {
    folder: PathBuf,
}

/// Why the map cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum CacheError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not a map.
    #[error("{}: damaged ({source}); delete it: the coordinator sends the map again", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl MapCache {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Reads the map, if there is one.
    pub(super) fn load(&self) -> Result<Option<NetworkMap>, CacheError> {
        let path = self.folder.join(FILE_NAME);
        match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(map) => Ok(Some(map)),
                Err(source) => Err(CacheError::Damaged { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CacheError::Io { path, source }),
        }
    }

    /// Writes the map so that a crash leaves the old one or the new one.
    pub(super) fn save(&self, map: &NetworkMap) -> io::Result<()> {
        mesh_durable::replace(&self.folder.join(FILE_NAME), MODE, &serde_json::to_vec(map)?)
    }

    /// Removes the map.
    pub(super) fn remove(&self) -> io::Result<()> {
        mesh_durable::remove(&self.folder.join(FILE_NAME))
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        key::{NodeKey, PublicKey},
        netmap::{Mesh, Node, NodeId, Version},
    };

    use super::*;

    fn map(serial: u64) -> NetworkMap {
        NetworkMap {
            version: Version { epoch: 1, serial },
            mesh: Mesh {
                ipv4: "10.90.0.0/16".parse().unwrap(),
                ipv6: "fd00::/48".parse().unwrap(),
                coordinators: vec![],
            },
            this: Node {
                id: NodeId(1),
                name: "relay".parse().unwrap(),
                node_key: NodeKey([1; 32]),
                public_key: PublicKey([1; 32]),
                addresses: vec![],
                allowed_ips: vec![],
                tags: vec!["relay".to_owned()],
            },
            peers: vec![],
            relays: vec![],
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let cache = MapCache::new(folder.path());
        assert!(cache.load().unwrap().is_none());
        cache.save(&map(1)).unwrap();
        cache.save(&map(2)).unwrap();
        assert_eq!(cache.load().unwrap(), Some(map(2)));
        let path = folder.path().join(FILE_NAME);
        let whole = fs::read(&path).unwrap();
        for len in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..len]).unwrap();
            let error = cache.load().unwrap_err().to_string();
            assert!(error.contains(FILE_NAME), "{error}");
        }
    }
}
