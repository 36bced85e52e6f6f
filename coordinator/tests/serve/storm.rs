//! Everybody comes back at the same moment: what a restart of the coordinator does to it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    control::{ClientMessage, Hello, ServerMessage},
    key::KeyPin,
    netmap::{NodeId, Version},
};

use super::rig::{Agent, Client};

/// How long an agent waits after its first failure, and how long at most after the second; that doubles.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const SECOND_WAIT: Duration = Duration::from_secs(2);

/// How long one attempt may take, as with agents.
const ATTEMPT: Duration = Duration::from_secs(8);

/// How a node has come back.
pub(crate) struct Returned {
    client: Client,
    /// What it was brought up to date with.
    pub(crate) news: News,
    /// When that was there.
    pub(crate) at: Instant,
    /// Attempts that failed before.
    pub(crate) failures: u32,
    /// Who is online, and whether it is known where.
    online: BTreeMap<NodeId, bool>,
}

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Knows {
    /// So many others are online.
    pub(crate) others: usize,
    /// It is known where they may be reached.
    pub(crate) reach: bool,
}

/// What a node that comes back is told of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    Whole(Version),
    Delta(Version),
    /// Nothing: it has the latest map.
    Nothing,
}

impl Returned {
    /// Waits until enough is known of others.
    pub(crate) async fn meet(&mut self, knows: Knows, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.online.values().filter(|reach| **reach || !knows.reach).count() < knows.others {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.client.try_hear_within(left).await.expect("the session goes on");
            if let ServerMessage::PeerStates { peers } = message {
                note(&mut self.online, &peers);
            }
        }
    }

    /// Returns the version that it knows, if it was told one.
    pub(crate) fn known(&self) -> Option<Version> {
        match self.news {
            News::Whole(version) | News::Delta(version) => Some(version),
            News::Nothing => None,
        }
    }

    /// Returns how many bytes of datagrams it was sent.
    pub(crate) fn received(&self) -> u64 {
        self.client.connection.stats().udp_rx.bytes
    }

    /// Says that it may be reached somewhere else.
    pub(crate) async fn move_elsewhere(&mut self) {
        let candidate = Candidate { address: ([192, 0, 2, 2], 51820).into(), kind: CandidateKind::Host };
        let message =
            ClientMessage::Candidates { candidates: vec![candidate; 2], relays: vec![], home: None };
        self.client.say(&message).await;
    }

    /// Hears what is said until nothing comes for a while.
    pub(crate) async fn hear_until_quiet(&mut self, quiet: Duration) {
        while let Ok(Some(_)) = tokio::time::timeout(quiet, self.client.try_hear()).await {}
    }
}

/// Comes back as an agent does: tries until it is in, with the map that it knows, and says where it may be reached.
pub(crate) async fn come_back(
    address: SocketAddr,
    agent: &Agent,
    pin: KeyPin,
    map: Option<Version>,
) -> Returned {
    let mut failures = 0;
    loop {
        let attempt = tokio::time::timeout(ATTEMPT, attempt(address, agent, pin, map));
        if let Ok(Some((client, news, online))) = attempt.await {
            return Returned { client, news, at: Instant::now(), failures, online };
        }
        let random = 0.5 + f64::from(getrandom::u32().unwrap()) / f64::from(u32::MAX) / 2.0;
        let top = if failures == 0 { FIRST_WAIT } else { SECOND_WAIT * (1 << (failures - 1).min(4)) };
        tokio::time::sleep(top.mul_f64(random)).await;
        failures += 1;
    }
}

async fn attempt(
    address: SocketAddr,
    agent: &Agent,
    pin: KeyPin,
    map: Option<Version>,
) -> Option<(Client, News, BTreeMap<NodeId, bool>)> {
    let mut client = Client::dial(address, agent, pin).await.ok()?;
    let hello = Hello { version: "test".to_owned(), features: vec![] };
    client.try_say(&ClientMessage::Hello(hello)).await?;
    let candidate = Candidate { address: ([192, 0, 2, 1], 51820).into(), kind: CandidateKind::Host };
    client.try_say(&ClientMessage::Connect { public_key: agent.public_key, map, instance: None }).await?;
    let candidates = ClientMessage::Candidates { candidates: vec![candidate; 2], relays: vec![], home: None };
    client.try_say(&candidates).await?;
    client.try_say(&ClientMessage::RelayOpen).await?;
    client.try_say(&ClientMessage::Advertise { routes: vec![] }).await?;
    let mut online = BTreeMap::new();
    loop {
        match client.try_hear_within(2 * ATTEMPT).await? {
            ServerMessage::Map { map } => return Some((client, News::Whole(map.version), online)),
            ServerMessage::Delta { delta } => return Some((client, News::Delta(delta.to), online)),
            // What comes after the map came: it was up to date.
            ServerMessage::PeerStates { peers } => {
                note(&mut online, &peers);
                return Some((client, News::Nothing, online));
            }
            ServerMessage::Refused(_) => return None,
            _ => {}
        }
    }
}

/// Comes back with many others, each with the map that it knows, and says how each was received.
pub(crate) async fn all_come_back(
    address: SocketAddr,
    agents: Vec<(Arc<Agent>, Option<Version>)>,
    pin: KeyPin,
) -> Vec<Returned> {
    let mut coming = tokio::task::JoinSet::new();
    for (agent, map) in agents {
        coming.spawn(async move { come_back(address, &agent, pin, map).await });
    }
    coming.join_all().await
}

fn note(online: &mut BTreeMap<NodeId, bool>, peers: &[mesh_proto::control::PeerState]) {
    let present = peers.iter().filter(|peer| peer.online);
    online.extend(present.map(|peer| (peer.id, !peer.candidates.is_empty())));
}
