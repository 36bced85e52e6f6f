//! Of which mesh this node is a member.

use std::path::Path;

use mesh_proto::{key::KeyPin, name::NodeName, netmap::Node};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{
    error::StateError,
    keys::{Identity, NODE_KEY_FILE},
    state_dir::StateDir,
    state_file::StateFile,
};

/// File of the membership.
const MEMBERSHIP_FILE: &str = "membership.json";

/// What `join` learned and `run` needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Names and addresses of the coordinator: `host:port`, tried in order.
    pub coordinators: Vec<String>,
    /// The coordinator's pinned key.
    pub pin: KeyPin,
    /// This node, as it was registered.
    pub node: Node,
    /// The coordinator's WebSocket, if the join was told where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub websocket_url: Option<String>,
}

impl Membership {
    /// Reads the membership; `None` before the first join.
    ///
    /// # Errors
    /// When there are files, and none of them is whole.
    pub fn find(dir: &StateDir) -> Result<Option<Self>, StateError> {
        Ok(Self::file(dir).load()?.map(|loaded| {
            if let Some(error) = loaded.fallback {
                warn!(%error, "the generation before is used");
            }
            loaded.value
        }))
    }

    /// Writes the membership.
    ///
    /// # Errors
    /// When it could not be written; what was there before is still there then.
    pub fn store(&self, dir: &StateDir) -> Result<(), StateError> {
        Self::file(dir).store(self)
    }

    fn file(dir: &StateDir) -> StateFile<Self> {
        StateFile::new(dir.clone(), MEMBERSHIP_FILE)
    }
}

/// Reads everything that a node which has joined is made of.
///
/// # Errors
/// When the node has not joined, or when a file is missing, damaged, or open to others.
pub fn load(dir: &StateDir) -> Result<(Identity, Membership), StateError> {
    let membership =
        Membership::find(dir)?.ok_or_else(|| StateError::NotJoined { dir: dir.path().to_owned() })?;
    let identity = Identity::load(dir)?;
    if membership.node.node_key != identity.node_key() {
        return Err(StateError::Mismatch { path: dir.join(MEMBERSHIP_FILE), other: dir.join(NODE_KEY_FILE) });
    }
    Ok((identity, membership))
}

/// Returns which node this host is, if it has joined.
///
/// # Errors
/// As [`load`], if it has.
pub fn node_name(dir: &Path) -> Result<Option<NodeName>, StateError> {
    match StateDir::open(dir).and_then(|dir| load(&dir)) {
        Ok((_, membership)) => Ok(Some(membership.node.name)),
        Err(StateError::NotJoined { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use mesh_proto::netmap::NodeId;

    use super::*;

    fn joined() -> (tempfile::TempDir, StateDir, Membership) {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::create(&parent.path().join("state")).unwrap();
        let identity = Identity::generate().unwrap();
        identity.store(&dir).unwrap();
        let membership = Membership {
            coordinators: vec!["pi.example:7443".to_owned()],
            pin: KeyPin([3; 32]),
            node: Node {
                id: NodeId(1),
                name: "pi".parse().unwrap(),
                node_key: identity.node_key(),
                public_key: identity.public_key(),
                addresses: vec![],
                allowed_ips: vec![],
                tags: vec![],
            },
            websocket_url: None,
        };
        membership.store(&dir).unwrap();
        (parent, dir, membership)
    }

    #[test]
    fn a_membership_cut_at_any_byte_is_an_error_that_names_it() {
        let (_parent, dir, membership) = joined();
        assert_eq!(load(&dir).unwrap().1, membership);
        let path = dir.join(MEMBERSHIP_FILE);
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let error = load(&dir).unwrap_err().to_string();
            assert!(error.contains("membership.json: is damaged"), "cut at {cut}: {error}");
        }
    }

    #[test]
    fn a_membership_of_another_key_is_refused() {
        let (_parent, dir, _) = joined();
        Identity::generate().unwrap().store(&dir).unwrap();
        assert!(matches!(load(&dir), Err(StateError::Mismatch { .. })));
    }

    #[test]
    fn without_a_membership_the_node_has_not_joined() {
        let (_parent, dir, _) = joined();
        fs::remove_file(dir.join(MEMBERSHIP_FILE)).unwrap();
        let error = load(&dir).unwrap_err().to_string();
        assert!(error.contains("run `mesh-agent join`"), "{error}");
    }
}
