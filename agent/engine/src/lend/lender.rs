//! This node as a relay for its peers, where its operator allows it.
//!
//! ```text
//!        LendMe of a peer, sealed         Bind: key proved, counter risen
//!   (none) ------------------> offered ------------------------------------> bound <-+ Bind: the address may move
//!                                 |  another LendMe takes its place            |  |--+
//!                                 v                                            |  another channel of the peer is bound,
//!                               closed <---------------------------------------+  or no Bind for CHANNEL_LIFETIME
//! ```
//!
//! It forwards ciphertext as a relay does ([`mesh_proto::relay`]), and of a payload it knows the length and nothing else.
//! Both ends of what it forwards are peers of this node's map that have asked for a channel, and a peer takes nothing
//! but what is sealed by a peer of its own map: so a pair that policy keeps apart has nothing of it. A channel is
//! used from the address that its last Bind came from alone, and never to lead back to its own peer.
//!
//! Everything is bounded: two channels per peer, bytes per second of each peer and of all, and nothing waits here: what
//! the arena has no room for is dropped. All drops are counted.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_proto::{
    lend::{LendMe, Lent},
    netmap::NodeId,
    relay::{CHANNEL_KEY_LEN, ChannelId, Frame, HEADER_LEN, MAC_LEN, bind_mac, data_header},
};
use rand_core::RngCore;
use zeroize::Zeroizing;

use crate::{
    batch::Via,
    drops::DropReason,
    rate::{Allowance, Rate},
};

/// Bytes that one peer may send through this node: a home line's uplink is not to be filled by others.
const PEER_RATE: Rate = Rate { per_second: 12.5e6, burst: 3e6 };
/// The same for all peers together.
const TOTAL_RATE: Rate = Rate { per_second: 25e6, burst: 6e6 };
/// What a packet costs beside its bytes: a flood of tiny packets is work, too.
const PACKET_COST: usize = 100;
/// UnknownChannel replies: a peer needs one to learn that this node was restarted.
const REPLY_RATE: Rate = Rate { per_second: 2.0, burst: 8.0 };
/// Without a Bind for this long the address is forgotten: three were lost.
pub(crate) const BIND_LIFETIME: Duration = Duration::from_secs(70);
/// Without a Bind for this long the channel is closed; until then, a node that slept can go on with it.
const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);

/// What this node does as a relay.
#[derive(Debug, Default)]
pub(crate) struct Lender {
    /// Whether the operator allows it.
    open: bool,
    channels: BTreeMap<ChannelId, Channel>,
    peers: BTreeMap<NodeId, PeerChannels>,
    total: Allowance,
    replies: Allowance,
}

/// The channels of one peer.
#[derive(Debug, Default)]
struct PeerChannels {
    bound: Option<ChannelId>,
    offered: Option<ChannelId>,
}

struct Channel {
    peer: NodeId,
    key: Zeroizing<[u8; CHANNEL_KEY_LEN]>,
    counter: u64,
    bound: Option<SocketAddr>,
    /// When it was bound last, or offered.
    at: Instant,
    allowance: Allowance,
}

/// What becomes of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Onward {
    /// This is answered.
    Answer(Vec<u8>),
    /// It is sent there; its header was rewritten.
    Forward(SocketAddr),
}

impl Lender {
    /// Says whether the operator allows it; if not, all channels are closed.
    pub(crate) fn set_open(&mut self, open: bool) {
        self.open = open;
        if !open {
            self.channels.clear();
            self.peers.clear();
        }
    }

    /// Whether the operator allows it.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Closes the channels of those who are no peers any more.
    pub(crate) fn retain(&mut self, is_peer: impl Fn(NodeId) -> bool) {
        self.peers.retain(|id, _| is_peer(*id));
        self.channels.retain(|_, channel| is_peer(channel.peer));
    }

    /// Returns whom this node relays for.
    pub(crate) fn clients(&self) -> Vec<NodeId> {
        self.peers.keys().copied().collect()
    }

    /// Gives a peer a channel, beside the one that it has bound.
    ///
    /// # Errors
    /// When the operator does not allow it.
    pub(crate) fn lend(
        &mut self,
        peer: NodeId,
        asked: LendMe,
        rng: &mut impl RngCore,
        now: Instant,
    ) -> Result<Lent, DropReason> {
        if !self.open {
            return Err(DropReason::RelayRefused);
        }
        self.expire(now);
        let (id, mut key) = (ChannelId(rng.next_u64()), [0; CHANNEL_KEY_LEN]);
        rng.fill_bytes(&mut key);
        let channel = Channel {
            peer,
            key: Zeroizing::new(key),
            counter: 0,
            bound: None,
            at: now,
            allowance: Allowance::default(),
        };
        self.channels.insert(id, channel);
        if let Some(old) = self.peers.entry(peer).or_default().offered.replace(id) {
            self.channels.remove(&old);
        }
        Ok(Lent { id: asked.id, channel: id, key })
    }

    /// Takes a frame, and rewrites its header if it is to be sent on.
    ///
    /// # Errors
    /// When it is dropped, and why.
    pub(crate) fn handle_frame(
        &mut self,
        via: Via,
        datagram: &mut [u8],
        now: Instant,
    ) -> Result<Onward, DropReason> {
        let Via::Udp { remote: source, .. } = via else { return Err(DropReason::RelayRefused) };
        match Frame::decode(datagram).map_err(|_| DropReason::MalformedDatagram)? {
            Frame::Bind { channel, counter, mac } => self.bind(source, channel, (counter, mac), now),
            Frame::Data { peer, channel, payload } => {
                let len = payload.len();
                let Some((to, header)) = self.route(source, channel, peer, now)? else {
                    return self.answer_unknown(channel, now);
                };
                self.charge(channel, len, now)?;
                datagram[..HEADER_LEN].copy_from_slice(&header);
                Ok(Onward::Forward(to))
            }
            Frame::Bound { .. } | Frame::UnknownChannel { .. } => Err(DropReason::UnknownSession),
        }
    }

    fn bind(
        &mut self,
        source: SocketAddr,
        id: ChannelId,
        (counter, mac): (u64, [u8; MAC_LEN]),
        now: Instant,
    ) -> Result<Onward, DropReason> {
        let Some(channel) = self.channels.get_mut(&id) else { return self.answer_unknown(id, now) };
        if !is_same(&bind_mac(&channel.key, id, counter), &mac) {
            return Err(DropReason::BadCrypto);
        }
        if counter <= channel.counter {
            return Err(DropReason::Replayed);
        }
        (channel.counter, channel.bound, channel.at) = (counter, Some(source), now);
        let channels = self.peers.entry(channel.peer).or_default();
        if channels.offered == Some(id) {
            channels.offered = None;
            if let Some(old) = channels.bound.replace(id) {
                self.channels.remove(&old);
            }
        }
        Ok(Onward::Answer(Frame::Bound { channel: id, counter, observed: source }.encode()))
    }

    /// Returns where a frame goes, and under which header; `None` if there is no such channel.
    fn route(
        &self,
        source: SocketAddr,
        id: ChannelId,
        peer: NodeId,
        now: Instant,
    ) -> Result<Option<(SocketAddr, [u8; HEADER_LEN])>, DropReason> {
        let Some(sender) = self.channels.get(&id) else { return Ok(None) };
        if sender.bound_at(now) != Some(source) || sender.peer == peer {
            return Err(DropReason::RelayRefused);
        }
        let onward = self.peers.get(&peer).and_then(|channels| channels.bound);
        let onward = onward.and_then(|id| Some((id, self.channels.get(&id)?.bound_at(now)?)));
        let (id, to) = onward.ok_or(DropReason::RelayAbsent)?;
        Ok(Some((to, data_header(sender.peer, id))))
    }

    fn charge(&mut self, id: ChannelId, len: usize, now: Instant) -> Result<(), DropReason> {
        let cost = f64::from(u32::try_from(len + PACKET_COST).unwrap_or(u32::MAX));
        let channel = self.channels.get_mut(&id).ok_or(DropReason::RelayRefused)?;
        if channel.allowance.take(cost, PEER_RATE, now) && self.total.take(cost, TOTAL_RATE, now) {
            Ok(())
        } else {
            Err(DropReason::RelayRate)
        }
    }

    /// Tells a sender that its channel is gone; the answer is not longer than any frame.
    fn answer_unknown(&mut self, channel: ChannelId, now: Instant) -> Result<Onward, DropReason> {
        if !self.open {
            return Err(DropReason::UnknownSession);
        }
        if !self.replies.take(1.0, REPLY_RATE, now) {
            return Err(DropReason::RelayRate);
        }
        Ok(Onward::Answer(Frame::UnknownChannel { channel }.encode()))
    }

    fn expire(&mut self, now: Instant) {
        let is_old = |channel: &Channel| now.saturating_duration_since(channel.at) >= CHANNEL_LIFETIME;
        self.channels.retain(|_, channel| !is_old(channel));
        let channels = &self.channels;
        for peer in self.peers.values_mut() {
            peer.bound = peer.bound.filter(|id| channels.contains_key(id));
            peer.offered = peer.offered.filter(|id| channels.contains_key(id));
        }
        self.peers.retain(|_, peer| peer.bound.is_some() || peer.offered.is_some());
    }
}

impl Channel {
    fn bound_at(&self, now: Instant) -> Option<SocketAddr> {
        self.bound.filter(|_| now.saturating_duration_since(self.at) < BIND_LIFETIME)
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Compares codes without telling by its time where they differ.
fn is_same(a: &[u8; MAC_LEN], b: &[u8; MAC_LEN]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    struct Bench {
        lender: Lender,
        rng: ChaCha8Rng,
        now: Instant,
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    impl Bench {
        fn new() -> Self {
            let mut lender = Lender::default();
            lender.set_open(true);
            Self { lender, rng: ChaCha8Rng::from_seed([1; 32]), now: Instant::now() }
        }

        fn lend(&mut self, peer: NodeId) -> Lent {
            self.lender.lend(peer, LendMe { id: [7; 12] }, &mut self.rng, self.now).unwrap()
        }

        fn frame(&mut self, from: SocketAddr, frame: &Frame<'_>) -> (Result<Onward, DropReason>, Vec<u8>) {
            let mut bytes = frame.encode();
            let via = Via::Udp { remote: from, local: None };
            (self.lender.handle_frame(via, &mut bytes, self.now), bytes)
        }

        fn bind(&mut self, lent: &Lent, counter: u64, from: SocketAddr) -> Result<Onward, DropReason> {
            let mac = bind_mac(&lent.key, lent.channel, counter);
            self.frame(from, &Frame::Bind { channel: lent.channel, counter, mac }).0
        }

        fn bound(&mut self, peer: NodeId, from: SocketAddr) -> Lent {
            let lent = self.lend(peer);
            assert!(matches!(self.bind(&lent, 1, from), Ok(Onward::Answer(_))));
            lent
        }
    }

    fn data(peer: NodeId, lent: &Lent) -> Frame<'static> {
        Frame::Data { peer, channel: lent.channel, payload: b"sealed" }
    }

    #[test]
    fn ciphertext_goes_between_two_who_have_both_asked() {
        let mut bench = Bench::new();
        let a = bench.bound(A, at(1));
        assert_eq!(bench.frame(at(1), &data(B, &a)).0, Err(DropReason::RelayAbsent));
        let b = bench.bound(B, at(2));
        let (way, bytes) = bench.frame(at(1), &data(B, &a));
        assert_eq!(way, Ok(Onward::Forward(at(2))));
        assert_eq!(bytes, Frame::Data { peer: A, channel: b.channel, payload: b"sealed" }.encode());
        bench.lender.retain(|id| id != B);
        assert_eq!(bench.frame(at(1), &data(B, &a)).0, Err(DropReason::RelayAbsent), "no peer any more");
    }

    #[test]
    fn what_is_forged_or_leads_back_goes_nowhere() {
        let mut bench = Bench::new();
        let (a, b) = (bench.bound(A, at(1)), bench.bound(B, at(2)));
        assert_eq!(bench.frame(at(3), &data(B, &a)).0, Err(DropReason::RelayRefused), "from elsewhere");
        assert_eq!(bench.frame(at(2), &data(B, &a)).0, Err(DropReason::RelayRefused), "another's channel");
        assert_eq!(bench.frame(at(1), &data(A, &a)).0, Err(DropReason::RelayRefused), "back to itself");
        assert_eq!(bench.frame(at(1), &data(NodeId(9), &a)).0, Err(DropReason::RelayAbsent));
        assert_eq!(bench.bind(&a, 1, at(3)), Err(DropReason::Replayed));
        let forged = Lent { key: b.key, ..a };
        assert_eq!(bench.bind(&forged, 2, at(3)), Err(DropReason::BadCrypto));
        assert_eq!(bench.frame(at(1), &data(B, &a)).0, Ok(Onward::Forward(at(2))), "it cost nothing");
    }

    #[test]
    fn a_recorded_question_takes_nothing_from_anyone() {
        let mut bench = Bench::new();
        let (a, _b) = (bench.bound(A, at(1)), bench.bound(B, at(2)));
        for _ in 0..100 {
            bench.lend(A);
        }
        assert_eq!(bench.frame(at(1), &data(B, &a)).0, Ok(Onward::Forward(at(2))));
        assert!(bench.lender.channels.len() <= 4, "two for each peer");
        let newer = bench.bound(A, at(5));
        assert_eq!(bench.frame(at(5), &data(B, &newer)).0, Ok(Onward::Forward(at(2))));
        let gone = Frame::UnknownChannel { channel: a.channel }.encode();
        assert_eq!(bench.frame(at(1), &data(B, &a)).0, Ok(Onward::Answer(gone)), "a newer one is bound");
    }

    #[test]
    fn answers_are_short_and_few() {
        let mut bench = Bench::new();
        let stranger = Lent { id: [0; 12], channel: ChannelId(99), key: [0; 32] };
        let mut answered = 0;
        for _ in 0..1000 {
            match bench.bind(&stranger, 1, at(9)) {
                Ok(Onward::Answer(answer)) => {
                    assert!(answer.len() <= HEADER_LEN);
                    answered += 1;
                }
                other => assert_eq!(other, Err(DropReason::RelayRate)),
            }
        }
        assert_eq!(answered, 8);
    }

    #[test]
    fn one_peer_does_not_take_everything() {
        let mut bench = Bench::new();
        let (a, b) = (bench.bound(A, at(1)), bench.bound(B, at(2)));
        let payload = vec![0; 1400];
        let frame = Frame::Data { peer: B, channel: a.channel, payload: &payload };
        let sent = (0..100_000).take_while(|_| bench.frame(at(1), &frame).0.is_ok()).count();
        assert_eq!(sent, 2000, "as many as a burst holds");
        assert_eq!(bench.frame(at(1), &frame).0, Err(DropReason::RelayRate));
        assert!(bench.frame(at(2), &data(A, &b)).0.is_ok(), "the other one goes on");
        bench.now += Duration::from_secs(1);
        assert!(bench.frame(at(1), &frame).0.is_ok());
    }

    #[test]
    fn without_leave_nothing_is_lent_or_said() {
        let mut bench = Bench::new();
        let a = bench.bound(A, at(1));
        bench.lender.set_open(false);
        let refused = bench.lender.lend(A, LendMe { id: [7; 12] }, &mut bench.rng, bench.now);
        assert_eq!(refused, Err(DropReason::RelayRefused));
        assert_eq!(bench.bind(&a, 2, at(1)), Err(DropReason::UnknownSession));
        assert!(!format!("{a:?}").contains("key"));
    }

    #[test]
    fn silence_closes_a_channel() {
        let mut bench = Bench::new();
        let (a, _b) = (bench.bound(A, at(1)), bench.bound(B, at(2)));
        bench.now += BIND_LIFETIME;
        assert_eq!(bench.frame(at(1), &data(B, &a)).0, Err(DropReason::RelayRefused));
        bench.now += CHANNEL_LIFETIME;
        bench.lend(NodeId(3));
        assert_eq!(bench.lender.clients(), [NodeId(3)]);
    }
}
