//! News of the host's networks, in bursts: the first is told at once, what follows is gathered.
//!
//! A change of network is a burst of news (link, addresses, routes) that takes its time. Whoever waits for its end reacts
//! late; whoever reacts to each of them reacts to nothing else. So the first one is passed on at once, with all that
//! has come with it, and while the burst lasts what follows is gathered until it has calmed down. That there is a new way
//! out does not wait: it comes last, after link and address, and from then on everything can be said anew.
//!
//! ```text
//! news      |  | ||   |        |  | w          |
//! told      |            |        | |          |
//!           at once      |        at once      at once: the burst is over
//!                        after QUIET, or LONGEST while it goes on
//! ```

use std::{collections::BTreeSet, pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt as _};
use tokio::time::{Instant, timeout_at};

/// What follows is told when nothing has come for this long: longer than a DHCP client takes from one step to the next
/// within the kernel, and short against the half second in which a peer must be reached again.
const QUIET: Duration = Duration::from_millis(50);
/// What follows is told after this long even if it goes on; and a burst is over when so long nothing was told.
const LONGEST: Duration = Duration::from_millis(250);

/// What news were about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Indexes of interfaces that lost their carrier, an address, or themselves: even if all looks the same after
    /// the burst, the network behind them may be another.
    pub lost: BTreeSet<u32>,
}

/// One piece of news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// An interface lost its carrier, an address, or itself.
    Lost(u32),
    /// There is a new default route.
    WayOut,
    /// Something else changed.
    Other,
}

/// Tells of news in bursts.
pub(super) struct Bursts {
    news: Pin<Box<dyn Stream<Item = News> + Send>>,
    /// What has not been told yet.
    gathered: Changes,
    pace: Pace,
}

/// When to tell. Pure.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    /// When the first and the last of what has not been told yet have come.
    gathering: Option<(Instant, Instant)>,
    told_at: Option<Instant>,
    /// When the first new way out came that has not been told yet.
    way_out: Option<Instant>,
    way_out_told_at: Option<Instant>,
}

impl Bursts {
    pub(super) fn new(news: impl Stream<Item = News> + Send + 'static) -> Self {
        Self { news: Box::pin(news), gathered: Changes::default(), pace: Pace::default() }
    }

    /// Waits for news; `None` when there will be none. Cancel-safe: what is gathered is told the next time.
    pub(super) async fn next(&mut self) -> Option<Changes> {
        loop {
            let news = match self.pace.due() {
                None => self.news.next().await?,
                // What is there already belongs to it.
                Some(due) => match timeout_at(due, self.news.next()).await {
                    Ok(news) => news?,
                    Err(_) => {
                        self.pace.handle_told(Instant::now());
                        return Some(std::mem::take(&mut self.gathered));
                    }
                },
            };
            self.pace.handle_news(news, Instant::now());
            match news {
                News::Lost(index) => {
                    self.gathered.lost.insert(index);
                }
                News::WayOut | News::Other => {}
            }
        }
    }
}

impl Pace {
    fn handle_news(&mut self, news: News, now: Instant) {
        let since = self.gathering.map_or(now, |(since, _)| since);
        self.gathering = Some((since, now));
        match news {
            News::WayOut => self.way_out = self.way_out.or(Some(now)),
            News::Lost(_) | News::Other => {}
        }
    }

    fn handle_told(&mut self, now: Instant) {
        let way_out_told_at = self.way_out.map(|_| now).or(self.way_out_told_at);
        *self = Self { gathering: None, told_at: Some(now), way_out: None, way_out_told_at };
    }

    /// Returns when to tell what is gathered, if there is something.
    fn due(&self) -> Option<Instant> {
        let (since, last) = self.gathering?;
        let in_burst = self.told_at.is_some_and(|told| since.duration_since(told) < LONGEST);
        if !in_burst {
            return Some(since);
        }
        let calm = (last + QUIET).min(since + LONGEST);
        // Who sets a route again and again is told of as of all else.
        let rested = |at: &Instant| self.way_out_told_at.is_none_or(|told| at.duration_since(told) >= QUIET);
        Some(self.way_out.filter(rested).map_or(calm, |at| at.min(calm)))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    /// For news that come at these milliseconds: when how many are told.
    fn told(times: &[u64]) -> Vec<(u64, usize)> {
        told_of(&times.iter().map(|at| (*at, News::Other)).collect::<Vec<_>>())
    }

    fn told_of(news: &[(u64, News)]) -> Vec<(u64, usize)> {
        let start = Instant::now();
        let mut news = news.iter().map(|(at, news)| (start + Duration::from_millis(*at), *news)).peekable();
        let (mut pace, mut gathered, mut told) = (Pace::default(), 0, Vec::new());
        loop {
            match (pace.due(), news.peek().copied()) {
                (None, None) => return told,
                (Some(due), next) if next.is_none_or(|(next, _)| next > due) => {
                    pace.handle_told(due);
                    let at = u64::try_from((due - start).as_millis()).unwrap();
                    told.push((at, std::mem::take(&mut gathered)));
                }
                (_, next) => {
                    let (at, of) = next.unwrap();
                    pace.handle_news(of, at);
                    news.next();
                    gathered += 1;
                }
            }
        }
    }

    #[test]
    fn the_first_is_told_at_once_and_what_follows_in_one_piece() {
        assert_eq!(told(&[100, 110, 130, 170]), [(100, 1), (220, 3)]);
    }

    #[test]
    fn what_comes_together_is_told_together() {
        assert_eq!(told(&[100, 100, 100]), [(100, 3)]);
    }

    #[test]
    fn the_next_burst_is_told_at_once_again() {
        assert_eq!(told(&[0, 10, 1000]), [(0, 1), (60, 1), (1000, 1)]);
    }

    #[test]
    fn a_new_way_out_is_told_at_once_but_not_again_and_again() {
        use News::{Lost, Other, WayOut};
        let roamed = [(100, Lost(2)), (110, Other), (120, Other), (125, WayOut), (126, Other), (130, WayOut)];
        assert_eq!(told_of(&roamed), [(100, 1), (125, 3), (180, 2)]);
    }

    #[test]
    fn a_burst_without_an_end_is_told_now_and_then() {
        let always: Vec<_> = (0..50).map(|number| number * 40).collect();
        let told = told(&always);
        assert!((7..=10).contains(&told.len()), "{told:?}");
        assert_eq!(told.iter().map(|(_, count)| count).sum::<usize>(), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_lost_when_nobody_waits() {
        let news = stream::iter([News::Lost(1), News::Lost(2)]).chain(stream::once(async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            News::Lost(3)
        }));
        let mut bursts = Bursts::new(news.chain(stream::pending()));
        assert_eq!(bursts.next().await.unwrap().lost, [1, 2].into());
        let early = tokio::time::timeout(Duration::from_millis(20), bursts.next()).await;
        assert!(early.is_err(), "it is gathered still");
        assert_eq!(bursts.next().await.unwrap().lost, [3].into());
    }
}
