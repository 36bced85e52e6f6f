//! The paths of a mesh, held against what the NATs between its nodes allow.

use std::net::SocketAddr;

use anyhow::ensure;
use mesh_proto::status::{PathKind, PathStatus};

use super::Mesh;
use crate::topology::Reach;

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
