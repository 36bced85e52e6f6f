//! The relay's core under virtual time, honest clients and dishonest ones.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_proto::{
    netmap::NodeId,
    relay::{ChannelId, Frame, HEADER_LEN, bind_mac},
};

use super::{BIND_LIFETIME_S, DropReason, Forward, Limits, Outbound, RelayCore, StreamId, TrainMut, Way};
use crate::{front::Source, limit::Rate};

const BIND_LIFETIME: Duration = Duration::from_secs(BIND_LIFETIME_S as u64);
const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const STRANGER: NodeId = NodeId(9);
const CHANNEL_A: ChannelId = ChannelId(0xa);
const CHANNEL_B: ChannelId = ChannelId(0xb);
const KEY_A: [u8; 32] = [1; 32];
const KEY_B: [u8; 32] = [2; 32];

fn source(last: u8) -> Way {
    Source { address: SocketAddr::from(([192, 0, 2, last], 4000)), local: None }.into()
}

fn stream(id: u64) -> Way {
    Way::Stream { id: StreamId(id), remote: SocketAddr::from(([192, 0, 2, 200], 443)) }
}

struct World {
    core: RelayCore,
    now: Instant,
    out: Outbound,
}

impl World {
    /// A relay with A bound at `.1` and B bound at `.2`.
    fn with_two_bound() -> Self {
        let mut world = Self::with_limits(Limits::default());
        world.bind(source(1), CHANNEL_A, KEY_A, 1).unwrap();
        world.bind(source(2), CHANNEL_B, KEY_B, 1).unwrap();
        world
    }

    fn with_limits(limits: Limits) -> Self {
        let now = Instant::now();
        let mut core = RelayCore::new(now, limits);
        core.set_nodes([A, B].into());
        core.open(now, A, CHANNEL_A, KEY_A);
        core.open(now, B, CHANNEL_B, KEY_B);
        Self { core, now, out: Outbound::default() }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.core.handle_timeout(self.now);
    }

    fn train(&mut self, way: Way, bytes: &mut [u8], stride: usize) {
        self.core.handle_train(self.now, TrainMut { way, bytes, stride }, &mut self.out);
    }

    /// Sends a Bind; returns where the relay saw it come from.
    fn bind(&mut self, from: Way, channel: ChannelId, key: [u8; 32], counter: u64) -> Option<SocketAddr> {
        let mac = bind_mac(&key, channel, counter);
        let mut frame = Frame::Bind { channel, counter, mac }.encode();
        let len = frame.len();
        self.train(from, &mut frame, len);
        match self.out.replies[..] {
            [reply] => match Frame::decode(reply.as_bytes()).unwrap() {
                Frame::Bound { channel: bound, counter: taken, observed } => {
                    assert_eq!((bound, taken), (channel, counter));
                    Some(observed)
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// Sends one Data frame; returns it as it is sent on, if it is.
    fn data(&mut self, from: Way, channel: ChannelId, peer: NodeId) -> Option<(Way, Vec<u8>)> {
        let mut frame = Frame::Data { peer, channel, payload: b"ciphertext" }.encode();
        let len = frame.len();
        self.train(from, &mut frame, len);
        match &self.out.forwards[..] {
            [forward] => Some((forward.to, frame[forward.range.clone()].to_vec())),
            _ => None,
        }
    }

    #[track_caller]
    fn assert_dropped(&self, reason: DropReason, count: u64) {
        assert_eq!(self.core.stats().dropped(reason), count, "{}", reason.as_str());
    }
}

#[test]
fn data_arrives_as_from_the_sender_on_the_receivers_channel() {
    let mut world = World::with_two_bound();
    let (to, bytes) = world.data(source(1), CHANNEL_A, B).unwrap();
    assert_eq!(to, source(2));
    let expected = Frame::Data { peer: A, channel: CHANNEL_B, payload: b"ciphertext" };
    assert_eq!(Frame::decode(&bytes).unwrap(), expected);
    assert_eq!(world.core.stats().forwarded_bytes, 10);
}

#[test]
fn bound_tells_where_the_bind_came_from() {
    let mut world = World::with_limits(Limits::default());
    assert_eq!(world.bind(source(7), CHANNEL_A, KEY_A, 1), Some(source(7).remote()));
}

#[test]
fn a_train_stays_one_train_and_strangers_frames_in_it_fall_out() {
    let mut world = World::with_two_bound();
    let good = Frame::Data { peer: B, channel: CHANNEL_A, payload: &[5; 84] }.encode();
    let bad = Frame::Data { peer: STRANGER, channel: CHANNEL_A, payload: &[6; 84] }.encode();
    let short = Frame::Data { peer: B, channel: CHANNEL_A, payload: &[7; 9] }.encode();
    let mut train = [&good[..], &good, &bad, &good, &short].concat();
    world.train(source(1), &mut train, 100);
    let ranges: Vec<_> = world.out.forwards.iter().map(|forward| forward.range.clone()).collect();
    assert_eq!(ranges, [0..200, 300..425]);
    for frame in [&train[..100], &train[100..200], &train[300..400], &train[400..]] {
        let Frame::Data { peer, channel, .. } = Frame::decode(frame).unwrap() else { panic!("not Data") };
        assert_eq!((peer, channel), (A, CHANNEL_B));
    }
    world.assert_dropped(DropReason::NotPeer, 1);
}

#[test]
fn a_replayed_bind_moves_nothing() {
    let mut world = World::with_two_bound();
    assert_eq!(world.bind(source(66), CHANNEL_A, KEY_A, 1), None, "same counter");
    assert!(world.bind(source(3), CHANNEL_A, KEY_A, 2).is_some(), "the node roams");
    assert_eq!(world.bind(source(66), CHANNEL_A, KEY_A, 1), None, "older counter");
    assert_eq!(world.bind(source(66), CHANNEL_A, KEY_A, 2), None);
    world.assert_dropped(DropReason::OldBind, 3);
    assert!(world.data(source(3), CHANNEL_A, B).is_some());
    assert!(world.data(source(66), CHANNEL_A, B).is_none());
}

#[test]
fn a_replay_after_the_address_was_forgotten_moves_nothing() {
    let mut world = World::with_two_bound();
    world.pass(BIND_LIFETIME);
    assert_eq!(world.bind(source(66), CHANNEL_A, KEY_A, 1), None);
    assert!(world.bind(source(1), CHANNEL_A, KEY_A, 2).is_some());
}

#[test]
fn a_bind_without_the_key_gets_no_answer() {
    let mut world = World::with_two_bound();
    assert_eq!(world.bind(source(66), CHANNEL_A, KEY_B, 9), None, "another channel's key");
    assert!(world.out.replies.is_empty());
    world.assert_dropped(DropReason::BadProof, 1);
    assert!(world.data(source(1), CHANNEL_A, B).is_some(), "the channel is as it was");
}

#[test]
fn data_passes_only_from_the_bound_address_and_channel() {
    let mut world = World::with_two_bound();
    assert!(world.data(source(66), CHANNEL_A, B).is_none(), "a stranger knows the channel");
    assert!(world.data(source(2), CHANNEL_A, B).is_none(), "B uses A's channel");
    world.assert_dropped(DropReason::WrongAddress, 2);
    assert!(world.out.replies.is_empty());
    let other_port = Source { address: "192.0.2.1:4001".parse().unwrap(), local: None }.into();
    assert!(world.data(other_port, CHANNEL_A, B).is_none());
    world.assert_dropped(DropReason::WrongAddress, 3);
}

#[test]
fn only_pairs_of_the_map_may_talk() {
    let mut world = World::with_two_bound();
    assert!(world.data(source(1), CHANNEL_A, STRANGER).is_none());
    assert!(world.data(source(1), CHANNEL_A, A).is_none(), "itself");
    world.core.remove_node(B);
    assert!(world.data(source(1), CHANNEL_A, B).is_none());
    world.assert_dropped(DropReason::NotPeer, 3);
    assert!(world.data(source(2), CHANNEL_B, A).is_none(), "a removed node's channel is closed");
    world.assert_dropped(DropReason::UnknownChannel, 1);
}

#[test]
fn an_absent_peer_is_counted_and_not_answered() {
    let mut world = World::with_limits(Limits::default());
    world.bind(source(1), CHANNEL_A, KEY_A, 1).unwrap();
    assert!(world.data(source(1), CHANNEL_A, B).is_none());
    assert!(world.out.replies.is_empty());
    world.assert_dropped(DropReason::PeerAbsent, 1);
    assert!(world.data(source(2), CHANNEL_B, A).is_none(), "B never bound");
    world.assert_dropped(DropReason::Unbound, 1);
}

#[test]
fn a_new_channel_replaces_the_older_one() {
    let mut world = World::with_two_bound();
    let newer = ChannelId(0xaa);
    world.core.open(world.now, A, newer, [3; 32]);
    assert!(world.data(source(1), CHANNEL_A, B).is_none());
    world.assert_dropped(DropReason::UnknownChannel, 1);
    world.bind(source(1), newer, [3; 32], 1).unwrap();
    assert!(world.data(source(1), newer, B).is_some());
    assert_eq!(world.core.stats().channels, 2);
}

#[test]
fn unknown_channels_are_answered_rarely_and_never_with_more_bytes() {
    let mut world = World::with_two_bound();
    let mut answers = 0;
    for _ in 0..100 {
        world.data(source(50), ChannelId(77), B);
        for reply in &world.out.replies {
            assert!(reply.as_bytes().len() <= HEADER_LEN);
            assert_eq!(
                Frame::decode(reply.as_bytes()).unwrap(),
                Frame::UnknownChannel { channel: ChannelId(77) }
            );
            answers += 1;
        }
    }
    assert_eq!(answers, 8);
    world.assert_dropped(DropReason::UnknownChannel, 100);
}

#[test]
fn channels_that_nobody_binds_are_closed_and_bindings_grow_old() {
    let mut world = World::with_limits(Limits::default());
    world.bind(source(1), CHANNEL_A, KEY_A, 1).unwrap();
    world.bind(source(2), CHANNEL_B, KEY_B, 1).unwrap();
    world.core.open(world.now, B, ChannelId(0xbb), KEY_B);
    world.pass(Duration::from_secs(61));
    assert_eq!(world.core.stats().channels, 1, "B's was never bound");
    world.pass(BIND_LIFETIME - Duration::from_secs(61));
    assert!(world.data(source(1), CHANNEL_A, B).is_none());
    world.assert_dropped(DropReason::Unbound, 1);
    assert!(world.bind(source(1), CHANNEL_A, KEY_A, 2).is_some(), "a node that slept goes on");
    world.pass(Duration::from_secs(1201));
    assert_eq!(world.core.stats().channels, 0);
    assert_eq!(world.core.poll_timeout(), None);
}

#[test]
fn a_sender_over_its_rate_is_cut_and_others_are_not() {
    let mut world = World::with_limits(Limits { client_rate: Rate { per_second: 12_600, burst: 1260 } });
    world.bind(source(1), CHANNEL_A, KEY_A, 1).unwrap();
    world.bind(source(2), CHANNEL_B, KEY_B, 1).unwrap();
    let passed = (0..100).filter(|_| world.data(source(1), CHANNEL_A, B).is_some()).count();
    assert_eq!(passed, 10, "126 bytes each");
    world.assert_dropped(DropReason::RateLimited, 90);
    assert!(world.data(source(2), CHANNEL_B, A).is_some());
    world.pass(Duration::from_millis(10));
    assert!(world.data(source(1), CHANNEL_A, B).is_some());
}

#[test]
fn what_the_socket_did_not_take_is_sent_later_to_where_the_receiver_is_then() {
    let mut world = World::with_two_bound();
    world.core.handle_blocked(CHANNEL_B, b"first", 5);
    world.core.handle_blocked(CHANNEL_B, b"second", 6);
    world.core.handle_blocked(ChannelId(77), b"nobody's", 8);
    assert!(world.core.has_queued());
    world.bind(source(3), CHANNEL_B, KEY_B, 2).unwrap();
    let sent = |world: &mut World| {
        let (to, train, _) = world.core.poll_transmit(world.now).unwrap();
        (to, train.to_vec())
    };
    assert_eq!(sent(&mut world), (source(3), b"first".to_vec()));
    assert_eq!(sent(&mut world), (source(3), b"first".to_vec()), "until it is handled");
    world.core.handle_transmitted();
    assert_eq!(sent(&mut world), (source(3), b"second".to_vec()));
    world.core.close(B);
    assert!(world.core.poll_transmit(world.now).is_none());
    assert_eq!(world.core.stats().queued_bytes, 0);
}

#[test]
fn frames_of_every_length_and_type_are_counted_and_answered_with_nothing() {
    let mut world = World::with_two_bound();
    let mut sent = 0;
    for kind in 0x80..=0xbf_u8 {
        for len in 1..64 {
            let mut frame = vec![0; len];
            frame[0] = kind;
            world.train(source(66), &mut frame, len);
            assert!(world.out.forwards.is_empty());
            assert!(world.out.replies.iter().all(|reply| reply.as_bytes().len() <= len));
            sent += 1;
        }
    }
    let stats = world.core.stats();
    assert_eq!(DropReason::ALL.iter().map(|reason| stats.dropped(*reason)).sum::<u64>(), sent);
}

#[test]
fn forwards_name_the_channel_to_queue_for() {
    let mut world = World::with_two_bound();
    world.data(source(1), CHANNEL_A, B).unwrap();
    assert_eq!(
        world.out.forwards,
        [Forward { channel: CHANNEL_B, to: source(2), range: 0..HEADER_LEN + 10 }]
    );
}

#[test]
fn a_channel_over_a_stream_is_a_channel_and_moves_to_udp_without_loss() {
    let mut world = World::with_two_bound();
    assert!(world.data(stream(7), CHANNEL_A, B).is_none(), "a stream that has bound nothing");
    assert_eq!(world.bind(stream(1), CHANNEL_A, KEY_A, 2), Some(stream(1).remote()));
    assert_eq!(world.data(stream(1), CHANNEL_A, B).unwrap().0, source(2));
    assert_eq!(world.data(source(2), CHANNEL_B, A).unwrap().0, stream(1));
    assert!(world.data(stream(2), CHANNEL_A, B).is_none(), "another stream");
    assert!(world.data(source(1), CHANNEL_A, B).is_none(), "where it was bound before");
    world.bind(source(1), CHANNEL_A, KEY_A, 3).unwrap();
    assert_eq!(world.data(source(2), CHANNEL_B, A).unwrap().0, source(1));
    assert!(world.data(stream(1), CHANNEL_A, B).is_some(), "what was still on its way");
    world.core.handle_stream_ended(StreamId(1));
    assert!(world.data(stream(1), CHANNEL_A, B).is_none());
    assert!(world.data(source(1), CHANNEL_A, B).is_some());
}

#[test]
fn nobody_is_reached_through_a_stream_that_has_ended() {
    let mut world = World::with_two_bound();
    world.bind(stream(1), CHANNEL_A, KEY_A, 2).unwrap();
    world.core.handle_stream_ended(StreamId(1));
    assert!(world.data(source(2), CHANNEL_B, A).is_none());
    world.assert_dropped(DropReason::PeerAbsent, 1);
    assert!(world.bind(stream(2), CHANNEL_A, KEY_A, 3).is_some(), "the channel itself is there");
}
