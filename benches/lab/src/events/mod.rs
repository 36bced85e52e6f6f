//! Random events over the village, and a reference model that says what must be well after each.
//!
//! [`schedule`] draws [`Event`]s from a seed; [`Model`] is the state that they lead to: where everyone is, what the
//! routers there do, which servers run. After an event every pair that can talk by the model must answer, within the
//! event's budget times three; soon after it is on the path that the model says; no daemon has complained or ended. At
//! checkpoints nothing may have grown beyond the bounds of `leaks`, which know nothing of the number of events.
//!
//! Nobody helps: what is killed is started again, as a service manager does it, and that is all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use mesh_proto::status::{ConnectionState, PathKind, Status};

mod account;
mod act;
mod event;
mod leaks;
pub mod model;
mod pressure;
pub mod schedule;

pub use event::{Event, Kind};
pub use model::Model;
pub use schedule::{Course, Schedule};

use self::account::Times;
use self::leaks::Usage;
use self::model::{Life, Link};
use crate::mesh::{Before, Daemon, wait_until};
use crate::run::Lab;
use crate::traffic::{Echo, Flow};
use crate::village::Village;
use crate::village::roaming::RELAY_HOST;

/// Between the requests of a pair.
const INTERVAL: Duration = Duration::from_millis(200);
/// How far over its budget's 99th percentile an event may be.
const MARGIN: u32 = 3;
/// What has not come back by then does not come back by itself.
const STUCK: Duration = Duration::from_secs(45);
/// How often it is looked who has answered.
const ANSWER_POLL: Duration = Duration::from_millis(10);
/// How often agents are asked for their paths.
const PATH_POLL: Duration = Duration::from_millis(100);
/// Until the mesh is up and has measured everything.
const BEGIN: Duration = Duration::from_secs(60);
/// What is on its way to be given back is, within this time: attempts at hard pairs of NATs have hundreds of sockets for
/// most of a minute.
const RETURNED: Duration = Duration::from_secs(90);
/// What daemons say, as they should, while others die and networks change around them.
const EXPECTED: [&str; 1] = ["the coordinator is not reached"];

/// A pair, by its names.
type Pair = (String, String);

/// A village to which things happen.
#[derive(Debug)]
pub struct Run {
    /// Taken only while another one takes its place.
    echo: Option<Echo>,
    relay: Daemon,
    village: Village,
    model: Model,
    schedule: Schedule,
    seed: u64,
    history: Vec<String>,
    /// When every pair is to be on the path that the model says.
    settles: BTreeMap<Pair, Instant>,
    /// When every node is to be connected to the coordinator.
    reconciles: Instant,
    before: Before,
    beginning: Usage,
    /// How far logs have been read.
    read: BTreeMap<String, usize>,
    times: Times,
    late: Vec<String>,
}

impl Run {
    /// Brings the village up, with a relay that stands alone and traffic between all pairs, and looks at what it uses.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub fn start(lab: &Lab, seed: u64, course: Course) -> anyhow::Result<Self> {
        Self::start_between(lab, seed, course, |_, _| true)
    }

    /// As [`Run::start`], with traffic between those ordered pairs alone that `is_wanted` picks by their names; nothing is
    /// promised to others until [`Run::talk`].
    ///
    /// # Errors
    ///
    /// As [`Run::start`].
    pub fn start_between(
        lab: &Lab,
        seed: u64,
        course: Course,
        is_wanted: impl Fn(&str, &str) -> bool,
    ) -> anyhow::Result<Self> {
        let village = Village::prepare_roaming(lab)?;
        let before = village.before()?;
        village.mesh().start()?;
        let relay = village.start_relay(RELAY_HOST)?;
        let echo = Echo::start(&village, INTERVAL, is_wanted)?;
        echo.wait_all(Instant::now(), BEGIN)?;
        let model = Model::new(village.network().topology());
        let mut run = Self {
            echo: Some(echo),
            relay,
            model,
            schedule: Schedule::new(seed, course),
            seed,
            history: Vec::new(),
            settles: BTreeMap::new(),
            reconciles: Instant::now() + BEGIN,
            before,
            beginning: Usage::default(),
            read: BTreeMap::new(),
            times: Times::default(),
            late: Vec::new(),
            village,
        };
        run.settles = run.pairs_settle(Instant::now() + BEGIN);
        run.wait_settled()?;
        run.beginning = Usage::look(&run.village, &run.relay, &run.before)?;
        println!("at the beginning: {}", run.beginning.summary());
        Ok(run)
    }

    /// Lets the next event of the schedule happen, and waits until all is well.
    ///
    /// # Errors
    ///
    /// With the seed, the schedule so far, and all that the nodes say, if it does not become well.
    pub fn step(&mut self) -> anyhow::Result<()> {
        let event = self.schedule.draw(&self.model);
        self.happen(event)
    }

    /// Lets an event happen, and waits until all is well.
    ///
    /// # Errors
    ///
    /// As [`Run::step`].
    pub fn happen(&mut self, event: Event) -> anyhow::Result<()> {
        self.history.push(event.to_string());
        let number = self.history.len();
        print!("event {number}: {event}");
        let stalled = pressure::waited();
        let since = act::perform(&self.village, &self.relay, &event)?;
        self.model.apply(&event);
        self.expect(&event, since);
        let told = |run: &Self, pairs: &[Pair], error: anyhow::Error| error.context(run.account(pairs));

        let (took, slowest) = match self.wait_answers(since) {
            Ok(found) => found,
            Err((pairs, error)) => return Err(told(self, &pairs, error)),
        };
        let kind = self.model.kind(&event);
        let allowed = self.model.budget(&event) * MARGIN + pressure::waited().saturating_sub(stalled);
        self.times.note(kind, took);
        print!(": all answer after {} ms", took.as_millis());
        if took > self.model.budget(&event) {
            print!(" ({slowest} last)");
        }
        if took > allowed {
            let late =
                format!("event {number}, {event}: {slowest} answers after {took:?}, {allowed:?} are allowed");
            println!("\nLATE: {late}");
            self.late.push(late);
        }
        match self.wait_paths(since) {
            Ok(took) => println!(", on their paths after {} ms", took.as_millis()),
            Err((pairs, error)) => return Err(told(self, &pairs, error)),
        }
        self.check_daemons().map_err(|error| told(self, &[], error))
    }

    /// Lets all pairs talk, also those that never did, and waits until they answer.
    ///
    /// # Errors
    ///
    /// As [`Run::step`].
    pub fn talk(&mut self) -> anyhow::Result<Duration> {
        // The sockets of the former are closed first.
        drop(self.echo.take());
        let since = Instant::now();
        self.echo = Some(Echo::all(&self.village, INTERVAL)?);
        self.settles = self.pairs_settle(since + model::SETTLED);
        let told = |run: &Self, pairs: &[Pair], error: anyhow::Error| error.context(run.account(pairs));
        let (took, _) = self.wait_answers(since).map_err(|(pairs, error)| told(self, &pairs, error))?;
        self.wait_paths(since).map_err(|(pairs, error)| told(self, &pairs, error))?;
        Ok(took)
    }

    /// The village.
    pub fn village(&self) -> &Village {
        &self.village
    }

    /// Checks that nothing has grown, nothing is left behind, and nothing is gone that should be there.
    ///
    /// # Errors
    ///
    /// With what is beyond its bounds, as [`Run::step`].
    pub fn checkpoint(&self) -> anyhow::Result<()> {
        let mut summary = String::new();
        let checked = wait_until(RETURNED, "everything is given back", || {
            let usage = Usage::look(&self.village, &self.relay, &self.before)?;
            summary = usage.summary();
            let beyond = usage.beyond(&self.beginning);
            ensure!(beyond.is_empty(), "{}", beyond.join("\n"));
            Ok(true)
        });
        println!("after {} events: {summary}", self.history.len());
        checked.with_context(|| self.account(&[]))
    }

    /// Starts what is dead, waits until everyone is on its path and connected, stops everything, and looks at what is left.
    ///
    /// # Errors
    ///
    /// If it does not come to that, or if events took longer than they may.
    pub fn finish(mut self) -> anyhow::Result<()> {
        if self.model.coordinator() == Life::Down {
            self.happen(Event::StartCoordinator)?;
        }
        if self.model.relay() == Life::Down {
            self.happen(Event::StartRelay)?;
        }
        self.wait_settled()?;
        self.checkpoint()?;
        let Self { echo, relay, village, before, times, late, seed, history, .. } = self;
        drop(echo);
        village.stop()?;
        relay.stop()?;
        let mut left = village.leftovers(&before)?;
        // Nodes end elsewhere than they began.
        left.retain(|line| !line.contains("eth0"));
        println!("{} events of seed {seed}:\n{}", history.len(), times.table());
        ensure!(left.is_empty(), "left behind: {}", left.join("\n"));
        ensure!(late.is_empty(), "{} events took too long, seed {seed}:\n{}", late.len(), late.join("\n"));
        Ok(())
    }

    /// Waits until every pair is on its path and every node is connected, however long that may take by the model.
    ///
    /// # Errors
    ///
    /// As [`Run::step`].
    pub fn wait_settled(&self) -> anyhow::Result<()> {
        let now = Instant::now();
        let last = self.settles.values().copied().chain([self.reconciles]).max().unwrap_or(now);
        let patience = last.saturating_duration_since(now) + STUCK;
        let mut pairs = Vec::new();
        let settled = wait_until(patience, "everyone is on its path, and connected", || {
            let statuses = self.statuses()?;
            let wrong = self.wrong(&statuses);
            pairs = wrong.iter().map(|(pair, _)| pair.clone()).collect();
            let told: Vec<_> = wrong.into_iter().map(|(_, told)| told).chain(self.away(&statuses)).collect();
            ensure!(told.is_empty(), "{}", told.join("\n"));
            Ok(true)
        });
        settled.with_context(|| self.account(&pairs))
    }

    /// Notes by when all must be as the model says after an event.
    fn expect(&mut self, event: &Event, since: Instant) {
        for flow in self.flows() {
            let settles = since + self.model.settles(event, &flow.from, &flow.to);
            let settled = self.settles.entry((flow.from, flow.to)).or_insert(settles);
            *settled = settles.max(*settled);
        }
        self.reconciles = since + self.model.reconciles();
    }

    /// The same moment for all pairs with traffic.
    fn pairs_settle(&self, at: Instant) -> BTreeMap<Pair, Instant> {
        self.flows().into_iter().map(|flow| ((flow.from, flow.to), at)).collect()
    }

    fn flows(&self) -> Vec<Flow> {
        self.echo.as_ref().map(Echo::flows).unwrap_or_default()
    }

    /// Waits until every pair that can talk has an answer to a request that was sent after `since`; returns how long
    /// that took, and who was last.
    fn wait_answers(&self, since: Instant) -> Result<(Duration, String), (Vec<Pair>, anyhow::Error)> {
        let mut slowest = String::new();
        loop {
            let silent: Vec<Pair> = self
                .flows()
                .into_iter()
                .filter(|flow| self.model.link(&flow.from, &flow.to) != Link::None)
                .filter(|flow| !flow.has_answered_since(since))
                .map(|flow| (flow.from, flow.to))
                .collect();
            let names = silent.iter().map(|(from, to)| format!("{from} to {to}"));
            let Some(first) = names.clone().next() else { return Ok((since.elapsed(), slowest)) };
            slowest = first;
            if since.elapsed() > STUCK {
                let names = names.collect::<Vec<_>>().join(", ");
                return Err((silent, anyhow::anyhow!("no answer within {STUCK:?}: {names}")));
            }
            std::thread::sleep(ANSWER_POLL);
        }
    }

    /// Waits until every pair is on its path, but for those that have more time.
    fn wait_paths(&self, since: Instant) -> Result<Duration, (Vec<Pair>, anyhow::Error)> {
        loop {
            let statuses = self.statuses().map_err(|error| (Vec::new(), error))?;
            let now = Instant::now();
            let wrong = self.wrong(&statuses);
            let is_due = |pair: &Pair| self.settles.get(pair).is_none_or(|settles| *settles <= now);
            let (due, not_yet): (Vec<_>, Vec<_>) = wrong.into_iter().partition(|(pair, _)| is_due(pair));
            let mut told: Vec<String> = due.iter().map(|(_, told)| told.clone()).collect();
            if self.reconciles <= now {
                told.extend(self.away(&statuses));
            }
            if !told.is_empty() {
                let pairs = due.into_iter().map(|(pair, _)| pair).collect();
                return Err((
                    pairs,
                    anyhow::anyhow!("{:?} after the event:\n{}", since.elapsed(), told.join("\n")),
                ));
            }
            let has_time =
                |pair: &Pair| self.settles.get(pair).is_some_and(|settles| *settles > since + model::SETTLED);
            if not_yet.iter().all(|(pair, _)| has_time(pair)) {
                return Ok(since.elapsed());
            }
            std::thread::sleep(PATH_POLL);
        }
    }

    /// What every agent says, by name.
    fn statuses(&self) -> anyhow::Result<BTreeMap<&str, Status>> {
        self.village.nodes().map(|node| Ok((node.name(), node.peek()?))).collect()
    }

    /// Pairs that are not on the path that the model says, with what they are on.
    fn wrong(&self, statuses: &BTreeMap<&str, Status>) -> Vec<(Pair, String)> {
        let mut wrong = Vec::new();
        for (from, status) in statuses {
            for peer in &status.peers {
                let to = peer.name.as_str();
                let pair = ((*from).to_owned(), to.to_owned());
                if !self.settles.contains_key(&pair) {
                    continue;
                }
                let link = self.model.link(from, to);
                let is_right = match link {
                    Link::Must(wanted) => self.village.is_right(to, wanted, &peer.path),
                    Link::Either => matches!(peer.path.kind, PathKind::Direct | PathKind::Relay),
                    Link::None => true,
                };
                if !is_right {
                    let told = format!("{from} to {to} should be {link:?}: {:?}", peer.path);
                    wrong.push((pair, told));
                }
            }
        }
        wrong
    }

    /// Nodes that do not say of the coordinator what is so.
    fn away(&self, statuses: &BTreeMap<&str, Status>) -> Vec<String> {
        let wanted = self.model.coordinator() == Life::Up;
        let is_wrong =
            |status: &Status| (status.this.coordinator.state == ConnectionState::Connected) != wanted;
        let wrong = statuses.iter().filter(|(_, status)| is_wrong(status));
        wrong.map(|(name, status)| format!("{name} says {:?}", status.this.coordinator)).collect()
    }

    /// Fails if a daemon has complained, or has ended by itself.
    fn check_daemons(&mut self) -> anyhow::Result<()> {
        let mut found = Vec::new();
        for daemon in self.village.daemons().into_iter().chain([&self.relay]) {
            let read = self.read.entry(daemon.name().to_owned()).or_default();
            let complaints = daemon.complaints_since(read, &EXPECTED)?;
            found.extend(complaints.into_iter().map(|line| format!("{}: {line}", daemon.name())));
        }
        let lives =
            [(self.village.coordinator(), self.model.coordinator()), (&self.relay, self.model.relay())];
        let agents = self.village.nodes().map(|node| (node.agent(), Life::Up));
        for (daemon, life) in lives.into_iter().chain(agents) {
            if life == Life::Up && !daemon.is_running() {
                found.push(format!("{} has ended by itself", daemon.name()));
            }
        }
        if found.is_empty() { Ok(()) } else { bail!("{}", found.join("\n")) }
    }

    /// Everything that helps to find out why it is not well.
    fn account(&self, pairs: &[Pair]) -> String {
        let events: Vec<String> =
            (1..).zip(&self.history).map(|(number, event)| format!("{number}: {event}")).collect();
        format!(
            "{}\nthe last of {} events of seed {}:\n{}",
            account::tell(&self.village, &self.relay, pairs),
            events.len(),
            self.seed,
            events.join("\n")
        )
    }
}
