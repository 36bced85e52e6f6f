//! What peers carry for each other, so that nodes that have moved find each other again (the messages, and why they may be
//! believed: [`mesh_proto::pass`]).
//!
//! ```text
//! traffic, and no way to the peer answers ------> this node's whereabouts, sealed for the peer
//! this node's network changed                        |
//!                                                    v  up to three peers that answer, others each time
//!                                                 PassOn ...... the peer, told by a carrier, answers the same way;
//!                                                               then both probe each other as after a CallMeMaybe
//! ```
//!
//! Who answers is asked first: the carrier that brought something of the peer's before all, then others in a turn that
//! both sides compute alike, so that they come upon the same ones, and pairs upon different ones. Who is idle is looked
//! for when there is no relay that could lead to the peer: who answered last, or the next in turn. What is to be carried
//! is kept for a moment and handed to whoever is found.
//!
//! Only a node with traffic of its own begins, and looks for others. One that was only called, or is only looked for,
//! answers once for each message that it gets: so all of it ends with the traffic, whoever reaches whom by then.
//!
//! A carrier does nothing of its own: for each message that it takes it sends one, where it knows its receiver, or where
//! the receiver last passed something on from. It looks for nobody and remembers one path.
//!
//! Everything is bounded: what a node asks for, by [`ASK_RATE`], however many peers it looks for; what it carries, by
//! [`CARRY_RATE`] for each peer and [`TOTAL_RATE`] for all. Behind that, tries come further and further apart.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_proto::netmap::NodeId;

use crate::{
    event::PathAddress,
    rate::{Allowance, Rate},
};

/// Peers that are asked to carry one message.
pub(crate) const COPIES: usize = 3;
/// Idle peers that are looked for at a time where no relay may lead to the peer.
pub(crate) const SOUGHT: usize = 2;
/// A message is kept so long for a carrier that is being looked for: a hunt's first probes.
const KEPT: Duration = Duration::from_secs(3);
/// Most messages that are kept.
const MAX_KEPT: usize = 32;
/// With a relay that may lead to the peer, one is looked for after so many tries: the peer is most likely just off.
pub(crate) const SEEK_AFTER: usize = 3;
/// Waits between tries. The first carriers are often only being looked for when they are wanted.
const WAITS: [Duration; 8] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(32),
    Duration::from_secs(60),
];
/// An answer is sent at most this often.
const ANSWER_INTERVAL: Duration = Duration::from_secs(1);
/// Where something was passed on from is a way back for this long: below the 30 s after which common NATs close it.
const WAY_BACK: Duration = Duration::from_secs(25);
/// What this node asks for: three copies for each of ten peers at once, then one such in a second.
const ASK_RATE: Rate = Rate { per_second: 3.0, burst: 30.0 };
/// What it carries for one peer, which may have lost all its ways at once.
const CARRY_RATE: Rate = Rate { per_second: 2.0, burst: 30.0 };
/// What it carries for all: 20 nodes that all moved.
const TOTAL_RATE: Rate = Rate { per_second: 40.0, burst: 600.0 };
/// Most messages that wait to be seen to, between two inputs.
const MAX_WISHES: usize = 64;

/// What this node carries and has carried.
#[derive(Debug)]
pub(crate) struct Passing {
    /// Real time when the engine was made, in milliseconds.
    base: u64,
    born: Instant,
    wishes: VecDeque<Wish>,
    /// What is kept for a carrier that is being looked for.
    kept: VecDeque<(Instant, Ask)>,
    asking: Allowance,
    carrying: Allowance,
}

/// Something that concerns two peers.
#[derive(Debug, Clone)]
pub(crate) enum Wish {
    /// Peers shall carry this.
    Ask(Ask),
    /// A peer wants this carried.
    Carry { from: NodeId, observed: Option<SocketAddr>, to: NodeId, sealed: Vec<u8> },
    /// A peer has brought this.
    Open { by: NodeId, observed: Option<SocketAddr>, sealed: Vec<u8> },
}

/// What peers are asked to carry.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) to: NodeId,
    pub(crate) sealed: Vec<u8>,
    /// How often the same was asked before.
    pub(crate) round: usize,
    /// How many are asked.
    pub(crate) copies: usize,
    /// How many that are idle are looked for.
    pub(crate) sought: usize,
    /// The peer that brought something from there last.
    pub(crate) by: Option<NodeId>,
}

/// What a peer has to do with it: as one that is looked for, and as one that carries.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// The greatest number that came from it.
    pub(crate) newest: u64,
    /// The last number that was sent to it, or that it says it has seen.
    sent: u64,
    due: Option<Instant>,
    round: usize,
    last: Option<Instant>,
    /// Who brought something from it last.
    pub(crate) by: Option<NodeId>,
    /// What it may still have carried.
    allowance: Allowance,
    /// Where it last passed something on from.
    way_back: Option<(PathAddress, Instant)>,
}

impl Passing {
    /// Starts with what the driver's clock says.
    pub(crate) fn new(base: u64, born: Instant) -> Self {
        Self {
            base,
            born,
            wishes: VecDeque::new(),
            kept: VecDeque::new(),
            asking: Allowance::default(),
            carrying: Allowance::default(),
        }
    }

    /// Notes something that concerns two peers; whether there was room.
    pub(crate) fn push(&mut self, wish: Wish) -> bool {
        let has_room = self.wishes.len() < MAX_WISHES;
        if has_room {
            self.wishes.push_back(wish);
        }
        has_room
    }

    /// Takes the oldest.
    pub(crate) fn take(&mut self) -> Option<Wish> {
        self.wishes.pop_front()
    }

    /// Whether one more message may be handed to a carrier.
    pub(crate) fn may_ask(&mut self, now: Instant) -> bool {
        self.asking.take(1.0, ASK_RATE, now)
    }

    /// Keeps a message for a carrier that is being looked for.
    pub(crate) fn keep(&mut self, ask: Ask, now: Instant) {
        self.kept.retain(|(at, kept)| kept.to != ask.to && now.saturating_duration_since(*at) < KEPT);
        if self.kept.len() < MAX_KEPT {
            self.kept.push_back((now, ask));
        }
    }

    /// A peer that was looked for answers: it is asked to carry what is kept. Returns whether there is anything.
    pub(crate) fn on_found(&mut self, carrier: NodeId, now: Instant) -> bool {
        let is_fresh = |at: &Instant| now.saturating_duration_since(*at) < KEPT;
        let kept = self.kept.drain(..).filter(|(at, _)| is_fresh(at));
        let asks: Vec<_> = kept.map(|(_, ask)| Ask { sought: 0, by: Some(carrier), ..ask }).collect();
        let has_any = !asks.is_empty();
        for ask in asks {
            self.push(Wish::Ask(ask));
        }
        has_any
    }

    fn clock(&self, now: Instant) -> u64 {
        let since = u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX);
        self.base.saturating_add(since)
    }
}

impl Passed {
    /// Returns the number of what is sent to the peer now.
    pub(crate) fn next_number(&mut self, passing: &Passing, now: Instant) -> u64 {
        self.sent = passing.clock(now).max(self.sent.saturating_add(1));
        self.sent
    }

    /// The peer says which number it has seen: a node whose clock went back goes on from there. It concerns what is sent
    /// to this peer alone, so one that lies makes nobody deaf but itself.
    pub(crate) fn on_seen(&mut self, number: u64) {
        self.sent = self.sent.max(number);
    }

    /// Takes the number of something that came; whether it is new.
    pub(crate) fn admit(&mut self, number: u64) -> bool {
        let is_new = number > self.newest;
        self.newest = self.newest.max(number);
        is_new
    }

    /// Something is to be passed on, unless the peer is reached by then.
    pub(crate) fn plan(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// There is news to tell: tries are close together again.
    pub(crate) fn begin_anew(&mut self) {
        self.round = 0;
    }

    /// The peer's message is to be answered, unless one was just sent.
    pub(crate) fn plan_answer(&mut self, now: Instant) {
        let at = self.last.map_or(now, |last| (last + ANSWER_INTERVAL).max(now));
        self.plan(at);
    }

    /// Nothing is to be passed on any more.
    pub(crate) fn stop(&mut self) {
        (self.due, self.round) = (None, 0);
    }

    /// Takes a try that is due; how many there were before.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<usize> {
        self.due.filter(|due| *due <= now)?;
        let round = self.round;
        self.due = Some(now + WAITS[round.min(WAITS.len() - 1)]);
        self.round = round.saturating_add(1);
        self.last = Some(now);
        Some(round)
    }

    /// Returns when a try is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// The peer has passed something on, or has brought something, from there.
    pub(crate) fn note_way_back(&mut self, from: PathAddress, now: Instant) {
        self.way_back = Some((from, now));
    }

    /// Returns where it was, if that is not long ago.
    pub(crate) fn way_back(&self, now: Instant) -> Option<PathAddress> {
        let (path, at) = self.way_back?;
        (now.saturating_duration_since(at) < WAY_BACK).then_some(path)
    }

    /// Whether something of the peer's may be carried.
    pub(crate) fn may_carry(&mut self, passing: &mut Passing, now: Instant) -> bool {
        self.allowance.take(1.0, CARRY_RATE, now) && passing.carrying.take(1.0, TOTAL_RATE, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing() -> (Passing, Instant) {
        let now = Instant::now();
        (Passing::new(1_000, now), now)
    }

    #[test]
    fn numbers_grow_with_time_over_restarts_and_when_the_clock_was_put_back() {
        let (passing, now) = passing();
        let (mut sender, mut receiver) = (Passed::default(), Passed::default());
        for number in [1_000, 1_001, 1_002] {
            assert_eq!(sender.next_number(&passing, now), number);
            assert!(receiver.admit(number) && !receiver.admit(number), "once");
        }
        let later = now + Duration::from_secs(5);
        assert_eq!(sender.next_number(&passing, later), 6_000);
        assert!(receiver.admit(6_000) && !receiver.admit(1_002), "a recording");
        let (earlier, mut again) = (Passing::new(10, now), Passed::default());
        assert!(!receiver.admit(again.next_number(&earlier, now)));
        again.on_seen(receiver.newest);
        assert!(receiver.admit(again.next_number(&earlier, now)), "it was told");
    }

    #[test]
    fn tries_come_further_apart_and_begin_anew_with_news() {
        let (_, start) = passing();
        let (mut passed, mut now, mut tries) = (Passed::default(), start, Vec::new());
        passed.plan(now);
        while now < start + Duration::from_secs(300) {
            now = passed.poll_timeout().expect("planned");
            tries.push((now - start).as_millis());
            assert!(passed.take_due(now).is_some() && passed.take_due(now).is_none());
        }
        assert_eq!(tries[..6], [0, 500, 1_500, 3_500, 7_500, 15_500]);
        assert_eq!(tries.len(), 12);
        passed.begin_anew();
        assert_eq!(passed.take_due(passed.poll_timeout().expect("planned")), Some(0));
        passed.stop();
        assert_eq!(passed.poll_timeout(), None);
    }

    #[test]
    fn one_peer_cannot_have_more_carried_than_its_share() {
        let (mut passing, now) = passing();
        let mut greedy = Passed::default();
        let carried = (0..1_000).filter(|_| greedy.may_carry(&mut passing, now)).count();
        assert_eq!(carried, 30);
        assert!(Passed::default().may_carry(&mut passing, now), "others are not kept from theirs");
        let later = now + Duration::from_secs(10);
        assert_eq!((0..1_000).filter(|_| greedy.may_carry(&mut passing, later)).count(), 20);
    }

    #[test]
    fn what_is_kept_goes_to_who_is_found_in_time() {
        let (mut passing, now) = passing();
        let ask = |to| Ask { to: NodeId(to), sealed: vec![], round: 0, copies: COPIES, sought: 1, by: None };
        (0..100).for_each(|to| passing.keep(ask(to % 5), now));
        assert!(passing.on_found(NodeId(9), now + Duration::from_secs(1)));
        let taken: Vec<_> = std::iter::from_fn(|| passing.take()).collect();
        assert_eq!(taken.len(), 5, "one for each peer");
        let is_for_it = |wish: &Wish| matches!(wish, Wish::Ask(Ask { by: Some(NodeId(9)), sought: 0, .. }));
        assert!(taken.iter().all(is_for_it));
        passing.keep(ask(1), now);
        assert!(!passing.on_found(NodeId(9), now + KEPT), "too late");
    }
}
