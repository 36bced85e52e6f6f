//! What names have led to, how long that holds, and where they led before.
//!
//! Every lookup is written down here, whoever asks; [`NameWatch`] asks again when an answer's time is over, and tells its
//! owner what is new. Bounds keep extremes in check: an answer without a time to live holds for [`MIN_TTL`], one for days
//! is asked for every [`MAX_TTL`]; while a name leads nowhere it is asked for ever more seldom, up to [`MAX_RETRY`].
//! Whoever cannot connect asks again at once, whatever the time.
//!
//! Where names led is kept on disk, so that a relay is found when no resolver answers. The latest answer is the first,
//! and a lie does not drive out what was there before: whom to believe is decided by keys, not here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use mesh_names::NameError;
use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::address::{Found, HostPort, ResolveError};
use crate::{
    identity::{StateDir, StateFile},
    netmap::Saver,
};

/// File of where names led.
const FILE: &str = "names.json";
/// It is written at most this often: names that change all the time are worth little.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);
/// Least time that an answer is taken to hold: who moves is found within twice that.
pub(super) const MIN_TTL: Duration = Duration::from_secs(5);
/// Most time that an answer is taken to hold: a question costs nothing, and names move before their time.
const MAX_TTL: Duration = Duration::from_secs(3600);
/// After the first question in vain.
const RETRY: Duration = Duration::from_secs(1);
/// Longest pause between questions in vain.
const MAX_RETRY: Duration = Duration::from_secs(60);
/// Doublings of [`RETRY`]: more than [`MAX_RETRY`] has room for.
const MAX_DOUBLINGS: u32 = 16;
/// Names that are remembered; what goes beyond is not.
const MAX_NAMES: usize = 64;
/// Addresses of a name that are remembered.
const MAX_BEFORE: usize = 4;

/// What all tasks know of names. Cheap to clone; the lock is held for moments.
#[derive(Debug, Clone, Default)]
pub(super) struct NameBook {
    names: Arc<Mutex<BTreeMap<HostPort, Entry>>>,
    saver: Option<Arc<Saver<Before>>>,
}

/// Where names led, the last place first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Before(BTreeMap<String, Vec<SocketAddr>>);

#[derive(Debug, Clone, Default)]
struct Entry {
    /// The last answer of this run.
    now: Vec<SocketAddr>,
    /// When to ask again; `None` for at once.
    due: Option<Instant>,
    /// Questions in vain since the last answer.
    failures: u32,
    before: Vec<SocketAddr>,
}

impl NameBook {
    /// Reads where names led, and starts the task that writes it.
    pub(super) fn load(dir: &StateDir, cancel: &CancellationToken, tracker: &TaskTracker) -> Self {
        let file = StateFile::<Before>::new(dir.clone(), FILE);
        let Before(before) = match file.load() {
            Ok(loaded) => loaded.map(|loaded| loaded.value).unwrap_or_default(),
            Err(error) => {
                warn!(%error, "where names led is not used");
                Before::default()
            }
        };
        let entries = before.into_iter().take(MAX_NAMES).filter_map(|(name, mut before)| {
            before.truncate(MAX_BEFORE);
            Some((name.parse().ok()?, Entry { before, ..Entry::default() }))
        });
        let saver = Saver::spawn(file, SAVE_INTERVAL, cancel, tracker);
        Self { names: Arc::new(Mutex::new(entries.collect())), saver: Some(Arc::new(saver)) }
    }

    /// Asks now what a name leads to, and writes it down.
    pub(super) async fn resolve(
        &self,
        name: &HostPort,
        mesh: &[IpNet],
    ) -> Result<Vec<SocketAddr>, ResolveError> {
        let found = name.resolve(mesh).await;
        if name.literal().is_none() {
            self.handle_answer(name, &found, Instant::now());
        }
        found.map(|found| found.addresses)
    }

    /// Returns where a name led, the last place first.
    pub(super) fn before(&self, name: &HostPort) -> Vec<SocketAddr> {
        self.lock().get(name).map(|entry| entry.before.clone()).unwrap_or_default()
    }

    /// Returns when to ask again for a name; `None` for at once.
    fn due(&self, name: &HostPort) -> Option<Instant> {
        self.lock().get(name).and_then(|entry| entry.due)
    }

    /// Waits until it is time to ask again for a name. Cancel-safe.
    pub(super) async fn until_due(&self, name: &HostPort) {
        if let Some(due) = self.due(name) {
            tokio::time::sleep_until(due).await;
        }
    }

    /// Everything is to be asked for again: the network is another one.
    pub(super) fn expire(&self) {
        self.lock().values_mut().for_each(|entry| (entry.due, entry.failures) = (None, 0));
    }

    fn now(&self, name: &HostPort) -> Vec<SocketAddr> {
        self.lock().get(name).map(|entry| entry.now.clone()).unwrap_or_default()
    }

    fn handle_answer(&self, name: &HostPort, answer: &Result<Found, ResolveError>, now: Instant) {
        let mut names = self.lock();
        if names.len() >= MAX_NAMES && !names.contains_key(name) {
            return;
        }
        let entry = names.entry(name.clone()).or_default();
        if entry.handle_answer(answer, now)
            && let Some(saver) = &self.saver
        {
            let before = names.iter().map(|(name, entry)| (name.to_string(), entry.before.clone()));
            saver.save(Arc::new(Before(before.collect())));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<HostPort, Entry>> {
        // It is whole after every statement.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Returns whether there is something to be written down.
    fn handle_answer(&mut self, answer: &Result<Found, ResolveError>, now: Instant) -> bool {
        match answer {
            Ok(found) => {
                self.failures = 0;
                self.due = Some(now + found.ttl.clamp(MIN_TTL, MAX_TTL));
                self.now.clone_from(&found.addresses);
                let older = self.before.iter().filter(|address| !found.addresses.contains(address));
                let before: Vec<_> = found.addresses.iter().chain(older).take(MAX_BEFORE).copied().collect();
                // The order of an answer says nothing.
                let is_news = before.iter().collect::<BTreeSet<_>>() != self.before.iter().collect();
                self.before = before;
                is_news
            }
            Err(error) => {
                let pause = match error {
                    ResolveError::Name(NameError::NotFound { ttl: Some(ttl) }) => {
                        (*ttl).clamp(MIN_TTL, MAX_RETRY)
                    }
                    ResolveError::Name(_) | ResolveError::NoAddress => {
                        RETRY.saturating_mul(1 << self.failures.min(MAX_DOUBLINGS)).min(MAX_RETRY)
                    }
                };
                self.failures = self.failures.saturating_add(1);
                self.due = Some(now + pause);
                false
            }
        }
    }
}

/// A name leads elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    pub(super) name: HostPort,
    pub(super) addresses: Vec<SocketAddr>,
}

/// Asks for names again when their time is over. Each question is a task, which ends with this: whatever is found is in
/// the book.
pub(super) struct NameWatch {
    book: NameBook,
    names: BTreeSet<HostPort>,
    mesh: Vec<IpNet>,
    /// What the owner knows.
    seen: BTreeMap<HostPort, Vec<SocketAddr>>,
    asking: JoinSet<HostPort>,
    under_way: BTreeSet<HostPort>,
}

impl NameWatch {
    pub(super) fn new(book: NameBook) -> Self {
        Self {
            book,
            names: BTreeSet::new(),
            mesh: Vec::new(),
            seen: BTreeMap::new(),
            asking: JoinSet::new(),
            under_way: BTreeSet::new(),
        }
    }

    /// Says which names are of interest, all of them, and which ranges they don't lead to.
    pub(super) fn set(&mut self, names: impl IntoIterator<Item = HostPort>, mesh: Vec<IpNet>) {
        self.names = names.into_iter().filter(|name| name.literal().is_none()).collect();
        self.mesh = mesh;
        self.seen.retain(|name, _| self.names.contains(name));
    }

    /// The owner knows everything that has been found so far.
    pub(super) fn mark_seen(&mut self) {
        let now = self.names.iter().map(|name| (name.clone(), sorted(self.book.now(name))));
        self.seen = now.collect();
    }

    /// Waits until a name leads elsewhere than was known. Cancel-safe.
    pub(super) async fn next(&mut self) -> News {
        loop {
            if let Some(news) = self.take_news() {
                return news;
            }
            let wakeup = self.start_due(Instant::now());
            tokio::select! {
                biased;
                Some(Ok(name)) = self.asking.join_next() => {
                    self.under_way.remove(&name);
                }
                () = at(wakeup) => {}
            }
        }
    }

    /// Asks for every name whose time is over, and returns when that of the next one will be.
    fn start_due(&mut self, now: Instant) -> Option<Instant> {
        let mut wakeup = None;
        for name in &self.names {
            if self.under_way.contains(name) {
                continue;
            }
            match self.book.due(name).filter(|due| *due > now) {
                Some(due) => wakeup = Some(wakeup.map_or(due, |at: Instant| at.min(due))),
                None => {
                    self.under_way.insert(name.clone());
                    self.asking.spawn(ask(self.book.clone(), name.clone(), self.mesh.clone()));
                }
            }
        }
        wakeup
    }

    /// Returns what is found already and is not known yet.
    pub(super) fn take_news(&mut self) -> Option<News> {
        for name in &self.names {
            let now = self.book.now(name);
            let known = self.seen.get(name);
            if !now.is_empty() && known.is_none_or(|known| *known != sorted(now.clone())) {
                self.seen.insert(name.clone(), sorted(now.clone()));
                debug!(%name, addresses = ?now, "a name leads elsewhere");
                return Some(News { name: name.clone(), addresses: now });
            }
        }
        None
    }
}

async fn ask(book: NameBook, name: HostPort, mesh: Vec<IpNet>) -> HostPort {
    if let Err(error) = book.resolve(&name, &mesh).await {
        debug!(%name, %error, "a name leads nowhere");
    }
    name
}

/// The order of an answer says nothing.
fn sorted(mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    addresses.sort_unstable();
    addresses
}

/// Waits for a time; for ever, if there is none. Cancel-safe.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
impl NameBook {
    /// A book that knows where a name led in an earlier run.
    pub(super) fn of_earlier(name: &HostPort, before: Vec<SocketAddr>) -> Self {
        let names = BTreeMap::from([(name.clone(), Entry { before, ..Entry::default() })]);
        Self { names: Arc::new(Mutex::new(names)), saver: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(addresses: &[&str], ttl: u64) -> Result<Found, ResolveError> {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Ok(Found { addresses, ttl: Duration::from_secs(ttl) })
    }

    fn not_found(ttl: Option<u64>) -> Result<Found, ResolveError> {
        Err(ResolveError::Name(NameError::NotFound { ttl: ttl.map(Duration::from_secs) }))
    }

    fn silent() -> Result<Found, ResolveError> {
        Err(ResolveError::Name(NameError::Silent))
    }

    fn name() -> HostPort {
        "pi.example.invalid:7443".parse().unwrap()
    }

    /// Returns after how many seconds is asked again.
    fn pause(book: &NameBook, answer: &Result<Found, ResolveError>) -> u64 {
        let now = Instant::now();
        book.handle_answer(&name(), answer, now);
        (book.due(&name()).unwrap() - now).as_secs()
    }

    #[test]
    fn an_answer_holds_for_its_time_within_bounds() {
        let book = NameBook::default();
        for (ttl, want) in [(0, 5), (1, 5), (60, 60), (3600, 3600), (7 * 86_400, 3600)] {
            assert_eq!(pause(&book, &found(&["192.0.2.1:7443"], ttl)), want, "{ttl}");
        }
        for (ttl, want) in [(Some(0), 5), (Some(30), 30), (Some(86_400), 60)] {
            assert_eq!(pause(&book, &not_found(ttl)), want, "{ttl:?}");
        }
    }

    #[test]
    fn questions_in_vain_become_rare_and_never_stop() {
        let book = NameBook::default();
        let pauses: Vec<_> = (0..9).map(|_| pause(&book, &silent())).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        // An outage of days.
        for _ in 0..10_000 {
            assert_eq!(pause(&book, &silent()), 60);
        }
        pause(&book, &found(&["192.0.2.1:7443"], 60));
        assert_eq!(pause(&book, &silent()), 1, "it is the first again");
        book.expire();
        assert_eq!(book.due(&name()), None, "another network");
    }

    #[test]
    fn what_was_before_outlives_an_answer_that_may_be_a_lie() {
        let book = NameBook::default();
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        pause(&book, &found(&["192.0.2.1:7443"], 60));
        pause(&book, &not_found(None));
        assert_eq!(book.before(&name()), [at("192.0.2.1:7443")]);
        pause(&book, &found(&["198.51.100.1:7443"], 0));
        assert_eq!(book.before(&name()), ["198.51.100.1:7443", "192.0.2.1:7443"].map(at));
        for host in 2..9 {
            pause(&book, &found(&[&format!("192.0.2.{host}:7443")], 60));
        }
        assert_eq!(book.before(&name()).len(), MAX_BEFORE);
    }

    #[tokio::test]
    async fn a_start_knows_where_names_led() {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::create(&parent.path().join("state")).unwrap();
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let book = NameBook::load(&dir, &cancel, &tracker);
        book.handle_answer(&name(), &found(&["192.0.2.1:7443"], 60), Instant::now());
        cancel.cancel();
        tracker.close();
        tracker.wait().await;
        let again = NameBook::load(&dir, &CancellationToken::new(), &TaskTracker::new());
        assert_eq!(again.before(&name()), ["192.0.2.1:7443".parse().unwrap()]);
        assert_eq!(again.due(&name()), None, "how long it holds is not known any more");
    }

    #[tokio::test]
    async fn every_owner_is_told_once_of_what_any_of_them_has_found() {
        let book = NameBook::default();
        let mut watches = [(); 2].map(|()| NameWatch::new(book.clone()));
        let literal: HostPort = "192.0.2.9:1".parse().unwrap();
        for watch in &mut watches {
            watch.set([name(), literal.clone()], Vec::new());
        }
        book.handle_answer(&name(), &found(&["192.0.2.1:1", "192.0.2.2:1"], 60), Instant::now());
        for watch in &mut watches {
            let news = watch.next().await;
            assert_eq!((news.name, news.addresses.len()), (name(), 2));
            assert_eq!(watch.take_news(), None);
        }
        book.handle_answer(&name(), &found(&["192.0.2.2:1", "192.0.2.1:1"], 60), Instant::now());
        assert_eq!(watches[0].take_news(), None, "the same in another order");
        book.handle_answer(&name(), &silent(), Instant::now());
        assert_eq!(watches[0].take_news(), None, "what is known holds");
        book.handle_answer(&name(), &found(&["192.0.2.3:1"], 60), Instant::now());
        watches[0].mark_seen();
        assert_eq!(watches[0].take_news(), None);
        assert!(watches[1].take_news().is_some());
    }
}
