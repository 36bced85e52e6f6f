//! What must outlive the process: the nonce of this node's mappings, and the mapping that a router may still hold.

use serde::{Deserialize, Serialize};

use super::{pcp::Nonce, policy::Held};
use crate::identity::{StateDir, StateFile};

/// The file.
const FILE: &str = "portmap.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    nonce: Nonce,
    held: Option<Held>,
}

/// The file and what it holds.
#[derive(Debug)]
pub(super) struct Store {
    file: StateFile<Content>,
    content: Content,
}

impl Store {
    /// Reads the file. Without a good one there is a new nonce, and mappings of before are left to end by themselves.
    pub(super) fn load(dir: &StateDir) -> Self {
        let file = StateFile::new(dir.clone(), FILE);
        let content = match file.load() {
            Ok(loaded) => loaded.map(|loaded| loaded.value),
            Err(error) => {
                tracing::warn!(%error, "what was known of port mappings is not used");
                None
            }
        };
        Self { file, content: content.unwrap_or_else(|| Content { nonce: new_nonce(), held: None }) }
    }

    pub(super) fn nonce(&self) -> Nonce {
        self.content.nonce
    }

    /// Returns the mapping that was held last.
    pub(super) fn held(&self) -> Option<Held> {
        self.content.held
    }

    /// Keeps which mapping is held now.
    pub(super) async fn set_held(&mut self, held: Option<Held>) {
        if self.content.held == held {
            return;
        }
        self.content.held = held;
        let (file, content) = (self.file.clone(), self.content.clone());
        match tokio::task::spawn_blocking(move || file.store(&content)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the port mapping is not remembered"),
            Err(error) => tracing::warn!(%error, "the port mapping is not remembered"),
        }
    }
}

/// A nonce is no secret towards those on the LAN: without random numbers the old way of being safe is enough, the address.
fn new_nonce() -> Nonce {
    let mut nonce = Nonce::default();
    if let Err(error) = getrandom::fill(&mut nonce) {
        tracing::warn!(%error, "the system has no random numbers");
    }
    nonce
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Protocol, policy::Held},
        *,
    };

    #[tokio::test]
    async fn the_next_run_knows_the_nonce_and_the_mapping() {
        let directory = tempfile::tempdir().unwrap();
        let dir = StateDir::create(&directory.path().join("state")).unwrap();
        let mut store = Store::load(&dir);
        let held = Held {
            protocol: Protocol::NatPmp,
            router: [192, 168, 1, 1].into(),
            internal_port: 51820,
            external: "203.0.113.1:51821".parse().unwrap(),
        };
        store.set_held(Some(held)).await;
        let next = Store::load(&dir);
        assert_eq!((next.nonce(), next.held()), (store.nonce(), Some(held)));
        store.set_held(None).await;
        assert_eq!(Store::load(&dir).held(), None);
        std::fs::write(directory.path().join("state").join(FILE), "garbage").unwrap();
        assert_eq!(Store::load(&dir).nonce(), store.nonce(), "the generation before is there");
    }
}
