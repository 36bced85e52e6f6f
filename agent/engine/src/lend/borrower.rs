//! When this node asks others to relay for it, and whom.
//!
//! It does while a peer with traffic has no direct path, or while no other relay is up; and keeps what it got for
//! [`LINGER`] after that. Of the nodes that lend themselves the first [`MAX_LENDERS`] by number are asked, so that both
//! sides of a pair come upon the same ones. A lender must be reached directly: it is looked for, then asked, then bound as
//! any relay is. If it moves, the channel follows it; if it falls silent, it is looked for again.
//!
//! A plan is a pure decision over what is there; the engine carries it out.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_proto::{disco::TxId, lend::Lent, netmap::NodeId};

/// Lenders that are used at once: one that dies is replaced by one that is there, and Binds to more cost more.
pub(crate) const MAX_LENDERS: usize = 4;
/// Channels are kept this long after they were needed last: longer than a peer's pauses.
const LINGER: Duration = Duration::from_secs(120);
/// Without any other relay for this long, lenders are needed: longer than it takes to reach one at the start.
const ALONE_GRACE: Duration = Duration::from_secs(3);
/// While a lender is looked for or asked, it is looked how far that is this often.
const REVIEW_INTERVAL: Duration = Duration::from_secs(1);
/// A lender that does not answer is asked again after this, so often, and then after a pause: it may not lend any more.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
const MAX_ASKS: u32 = 3;
const ASK_PAUSE: Duration = Duration::from_secs(30);
/// A lender to which no direct path is found is looked for again after this.
const HUNT_PAUSE: Duration = Duration::from_secs(60);

/// What was done about each lender.
#[derive(Debug, Default)]
pub(crate) struct Borrower {
    asked: BTreeMap<NodeId, Asked>,
    wanted_until: Option<Instant>,
    /// Since when no other relay is up.
    alone_since: Option<Instant>,
    next: Option<Instant>,
}

/// Whether lenders are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// There are other relays, and nobody needs one.
    None,
    /// A peer with traffic has no direct path.
    Relayed,
    /// No other relay is up.
    Alone,
}

#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    /// The last question, when it was asked, and how often in a row.
    question: Option<(TxId, Instant)>,
    times: u32,
    /// When the lender was last looked for.
    hunted: Option<Instant>,
}

/// A lender, as a plan sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    pub(crate) id: NodeId,
    /// Where it answers directly now, if it does.
    pub(crate) direct: Option<SocketAddr>,
    /// The channel at it, if there is one.
    pub(crate) channel: Option<ChannelView>,
}

/// A channel at a lender.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChannelView {
    /// Where it is, or is to be, bound.
    pub(crate) address: Option<SocketAddr>,
    pub(crate) up: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Look for a direct path to it.
    Hunt(NodeId),
    /// Ask it there.
    Ask(NodeId, SocketAddr),
    /// It is there now: bind its channel there.
    Follow(NodeId, SocketAddr),
    /// Its channel is not needed any more.
    Return(NodeId),
}

impl Borrower {
    /// Decides what to do.
    pub(crate) fn plan(&mut self, lenders: &[View], need: Need, now: Instant) -> Vec<Step> {
        self.asked.retain(|id, _| lenders.iter().any(|lender| lender.id == *id));
        let alone_at = match need {
            Need::None | Need::Relayed => {
                self.alone_since = None;
                None
            }
            Need::Alone => Some(*self.alone_since.get_or_insert(now) + ALONE_GRACE),
        };
        if need == Need::Relayed || alone_at.is_some_and(|at| at <= now) {
            self.wanted_until = Some(now + LINGER);
        }
        let Some(until) = self.wanted_until.filter(|until| *until > now && !lenders.is_empty()) else {
            self.wanted_until = None;
            self.next = alone_at.filter(|_| !lenders.is_empty());
            self.asked.clear();
            let held = lenders.iter().filter(|lender| lender.channel.is_some());
            return held.map(|lender| Step::Return(lender.id)).collect();
        };
        self.next = Some(until);
        lenders.iter().filter_map(|lender| self.step(lender, now)).collect()
    }

    /// Notes a question that is being asked.
    pub(crate) fn on_asked(&mut self, lender: NodeId, id: TxId, now: Instant) {
        let asked = self.asked.entry(lender).or_default();
        asked.question = Some((id, now));
        asked.times = asked.times.saturating_add(1);
    }

    /// Takes an answer; whether this node has asked for it.
    pub(crate) fn on_lent(&mut self, lender: NodeId, lent: &Lent) -> bool {
        let Some(asked) = self.asked.get_mut(&lender) else { return false };
        let is_it = asked.question.is_some_and(|(id, _)| id == lent.id);
        if is_it {
            asked.question = asked.question.map(|(_, at)| (TxId::default(), at));
            asked.times = 0;
        }
        is_it
    }

    /// Returns when to plan again.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    fn step(&mut self, lender: &View, now: Instant) -> Option<Step> {
        let asked = self.asked.entry(lender.id).or_default();
        let rested =
            |at: Option<Instant>, pause| at.is_none_or(|at| now.saturating_duration_since(at) >= pause);
        match (lender.channel, lender.direct) {
            (Some(channel), Some(direct)) if channel.address != Some(direct) => {
                Some(Step::Follow(lender.id, direct))
            }
            (Some(ChannelView { up: true, .. }), _) => None,
            (_, direct) => {
                self.next = Some(now + REVIEW_INTERVAL);
                match direct {
                    Some(direct) => {
                        let pause = if asked.times < MAX_ASKS { ASK_INTERVAL } else { ASK_PAUSE };
                        let at = asked.question.map(|(_, at)| at);
                        rested(at, pause).then_some(Step::Ask(lender.id, direct))
                    }
                    None if rested(asked.hunted, HUNT_PAUSE) => {
                        asked.hunted = Some(now);
                        Some(Step::Hunt(lender.id))
                    }
                    None => None,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::relay::ChannelId;

    use super::*;

    const LENDER: NodeId = NodeId(5);

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn view(direct: Option<u16>, channel: Option<(u16, bool)>) -> [View; 1] {
        let channel = channel.map(|(port, up)| ChannelView { address: Some(at(port)), up });
        [View { id: LENDER, direct: direct.map(at), channel }]
    }

    #[test]
    fn a_lender_is_looked_for_asked_bound_followed_and_given_back() {
        let (mut borrower, mut now) = (Borrower::default(), Instant::now());
        assert_eq!(borrower.plan(&view(None, None), Need::None, now), []);
        assert_eq!(borrower.poll_timeout(), None, "nothing is needed");
        assert_eq!(borrower.plan(&view(None, None), Need::Relayed, now), [Step::Hunt(LENDER)]);
        now += REVIEW_INTERVAL;
        assert_eq!(borrower.plan(&view(None, None), Need::Relayed, now), [], "it is being looked for");
        assert_eq!(borrower.plan(&view(Some(1), None), Need::Relayed, now), [Step::Ask(LENDER, at(1))]);
        borrower.on_asked(LENDER, [3; 12], now);
        assert_eq!(borrower.plan(&view(Some(1), None), Need::Relayed, now), []);
        let lent = |id| Lent { id, channel: ChannelId(1), key: [0; 32] };
        assert!(!borrower.on_lent(LENDER, &lent([4; 12])), "not what was asked");
        assert!(borrower.on_lent(LENDER, &lent([3; 12])));
        assert!(!borrower.on_lent(LENDER, &lent([3; 12])), "once");
        assert_eq!(borrower.plan(&view(Some(1), Some((1, true))), Need::Relayed, now), []);
        assert_eq!(borrower.poll_timeout(), Some(now + LINGER), "it looks after itself");
        assert_eq!(
            borrower.plan(&view(Some(2), Some((1, true))), Need::Relayed, now),
            [Step::Follow(LENDER, at(2))]
        );
        now += LINGER;
        assert_eq!(borrower.plan(&view(None, Some((2, true))), Need::None, now), [Step::Return(LENDER)]);
        assert_eq!(borrower.poll_timeout(), None);
    }

    #[test]
    fn without_any_relay_lenders_are_needed_a_little_later() {
        let (mut borrower, now) = (Borrower::default(), Instant::now());
        assert_eq!(borrower.plan(&view(None, None), Need::Alone, now), []);
        let at = borrower.poll_timeout().unwrap();
        assert_eq!(at, now + ALONE_GRACE);
        assert_eq!(borrower.plan(&view(None, None), Need::Alone, at), [Step::Hunt(LENDER)]);
    }

    #[test]
    fn a_lender_that_says_nothing_is_not_pestered() {
        let (mut borrower, mut now) = (Borrower::default(), Instant::now());
        let mut asked = 0;
        for _ in 0..120 {
            for step in borrower.plan(&view(Some(1), None), Need::Relayed, now) {
                assert_eq!(step, Step::Ask(LENDER, at(1)));
                borrower.on_asked(LENDER, [1; 12], now);
                asked += 1;
            }
            now += REVIEW_INTERVAL;
        }
        assert!((5..=8).contains(&asked), "{asked}");
    }
}
