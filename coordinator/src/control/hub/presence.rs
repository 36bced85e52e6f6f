//! What the hub knows of one node.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    control::{InstanceId, PeerState},
    netmap::NodeId,
};

use super::handle::Reach;
use crate::{
    control::{link::Carrier, mailbox::Mailbox},
    limit::TokenBucket,
};

/// Copies that are remembered of one node; a run is forgotten when there were so many after it.
const MAX_COPIES: usize = 8;

/// What the hub knows of a registered node.
#[derive(Default)]
pub(super) struct Presence {
    /// A relay that stands alone: nobody's peer.
    pub(super) is_relay: bool,
    pub(super) session: Option<Connected>,
    pub(super) reach: Reach,
    /// The last runs of its agent that were found to be copies.
    pub(super) copies: VecDeque<InstanceId>,
    /// Where its last session came from.
    pub(super) observed: Option<IpAddr>,
}

pub(super) struct Connected {
    pub(super) id: u64,
    pub(super) carrier: Carrier,
    pub(super) instance: Option<InstanceId>,
    pub(super) mailbox: Arc<Mailbox>,
    /// One bucket per peer that was called and is registered.
    pub(super) calls: BTreeMap<NodeId, TokenBucket>,
}

impl Presence {
    pub(super) fn note_copy(&mut self, instance: InstanceId) {
        self.copies.retain(|known| *known != instance);
        self.copies.push_back(instance);
        while self.copies.len() > MAX_COPIES {
            self.copies.pop_front();
        }
    }

    /// Returns this site's outside address, if the node is on the coordinator's own network and knows it: it was told so
    /// by an observer elsewhere, or by the router.
    pub(super) fn outside(&self) -> Option<IpAddr> {
        let is_near = match self.observed? {
            IpAddr::V4(v4) => v4.is_private() || v4.is_loopback(),
            IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback() || v6.is_unicast_link_local(),
        };
        let found = |candidate: &&Candidate| match (candidate.kind, candidate.address.ip()) {
            (CandidateKind::Reflexive | CandidateKind::PortMapped, IpAddr::V4(v4)) => {
                !v4.is_private() && !v4.is_loopback()
            }
            _ => false,
        };
        self.reach.candidates.iter().filter(|_| is_near).find(found).map(|candidate| candidate.address.ip())
    }

    pub(super) fn state(&self, id: NodeId) -> PeerState {
        PeerState {
            id,
            online: self.session.is_some(),
            candidates: self.reach.candidates.clone(),
            relays: self.reach.relays.clone(),
            home: self.reach.home,
            observed: self.observed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(observed: &str, candidates: &[(&str, CandidateKind)]) -> Presence {
        let candidate = |(address, kind): &(&str, CandidateKind)| Candidate {
            address: address.parse().unwrap(),
            kind: *kind,
        };
        Presence {
            observed: Some(observed.parse().unwrap()),
            reach: Reach { candidates: candidates.iter().map(candidate).collect(), ..Reach::default() },
            ..Presence::default()
        }
    }

    #[test]
    fn the_outside_address_is_what_nodes_nearby_were_seen_at() {
        let host = ("192.168.1.7:51820", CandidateKind::Host);
        let guess = ("203.0.113.5:51820", CandidateKind::Guess);
        let inner = ("192.168.1.7:51820", CandidateKind::Reflexive);
        let outer = ("203.0.113.7:51820", CandidateKind::Reflexive);
        let expected = Some(IpAddr::from([203, 0, 113, 7]));
        assert_eq!(presence("127.0.0.1", &[host, guess, inner, outer]).outside(), expected);
        assert_eq!(
            presence("192.168.1.7", &[("203.0.113.7:1", CandidateKind::PortMapped)]).outside(),
            expected
        );
        assert_eq!(presence("192.168.1.7", &[host, guess, inner]).outside(), None);
        assert_eq!(presence("198.51.100.1", &[outer]).outside(), None, "it is somewhere else");
    }
}
