//! Who has which prefix.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_proto::{
    netmap::{NetworkMap, Node},
    route::{check_routable, overlap},
};

use super::{LocalNetworks, PlanOptions, Refusal, Warning};

/// What is taken so far, and by whom.
pub(super) struct Claims<'a> {
    mesh: [IpNet; 2],
    /// Addresses of this node.
    addresses: &'a [IpAddr],
    /// What this node announces beyond its addresses.
    announced: Vec<IpNet>,
    local: Vec<IpNet>,
    underlay: Vec<IpAddr>,
    taken: Vec<(IpNet, &'a Node)>,
}

impl<'a> Claims<'a> {
    pub(super) fn new(map: &'a NetworkMap, local: &LocalNetworks, options: &PlanOptions) -> Self {
        let own = |prefix: &IpNet| is_host(prefix) && map.this.addresses.contains(&prefix.addr());
        Self {
            mesh: [IpNet::V4(map.mesh.ipv4.trunc()), IpNet::V6(map.mesh.ipv6.trunc())],
            addresses: &map.this.addresses,
            announced: map.this.allowed_ips.iter().filter(|prefix| !own(prefix)).map(IpNet::trunc).collect(),
            local: local.connected.iter().filter(|prefix| !own(prefix)).map(IpNet::trunc).collect(),
            underlay: options.underlay.iter().copied().collect(),
            taken: Vec::new(),
        }
    }

    /// Returns the mesh ranges that can be routed.
    pub(super) fn route_mesh_ranges(&mut self, warnings: &mut Vec<Warning>) -> Vec<IpNet> {
        let ranges = self.mesh;
        ranges.into_iter().filter(|range| self.check(None, *range, warnings)).collect()
    }

    /// Takes a peer's prefixes inside the mesh ranges, and returns those that it may have.
    pub(super) fn claim_addresses(&mut self, peer: &'a Node, warnings: &mut Vec<Warning>) -> Vec<IpNet> {
        let inside = peer.allowed_ips.iter().filter(|prefix| self.in_mesh(prefix));
        let prefixes: Vec<_> = inside.map(IpNet::trunc).collect();
        let mut granted = Vec::new();
        for prefix in prefixes {
            let refusal = if !is_host(&prefix) || !peer.addresses.contains(&prefix.addr()) {
                Some(Refusal::MeshRange)
            } else if self.addresses.contains(&prefix.addr()) {
                Some(Refusal::Own(prefix))
            } else if let Some(local) = self.local.iter().find(|local| local.contains(&prefix)) {
                // A refused range is reported once, not for each of its addresses.
                if self.mesh.iter().any(|range| local.contains(range)) {
                    continue;
                }
                Some(Refusal::Local(*local))
            } else {
                self.overlap(peer, prefix)
            };
            match refusal {
                Some(reason) => {
                    warnings.push(Warning::Refused { peer: Some(peer.name.clone()), prefix, reason });
                }
                None => {
                    self.taken.push((prefix, peer));
                    granted.push(prefix);
                }
            }
        }
        granted
    }

    /// Takes a peer's prefixes outside the mesh ranges, and returns those that are to be routed to it.
    pub(super) fn claim_routes(&mut self, peer: &'a Node, warnings: &mut Vec<Warning>) -> Vec<IpNet> {
        let outside = peer.allowed_ips.iter().filter(|prefix| !self.in_mesh(prefix));
        let mut prefixes: Vec<_> = outside.map(IpNet::trunc).collect();
        prefixes.sort();
        prefixes.dedup();
        let mut granted = Vec::new();
        for prefix in prefixes {
            if self.check(Some(peer), prefix, warnings) {
                self.taken.push((prefix, peer));
                granted.push(prefix);
            }
        }
        granted
    }

    /// Judges a prefix that would become a route, and reports what is wrong with it.
    fn check(&self, peer: Option<&Node>, prefix: IpNet, warnings: &mut Vec<Warning>) -> bool {
        let name = || peer.map(|peer| peer.name.clone());
        if let Some(reason) = self.refusal(peer, prefix) {
            warnings.push(Warning::Refused { peer: name(), prefix, reason });
            return false;
        }
        for local in self.local.iter().filter(|local| prefix.contains(*local)) {
            warnings.push(Warning::Shadowed { peer: name(), prefix, local: *local });
        }
        true
    }

    fn refusal(&self, peer: Option<&Node>, prefix: IpNet) -> Option<Refusal> {
        if let Err(why) = check_routable(&prefix) {
            return Some(Refusal::Unroutable(why));
        }
        if let Some(local) = self.local.iter().find(|local| local.contains(&prefix)) {
            return Some(Refusal::Local(*local));
        }
        if let Some(address) = self.underlay.iter().find(|address| prefix.contains(*address)) {
            return Some(Refusal::Underlay(*address));
        }
        let peer = peer?;
        if self.mesh.iter().any(|range| overlap(range, &prefix)) {
            return Some(Refusal::MeshRange);
        }
        if let Some(own) = self.announced.iter().find(|own| overlap(own, &prefix)) {
            return Some(Refusal::Own(*own));
        }
        self.overlap(peer, prefix)
    }

    fn overlap(&self, peer: &Node, prefix: IpNet) -> Option<Refusal> {
        let other = |(taken, owner): &&(IpNet, &Node)| owner.id != peer.id && overlap(taken, &prefix);
        let (taken, owner) = self.taken.iter().find(other)?;
        Some(Refusal::Taken { owner: owner.name.clone(), prefix: *taken })
    }

    fn in_mesh(&self, prefix: &IpNet) -> bool {
        self.mesh.iter().any(|range| range.contains(prefix))
    }
}

fn is_host(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}
