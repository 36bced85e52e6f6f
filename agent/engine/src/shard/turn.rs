//! Whose turn it is to punch: of all the shards of a node, one engine at a time.
//!
//! ```text
//! shard                                   home shard
//!   | wants it (again and again) ------------> |  notes it; the holder learns that somebody waits
//!   |                                  holder: idle for a second, and somebody waits: gives it back
//!   | <------------ gives it, with a number    |
//! ```
//!
//! A shard keeps the turn until it is idle and another one wants it. Since it may be at it with several peers, of whom
//! one begins before the other ends, it begins nothing more while another one waits and it has had the turn for long. A
//! turn has a number, so that old news of it is told from new. No timer is needed: who waits looks again several times a
//! second, and asks again each time.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{HOME, Shard};

/// How long a shard keeps a turn that it does not use: longer than a peer waits before it looks again.
const KEPT_UNUSED: Duration = Duration::from_secs(1);
/// How long a shard begins further attempts while another one waits: those that it begins last take about twice as long.
const MAX_BEGINNING: Duration = Duration::from_secs(5);

/// What a shard knows of the turn, and the home shard decides.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Who has it, if that is known here.
    holder: Option<u32>,
    number: u64,
    since: Option<Instant>,
    wanted: bool,
    /// Whether another shard waits for it, as the home shard has told: at the others only.
    is_awaited: bool,
    /// Who waits for it: at the home shard only.
    waiting: BTreeSet<u32>,
}

/// What the home shard tells of the turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TurnNews {
    holder: Option<u32>,
    number: u64,
    is_awaited: bool,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            holder: Some(HOME),
            number: 0,
            since: None,
            wanted: false,
            is_awaited: false,
            waiting: BTreeSet::new(),
        }
    }
}

impl Turn {
    /// Whether this shard may begin an attempt now. If not, it wants to.
    pub(crate) fn take(&mut self, shard: Shard, now: Instant) -> bool {
        let is_awaited = self.is_awaited || !self.waiting.is_empty();
        let is_old = self.has_been_held_for(MAX_BEGINNING, now);
        let may_begin = self.holder == Some(shard.index()) && !(is_awaited && is_old);
        self.wanted |= !may_begin;
        may_begin
    }

    /// Whether this shard has wanted the turn since this was asked the last time.
    pub(crate) fn take_wish(&mut self) -> bool {
        std::mem::take(&mut self.wanted)
    }

    /// At the home shard: another shard, or this one, wants the turn. `busy` says whether this one is at it.
    pub(crate) fn on_wish(&mut self, from: u32, busy: bool, now: Instant) {
        if self.holder != Some(from) {
            self.waiting.insert(from);
        }
        if self.holder == Some(HOME) && self.is_idle(busy, now) {
            self.pass(now);
        }
    }

    /// At the home shard: the holder does not need its turn.
    pub(crate) fn on_given_back(&mut self, number: u64, now: Instant) {
        if number == self.number {
            self.pass(now);
        }
    }

    /// At the home shard: returns what the others are to know.
    pub(crate) fn news(&self) -> TurnNews {
        TurnNews { holder: self.holder, number: self.number, is_awaited: !self.waiting.is_empty() }
    }

    /// At another shard: takes what the home shard tells. Returns the number of the turn that is given back.
    pub(crate) fn follow(&mut self, news: TurnNews, shard: Shard, busy: bool, now: Instant) -> Option<u64> {
        if news.number > self.number {
            (self.holder, self.number, self.since) = (news.holder, news.number, Some(now));
        }
        if news.number >= self.number {
            self.is_awaited = news.is_awaited;
        }
        if self.holder == Some(shard.index()) && news.is_awaited && self.is_idle(busy, now) {
            self.holder = None;
            return Some(self.number);
        }
        None
    }

    fn is_idle(&self, busy: bool, now: Instant) -> bool {
        !busy && self.has_been_held_for(KEPT_UNUSED, now)
    }

    fn has_been_held_for(&self, time: Duration, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) >= time)
    }

    /// Gives the turn to the next that waits, in a circle.
    fn pass(&mut self, now: Instant) {
        let after = self.holder.map_or(0, |holder| holder + 1);
        let next = self.waiting.range(after..).next().or(self.waiting.first()).copied();
        if let Some(next) = next {
            self.waiting.remove(&next);
            (self.holder, self.since) = (Some(next), Some(now));
            self.number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn one_shard_has_the_turn_and_each_that_waits_gets_it() {
        let start = Instant::now();
        let shards: Vec<_> = Shard::all(NonZeroU32::new(3).unwrap()).collect();
        let mut turns: Vec<_> = shards.iter().map(|_| Turn::default()).collect();
        let mut had = BTreeSet::new();
        let mut old = turns[0].news();
        for step in 0..40 {
            let now = start + Duration::from_millis(300 * step);
            let holders: Vec<_> = turns
                .iter_mut()
                .zip(&shards)
                .filter_map(|(turn, shard)| turn.take(*shard, now).then_some(shard))
                .collect();
            assert!(holders.len() <= 1, "{holders:?}");
            had.extend(holders.iter().map(|shard| shard.index()));
            for (index, shard) in shards.iter().enumerate() {
                if turns[index].take_wish() {
                    turns[0].on_wish(shard.index(), false, now);
                }
            }
            let news = turns[0].news();
            for index in [1, 2] {
                // Old news, too: it may come late.
                for news in [old, news] {
                    if let Some(number) = turns[index].follow(news, shards[index], false, now) {
                        turns[0].on_given_back(number, now);
                    }
                }
            }
            old = news;
        }
        assert_eq!(had, BTreeSet::from([0, 1, 2]));
    }

    #[test]
    fn who_is_at_it_keeps_the_turn() {
        let start = Instant::now();
        let mut turn = Turn::default();
        assert!(turn.take(Shard::ONLY, start));
        turn.on_wish(1, true, start);
        assert_eq!(turn.news().holder, Some(HOME));
        turn.on_wish(1, false, start);
        assert!(!turn.take(Shard::ONLY, start));
    }

    #[test]
    fn who_has_had_it_for_long_begins_nothing_more_while_another_waits() {
        let start = Instant::now();
        let other = Shard::all(NonZeroU32::new(2).unwrap()).nth(1).unwrap();
        let mut turns = [Turn::default(), Turn::default()];
        turns[0].on_wish(other.index(), false, start);
        assert_eq!(turns[1].follow(turns[0].news(), other, false, start), None);
        let later = start + MAX_BEGINNING;
        assert!(turns[1].take(other, later), "nobody waits");
        turns[0].on_wish(HOME, false, later);
        assert_eq!(turns[1].follow(turns[0].news(), other, true, later), None);
        assert!(!turns[1].take(other, later));
        let number = turns[1].follow(turns[0].news(), other, false, later).expect("it is given back");
        turns[0].on_given_back(number, later);
        // The other one waits again; there is time to begin all the same.
        turns[0].on_wish(other.index(), true, later);
        assert!(turns[0].take(Shard::ONLY, later) && turns[0].take(Shard::ONLY, later + KEPT_UNUSED));
        assert!(!turns[0].take(Shard::ONLY, later + MAX_BEGINNING));
    }
}
