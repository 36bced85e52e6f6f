//! Routes: what nodes offer, what the operator wants, and what the mesh makes of both.
//!
//! ```text
//!                       node offers it, operator has not said anything
//!                    +-- in a range that is approved by policy ------+
//!   nothing --------+                                                +--> permitted -- nobody else has it --> approved
//!                    +-- elsewhere --> pending -- operator approves -+        ^                                  |
//!                                         ^                                   +------- refused <-- overlaps -----+
//!                                         +---------- refused <-- operator revokes                  another's
//! ```
//!
//! What the operator has said of a prefix of a node stays, whether the node offers it or not, so a node that is away or
//! begins anew needs no second word. Each change settles all routes of all nodes anew (`settle.rs`) and is one
//! transaction; a counter, which every one of them raises, keeps two from being decided on the same state.

mod settle;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use mesh_proto::{
    name::NodeName,
    netmap::{Mesh, Node, NodeId},
    route::{MAX_ROUTES, RouteAnswer, RouteKind, RouteOffer, RouteState},
};
use serde::{Deserialize, Serialize};

use super::{
    RegistryError,
    draft::{Decision, Draft, parse},
    keys,
};
use settle::settle;

/// Which routes need no word of the operator.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoutePolicy {
    /// The ranges of the mesh for pods: nothing else in them is anybody's.
    pub pod_ranges: Vec<IpNet>,
    /// Subnets inside these are approved.
    pub approved: Vec<IpNet>,
}

/// All that is known of one node's routes, by prefix.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct NodeRoutes {
    pub(super) routes: Vec<Route>,
}

/// One prefix of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Route {
    pub(super) prefix: IpNet,
    /// What the node says that lies there; `None` while it does not offer it.
    pub(super) offered: Option<RouteKind>,
    pub(super) word: Word,
    /// Whether policy permits it.
    pub(super) policy: Policy,
    /// Since which change it is offered and permitted: of two that overlap, the older one is approved.
    pub(super) since: Option<u64>,
    pub(super) state: RouteState,
    pub(super) reason: Option<String>,
}

/// What the operator has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Word {
    Nothing,
    Approve,
    Revoke,
}

/// What policy says of an offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Policy {
    Approves,
    AsksOperator,
    /// With the reason.
    Forbids(String),
}

/// A node's route, for people and scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// The node.
    pub node: NodeName,
    /// The prefix.
    pub prefix: IpNet,
    /// What lies there; `null` while the node does not offer it.
    pub kind: Option<RouteKind>,
    /// What became of it.
    pub state: RouteState,
    /// Why, unless it is approved.
    pub reason: Option<String>,
}

/// A node's offers, all of them.
pub(super) struct Advertise {
    pub(super) node: NodeId,
    pub(super) offers: Vec<RouteOffer>,
    pub(super) policy: RoutePolicy,
}

/// The operator's word on a prefix of a node.
pub(super) struct Judge {
    pub(super) node: NodeName,
    pub(super) prefix: IpNet,
    pub(super) word: Word,
}

/// The routes of all nodes, in the making.
struct Table {
    nodes: BTreeMap<NodeId, NodeRoutes>,
    /// The number of this change.
    change: u64,
}

impl Decision for Advertise {
    type Output = ();

    async fn decide(&self, draft: &mut Draft<'_>) -> Result<(), RegistryError> {
        let Self { node, offers, policy } = self;
        let mesh: Mesh = draft.expect(keys::MESH).await?;
        let offers: BTreeMap<IpNet, RouteKind> =
            offers.iter().take(MAX_ROUTES).map(|offer| (offer.prefix.trunc(), offer.kind)).collect();
        let known: Option<NodeRoutes> = draft.get(&keys::routes(*node)).await?;
        let mut next = known.clone().unwrap_or_default();
        for route in &mut next.routes {
            route.offered = offers.get(&route.prefix).copied();
        }
        let news: Vec<_> = offers
            .iter()
            .filter(|(prefix, _)| next.routes.iter().all(|route| route.prefix != **prefix))
            .map(|(prefix, kind)| Route { offered: Some(*kind), ..Route::new(*prefix) })
            .collect();
        next.routes.extend(news);
        for route in &mut next.routes {
            if let Some(kind) = route.offered {
                route.policy = policy.judge(&route.prefix, kind, &mesh);
            }
        }
        if known.unwrap_or_default() == next {
            return Ok(());
        }
        let mut table = Table::load(draft).await?;
        table.nodes.insert(*node, next);
        table.store(draft).await
    }
}

impl Decision for Judge {
    type Output = RouteEntry;

    async fn decide(&self, draft: &mut Draft<'_>) -> Result<RouteEntry, RegistryError> {
        let unknown = || RegistryError::UnknownNode(self.node.clone());
        let id: NodeId = draft.get(&keys::name(&self.node)).await?.ok_or_else(unknown)?;
        let prefix = self.prefix.trunc();
        let mut table = Table::load(draft).await?;
        let node = table.nodes.entry(id).or_default();
        if node.routes.iter().all(|route| route.prefix != prefix) {
            if node.routes.len() >= MAX_ROUTES * 2 {
                return Err(RegistryError::TooManyRoutes(self.node.clone()));
            }
            node.routes.push(Route::new(prefix));
        }
        for route in node.routes.iter_mut().filter(|route| route.prefix == prefix) {
            route.word = self.word;
        }
        table.settle(draft).await?;
        let routes = table.nodes.get(&id).into_iter().flat_map(|node| &node.routes);
        let route = routes.clone().find(|route| route.prefix == prefix).cloned();
        table.write(draft).await?;
        let route = route.unwrap_or_else(|| Route { word: self.word, ..Route::new(prefix) });
        Ok(route.entry(&self.node))
    }
}

/// Forgets the routes of a node that is removed; others may get what was its own.
pub(super) async fn forget(draft: &mut Draft<'_>, node: NodeId) -> Result<(), RegistryError> {
    if draft.get::<NodeRoutes>(&keys::routes(node)).await?.is_none() {
        return Ok(());
    }
    let mut table = Table::load(draft).await?;
    table.nodes.remove(&node);
    draft.delete(keys::routes(node));
    table.store(draft).await
}

impl Table {
    /// Reads the routes of all nodes. The counter makes sure that they are the same at the commit.
    async fn load(draft: &mut Draft<'_>) -> Result<Self, RegistryError> {
        let change = draft.get::<u64>(keys::ROUTE_CHANGES).await?.unwrap_or_default() + 1;
        draft.put(keys::ROUTE_CHANGES.to_owned(), &change)?;
        let mut nodes = BTreeMap::new();
        for entry in draft.peek_range(keys::ROUTES).await?.entries {
            let id = keys::parse_routes(&entry.key)
                .ok_or_else(|| super::corrupt(&entry.key, "it is not the key of a node's routes"))?;
            nodes.insert(id, parse(&entry.key, &entry.value)?);
        }
        Ok(Self { nodes, change })
    }

    async fn store(mut self, draft: &mut Draft<'_>) -> Result<(), RegistryError> {
        self.settle(draft).await?;
        self.write(draft).await
    }

    async fn settle(&mut self, draft: &mut Draft<'_>) -> Result<(), RegistryError> {
        let mut names = BTreeMap::new();
        for id in self.nodes.keys() {
            if let Some(node) = draft.get::<Node>(&keys::node(*id)).await? {
                names.insert(*id, node.name);
            }
        }
        self.nodes.retain(|id, _| names.contains_key(id));
        settle(&mut self.nodes, &names, self.change);
        Ok(())
    }

    /// Writes what is new: the routes, and the nodes that may be sent something else than before.
    async fn write(self, draft: &mut Draft<'_>) -> Result<(), RegistryError> {
        for (id, routes) in self.nodes {
            let key = keys::routes(id);
            if draft.get::<NodeRoutes>(&key).await?.as_ref() != Some(&routes) {
                draft.put(key, &routes)?;
            }
            let node: Node = draft.expect(&keys::node(id)).await?;
            let allowed_ips = routes.allowed_ips(&node);
            if node.allowed_ips != allowed_ips {
                draft.put(keys::node(id), &Node { allowed_ips, ..node })?;
            }
        }
        Ok(())
    }
}

impl NodeRoutes {
    /// What the node is told.
    pub(super) fn answers(&self) -> Vec<RouteAnswer> {
        let offered = self.routes.iter().filter(|route| route.offered.is_some());
        let answer = |route: &Route| RouteAnswer {
            prefix: route.prefix,
            state: route.state,
            reason: route.reason.clone(),
        };
        offered.map(answer).collect()
    }

    /// What people are told.
    pub(super) fn entries(&self, node: &NodeName) -> Vec<RouteEntry> {
        self.routes.iter().map(|route| route.entry(node)).collect()
    }

    /// A node's addresses, and what is approved of its routes.
    fn allowed_ips(&self, node: &Node) -> Vec<IpNet> {
        let approved = self.routes.iter().filter(|route| route.state == RouteState::Approved);
        let routes: BTreeSet<IpNet> = approved.map(|route| route.prefix).collect();
        node.addresses.iter().copied().map(IpNet::from).chain(routes).collect()
    }
}

impl Route {
    fn new(prefix: IpNet) -> Self {
        Self {
            prefix,
            offered: None,
            word: Word::Nothing,
            policy: Policy::AsksOperator,
            since: None,
            state: RouteState::Pending,
            reason: None,
        }
    }

    fn entry(&self, node: &NodeName) -> RouteEntry {
        RouteEntry {
            node: node.clone(),
            prefix: self.prefix,
            kind: self.offered,
            state: self.state,
            reason: self.reason.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
