//! How long the NATs and filters of this network remember a mapping that is silent: measured, never assumed.
//!
//! As RFC 5780, section 4.6, has it, two sockets measure it: one that has a mapping and keeps silent, and another one that
//! asks an observer, when the silence is over, to answer at the first one's mapping (RESPONSE-PORT). If the answer comes,
//! the mapping is still there. That the port is the same after a silence would prove nothing: most NATs give it again.
//!
//! ```text
//! silent socket                     main socket              observer
//!   | -- STUN --------------------------------------------------> |   open
//!   | <------------------------------------------- seen at port P |
//!   |    2.5 s: from then on Linux takes it for a stream          |   settle
//!   | -- STUN --------------------------------------------------> |
//!   | <---------------------------------------------------------- |   again
//!   |                                | -- STUN, answer at P ----> |
//!   | <---------------------------------------------------------- |   check: does this work here at all?
//!   |    a rung of silence                                        |
//!   |                                | -- STUN, answer at P ----> |
//!   | <-- it has outlived the silence -------- or it does not come|   ask
//! ```
//!
//! Silences are those of [`RUNGS`]: from the one that is known, or from [`START`], up while they are outlived, else down.
//! One that is not outlived twice is too long. Each begins with a check, so that an observer that is away is not taken for
//! a mapping that is gone. It costs a socket, and some forty datagrams within a quarter of an hour; then there is rest
//! for a day.
//!
//! What is made of it is [`Lifetime::interval`]: how often something goes out where a mapping is to be kept. It grows while
//! it is measured, from [`ASSUMED`], and is the shorter the sooner the NAT forgets. A mapping that is gone all the
//! same, which a relay sees by its new port, begins it anew. Everything holds for the network in which it was measured:
//! the driver says what was known of another one ([`crate::command::Command::SetNatLifetime`]), or nothing is.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    time::{Duration, Instant},
};

use mesh_proto::stun::{Message, TransactionId};
use rand_core::RngCore;

use crate::{
    batch::{SocketId, Via},
    path::guess::is_public,
    snapshot::NatLifetime,
};

/// Silences that are tried: each somewhat shorter than what NATs are set to (30 s, 1 min, 2 min, 3 min, 5 min; RFC 4787,
/// REQ-5, wants two minutes at least and recommends five).
const RUNGS: [Duration; 6] = [
    Duration::from_secs(10),
    Duration::from_secs(25),
    Duration::from_secs(50),
    Duration::from_secs(100),
    Duration::from_secs(160),
    Duration::from_secs(270),
];
/// Where nothing is known, this rung comes first.
const START: usize = 1;
/// How often mappings are refreshed where nothing is known: below the 30 s after which common NATs forget them.
pub(crate) const ASSUMED: Duration = Duration::from_secs(20);
/// Of a silence that is outlived, so much is used: datagrams are lost, and timers are late.
const USED: (u32, u32) = (4, 5);
/// Measuring begins this long after a network has become known: whatever has to be found out there first is over.
const START_DELAY: Duration = Duration::from_secs(15);
/// After this long it is done again: a router may have been given other settings.
const DONE_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// The same where it could not be done.
const FAILED_PAUSE: Duration = Duration::from_secs(3600);
/// A mapping that has moved begins it anew at most this often: where a router has two lines, mappings always move.
const DOUBT_PAUSE: Duration = Duration::from_secs(600);
/// Pause between the first two exchanges: Linux' connection tracking, which most routers are, remembers what is older than
/// 2 s for longer (`nf_conntrack_udp_timeout_stream`).
const SETTLE: Duration = Duration::from_millis(2500);
/// A request is repeated after this long.
const RETRY: Duration = Duration::from_millis(500);
/// So many requests without an answer, and there is none.
const TRIES: usize = 4;
/// A silence that was not outlived so often is too long.
const MISSES: u32 = 2;

/// What is known of it, and how measuring goes on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lifetime {
    target: Option<SocketAddr>,
    known: NatLifetime,
    run: Option<Run>,
    next: Option<Instant>,
    doubted: Option<Instant>,
    changed: bool,
}

/// A silence that is being tried.
#[derive(Debug, Clone)]
struct Run {
    socket: SocketId,
    rung: usize,
    misses: u32,
    step: Step,
    transaction: TransactionId,
    sent: usize,
    next: Instant,
    port: Option<NonZeroU16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Open,
    Settle,
    Again,
    Check,
    Silent,
    Ask,
}

impl Lifetime {
    /// Returns what is known.
    pub(crate) fn known(&self) -> NatLifetime {
        self.known
    }

    /// Returns how often something is to go out where a mapping towards `remote` is to be kept.
    pub(crate) fn interval(&self, remote: IpAddr) -> Duration {
        // What is inside the network, and what is outside, do not lie behind the same NATs, nor the families.
        let kind = |ip: IpAddr| (is_public(ip), ip.is_ipv4());
        if self.target.is_none_or(|target| kind(target.ip()) != kind(remote)) {
            return ASSUMED;
        }
        let (part, whole) = USED;
        match (self.known.outlived, self.known.exceeded) {
            (Some(outlived), _) => outlived * part / whole,
            (None, Some(exceeded)) if exceeded <= RUNGS[START] => RUNGS[0] * part / whole,
            (None, Some(_) | None) => ASSUMED,
        }
    }

    /// This is whom to ask; nobody ends what is under way.
    pub(crate) fn set_target(&mut self, target: Option<SocketAddr>, now: Instant) {
        if std::mem::replace(&mut self.target, target) == target {
            return;
        }
        self.run = None;
        let soon = now + START_DELAY;
        self.next = target.map(|_| self.next.map_or(soon, |at| at.max(soon)));
    }

    /// This was known of the network in which this node is now.
    pub(crate) fn set_known(&mut self, known: NatLifetime, now: Instant) {
        self.changed |= self.known != known;
        self.known = known;
        self.doubted = None;
        self.begin_anew(now);
    }

    /// Time has gone by, or the network is another one: what is under way proves nothing.
    pub(crate) fn begin_anew(&mut self, now: Instant) {
        self.run = None;
        self.next = self.target.map(|_| now + START_DELAY);
    }

    /// A mapping that was to be kept has moved.
    pub(crate) fn doubt(&mut self, now: Instant) {
        if self.doubted.is_some_and(|at| now.saturating_duration_since(at) < DOUBT_PAUSE) {
            return;
        }
        self.doubted = Some(now);
        let outlived = self.known.outlived.filter(|outlived| *outlived < RUNGS[START]);
        self.changed |= self.known.outlived != outlived;
        self.known = NatLifetime { outlived, exceeded: None };
        self.begin_anew(now);
    }

    /// Whether something else is known than when this was asked the last time.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Returns a copy for another shard, which never measures.
    pub(crate) fn mirror(&self) -> Self {
        Self { run: None, next: None, changed: false, ..self.clone() }
    }

    /// Returns the socket that keeps silent.
    pub(crate) fn socket(&self) -> Option<SocketId> {
        self.run.as_ref().map(|run| run.socket)
    }

    /// Returns when [`Lifetime::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let begin = self.next.filter(|_| self.target.is_some());
        self.run.as_ref().map(|run| run.next).or(begin)
    }

    /// Returns what is to be sent now; `open` opens a socket.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        rng: &mut impl RngCore,
        open: impl FnOnce() -> SocketId,
    ) -> Option<(Via, Vec<u8>)> {
        let target = self.target?;
        if self.run.is_none() && self.next.is_some_and(|at| at <= now) {
            self.next = None;
            // Once in a while it is tried anew what was too long.
            self.known.exceeded = self.known.exceeded.filter(|_| self.known.outlived.is_none());
            let rung = RUNGS.iter().position(|rung| Some(*rung) == self.known.outlived).unwrap_or(START);
            tracing::debug!(silence = ?RUNGS[rung], "how long mappings live is being measured");
            self.run = Some(Run::new(open(), rung, now));
        }
        let run = self.run.as_mut().filter(|run| run.next <= now)?;
        match run.step {
            Step::Settle => run.set_step(Step::Again, now),
            Step::Silent => run.set_step(Step::Ask, now),
            Step::Open | Step::Again | Step::Check | Step::Ask => {}
        }
        if run.sent >= TRIES {
            match run.step {
                Step::Ask => self.handle_miss(now),
                Step::Open | Step::Settle | Step::Again | Step::Check | Step::Silent => self.give_up(now),
            }
            return None;
        }
        if run.sent == 0 {
            rng.fill_bytes(&mut run.transaction);
        }
        run.sent += 1;
        run.next = now + RETRY;
        let transaction = run.transaction;
        let asks_elsewhere = matches!(run.step, Step::Check | Step::Ask);
        match run.port.filter(|_| asks_elsewhere) {
            Some(port) => {
                let request = Message::BindingRequestFor { transaction, port }.encode();
                Some((Via::Udp { remote: target, local: None }, request))
            }
            None => {
                let request = Message::BindingRequest { transaction }.encode();
                Some((Via::Punched { socket: run.socket, remote: target }, request))
            }
        }
    }

    /// Takes a STUN response that came to a socket beside the main one; whether it was waited for.
    pub(crate) fn handle_answer(
        &mut self,
        at: SocketId,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> bool {
        let Some((run, mapped)) = self.awaited(from, datagram).filter(|(run, _)| run.socket == at) else {
            return false;
        };
        match run.step {
            Step::Open => {
                run.port = NonZeroU16::new(mapped.port());
                run.set_step(Step::Settle, now + SETTLE);
            }
            // It is given another port every time: nobody could say where to answer.
            Step::Again if run.port.map(NonZeroU16::get) != Some(mapped.port()) => self.give_up(now),
            Step::Again => run.set_step(Step::Check, now),
            Step::Check => run.set_step(Step::Silent, now + RUNGS[run.rung]),
            Step::Ask => self.handle_outlived(now),
            Step::Settle | Step::Silent => return false,
        }
        true
    }

    /// Takes a STUN response that came to the main socket; whether it was waited for elsewhere, and the observer cannot do
    /// what it was asked.
    pub(crate) fn handle_stray(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        let is_stray = |run: &Run| matches!(run.step, Step::Check | Step::Ask);
        let found = self.awaited(from, datagram).is_some_and(|(run, _)| is_stray(run));
        if found {
            self.run = None;
            self.next = Some(now + DONE_PAUSE);
        }
        found
    }

    fn awaited(&mut self, from: SocketAddr, datagram: &[u8]) -> Option<(&mut Run, SocketAddr)> {
        let Ok(Message::BindingSuccess { transaction, mapped }) = Message::decode(datagram) else {
            return None;
        };
        let is_from = self.target == Some(from);
        let run = self.run.as_mut()?;
        (is_from && run.sent > 0 && run.transaction == transaction).then_some((run, mapped))
    }

    fn handle_outlived(&mut self, now: Instant) {
        let Some(run) = &mut self.run else { return };
        let silence = RUNGS[run.rung];
        tracing::debug!(?silence, "a mapping has outlived a silence");
        self.changed |= self.known.outlived != Some(silence);
        self.known.outlived = Some(silence);
        self.known.exceeded = self.known.exceeded.filter(|exceeded| *exceeded > silence);
        match RUNGS.get(run.rung + 1) {
            Some(next) if self.known.exceeded != Some(*next) => {
                *run = Run::new(run.socket, run.rung + 1, now);
            }
            Some(_) | None => self.finish(now),
        }
    }

    fn handle_miss(&mut self, now: Instant) {
        let Some(run) = &mut self.run else { return };
        let silence = RUNGS[run.rung];
        tracing::debug!(?silence, misses = run.misses + 1, "a mapping has not outlived a silence");
        if run.misses + 1 < MISSES {
            *run = Run { misses: run.misses + 1, ..Run::new(run.socket, run.rung, now) };
            return;
        }
        self.changed = true;
        self.known.exceeded = Some(silence);
        self.known.outlived = self.known.outlived.filter(|outlived| *outlived < silence);
        match run.rung.checked_sub(1) {
            Some(shorter) if self.known.outlived.is_none() => *run = Run::new(run.socket, shorter, now),
            Some(_) | None => self.finish(now),
        }
    }

    fn finish(&mut self, now: Instant) {
        self.run = None;
        self.next = Some(now + DONE_PAUSE);
    }

    fn give_up(&mut self, now: Instant) {
        tracing::debug!("how long mappings live cannot be measured here");
        self.run = None;
        self.next = Some(now + FAILED_PAUSE);
    }
}

impl Run {
    fn new(socket: SocketId, rung: usize, now: Instant) -> Self {
        let transaction = TransactionId::default();
        Self { socket, rung, misses: 0, step: Step::Open, transaction, sent: 0, next: now, port: None }
    }

    fn set_step(&mut self, step: Step, at: Instant) {
        (self.step, self.sent, self.next) = (step, 0, at);
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A NAT that forgets after `lifetime`, and an observer behind it that loses every `lossy`th answer.
    struct Bench {
        lifetime: Lifetime,
        nat: Duration,
        lossy: Option<u32>,
        deaf: bool,
        rng: ChaCha8Rng,
        start: Instant,
        now: Instant,
        used: Option<Instant>,
        answers: u32,
        sent: u32,
    }

    fn observer() -> SocketAddr {
        "192.0.2.1:7443".parse().unwrap()
    }

    impl Bench {
        fn new(nat: u32) -> Self {
            let now = Instant::now();
            let mut lifetime = Lifetime::default();
            lifetime.set_target(Some(observer()), now);
            let rng = ChaCha8Rng::from_seed([7; 32]);
            let nat = SECOND * nat;
            Self {
                lifetime,
                nat,
                lossy: None,
                deaf: false,
                rng,
                start: now,
                now,
                used: None,
                answers: 0,
                sent: 0,
            }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while let Some(at) = self.lifetime.poll_timeout().filter(|at| *at <= end) {
                self.now = self.now.max(at);
                let sent = self.lifetime.handle_timeout(self.now, &mut self.rng, || SocketId(3));
                let Some((via, request)) = sent else { continue };
                self.sent += 1;
                self.now += SECOND / 50;
                let mapped = "203.0.113.5:4000".parse().unwrap();
                let message = Message::decode(&request).unwrap();
                let (transaction, is_asked) = match message {
                    Message::BindingRequest { transaction } => (transaction, false),
                    Message::BindingRequestFor { transaction, port } => {
                        assert_eq!((via, port.get()), (Via::Udp { remote: observer(), local: None }, 4000));
                        (transaction, true)
                    }
                    Message::BindingSuccess { .. } => panic!("a response"),
                };
                let is_alive = self.used.is_some_and(|used| self.now - used < self.nat);
                self.answers += 1;
                let is_lost = self.lossy.is_some_and(|each| self.answers.is_multiple_of(each));
                if !is_asked {
                    self.used = Some(self.now);
                }
                if is_lost || (is_asked && !is_alive && !self.deaf) {
                    continue;
                }
                let answer = Message::BindingSuccess { transaction, mapped }.encode();
                if is_asked && self.deaf {
                    assert!(self.lifetime.handle_stray(observer(), &answer, self.now));
                } else {
                    self.used = Some(self.now);
                    assert!(self.lifetime.handle_answer(SocketId(3), observer(), &answer, self.now));
                }
            }
            self.now = end;
        }

        fn interval(&self) -> u64 {
            self.lifetime.interval(observer().ip()).as_secs()
        }
    }

    #[test]
    fn the_interval_grows_to_what_the_nat_allows_and_never_beyond() {
        for (nat, interval) in
            [(5, 8), (12, 8), (30, 20), (60, 40), (120, 80), (180, 128), (300, 216), (900, 216)]
        {
            for lossy in [None, Some(3)] {
                let mut bench = Bench { lossy, ..Bench::new(nat) };
                while bench.now - bench.start < SECOND * 1800 {
                    bench.run(SECOND * 10);
                    assert!(
                        bench.interval() < u64::from(nat.max(21)),
                        "{nat} s: {} s is too long",
                        bench.interval()
                    );
                }
                assert_eq!(bench.interval(), interval, "{nat} s");
                assert!(bench.sent < 90, "{nat} s: {} requests", bench.sent);
                assert_eq!(bench.lifetime.socket(), None);
            }
        }
    }

    #[test]
    fn what_was_remembered_is_used_at_once_and_checked() {
        let mut bench = Bench::new(120);
        let exceeded = Some(SECOND * 270);
        bench.lifetime.set_known(NatLifetime { outlived: Some(SECOND * 160), exceeded }, bench.now);
        assert_eq!(bench.interval(), 128);
        bench.run(SECOND * 900);
        assert_eq!(bench.interval(), 80, "two home networks may look alike");
        bench.lifetime.set_known(NatLifetime::default(), bench.now);
        assert_eq!(bench.interval(), 20, "another network");
    }

    #[test]
    fn a_mapping_that_has_moved_is_measured_anew_but_not_for_ever() {
        let mut bench = Bench::new(300);
        bench.run(SECOND * 1800);
        assert_eq!(bench.interval(), 216);
        bench.nat = SECOND * 60;
        bench.lifetime.doubt(bench.now);
        assert_eq!(bench.interval(), 20);
        bench.run(SECOND * 500);
        assert_eq!(bench.interval(), 40);
        bench.lifetime.doubt(bench.now);
        assert_eq!(bench.interval(), 40, "just now");
    }

    #[test]
    fn an_observer_that_cannot_or_is_away_proves_nothing() {
        let mut deaf = Bench { deaf: true, ..Bench::new(120) };
        deaf.run(SECOND * 3600);
        assert_eq!((deaf.interval(), deaf.sent), (20, 3));
        let mut away = Bench { lossy: Some(1), ..Bench::new(120) };
        away.run(SECOND * 3500);
        assert_eq!((away.interval(), away.sent), (20, 4));
        assert_eq!(away.lifetime.known(), NatLifetime::default());
    }

    #[test]
    fn inside_and_outside_are_not_taken_for_each_other() {
        let mut bench = Bench::new(300);
        bench.run(SECOND * 1800);
        assert_eq!(bench.lifetime.interval("8.8.8.8".parse().unwrap()), SECOND * 216);
        assert_eq!(bench.lifetime.interval("192.168.1.5".parse().unwrap()), ASSUMED);
    }
}
