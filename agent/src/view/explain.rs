//! Builds the answer of `meshctl why`.

use mesh_engine::{event::PathAddress, snapshot::PeerSnapshot};

use super::status::{Input, millis};
use crate::local_api::{Why, WhyDecision, WhyPath};

/// Tells why a peer is on the path it is on.
#[must_use]
pub fn explain(input: &Input<'_>, name: &str, peer: &PeerSnapshot) -> Why {
    let primary = peer.path.as_ref().map(|path| path.address);
    let paths = peer.paths.iter().map(|path| WhyPath {
        path: input.path_text(Some(path.address)),
        primary: primary == Some(path.address),
        rtt_ms: path.rtt.map(millis),
        loss: path.loss,
        last_answer: path.last_answer.map(|at| input.timestamp(at)),
    });
    let decisions = peer.decisions.iter().map(|decision| WhyDecision {
        at: input.timestamp(decision.at),
        path: input.path_text(decision.path),
        reason: decision.reason.clone(),
    });
    Why {
        node: name.to_owned(),
        reason: peer.reason.clone(),
        paths: paths.collect(),
        decisions: decisions.collect(),
    }
}

impl Input<'_> {
    fn path_text(&self, path: Option<PathAddress>) -> String {
        match path {
            Some(PathAddress::Direct(remote) | PathAddress::Punched { remote, .. }) => {
                format!("direct {remote}")
            }
            Some(PathAddress::Relay(relay)) => format!("relay {}", self.relay_name(relay)),
            None => "none".to_owned(),
        }
    }
}
