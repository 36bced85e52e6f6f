//! What must hold after every step, as the reference model says.

use std::{collections::BTreeMap, time::Duration};

use mesh_engine::{event::PathAddress, snapshot::PathSnapshot};
use mesh_proto::netmap::RelayId;

use super::{Scenario, StepKind, Taken, Times};
use crate::{
    ledger::Role,
    model::{self, Direct},
    world::{Ends, MTU, Sending},
};

/// Pairs that are looked at after a step, in large meshes.
const PAIRS: usize = 8;
/// Meshes up to this size are looked at as a whole.
const SMALL: usize = 4;
/// How often a pair that is not connected yet is pinged.
const PING_INTERVAL: Duration = Duration::from_millis(250);
/// Time for pairs to become direct once they are connected.
const DIRECT_DEADLINE: Duration = Duration::from_secs(45);
/// Time in which a pair that cannot be direct finds out.
const NOT_DIRECT_DEADLINE: Duration = Duration::from_secs(20);
/// Time for a pair to be connected where packets get lost.
const CONNECT_TIME_LOSSY: Duration = Duration::from_secs(40);
/// After this time, what has befallen the mesh costs no packets any more.
const DISTURBED_TIME: Duration = Duration::from_secs(120);
/// Pings by which a stable pair is looked at.
const STABLE_PINGS: u32 = 20;
/// Time between them: less than a path is trusted for.
const STABLE_INTERVAL: Duration = Duration::from_millis(700);

/// Of 1000 steps, those after which large packets are sent.
const LARGE: u32 = 250;
/// How often a large packet is sent.
const LARGE_INTERVAL: Duration = Duration::from_secs(1);
/// Time until one comes through: as long as it takes to notice that a relayed peer has moved, and a search.
const LARGE_DEADLINE: Duration = Duration::from_secs(90);

/// A pair, and what the model says of it.
#[derive(Debug, Clone)]
struct Expected {
    from: usize,
    to: usize,
    direct: Direct,
    pings: Vec<u64>,
    done: Option<Duration>,
}

impl Scenario {
    /// Checks the promises for some pairs.
    pub(super) fn verify(&mut self, after: StepKind) {
        if self.world.violation().is_some() {
            return;
        }
        self.world.run_for(self.settle_time(after));
        let pairs: Vec<_> = self
            .draw_pairs()
            .into_iter()
            .filter(|(from, to)| self.must_be_connected(*from, *to))
            .map(|(from, to)| {
                let (a, b) = (self.world.nodes[from].host, self.world.nodes[to].host);
                let blocked = [from, to].iter().any(|node| self.world.nodes[*node].blocked);
                let direct = if blocked { Direct::No } else { model::direct(&self.world.net, a, b) };
                Expected { from, to, direct, pings: Vec::new(), done: None }
            })
            .collect();
        let pairs = self.verify_connected(after, pairs);
        self.verify_direct(after, &pairs);
        if self.rng.chance(LARGE) {
            self.verify_large(after, &pairs);
        }
        if self.world.violation().is_none() && self.topology.is_lossless() && self.rng.chance(200) {
            self.verify_stable(&pairs);
        }
    }

    fn draw_pairs(&mut self) -> Vec<(usize, usize)> {
        let nodes = self.places.len();
        if nodes <= SMALL {
            let all = |from| (0..nodes).filter(move |to| *to != from).map(move |to| (from, to));
            return (0..nodes).flat_map(all).collect();
        }
        (0..PAIRS).map(|_| self.draw_pair()).collect()
    }

    /// How long the control plane may need for what has happened, before the engines can know.
    fn settle_time(&self, after: StepKind) -> Duration {
        let seconds = match after {
            StepKind::Start
            | StepKind::Talk
            | StepKind::Work
            | StepKind::Flood
            | StepKind::MoveRange
            | StepKind::Misbehave
            | StepKind::Idle
            | StepKind::RebootNat
            | StepKind::RenumberNat
            | StepKind::Cut
            | StepKind::KillServer => 0,
            StepKind::Roam
            | StepKind::Restart
            | StepKind::Unplug
            | StepKind::Sleep
            | StepKind::Flap
            | StepKind::ClockJump => 1,
            // The agent opens streams.
            StepKind::Block => 3,
            // It tries UDP again.
            StepKind::Unblock => 65,
            // The dialling nodes' longest backoff.
            StepKind::Heal | StepKind::StartServer => 40,
        };
        Duration::from_secs(seconds)
    }

    /// When a pair has to be connected: in time after the last step, and after those before it.
    fn connect_deadline(&self) -> Duration {
        let lossless = self.topology.is_lossless();
        let since = |at: Duration, kind| at + if lossless { connect_time(kind) } else { CONNECT_TIME_LOSSY };
        let is_recent = |taken: &&Taken| self.world.now - taken.until < CONNECT_TIME_LOSSY;
        let steps = self.schedule.iter().rev().take_while(is_recent);
        let latest = steps.map(|taken| since(taken.until, taken.step.kind())).max();
        since(self.world.now, StepKind::Talk).max(latest.unwrap_or_default())
    }

    /// Whether the model promises that packets of a node reach another.
    fn must_be_connected(&self, from: usize, to: usize) -> bool {
        let (a, b) = (&self.world.nodes[from], &self.world.nodes[to]);
        if a.engine.is_none() || b.engine.is_none() {
            return false;
        }
        let coordinated = a.control.connected
            && b.control.connected
            && self.world.reaches_coordinator(from)
            && self.world.reaches_coordinator(to);
        let relayed = self.world.relays.iter().any(|relay| {
            let reached = self.world.reaches(from, relay.host) && self.world.reaches(to, relay.host);
            relay.up && reached && (coordinated || self.share_channel(from, to, relay.id))
        });
        let blocked = a.blocked || b.blocked;
        relayed || (coordinated && !blocked && model::direct(&self.world.net, a.host, b.host) == Direct::Yes)
    }

    /// Whether two nodes have, and know that they have, channels at one relay.
    fn share_channel(&self, from: usize, to: usize, relay: RelayId) -> bool {
        let knows = |node: usize, peer: usize| {
            let (node, peer) = (&self.world.nodes[node], &self.world.nodes[peer]);
            node.relays.contains_key(&relay)
                && node.states.get(&peer.id).is_some_and(|state| state.relays.contains(&relay))
        };
        let bound = |node: usize| {
            let id = self.world.nodes[node].id;
            self.world.relays.iter().any(|known| known.id == relay && known.is_bound(id))
        };
        knows(from, to) && knows(to, from) && bound(from) && bound(to)
    }

    /// Pings every pair until it is answered.
    fn verify_connected(&mut self, after: StepKind, mut pairs: Vec<Expected>) -> Vec<Expected> {
        let start = self.world.now;
        let deadline = self.connect_deadline();
        while pairs.iter().any(|pair| pair.done.is_none()) && self.world.violation().is_none() {
            for pair in pairs.iter_mut().filter(|pair| pair.done.is_none()) {
                pair.pings.extend(self.world.ping(pair.from, pair.to));
            }
            self.world.run_for(PING_INTERVAL);
            for pair in pairs.iter_mut().filter(|pair| pair.done.is_none()) {
                if pair.pings.iter().any(|ping| self.world.ledger.is_answered(*ping)) {
                    pair.done = Some(self.world.now - start);
                } else if self.world.now >= deadline {
                    let why = self.explain(pair);
                    self.world.fail(format!("not connected in time after {after:?}: {why}"));
                }
            }
        }
        for pair in &pairs {
            let times: &mut Times = self.stats.connects.entry(after).or_default();
            pair.done.into_iter().for_each(|time| times.add(time));
        }
        let undisturbed =
            matches!(after, StepKind::Start | StepKind::Idle | StepKind::Work | StepKind::Misbehave);
        if undisturbed && self.topology.is_lossless() && !self.was_disturbed() {
            self.verify_none_lost(&pairs);
        }
        pairs
    }

    /// Whether something is or was lately wrong that may cost packets.
    fn was_disturbed(&self) -> bool {
        self.servers.contains(&super::Server::Down)
            || self.world.net.has_cuts()
            || self.schedule.iter().rev().any(|taken| match taken.step.kind() {
                StepKind::Idle
                | StepKind::Misbehave
                | StepKind::Talk
                | StepKind::Work
                | StepKind::MoveRange
                | StepKind::Start => false,
                StepKind::Flood
                | StepKind::Unplug
                | StepKind::Roam
                | StepKind::RebootNat
                | StepKind::RenumberNat
                | StepKind::Cut
                | StepKind::Heal
                | StepKind::KillServer
                | StepKind::StartServer
                | StepKind::Sleep
                | StepKind::Block
                | StepKind::Unblock
                | StepKind::Flap
                | StepKind::ClockJump
                | StepKind::Restart => self.world.now - taken.until < DISTURBED_TIME,
            })
    }

    /// Where nothing is lost on the way, nothing is lost at all.
    fn verify_none_lost(&mut self, pairs: &[Expected]) {
        self.world.run_for(Duration::from_secs(2));
        for pair in pairs {
            let lost = pair.pings.iter().filter(|ping| !self.world.ledger.is_answered(**ping)).count();
            if lost > 0 {
                let why = self.explain(pair);
                self.world.fail(format!("{lost} of {} first pings not answered: {why}", pair.pings.len()));
            }
        }
    }

    /// Keeps every pair talking until it is direct, if it can be; what cannot be must not claim it.
    fn verify_direct(&mut self, after: StepKind, pairs: &[Expected]) {
        let start = self.world.now;
        let wanted = |pair: &Expected| match pair.direct {
            Direct::Yes => Some(true),
            Direct::No => Some(false),
            Direct::Maybe => None,
        };
        let says = |direct| pairs.iter().filter(|pair| pair.direct == direct).count() as u64;
        self.stats.never_direct += says(Direct::No);
        self.stats.maybe_direct += says(Direct::Maybe);
        let mut open: Vec<_> = pairs.iter().filter(|pair| wanted(pair).is_some()).cloned().collect();
        while !open.is_empty() && self.world.violation().is_none() {
            for pair in &open {
                self.world.ping(pair.from, pair.to);
            }
            self.world.run_for(PING_INTERVAL);
            let elapsed = self.world.now - start;
            open.retain(|pair| {
                let sides =
                    [self.world.is_direct(pair.from, pair.to), self.world.is_direct(pair.to, pair.from)];
                let settled = sides.iter().all(|direct| Some(*direct) == wanted(pair));
                if settled && pair.direct == Direct::Yes {
                    self.stats.directs.entry(after).or_default().add(elapsed);
                }
                !settled
            });
            let late = open.iter().find(|pair| match pair.direct {
                Direct::Yes => elapsed > DIRECT_DEADLINE,
                Direct::No | Direct::Maybe => elapsed > NOT_DIRECT_DEADLINE,
            });
            if let Some(pair) = late.cloned() {
                let why = self.explain(&pair);
                self.world.fail(format!("directness is not as the model says after {after:?}: {why}"));
            }
        }
    }

    /// The largest packets come through, or their sender is told how large they may be and then they do.
    ///
    /// A path whose other end has moved to a narrower line is found out by checking it again.
    fn verify_large(&mut self, after: StepKind, pairs: &[Expected]) {
        let start = self.world.now;
        let mut open: Vec<_> = pairs.iter().filter(|pair| pair.done.is_some()).cloned().collect();
        let mut sizes: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        while !open.is_empty() && self.world.violation().is_none() {
            for pair in &mut open {
                let (from, to) = (pair.from, pair.to);
                let len = sizes.get(&(from, to)).copied().unwrap_or(MTU.into());
                let sending = Sending { from, to, len, role: Role::Ping, ends: Ends::Nodes };
                pair.pings = self.world.send(sending).into_iter().collect();
            }
            self.world.run_for(LARGE_INTERVAL);
            let elapsed = self.world.now - start;
            for pair in &open {
                let refused = pair.pings.iter().find_map(|ping| self.world.ledger.refused(*ping));
                if let Some(mtu) = refused {
                    let shown = self.world.peer(pair.from, pair.to).and_then(|peer| peer.path);
                    let bounds = 1280..MTU;
                    if !bounds.contains(&mtu) {
                        self.world.fail(format!("an MTU of {mtu} is told, {shown:?}"));
                    }
                }
                // A path may turn out to carry more than was told.
                let retried = refused.unwrap_or(MTU);
                sizes.insert((pair.from, pair.to), retried.into());
            }
            open.retain(|pair| !pair.pings.iter().any(|ping| self.world.ledger.is_answered(*ping)));
            if let Some(pair) = open.first().filter(|_| elapsed > LARGE_DEADLINE).cloned() {
                let why = self.explain(&pair);
                self.world.fail(format!("no large packet comes through after {after:?}: {why}"));
            }
        }
    }

    /// While nothing happens, nothing is lost and no path changes.
    fn verify_stable(&mut self, pairs: &[Expected]) {
        self.ping_all(pairs);
        let paths = |scenario: &Self| -> Vec<_> {
            let primary = |(from, to)| scenario.world.peer(from, to).and_then(|peer| peer.path);
            let key = |path: PathSnapshot| (path.address, path.since);
            let both = pairs.iter().flat_map(|pair| [(pair.from, pair.to), (pair.to, pair.from)]);
            both.map(|pair| (pair, primary(pair).map(key))).collect()
        };
        let before = paths(self);
        let pings = self.ping_all(pairs);
        let lost = pings.iter().filter(|ping| !self.world.ledger.is_answered(**ping)).count();
        if lost > 0 {
            self.world.fail(format!("{lost} of {} pings between stable pairs not answered", pings.len()));
        }
        let after = paths(self);
        // A pair that can be punched may be so at any time: that is for `punch.rs`.
        let is_punched = |(pair, path): &((usize, usize), Option<(PathAddress, _)>)| {
            let may_be = |known: &&Expected| {
                [(known.from, known.to), (known.to, known.from)].contains(pair)
                    && known.direct == Direct::Maybe
            };
            pairs.iter().any(|known| may_be(&known)) && path.is_some_and(|(address, _)| address.is_direct())
        };
        let mut changes = before.iter().zip(&after).filter(|(before, after)| before != after);
        let change = changes.find(|(_, after)| !is_punched(after));
        if let Some(((pair, before), (_, after))) = change {
            let known =
                pairs.iter().find(|known| [(known.from, known.to), (known.to, known.from)].contains(pair));
            let why = known.map_or_else(String::new, |known| self.explain(known));
            self.world
                .fail(format!("the path of a stable pair changed: {pair:?}, {before:?}, {after:?}\n{why}"));
        }
    }

    /// Has pairs talk for a while.
    fn ping_all(&mut self, pairs: &[Expected]) -> Vec<u64> {
        let mut pings = Vec::new();
        for _ in 0..STABLE_PINGS {
            pings.extend(pairs.iter().filter_map(|pair| self.world.ping(pair.from, pair.to)));
            self.world.run_for(STABLE_INTERVAL);
        }
        self.world.run_for(Duration::from_secs(2));
        pings
    }

    /// Says all that is known of a pair.
    fn explain(&self, pair: &Expected) -> String {
        let side = |node: usize, peer: usize| {
            let snapshot = self.world.peer(node, peer);
            snapshot.map_or_else(|| "not running".into(), |snapshot| {
                let (path, reason, drops) = (snapshot.path, snapshot.reason, snapshot.drops);
                let paths = snapshot.paths;
                let decisions: Vec<_> = snapshot.decisions.into_iter().rev().take(4).collect();
                format!("path {path:?} ({reason}), drops {drops:?},\n  paths {paths:?},\n  decisions {decisions:?}")
            })
        };
        let Expected { from, to, direct, .. } = pair;
        format!("{from} -> {to}, direct {direct:?}\n{from}: {}\n{to}: {}", side(*from, *to), side(*to, *from))
    }
}

/// Time for a pair to be connected after a step, where nothing is lost on the way.
fn connect_time(after: StepKind) -> Duration {
    Duration::from_secs(match after {
        StepKind::Start
        | StepKind::Talk
        | StepKind::Work
        | StepKind::Flood
        | StepKind::MoveRange
        | StepKind::Misbehave
        | StepKind::Idle
        | StepKind::Roam => 10,
        StepKind::Cut | StepKind::Heal => 15,
        // Nothing tells a node of this but its next bind of the relay, or a session that is not answered.
        StepKind::RebootNat
        | StepKind::RenumberNat
        | StepKind::KillServer
        | StepKind::StartServer
        | StepKind::Restart
        | StepKind::Sleep
        | StepKind::Block
        | StepKind::Unblock
        | StepKind::Flap
        | StepKind::ClockJump
        | StepKind::Unplug => 30,
    })
}
