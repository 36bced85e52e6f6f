//! Decides what becomes of all routes. Pure.

use std::collections::BTreeMap;

use ipnet::IpNet;
use mesh_proto::{
    name::NodeName,
    netmap::{Mesh, NodeId},
    route::{RouteKind, RouteState, check_routable, overlap},
};

use super::{NodeRoutes, Policy, Route, RoutePolicy, Word};

impl RoutePolicy {
    /// Judges an offer by itself, without a look at other nodes.
    pub(super) fn judge(&self, prefix: &IpNet, kind: RouteKind, mesh: &Mesh) -> Policy {
        if let Err(unroutable) = check_routable(prefix) {
            return Policy::Forbids(unroutable.to_string());
        }
        let ranges = [IpNet::V4(mesh.ipv4), IpNet::V6(mesh.ipv6)];
        if let Some(range) = ranges.iter().find(|range| overlap(range, prefix)) {
            return Policy::Forbids(format!("it overlaps the mesh's own range {range}"));
        }
        let inside = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(prefix));
        match kind {
            RouteKind::Pods if inside(&self.pod_ranges) => Policy::Approves,
            RouteKind::Pods if self.pod_ranges.is_empty() => Policy::Forbids(
                "the mesh has no range for pods: start the coordinator with --pod-range".to_owned(),
            ),
            RouteKind::Pods => Policy::Forbids(format!(
                "it is not inside the mesh's range for pods, {}",
                list(&self.pod_ranges)
            )),
            RouteKind::Subnet | RouteKind::Unknown => {
                if let Some(range) = self.pod_ranges.iter().find(|range| overlap(range, prefix)) {
                    Policy::Forbids(format!("it overlaps the mesh's range for pods, {range}"))
                } else if inside(&self.approved) {
                    Policy::Approves
                } else {
                    Policy::AsksOperator
                }
            }
        }
    }
}

/// Decides what becomes of all routes, and forgets those of which neither node nor operator says anything. `change` is the
/// number of this change.
pub(super) fn settle(
    nodes: &mut BTreeMap<NodeId, NodeRoutes>,
    names: &BTreeMap<NodeId, NodeName>,
    change: u64,
) {
    let mut claims = Vec::new();
    for (id, node) in nodes.iter_mut() {
        node.routes.retain(|route| route.offered.is_some() || route.word != Word::Nothing);
        node.routes.sort_by_key(|route| route.prefix);
        for route in &mut node.routes {
            match route.obstacle() {
                None => {
                    let since = *route.since.get_or_insert(change);
                    claims.push((since, *id, route.prefix));
                }
                Some((state, reason)) => {
                    route.since = None;
                    (route.state, route.reason) = (state, Some(reason));
                }
            }
        }
    }
    claims.sort();
    let mut granted: Vec<(NodeId, IpNet)> = Vec::new();
    for (_, id, prefix) in claims {
        let other = granted.iter().find(|(owner, taken)| *owner != id && overlap(taken, &prefix));
        let (state, reason) = match other {
            None => (RouteState::Approved, None),
            Some((owner, taken)) => {
                let name = names.get(owner).map_or_else(|| format!("#{}", owner.0), ToString::to_string);
                (RouteState::Refused, Some(format!("it overlaps {taken} of {name}")))
            }
        };
        if state == RouteState::Approved {
            granted.push((id, prefix));
        }
        let routes = nodes.get_mut(&id).into_iter().flat_map(|node| &mut node.routes);
        for route in routes.filter(|route| route.prefix == prefix) {
            (route.state, route.reason) = (state, reason.clone());
        }
    }
}

impl Route {
    /// What keeps the route from being had even if nobody else wants it.
    fn obstacle(&self) -> Option<(RouteState, String)> {
        let pending = |reason: &str| Some((RouteState::Pending, reason.to_owned()));
        let refused = |reason: &str| Some((RouteState::Refused, reason.to_owned()));
        if self.word == Word::Revoke {
            return refused("the operator has revoked it");
        }
        if self.offered.is_none() {
            return pending("the node does not offer it");
        }
        match (&self.policy, self.word) {
            (Policy::Forbids(reason), _) => refused(reason),
            (Policy::Approves, _) | (Policy::AsksOperator, Word::Approve) => None,
            (Policy::AsksOperator, Word::Nothing | Word::Revoke) => {
                pending("it waits for the operator: mesh-coordinator route approve")
            }
        }
    }
}

fn list(ranges: &[IpNet]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
