//! News of the host's networks, in bursts: the first is told at once, what follows is gathered.
//!
//! A change of network is a burst of news (link, addresses, routes) that takes its time. Whoever waits for its end reacts
//! late; whoever reacts to each of them reacts to nothing else. So the first one is passed on at once, with all that
//! has come with it, and while the burst lasts what follows is gathered until it has calmed down:
//!
//! ```text
//! news      |  | ||   |                        |
//! told      |            |                     |
//!           at once      after QUIET, or LONGEST while it goes on
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
            self.pace.handle_news(Instant::now());
            match news {
                News::Lost(index) => {
                    self.gathered.lost.insert(index);
                }
                News::Other => {}
            }
        }
    }
}

impl Pace {
    fn handle_news(&mut self, now: Instant) {
        let since = self.gathering.map_or(now, |(since, _)| since);
        self.gathering = Some((since, now));
    }

    fn handle_told(&mut self, now: Instant) {
        *self = Self { gathering: None, told_at: Some(now) };
    }

    /// Returns when to tell what is gathered, if there is something.
    fn due(&self) -> Option<Instant> {
        let (since, last) = self.gathering?;
        let in_burst = self.told_at.is_some_and(|told| since.duration_since(told) < LONGEST);
        Some(if in_burst { (last + QUIET).min(since + LONGEST) } else { since })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    /// For news that come at these milliseconds: when how many are told.
    fn told(times: &[u64]) -> Vec<(u64, usize)> {
        let start = Instant::now();
        let mut news = times.iter().map(|at| start + Duration::from_millis(*at)).peekable();
        let (mut pace, mut gathered, mut told) = (Pace::default(), 0, Vec::new());
        loop {
            match (pace.due(), news.peek().copied()) {
                (None, None) => return told,
                (Some(due), next) if next.is_none_or(|next| next > due) => {
                    pace.handle_told(due);
                    let at = u64::try_from((due - start).as_millis()).unwrap();
                    told.push((at, std::mem::take(&mut gathered)));
                }
                (_, next) => {
                    pace.handle_news(next.unwrap());
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
    fn a_burst_without_an_end_is_told_now_and_then() {
        let always: Vec<_> = (0..50).map(|number| number * 40).collect();
        let told = told(&always);
        assert!((7..=10).contains(&told.len()), "{told:?}");
        assert_eq!(told.iter().map(|(_, count)| count).sum::<usize>(), 50);
    }

    #[tokio::test]
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
