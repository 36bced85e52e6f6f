//! What the wiring knows and the local API shows, and the pings that wait for an answer.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh_engine::event::PathAddress;
use mesh_proto::netmap::{Mesh, NetworkMap, Node, NodeId, Version};
use tokio::sync::{Notify, oneshot};

use crate::{identity::Membership, os::Family};

/// Shared between the wiring, which writes, and the local API, which reads.
pub(super) struct Facts {
    known: Mutex<Known>,
    pings: Mutex<Pings>,
    changed: Notify,
}

/// What is known.
#[derive(Clone)]
pub(super) struct Known {
    /// The network map; before the first one, this node alone.
    pub(super) map: Arc<NetworkMap>,
    /// Whether interface, addresses and routes are up.
    pub(super) ready: bool,
    /// The routes that are installed for peers, beyond their mesh addresses.
    pub(super) routes: Vec<IpNet>,
    /// Address families for which this host has no route.
    pub(super) absent: Vec<Family>,
    /// What a person should know, worst first.
    pub(super) warnings: Vec<String>,
    /// Who answers STUN.
    pub(super) observers: Vec<SocketAddr>,
}

/// A ping's answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pong {
    pub(super) path: PathAddress,
    pub(super) rtt: Duration,
}

#[derive(Default)]
struct Pings {
    last: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Pong>>,
}

/// A ping on its way; forgotten when dropped.
pub(super) struct Waiting {
    pub(super) token: u64,
    pub(super) answer: oneshot::Receiver<Pong>,
    facts: Arc<Facts>,
}

impl Facts {
    pub(super) fn new(membership: &Membership) -> Self {
        let known = Known {
            map: Arc::new(map_of_this_node(membership)),
            ready: false,
            routes: Vec::new(),
            absent: Vec::new(),
            warnings: vec!["no network map yet: the coordinator has not been reached".to_owned()],
            observers: Vec::new(),
        };
        Self { known: Mutex::new(known), pings: Mutex::default(), changed: Notify::new() }
    }

    /// Returns what is known now.
    pub(super) fn known(&self) -> Known {
        lock(&self.known).clone()
    }

    /// Changes what is known.
    pub(super) fn update(&self, change: impl FnOnce(&mut Known)) {
        change(&mut lock(&self.known));
        self.changed.notify_one();
    }

    /// Waits until something was changed; for one who waits. Cancel-safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Opens a ping.
    pub(super) fn ping(self: &Arc<Self>) -> Waiting {
        let (reply, answer) = oneshot::channel();
        let mut pings = lock(&self.pings);
        pings.last += 1;
        let token = pings.last;
        pings.waiting.insert(token, reply);
        Waiting { token, answer, facts: Arc::clone(self) }
    }

    /// Answers a ping; nobody may be waiting any more.
    pub(super) fn pong(&self, token: u64, pong: Pong) {
        if let Some(reply) = lock(&self.pings).waiting.remove(&token) {
            let _ = reply.send(pong);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        lock(&self.facts.pings).waiting.remove(&self.token);
    }
}

impl Known {
    /// Finds a peer by its name or one of its mesh addresses.
    pub(super) fn peer(&self, node: &str) -> Option<&Node> {
        let address = node.parse::<IpAddr>().ok();
        let mut peers = self.map.peers.iter();
        peers.find(|peer| {
            peer.name.as_str() == node || address.is_some_and(|address| peer.addresses.contains(&address))
        })
    }

    /// Returns the names of all peers.
    pub(super) fn names(&self) -> Vec<String> {
        self.map.peers.iter().map(|peer| peer.name.to_string()).collect()
    }

    /// Returns the name of a peer, or its number.
    pub(super) fn name_of(&self, id: NodeId) -> String {
        let peer = self.map.peers.iter().find(|peer| peer.id == id);
        peer.map_or_else(|| format!("#{}", id.0), |peer| peer.name.to_string())
    }
}

fn map_of_this_node(membership: &Membership) -> NetworkMap {
    NetworkMap {
        version: Version::default(),
        mesh: Mesh {
            ipv4: Ipv4Net::default(),
            ipv6: Ipv6Net::default(),
            coordinators: membership.coordinators.clone(),
        },
        this: membership.node.clone(),
        peers: Vec::new(),
        relays: Vec::new(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it protects is whole after every statement, so a panic elsewhere has not broken it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
