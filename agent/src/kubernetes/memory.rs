//! What an agent that is started while the API server, the coordinator or both are away knows of its Node.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::objects::{Metadata, Node, NodeSpec};
use crate::identity::{StateDir, StateFile};

/// The file in the state directory.
const FILE: &str = "kubernetes.json";

/// Keeps the last view of the Node on disk.
#[derive(Debug)]
pub(super) struct Memory {
    file: StateFile<Remembered>,
    known: Option<Remembered>,
}

/// The last view of the Node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// Its name.
    pub(super) node: String,
    /// Which of several that had the name, one after the other.
    pub(super) uid: String,
    /// Its ranges.
    pub(super) pod_ranges: Vec<IpNet>,
    /// Those that the mesh has accepted: of these, or of the Node that had the name before.
    pub(super) accepted: BTreeSet<IpNet>,
    /// The cluster's ranges for Services, as far as they are known.
    #[serde(default)]
    pub(super) service_ranges: Vec<IpNet>,
}

impl Memory {
    /// Reads what is known of a Node of this name.
    pub(super) fn load(dir: StateDir, node: &str) -> Self {
        let file = StateFile::new(dir, FILE);
        let known = match file.load() {
            Ok(loaded) => loaded.map(|loaded| loaded.value),
            Err(error) => {
                tracing::warn!(%error, "what was known of the Node is lost until the API server answers");
                None
            }
        };
        Self { file, known: known.filter(|known: &Remembered| known.node == node) }
    }

    /// Returns what is known.
    pub(super) fn known(&self) -> Option<&Remembered> {
        self.known.as_ref()
    }

    /// Writes what is known now, if that is news.
    pub(super) fn set(&mut self, known: Remembered) {
        if self.known.as_ref() == Some(&known) {
            return;
        }
        if let Err(error) = self.file.store(&known) {
            tracing::warn!(%error, "what is known of the Node is not kept over a restart");
        }
        self.known = Some(known);
    }
}

impl Remembered {
    /// Returns the Node as far as it is known.
    pub(super) fn node(&self) -> Arc<Node> {
        Arc::new(Node {
            metadata: Metadata {
                name: self.node.clone(),
                uid: self.uid.clone(),
                resource_version: String::new(),
            },
            spec: NodeSpec {
                pod_cidr: String::new(),
                pod_cidrs: self.pod_ranges.iter().map(ToString::to_string).collect(),
            },
            ..Node::default()
        })
    }
}
