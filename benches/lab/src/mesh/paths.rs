//! The paths of a mesh, held against what the NATs between its nodes allow.

use std::net::SocketAddr;
use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use mesh_proto::status::{PathKind, PathStatus};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Mesh, Node};
use crate::topology::Reach;

/// The primary path of a node to another, as the node itself sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Primary {
    /// In words: `direct 192.0.2.1:51820`, or `relay pi`.
    pub path: String,
    /// When a probe on it was last answered.
    pub answered: Option<SystemTime>,
}

impl Primary {
    /// Whether it leads through no relay.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.path.starts_with("direct ")
    }
}

impl Node {
    /// The primary path to another node, if there is one.
    ///
    /// # Errors
    ///
    /// If the agent does not answer, or does not know the other one.
    pub fn primary(&self, peer: &str) -> anyhow::Result<Option<Primary>> {
        let why = self.get(&format!("/v1/why/{peer}"))?;
        let paths = why["paths"].as_array().context("an answer without paths")?;
        let Some(path) = paths.iter().find(|path| path["primary"] == true) else { return Ok(None) };
        let answered = path["last_answer"].as_str();
        let answered = answered.map(|text| OffsetDateTime::parse(text, &Rfc3339)).transpose()?;
        let words = path["path"].as_str().context("a path without a name")?;
        Ok(Some(Primary { path: words.to_owned(), answered: answered.map(Into::into) }))
    }
}

impl Mesh {
    /// The ordered pairs, among those picked by name, whose path is not what the network allows; as the first of each
    /// says it, with what is wrong.
    ///
    /// # Errors
    ///
    /// If an agent does not answer, or does not know a node of the mesh.
    pub fn wrong_paths(&self, is_wanted: impl Fn(&str, &str) -> bool) -> anyhow::Result<Vec<String>> {
        let mut wrong = Vec::new();
        for from in self.nodes() {
            let peers = from.status()?.peers;
            for to in self.nodes().map(super::Node::name) {
                if to == from.name() || !is_wanted(from.name(), to) {
                    continue;
                }
                let peer = peers.iter().find(|peer| peer.name == to);
                ensure!(peer.is_some(), "{} does not know {to}", from.name());
                let wanted = self.network().reach(from.name(), to)?;
                if let Some(peer) = peer.filter(|peer| !self.is_right(to, wanted, &peer.path)) {
                    wrong.push(format!(
                        "{} to {to} should be {}: {:?}",
                        from.name(),
                        wanted.word(),
                        peer.path
                    ));
                }
            }
        }
        Ok(wrong)
    }

    /// Whether a path to a node is as it should be.
    pub fn is_right(&self, to: &str, wanted: Reach, path: &PathStatus) -> bool {
        let is_on_lan = |endpoint: SocketAddr| {
            self.network().host(to).is_ok_and(|host| {
                let v6 = host.address_v6().map(Into::into);
                endpoint.ip() == host.address() || Some(endpoint.ip()) == v6
            })
        };
        match wanted {
            Reach::Lan => path.kind == PathKind::Direct && path.address.is_some_and(is_on_lan),
            Reach::Direct | Reach::Punched => path.kind == PathKind::Direct && path.address.is_some(),
            Reach::Relay => path.kind == PathKind::Relay && path.relay.is_some() && !path.reason.is_empty(),
        }
    }
}
