//! This node's side of its relay channels (the frames: [`mesh_proto::relay`]).
//!
//! ```text
//!               Bound, by one address        Bound, by it again
//!   binding ----------------------> choosing ------------------> up --+ Bind, as often as needed
//!      ^  Binds to every address                                 |  ^-+
//!      +---------------------------------------------------------+
//!             three Binds unanswered, or the channel is unknown
//! ```
//!
//! A channel may move from one carrier to another, as when UDP is let through again: Binds go through the new one, and the
//! old one is used until one of them is answered, so nothing is lost on the way.
//!
//! A relay sends to the address that the Bind with the highest counter came from. Where a relay has several
//! addresses, Binds to all of them race, so the one that answered first is bound once more before it is used.

pub(crate) mod home;

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use mesh_proto::{
    netmap::NodeId,
    relay::{Frame, bind_mac, data_header},
};

use crate::{
    batch::Via,
    config::{RelayCarrier, RelayConfig},
    netcheck::lifetime::ASSUMED,
};

/// A channel on a stream, or at a peer that relays, is bound this often.
const BIND_INTERVAL: Duration = ASSUMED;
/// Of the time for which a relay remembers a Bind, at most so much goes by until the next one: two may be lost.
const REMEMBERED: (u32, u32) = (2, 7);
/// Waits between Binds while none is answered; the last one repeats.
const RETRY_WAITS: [Duration; 6] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1500),
    Duration::from_millis(3000),
    Duration::from_millis(5000),
];
/// The same after the network has changed: a link may be up for a while before it carries anything, or the system has yet
/// to find the router (it asks once a second), and whenever that ends, the channel is to be bound at once. Then it goes on
/// as above.
const RETRY_WAITS_ANEW: [Duration; 10] = [
    Duration::from_millis(100),
    Duration::from_millis(100),
    Duration::from_millis(100),
    Duration::from_millis(150),
    Duration::from_millis(150),
    Duration::from_millis(150),
    Duration::from_millis(150),
    Duration::from_millis(150),
    Duration::from_millis(150),
    Duration::from_millis(200),
];
/// So many Binds in a row without an answer, and the relay is down; as long as that takes after a change of the network.
const MAX_UNANSWERED: usize = 3;
const MAX_UNANSWERED_ANEW: usize = RETRY_WAITS_ANEW.len();
/// A channel that the relay doesn't know is tried again this often; meanwhile a new one is being opened.
const UNKNOWN_WAIT: Duration = Duration::from_secs(5);
/// Least time between Binds that are sent because something is suspicious.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Binds whose answers are still waited for.
const MAX_OUTSTANDING: usize = 16;
/// Of so many last measurements the shortest says how far the relay is: the others waited in somebody's queue.
const LATENCY_SAMPLES: usize = 4;
/// Weight of a new measurement in the smoothed round-trip time (RFC 6298: 1/8).
const RTT_WEIGHT: u32 = 8;

/// A channel at one relay.
#[derive(Debug, Clone)]
pub(crate) struct RelayClient {
    config: RelayConfig,
    /// Whether the relay is a peer that lends itself.
    lent: bool,
    state: State,
    /// Counter of the last Bind.
    counter: u64,
    outstanding: Vec<Sent>,
    unanswered: usize,
    /// Whether the network has changed and no Bind was answered since.
    anew: bool,
    next_bind: Option<Instant>,
    last_bind: Option<Instant>,
    /// How often something has to go out so that the mapping lives.
    keepalive: Duration,
    rtt: Option<Duration>,
    /// The last measurements, the oldest first.
    samples: VecDeque<Duration>,
    /// When it was last told that the relay does not know the channel.
    lost_reported: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Binding,
    /// This way answered first.
    Choosing(Via),
    Up(Via),
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    counter: u64,
    via: Via,
    at: Instant,
}

/// What a frame of the relay's led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing that matters elsewhere.
    Nothing,
    /// A Bind was answered: this node was seen at this address, by an observer at that one.
    Bound {
        /// The relay's address, if it is reached over UDP.
        observer: Option<SocketAddr>,
        /// This node's.
        observed: SocketAddr,
        /// Whether the relay has become usable by it.
        came_up: bool,
    },
    /// The relay does not know the channel; `true` if that has not been told for a while.
    Unknown(bool),
}

impl RelayClient {
    pub(crate) fn new(config: RelayConfig, now: Instant) -> Self {
        Self {
            config,
            lent: false,
            state: State::Binding,
            counter: 0,
            outstanding: Vec::new(),
            unanswered: 0,
            anew: false,
            next_bind: Some(now),
            last_bind: None,
            keepalive: BIND_INTERVAL,
            rtt: None,
            samples: VecDeque::new(),
            lost_reported: None,
        }
    }

    /// Makes a channel at a peer that relays for this node.
    pub(crate) fn new_lent(config: RelayConfig, now: Instant) -> Self {
        Self { lent: true, ..Self::new(config, now) }
    }

    /// Whether the relay is a peer that lends itself.
    pub(crate) fn is_lent(&self) -> bool {
        self.lent
    }

    /// Returns where a lent channel is, or is to be, bound.
    pub(crate) fn target(&self) -> Option<SocketAddr> {
        match &self.config.carrier {
            RelayCarrier::Udp(addresses) => addresses.first().copied(),
            RelayCarrier::Stream => None,
        }
    }

    /// The peer that lends itself is there now.
    pub(crate) fn follow(&mut self, direct: SocketAddr, now: Instant) {
        let config = RelayConfig { carrier: RelayCarrier::Udp(vec![direct]), ..self.config.clone() };
        self.set_config(config, now);
    }

    /// Takes over a configuration. One that is as before changes nothing.
    pub(crate) fn set_config(&mut self, config: RelayConfig, now: Instant) {
        if config == self.config {
            return;
        }
        let stays_up = self.is_up() && config.channel == self.config.channel && config.key == self.config.key;
        if stays_up && config.carrier.is_stream() != self.config.carrier.is_stream() {
            self.config = config;
            self.unanswered = 0;
            self.next_bind = Some(now);
            return;
        }
        if stays_up && self.address().is_some_and(|address| config.has(address)) {
            self.config = config;
            return;
        }
        let counter = if config.channel == self.config.channel { self.counter } else { 0 };
        let (rtt, samples) = (self.rtt, std::mem::take(&mut self.samples));
        let (lent, keepalive) = (self.lent, self.keepalive);
        *self = Self { counter, rtt, samples, lent, keepalive, ..Self::new(config, now) };
    }

    /// Mappings live as long as something goes out this often.
    pub(crate) fn set_keepalive(&mut self, keepalive: Duration) {
        if std::mem::replace(&mut self.keepalive, keepalive) == keepalive || self.unanswered > 0 {
            return;
        }
        if let (State::Up(_), Some(last), Some(next)) = (self.state, self.last_bind, self.next_bind) {
            self.next_bind = Some(next.min(last + self.interval()));
        }
    }

    /// Returns how often the channel is bound while every Bind is answered.
    pub(crate) fn interval(&self) -> Duration {
        let (part, whole) = REMEMBERED;
        match self.state {
            State::Up(Via::Udp { .. }) if !self.lent => {
                self.keepalive.min(self.config.bind_lifetime * part / whole)
            }
            State::Up(_) | State::Binding | State::Choosing(_) => BIND_INTERVAL,
        }
    }

    /// Returns a copy for another shard: it knows the way, and never binds by itself.
    pub(crate) fn mirror(&self) -> Self {
        Self { next_bind: None, outstanding: Vec::new(), ..self.clone() }
    }

    /// Whether the channel is, or is to be, on a byte stream.
    pub(crate) fn is_stream(&self) -> bool {
        self.config.carrier.is_stream()
    }

    /// Whether data can be sent.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Returns the smoothed round-trip time to the relay.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Returns the relay as the choice of a home sees it, if it is up; no peer is anybody's home.
    pub(crate) fn home_view(&self) -> Option<home::View> {
        let State::Up(via) = self.state else { return None };
        if self.lent {
            return None;
        }
        let carrier = match via {
            Via::Stream(_) => home::Carrier::Stream,
            Via::Udp { .. } | Via::Punched { .. } => home::Carrier::Udp,
        };
        Some(home::View { id: self.config.id, carrier, latency: *self.samples.iter().min()? })
    }

    /// Returns where the relay answers, if it does over UDP.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self.state {
            State::Choosing(Via::Udp { remote, .. }) | State::Up(Via::Udp { remote, .. }) => Some(remote),
            State::Choosing(Via::Punched { .. } | Via::Stream(_))
            | State::Up(Via::Punched { .. } | Via::Stream(_))
            | State::Binding => None,
        }
    }

    /// Returns what a frame for a peer goes through and begins with, if the relay is up.
    pub(crate) fn route(&self, peer: NodeId) -> Option<(Via, [u8; mesh_proto::relay::HEADER_LEN])> {
        match self.state {
            State::Up(via) => Some((via, data_header(peer, self.config.channel))),
            State::Binding | State::Choosing(_) => None,
        }
    }

    /// Returns what its frames go through, if the relay is up.
    pub(crate) fn via(&self) -> Option<Via> {
        match self.state {
            State::Up(via) => Some(via),
            State::Binding | State::Choosing(_) => None,
        }
    }

    /// Whether datagrams that came this way may be this relay's.
    pub(crate) fn is_from(&self, via: Via) -> bool {
        match (via, &self.config.carrier) {
            (Via::Udp { remote, .. }, RelayCarrier::Udp(addresses)) => addresses.contains(&remote),
            (Via::Stream(id), RelayCarrier::Stream) => id == self.config.id,
            // The channel has moved, and this was on its way: a stream is the relay's and nobody else's.
            (Via::Stream(id), RelayCarrier::Udp(_)) => id == self.config.id,
            (Via::Punched { .. }, _) | (Via::Udp { .. }, RelayCarrier::Stream) => false,
        }
    }

    /// Whether the channel is up on another carrier than it is to be on.
    fn is_moving(&self) -> bool {
        matches!(self.state, State::Up(via) if matches!(via, Via::Stream(_)) != self.config.carrier.is_stream())
    }

    /// Whether a frame is of this channel.
    pub(crate) fn owns(&self, frame: &Frame<'_>) -> bool {
        let channel = match frame {
            Frame::Bind { channel, .. }
            | Frame::Bound { channel, .. }
            | Frame::Data { channel, .. }
            | Frame::UnknownChannel { channel } => *channel,
        };
        channel == self.config.channel
    }

    /// Takes a frame of this channel that is not Data.
    pub(crate) fn handle_frame(&mut self, frame: &Frame<'_>, via: Via, now: Instant) -> Outcome {
        match *frame {
            Frame::Bound { counter, observed, .. } => self.on_bound(counter, observed, now),
            Frame::UnknownChannel { .. } => {
                self.state = State::Binding;
                self.next_bind = Some(now + UNKNOWN_WAIT);
                self.unanswered = 0;
                self.outstanding.clear();
                // Again and again: whoever opens the channels may have failed meanwhile.
                let is_old = |at: Instant| now.saturating_duration_since(at) >= UNKNOWN_WAIT;
                let news = self.lost_reported.is_none_or(is_old);
                if news {
                    self.lost_reported = Some(now);
                }
                tracing::debug!(relay = self.config.id.0, ?via, "the relay does not know the channel");
                Outcome::Unknown(news)
            }
            Frame::Bind { .. } | Frame::Data { .. } => Outcome::Nothing,
        }
    }

    /// The network may have changed, or the relay may be gone: binds soon.
    pub(crate) fn check(&mut self, now: Instant) {
        let at = self.last_bind.map_or(now, |last| (last + CHECK_INTERVAL).max(now));
        self.next_bind = Some(self.next_bind.map_or(at, |next| next.min(at)));
    }

    /// The network changed: starts over, without being down until proved so.
    pub(crate) fn on_network_changed(&mut self, now: Instant) {
        self.unanswered = 0;
        self.anew = true;
        self.outstanding.clear();
        self.next_bind = Some(now);
    }

    /// Returns when [`RelayClient::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.next_bind
    }

    /// Sends the Binds that are due through `send`. Returns whether the relay has gone down by their silence.
    pub(crate) fn handle_timeout(&mut self, now: Instant, mut send: impl FnMut(Via, Vec<u8>)) -> bool {
        if self.next_bind.is_none_or(|at| at > now) {
            return false;
        }
        let was_up = self.is_up();
        let most = if self.anew { MAX_UNANSWERED_ANEW } else { MAX_UNANSWERED };
        if self.unanswered >= most && self.state != State::Binding {
            self.state = State::Binding;
        }
        for via in self.ways() {
            self.counter += 1;
            let (channel, counter) = (self.config.channel, self.counter);
            let mac = bind_mac(&self.config.key, channel, counter);
            if self.outstanding.len() >= MAX_OUTSTANDING {
                self.outstanding.remove(0);
            }
            tracing::trace!(relay = self.config.id.0, counter, ?via, "bind");
            self.outstanding.push(Sent { counter, via, at: now });
            send(via, Frame::Bind { channel, counter, mac }.encode());
        }
        let wait = self.retry_wait();
        self.unanswered += 1;
        self.last_bind = Some(now);
        self.next_bind = Some(now + wait);
        was_up && !self.is_up()
    }

    /// Returns how long a Bind that is being sent now is waited for.
    fn retry_wait(&self) -> Duration {
        let quick = RETRY_WAITS_ANEW.get(self.unanswered).filter(|_| self.anew);
        let passed = if self.anew { RETRY_WAITS_ANEW.len() - MAX_UNANSWERED } else { 0 };
        let step = self.unanswered.saturating_sub(passed).min(RETRY_WAITS.len() - 1);
        quick.copied().unwrap_or(RETRY_WAITS[step])
    }

    /// Returns the address that handshakes through this relay are limited by.
    pub(crate) fn limit_address(&self) -> IpAddr {
        self.address().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip())
    }

    fn ways(&self) -> Vec<Via> {
        match (self.state, &self.config.carrier) {
            (State::Choosing(via) | State::Up(via), _) if !self.is_moving() => vec![via],
            (_, RelayCarrier::Stream) => vec![Via::Stream(self.config.id)],
            (_, RelayCarrier::Udp(addresses)) => {
                addresses.iter().map(|remote| Via::Udp { remote: *remote, local: None }).collect()
            }
        }
    }

    fn on_bound(&mut self, counter: u64, observed: SocketAddr, now: Instant) -> Outcome {
        let Some(index) = self.outstanding.iter().position(|sent| sent.counter == counter) else {
            return Outcome::Nothing;
        };
        let sent = self.outstanding.swap_remove(index);
        let rtt = now.saturating_duration_since(sent.at);
        tracing::trace!(relay = self.config.id.0, counter, ?rtt, "bound");
        self.rtt = Some(self.rtt.map_or(rtt, |smoothed| (smoothed * (RTT_WEIGHT - 1) + rtt) / RTT_WEIGHT));
        if self.samples.len() >= LATENCY_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(rtt);
        self.unanswered = 0;
        self.anew = false;
        self.lost_reported = None;
        let observer = match sent.via {
            Via::Udp { remote, .. } => Some(remote),
            Via::Punched { .. } | Via::Stream(_) => None,
        };
        let has_one_way = match &self.config.carrier {
            RelayCarrier::Udp(addresses) => addresses.len() == 1,
            RelayCarrier::Stream => true,
        };
        let came_up = match self.state {
            // No Bind was sent after this one that could have taken the channel elsewhere.
            // The relay sends there from now on, whatever else is still asked.
            State::Up(_) if self.is_moving() && has_one_way => {
                self.state = State::Up(sent.via);
                false
            }
            State::Up(_) if self.is_moving() => {
                self.state = State::Up(sent.via);
                // Binds to other addresses may have arrived later: this way again, to be sure.
                self.next_bind = Some(now);
                return Outcome::Bound { observer, observed, came_up: false };
            }
            State::Binding if has_one_way => {
                self.state = State::Up(sent.via);
                true
            }
            State::Binding => {
                self.state = State::Choosing(sent.via);
                self.next_bind = Some(now);
                return Outcome::Bound { observer, observed, came_up: false };
            }
            State::Choosing(via) if via == sent.via && counter == self.counter => {
                self.state = State::Up(via);
                true
            }
            State::Choosing(_) => return Outcome::Bound { observer, observed, came_up: false },
            State::Up(_) => false,
        };
        self.next_bind = Some(now + self.interval());
        Outcome::Bound { observer, observed, came_up }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::{netmap::RelayId, relay::ChannelId};

    use super::*;

    const CHANNEL: ChannelId = ChannelId(7);

    fn config(addresses: &[&str]) -> RelayConfig {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        RelayConfig {
            id: RelayId(0),
            carrier: RelayCarrier::Udp(addresses),
            channel: CHANNEL,
            key: [3; 32],
            bind_lifetime: Duration::from_secs(70),
        }
    }

    fn binds(client: &mut RelayClient, now: Instant) -> Vec<(Via, u64)> {
        let mut sent = Vec::new();
        client.handle_timeout(now, |via, bytes| match Frame::decode(&bytes) {
            Ok(Frame::Bind { counter, mac, .. }) => {
                assert_eq!(mac, bind_mac(&[3; 32], CHANNEL, counter));
                sent.push((via, counter));
            }
            other => panic!("{other:?}"),
        });
        sent
    }

    fn bound(client: &mut RelayClient, via: Via, counter: u64, now: Instant) -> Outcome {
        let observed = "198.51.100.1:9".parse().unwrap();
        client.handle_frame(&Frame::Bound { channel: CHANNEL, counter, observed }, via, now)
    }

    #[test]
    fn a_relay_with_one_address_is_up_after_one_answer_and_bound_every_20_s() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let mut client = RelayClient::new(config(&["192.0.2.1:1"]), now);
        let sent = binds(&mut client, now);
        assert_eq!(sent.len(), 1);
        assert!(!client.is_up());
        assert!(matches!(
            bound(&mut client, sent[0].0, sent[0].1, now + ms(30)),
            Outcome::Bound { came_up: true, .. }
        ));
        assert!(client.is_up());
        assert_eq!(client.rtt(), Some(ms(30)));
        assert_eq!(client.poll_timeout(), Some(now + ms(20_030)));
        assert_eq!(bound(&mut client, sent[0].0, sent[0].1, now + ms(31)), Outcome::Nothing);
    }

    #[test]
    fn of_several_addresses_the_first_to_answer_is_bound_again() {
        let now = Instant::now();
        let mut client = RelayClient::new(config(&["192.0.2.1:1", "[2001:db8::1]:1"]), now);
        let sent = binds(&mut client, now);
        assert_eq!(sent.len(), 2);
        bound(&mut client, sent[0].0, sent[0].1, now);
        assert!(!client.is_up());
        let again = binds(&mut client, now);
        assert_eq!(again, [(sent[0].0, 3)]);
        bound(&mut client, sent[1].0, sent[1].1, now);
        assert!(!client.is_up());
        bound(&mut client, again[0].0, 3, now);
        assert!(client.is_up());
        assert_eq!(client.address(), Some("192.0.2.1:1".parse().unwrap()));
    }

    #[test]
    fn a_channel_moves_to_another_carrier_without_going_down() {
        let now = Instant::now();
        let over_stream = RelayConfig { carrier: RelayCarrier::Stream, ..config(&[]) };
        let stream = Via::Stream(RelayId(0));
        let mut client = RelayClient::new(over_stream, now);
        let sent = binds(&mut client, now);
        assert_eq!(sent, [(stream, 1)]);
        bound(&mut client, stream, 1, now);
        assert!(client.is_up());
        assert_eq!(client.address(), None);
        client.set_config(config(&["192.0.2.1:1", "[2001:db8::1]:1"]), now);
        assert!(client.is_up(), "on the stream still");
        assert!(matches!(client.route(NodeId(9)), Some((Via::Stream(_), _))));
        let sent = binds(&mut client, now);
        assert_eq!(sent.len(), 2, "to every address");
        bound(&mut client, sent[1].0, sent[1].1, now);
        assert!(client.is_up());
        assert_eq!(client.address(), Some("[2001:db8::1]:1".parse().unwrap()));
        assert!(client.is_from(stream), "what was on its way");
        assert_eq!(binds(&mut client, now), [(sent[1].0, 4)]);
    }

    #[test]
    fn a_channel_whose_new_carrier_is_silent_goes_down_and_tries_on() {
        let now = Instant::now();
        let over_stream = RelayConfig { carrier: RelayCarrier::Stream, ..config(&[]) };
        let mut client = RelayClient::new(over_stream, now);
        binds(&mut client, now);
        bound(&mut client, Via::Stream(RelayId(0)), 1, now);
        client.set_config(config(&["192.0.2.1:1"]), now);
        while client.is_up() {
            let at = client.poll_timeout().unwrap();
            assert!(at < now + Duration::from_secs(10));
            client.handle_timeout(at, |via, _| assert!(matches!(via, Via::Udp { .. })));
        }
    }

    #[test]
    fn silence_takes_a_relay_down_and_binds_go_on() {
        let now = Instant::now();
        let mut client = RelayClient::new(config(&["192.0.2.1:1"]), now);
        let sent = binds(&mut client, now);
        bound(&mut client, sent[0].0, sent[0].1, now);
        let mut went_down = 0;
        let mut wakeups = 0;
        while let Some(at) = client.poll_timeout().filter(|at| *at < now + Duration::from_secs(60)) {
            went_down += usize::from(client.handle_timeout(at, |_, _| {}));
            wakeups += 1;
        }
        assert_eq!(went_down, 1);
        assert!((8..20).contains(&wakeups), "{wakeups}");
    }

    #[test]
    fn after_a_change_of_network_binds_come_quickly_for_a_while() {
        let now = Instant::now();
        let mut client = RelayClient::new(config(&["192.0.2.1:1"]), now);
        let sent = binds(&mut client, now);
        bound(&mut client, sent[0].0, sent[0].1, now);
        client.on_network_changed(now);
        let (mut times, mut down_at) = (Vec::new(), None);
        while let Some(at) = client.poll_timeout().filter(|at| *at < now + Duration::from_secs(20)) {
            times.push((at - now).as_millis());
            if client.handle_timeout(at, |_, _| {}) {
                down_at = times.last().copied();
            }
        }
        assert_eq!(times[..11], [0, 100, 200, 300, 450, 600, 750, 900, 1050, 1200, 1400]);
        assert_eq!(times[11..], [2900, 5900, 10_900, 15_900]);
        assert_eq!(down_at, Some(1400), "no sooner than otherwise");
    }

    #[test]
    fn a_channel_is_bound_as_seldom_as_the_nat_and_the_relay_allow() {
        let now = Instant::now();
        let config = RelayConfig { bind_lifetime: Duration::from_secs(700), ..config(&["192.0.2.1:1"]) };
        let mut client = RelayClient::new(config, now);
        let (via, counter) = binds(&mut client, now)[0];
        client.set_keepalive(Duration::from_secs(80));
        bound(&mut client, via, counter, now);
        assert_eq!(client.poll_timeout(), Some(now + Duration::from_secs(80)));
        client.set_keepalive(Duration::from_secs(40));
        assert_eq!(
            client.poll_timeout(),
            Some(now + Duration::from_secs(40)),
            "it is shorter than was thought"
        );
        client.set_keepalive(Duration::from_secs(216));
        assert_eq!(client.poll_timeout(), Some(now + Duration::from_secs(40)), "once more");
        assert_eq!(client.interval(), Duration::from_secs(200), "the relay forgets sooner");
    }

    #[test]
    fn an_unknown_channel_is_reported_once_for_each_bind() {
        let now = Instant::now();
        let mut client = RelayClient::new(config(&["192.0.2.1:1"]), now);
        let via = binds(&mut client, now)[0].0;
        let unknown = Frame::UnknownChannel { channel: CHANNEL };
        assert_eq!(client.handle_frame(&unknown, via, now), Outcome::Unknown(true));
        assert_eq!(client.handle_frame(&unknown, via, now), Outcome::Unknown(false));
        let again = client.poll_timeout().unwrap();
        assert_eq!(binds(&mut client, again).len(), 1);
        assert_eq!(client.handle_frame(&unknown, via, again), Outcome::Unknown(true));
        assert_eq!(client.handle_frame(&unknown, via, again), Outcome::Unknown(false));
    }
}
