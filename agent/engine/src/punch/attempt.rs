//! One attempt: what has been seen and agreed, and what is sent when.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use mesh_proto::{
    disco::TxId,
    punch::Punch,
    stun::{Message, TransactionId},
};

use super::{
    PunchLimits,
    plan::{PREDICTED_PORTS, Plan, Ports, Sockets, Spread},
    predict,
};
use crate::{batch::SocketId, event::PathAddress};

/// Mappings that are made to see how their ports are chosen.
pub(crate) const OBSERVED_MAPPINGS: usize = 4;
/// How long their answers are waited for: most round trips are shorter, and slower ones do without prediction.
const OBSERVE_TIME: Duration = Duration::from_millis(400);
/// An offer is repeated after this long.
const OFFER_INTERVAL: Duration = Duration::from_millis(500);
/// So many offers without an answer, and the peer does not know them.
const MAX_OFFERS: u32 = 4;
/// Probes are sent in bursts at this interval: few wakeups, and no router's queue fills.
const TICK: Duration = Duration::from_millis(40);
/// Predicted ports are tried for this long: several times each.
const PREDICTED_TIME: Duration = Duration::from_millis(700);
/// The last probes' answers are waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// The other side may have to share its rate with attempts that begin later, and take so much longer.
const SHARING: f64 = 1.5;
/// What was not sent for longer than this, since nobody woke the engine, is not made up for in one burst.
const MAX_CREDIT: Duration = Duration::from_millis(100);
/// No attempt takes longer, whatever the peer says of its rate.
const MAX_TIME: Duration = Duration::from_secs(60);
/// The first socket that is hit has this long to become a path before another may.
const WINNER_TIME: Duration = Duration::from_millis(1000);
/// After an answer from a probed port, no more are probed for this long: it is to become a path.
const HIT_PAUSE: Duration = Duration::from_millis(600);
/// Ports that NATs hand out.
const FIRST_PORT: u16 = 1024;
/// How many there are.
const PORTS: u32 = 65_536 - FIRST_PORT as u32;
/// Prime factors of [`PORTS`]: a stride that has none of them visits every port.
const PORTS_FACTORS: [u32; 3] = [2, 3, 7];

/// An attempt with one peer.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Transaction id of all its Pings.
    pub(crate) id: TxId,
    pub(crate) stage: Stage,
    pub(crate) sockets: Vec<SocketId>,
    /// The socket that was hit first, and when.
    winner: Option<(SocketId, Instant)>,
}

/// How far it has come.
#[derive(Debug)]
pub(crate) enum Stage {
    /// An observer is asked by which ports new mappings leave.
    Observing(Observing),
    /// The peer is asked to take part.
    Offered {
        own: Punch,
        offers: u32,
        next: Instant,
    },
    Running(Run),
}

/// Mappings whose ports are being observed.
#[derive(Debug)]
pub(crate) struct Observing {
    asked: Vec<(SocketId, TransactionId, Option<u16>)>,
    observer: SocketAddr,
    until: Instant,
    /// The offer of the peer's that is to be answered then.
    pub(crate) offer: Option<Punch>,
}

/// What is sent, and how far that has come.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) plan: Plan,
    next: Instant,
    ends: Instant,
    /// Probes that may be sent, and when that was worked out.
    credit: (f64, Option<Instant>),
    budget: u32,
    sockets: u16,
    sent: u32,
    spread: u32,
    probed: u32,
    /// Where random ports begin, and how far each is from the one before.
    walk: (u32, u32),
    paused: Option<Instant>,
}

/// What is to be sent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shot {
    /// From the socket with this number of the attempt's.
    Socket(usize, SocketAddr),
    /// From the main socket.
    Main(SocketAddr),
}

impl Attempt {
    /// Begins an attempt whose own side is known.
    pub(crate) fn new(id: TxId, stage: Stage) -> Self {
        Self { id, stage, sockets: Vec::new(), winner: None }
    }

    /// Returns when something is due.
    pub(crate) fn poll_timeout(&self) -> Instant {
        match &self.stage {
            Stage::Observing(observing) => observing.until,
            Stage::Offered { next, .. } => *next,
            Stage::Running(run) => run.next,
        }
    }

    /// Whether a Ping that came to a socket of this attempt's is to be answered: the first that is hit, unless it has
    /// not become a path in time.
    pub(crate) fn admits(&mut self, from: PathAddress, now: Instant) -> bool {
        let PathAddress::Punched { socket, .. } = from else { return true };
        if !self.sockets.contains(&socket) {
            return true;
        }
        match self.winner {
            Some((winner, at)) if winner != socket && now.saturating_duration_since(at) < WINNER_TIME => {
                false
            }
            Some((winner, _)) if winner == socket => true,
            Some(_) | None => {
                self.winner = Some((socket, now));
                true
            }
        }
    }
}

impl Stage {
    pub(crate) fn offered(own: Punch, offers: u32, now: Instant) -> Self {
        Self::Offered { own, offers, next: now + OFFER_INTERVAL }
    }

    /// Whether offers were repeated often enough.
    pub(crate) fn is_given_up(offers: u32) -> bool {
        offers >= MAX_OFFERS
    }
}

impl Observing {
    pub(crate) fn new(observer: SocketAddr, offer: Option<Punch>, now: Instant) -> Self {
        Self { asked: Vec::new(), observer, until: now + OBSERVE_TIME, offer }
    }

    /// Makes the request for a mapping that a socket is to open.
    pub(crate) fn ask(&mut self, socket: SocketId, transaction: TransactionId) -> (SocketAddr, Vec<u8>) {
        self.asked.push((socket, transaction, None));
        (self.observer, Message::BindingRequest { transaction }.encode())
    }

    /// Takes an observer's answer; whether it was asked for.
    pub(crate) fn handle_answer(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> bool {
        let Ok(Message::BindingSuccess { transaction, mapped }) = Message::decode(datagram) else {
            return false;
        };
        let asked = self.asked.iter_mut().find(|(of, id, _)| (*of, *id) == (socket, transaction));
        let Some((.., port)) = asked.filter(|_| from == self.observer) else { return false };
        *port = Some(mapped.port());
        if self.asked.iter().all(|(.., port)| port.is_some()) {
            self.until = now;
        }
        true
    }

    /// Returns how this side's ports go on, if that was seen.
    pub(crate) fn sequence(&self) -> Option<mesh_proto::punch::Sequence> {
        let ports: Option<Vec<u16>> = self.asked.iter().map(|(.., port)| *port).collect();
        predict::recognise(&ports?)
    }
}

impl Run {
    /// Begins to send; `draw` gives random numbers. `limits` has this attempt's share of the rate.
    pub(crate) fn new(
        plan: Plan,
        limits: &PunchLimits,
        peer: &Punch,
        draw: impl FnMut() -> u32,
        now: Instant,
    ) -> Self {
        let most =
            |rate: u16, budget: u16| Duration::from_secs_f64(f64::from(budget) / f64::from(rate.max(1)));
        // Who does not know which side is which does both halves.
        let halves: u16 = if plan.spread.is_some() && plan.ports.is_some() { 2 } else { 1 };
        let time = if plan.is_predicted() {
            PREDICTED_TIME
        } else {
            let slower = most(limits.rate, limits.budget / halves).max(most(peer.rate, peer.budget / halves));
            slower.mul_f64(SHARING) + LAST_ANSWERS
        };
        Self {
            plan,
            next: now,
            ends: now + time.min(MAX_TIME),
            credit: (0.0, None),
            budget: u32::from(limits.budget / halves),
            sockets: limits.sockets,
            sent: 0,
            spread: 0,
            probed: 0,
            walk: walk(draw),
            paused: None,
        }
    }

    /// Returns how many sockets are wanted.
    pub(crate) fn sockets(&self) -> u16 {
        match self.plan.spread {
            None => 0,
            Some(Spread { sockets: Sockets::Birthday, .. }) => self.sockets,
            Some(Spread { sockets: Sockets::Predicted, .. }) => PREDICTED_PORTS.min(self.sockets),
        }
    }

    /// Whether it has probes to send still.
    pub(crate) fn is_sending(&self) -> bool {
        let has_spread = self.plan.spread.is_some() && self.spread < u32::from(self.sockets());
        self.plan.is_predicted() || (self.sent < self.budget && (has_spread || self.plan.ports.is_some()))
    }

    /// Whether its time is over.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now >= self.ends
    }

    /// Something answered: it is given the time to become a path.
    pub(crate) fn pause(&mut self, now: Instant) {
        self.paused = Some(now + HIT_PAUSE);
    }

    /// Returns what is to be sent now, as far as budget and `rate`, this attempt's share in probes per second, allow.
    /// `take` is told how many that are, and returns how many of them all attempts together leave to this one.
    pub(crate) fn poll_shots(&mut self, now: Instant, rate: u16, take: impl FnOnce(u32) -> u32) -> Vec<Shot> {
        self.next = (now + TICK).min(self.ends);
        let (credit, since) = self.credit;
        let elapsed = since.map_or(TICK, |since| now.saturating_duration_since(since).min(MAX_CREDIT));
        if self.paused.is_some_and(|until| now < until) {
            // What was not sent meanwhile is not made up for.
            self.credit = (0.0, Some(now));
            return Vec::new();
        }
        let most = MAX_CREDIT.as_secs_f64() * f64::from(rate);
        let credit = (credit + elapsed.as_secs_f64() * f64::from(rate)).min(most);
        let wanted = (credit as u32).min(self.budget.saturating_sub(self.sent));
        let due = if self.is_sending() { take(wanted) } else { 0 };
        self.credit = (credit - f64::from(due), Some(now));
        let shots: Vec<_> = (0..due).map_while(|_| self.next_shot()).collect();
        if !self.is_sending() {
            if self.plan.spread.is_none() {
                // The peer's sockets have been open all the time.
                self.ends = self.ends.min(now + LAST_ANSWERS);
            }
            self.next = self.ends;
        }
        shots
    }

    fn next_shot(&mut self) -> Option<Shot> {
        let again = self.plan.is_predicted();
        let sockets = u32::from(self.sockets());
        let spread = self.plan.spread.filter(|_| again || self.spread < sockets);
        // Where both are to be done they take turns.
        let shot = match (spread, self.plan.ports) {
            (Some(spread), ports) if ports.is_none() || self.spread <= self.probed => {
                self.spread += 1;
                Shot::Socket(((self.spread - 1) % sockets.max(1)) as usize, spread.to)
            }
            (_, Some(ports)) => {
                self.probed += 1;
                Shot::Main(self.target(ports, self.probed - 1))
            }
            (_, None) => return None,
        };
        self.sent += 1;
        Some(shot)
    }

    fn target(&self, ports: Ports, count: u32) -> SocketAddr {
        let (ip, port): (IpAddr, u16) = match ports {
            Ports::Random(ip) => {
                let (start, stride) = self.walk;
                let offset = (u64::from(start) + u64::from(count) * u64::from(stride)) % u64::from(PORTS);
                (ip, FIRST_PORT + u16::try_from(offset).expect("an offset below the number of ports"))
            }
            Ports::Predicted(ip, sequence) => {
                let count = count % u32::from(PREDICTED_PORTS);
                let count = u16::try_from(count).expect("fewer than the predicted ports");
                // There is no port 0: a NAT that counts past it goes on to the next.
                let port = Some(sequence.port(count)).filter(|port| *port != 0);
                (ip, port.unwrap_or_else(|| sequence.port(count + 1)))
            }
        };
        SocketAddr::new(ip, port)
    }
}

/// Draws a walk that visits every port once.
fn walk(mut draw: impl FnMut() -> u32) -> (u32, u32) {
    let start = draw() % PORTS;
    let stride =
        (0..).map(|_| draw() % PORTS).find(|stride| PORTS_FACTORS.iter().all(|factor| stride % factor != 0));
    (start, stride.unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mesh_proto::{
        punch::{PunchStage, Sequence},
        status::Mapping,
    };

    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 2));

    fn peer() -> Punch {
        let mapped = SocketAddr::new(PEER, 7);
        Punch {
            stage: PunchStage::Offer,
            id: [0; 12],
            mapping: Mapping::Eim,
            mapped,
            sequence: None,
            rate: 500,
            budget: 4096,
        }
    }

    fn run(plan: Plan, limits: PunchLimits, now: Instant) -> Run {
        let mut seed = 12_345_u32;
        let draw = move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed >> 8
        };
        Run::new(plan, &limits, &peer(), draw, now)
    }

    #[test]
    fn a_sequence_that_passes_port_0_leaves_it_out() {
        let (start, sequence) = (Instant::now(), Sequence { next: 2, step: -1 });
        let plan = Plan { spread: None, ports: Some(Ports::Predicted(PEER, sequence)) };
        let run = run(plan, PunchLimits::default(), start);
        let ports = (0..4).map(|count| run.target(Ports::Predicted(PEER, sequence), count).port());
        assert_eq!(ports.collect::<Vec<_>>(), [2, 1, 65_535, 65_535]);
    }

    #[test]
    fn random_ports_are_all_different_and_within_rate_and_budget() {
        let start = Instant::now();
        let limits = PunchLimits { rate: 1000, budget: 3000, ..PunchLimits::default() };
        let mut run = run(Plan { spread: None, ports: Some(Ports::Random(PEER)) }, limits, start);
        let (mut now, mut ports, mut sent) = (start, BTreeSet::new(), 0);
        while !run.is_over(now) {
            let shots = run.poll_shots(now, 1000, |wanted| wanted);
            assert!(shots.len() <= 41, "a burst of {}", shots.len());
            sent += shots.len();
            assert!(sent as f64 <= 1000.0 * ((now - start) + TICK).as_secs_f64() + 1.0);
            for shot in shots {
                let Shot::Main(to) = shot else { panic!("{shot:?}") };
                assert!(to.ip() == PEER && to.port() >= FIRST_PORT);
                assert!(ports.insert(to.port()), "{to} twice");
            }
            now = run.next;
        }
        assert_eq!(sent, 3000);
    }

    #[test]
    fn a_run_that_has_sent_its_budget_ends_soon_and_one_with_sockets_waits_for_the_other_side() {
        let start = Instant::now();
        let limits = PunchLimits { rate: 500, budget: 500, ..PunchLimits::default() };
        let spread = Some(Spread { to: SocketAddr::new(PEER, 7), sockets: Sockets::Birthday });
        for (plan, least, most) in [
            (Plan { spread: None, ports: Some(Ports::Random(PEER)) }, 1900, 2200),
            (Plan { spread, ports: None }, 8000, 15_000),
        ] {
            let mut run = run(plan, limits, start);
            let mut now = start;
            while !run.is_over(now) {
                run.poll_shots(now, 500, |wanted| wanted);
                now = run.next;
            }
            let took = (now - start).as_millis();
            assert!((least..most).contains(&took), "{took} ms");
        }
    }

    #[test]
    fn sockets_are_used_once_and_predicted_ones_again_and_again() {
        let start = Instant::now();
        for (sockets, expected) in [(Sockets::Birthday, 1), (Sockets::Predicted, 8)] {
            let spread = Some(Spread { to: SocketAddr::new(PEER, 7), sockets });
            let mut run = run(Plan { spread, ports: None }, PunchLimits::default(), start);
            let (mut now, mut first) = (start, 0);
            while !run.is_over(now) {
                let shots = run.poll_shots(now, 500, |wanted| wanted);
                first += shots.iter().filter(|shot| matches!(shot, Shot::Socket(0, _))).count();
                now = run.next;
            }
            assert!((first.min(expected), first > 1) == (expected, expected > 1), "{sockets:?}: {first}");
        }
    }

    #[test]
    fn the_first_socket_that_is_hit_wins_unless_nothing_comes_of_it() {
        let now = Instant::now();
        let plan = Plan { spread: None, ports: None };
        let mut attempt = Attempt::new([0; 12], Stage::Running(run(plan, PunchLimits::default(), now)));
        attempt.sockets = vec![SocketId(1), SocketId(2)];
        let at = |socket| PathAddress::Punched { socket: SocketId(socket), remote: SocketAddr::new(PEER, 7) };
        assert!(attempt.admits(at(2), now));
        assert!(!attempt.admits(at(1), now) && attempt.admits(at(2), now) && attempt.admits(at(9), now));
        assert!(attempt.admits(at(1), now + WINNER_TIME));
        assert!(!attempt.admits(at(2), now + WINNER_TIME));
    }
}
