//! Properties of the codecs: what was encoded is decoded, in canonical form, for every value that can be made.
//!
//! That every sequence of bytes is survived is checked by the fuzz targets, see `src/fuzz.rs`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
};

use mesh_proto::{
    candidate::{Candidate, CandidateKind, MAX_CANDIDATES},
    control::{
        ClientMessage,
        frame::{Decoder, FrameError, MAX_MESSAGE_LEN, encode},
    },
    demux::{DatagramKind, classify},
    disco,
    key::{KeyPin, NodeKey, PublicKey},
    name::NodeName,
    netmap::{MapDelta, Mesh, NetworkMap, Node, NodeId, RelayId, Version, VersionError},
    pass::{MAX_RELAYS, Whereabouts},
    relay::{self, ChannelId},
    stun,
    token::JoinToken,
};
use proptest::{collection::vec, prelude::*, sample::select};

/// Any address that a socket may show, IPv4-mapped ones and scope ids included.
fn any_address() -> impl Strategy<Value = SocketAddr> {
    let v4 = any::<(Ipv4Addr, u16)>().prop_map(SocketAddr::from);
    let mapped =
        any::<(Ipv4Addr, u16)>().prop_map(|(ip, port)| SocketAddr::new(ip.to_ipv6_mapped().into(), port));
    let v6 = any::<(Ipv6Addr, u16, u32, u32)>()
        .prop_map(|(ip, port, flow, scope)| SocketAddrV6::new(ip, port, flow, scope).into());
    prop_oneof![v4, mapped, v6]
}

/// The form in which an address must come out of every decoder.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    use CandidateKind::{Guess, Host, PortMapped, Reflexive, Unknown};
    (any_address(), select(vec![Host, PortMapped, Reflexive, Guess, Unknown]))
        .prop_map(|(address, kind)| Candidate { address, kind })
}

/// What a reader makes of a list of candidates.
fn as_read(candidates: &[Candidate]) -> Vec<Candidate> {
    let read = |candidate: &Candidate| Candidate { address: canonical(candidate.address), ..*candidate };
    candidates.iter().take(MAX_CANDIDATES).map(read).collect()
}

proptest! {
    #[test]
    fn disco_headers_round_trip(sender: [u8; 32], nonce: [u8; 24], sealed in vec(any::<u8>(), 0..200)) {
        let header = disco::Header { sender: PublicKey(sender), nonce };
        let datagram = [&header.encode()[..], &sealed].concat();
        prop_assert_eq!(classify(&datagram), DatagramKind::Disco);
        let expected = if sealed.len() < disco::TAG_LEN {
            Err(disco::DecodeError::Truncated)
        } else {
            Ok((header, &sealed[..]))
        };
        prop_assert_eq!(disco::Header::decode(&datagram), expected);
    }

    #[test]
    fn disco_pings_round_trip_at_every_length(txid: disco::TxId, padding: u16) {
        let ping = disco::Message::Ping { txid, padding };
        let body = ping.encode();
        prop_assert_eq!(body.len(), 14 + usize::from(padding));
        prop_assert_eq!(disco::Message::decode(&body), Ok(ping));
    }

    #[test]
    fn disco_pongs_round_trip(txid: disco::TxId, observed in prop::option::of(any_address())) {
        let expected = observed.map(canonical).filter(|address| *address != "[::]:0".parse().unwrap());
        let body = disco::Message::Pong { txid, observed }.encode();
        prop_assert_eq!(body.len(), 32);
        prop_assert_eq!(
            disco::Message::decode(&body),
            Ok(disco::Message::Pong { txid, observed: expected })
        );
    }

    #[test]
    fn disco_call_me_maybes_round_trip(candidates in vec(any_candidate(), 0..MAX_CANDIDATES + 8)) {
        let expected = as_read(&candidates);
        let body = disco::Message::CallMeMaybe { candidates }.encode();
        prop_assert_eq!(body.len(), 2 + 19 * expected.len());
        prop_assert_eq!(
            disco::Message::decode(&body),
            Ok(disco::Message::CallMeMaybe { candidates: expected })
        );
    }

    #[test]
    fn whereabouts_round_trip_and_fit_into_the_smallest_mtu_wherever_they_are_carried(
        number: u64,
        relays in vec(any::<u32>().prop_map(RelayId), 0..MAX_RELAYS + 4),
        has_home: bool,
        candidates in vec(any_candidate(), 0..MAX_CANDIDATES + 8),
    ) {
        let expected = Whereabouts {
            number,
            seen: !number,
            relays: relays[..relays.len().min(MAX_RELAYS)].to_vec(),
            has_home: has_home && !relays.is_empty(),
            candidates: as_read(&candidates),
        };
        let body = disco::Message::Whereabouts(Whereabouts { number, seen: !number, relays, has_home, candidates });
        let body = body.encode();
        prop_assert_eq!(disco::Message::decode(&body), Ok(disco::Message::Whereabouts(expected)));
        // Twice sealed, with who it is for, through a relay, over UDP and IPv6.
        let sealing = disco::HEADER_LEN + disco::TAG_LEN;
        prop_assert!(body.len() + 2 * sealing + 2 + 18 + relay::HEADER_LEN + 48 <= 1280);
    }

    #[test]
    fn a_cut_disco_body_is_truncated(txid: disco::TxId, observed in any_address(), cut in 0_usize..32) {
        let body = disco::Message::Pong { txid, observed: Some(observed) }.encode();
        prop_assert_eq!(disco::Message::decode(&body[..cut]), Err(disco::DecodeError::Truncated));
    }

    #[test]
    fn relay_binds_round_trip(channel: u64, counter: u64, mac: [u8; relay::MAC_LEN]) {
        let frame = relay::Frame::Bind { channel: ChannelId(channel), counter, mac };
        check_frame(&frame, relay::BIND_LEN)?;
    }

    #[test]
    fn relay_bounds_round_trip(channel: u64, counter: u64, observed in any_address()) {
        let channel = ChannelId(channel);
        let bytes = relay::Frame::Bound { channel, counter, observed }.encode();
        let frame = relay::Frame::Bound { channel, counter, observed: canonical(observed) };
        prop_assert_eq!(relay::Frame::decode(&bytes), Ok(frame));
        check_frame(&frame, relay::BOUND_LEN)?;
    }

    #[test]
    fn relay_data_round_trips(peer: u32, channel: u64, payload in vec(any::<u8>(), 0..1500)) {
        let (peer, channel) = (NodeId(peer), ChannelId(channel));
        let frame = relay::Frame::Data { peer, channel, payload: &payload };
        let in_place = [&relay::data_header(peer, channel)[..], &payload].concat();
        prop_assert_eq!(relay::Frame::decode(&in_place), Ok(frame));
        prop_assert_eq!(frame.encode(), in_place);
    }

    #[test]
    fn relay_unknown_channels_round_trip(channel: u64) {
        check_frame(&relay::Frame::UnknownChannel { channel: ChannelId(channel) }, relay::HEADER_LEN)?;
    }

    /// Any change of what it covers changes the code of a Bind.
    #[test]
    fn bind_macs_differ(key: [u8; 32], channel: u64, counter: u64, bit in 0_u32..64) {
        let mac = relay::bind_mac(&key, ChannelId(channel), counter);
        let mut other_key = key;
        other_key[bit as usize / 8] ^= 1 << (bit % 8);
        prop_assert_ne!(relay::bind_mac(&other_key, ChannelId(channel), counter), mac);
        prop_assert_ne!(relay::bind_mac(&key, ChannelId(channel ^ 1 << bit), counter), mac);
        prop_assert_ne!(relay::bind_mac(&key, ChannelId(channel), counter ^ 1 << bit), mac);
    }

    #[test]
    fn stun_round_trips(transaction: stun::TransactionId, mapped in any_address()) {
        let request = stun::Message::BindingRequest { transaction };
        let bytes = request.encode();
        prop_assert_eq!(classify(&bytes), DatagramKind::Stun);
        prop_assert_eq!(bytes.len(), stun::HEADER_LEN);
        prop_assert_eq!(stun::Message::decode(&bytes), Ok(request));

        let mapped_len = if canonical(mapped).is_ipv4() { 12 } else { 24 };
        let bytes = stun::Message::BindingSuccess { transaction, mapped }.encode();
        prop_assert_eq!(classify(&bytes), DatagramKind::Stun);
        prop_assert_eq!(bytes.len(), stun::HEADER_LEN + mapped_len);
        let expected = stun::Message::BindingSuccess { transaction, mapped: canonical(mapped) };
        prop_assert_eq!(stun::Message::decode(&bytes), Ok(expected));
        for cut in 0..bytes.len() {
            prop_assert_eq!(stun::Message::decode(&bytes[..cut]), Err(stun::DecodeError::Truncated));
        }
    }

    #[test]
    fn wireguard_is_never_taken_for_anything_else(kind in 1_u8..=4, rest in vec(any::<u8>(), 28..200)) {
        prop_assert_eq!(classify(&[&[kind, 0, 0, 0][..], &rest].concat()), DatagramKind::WireGuard);
    }

    #[test]
    fn keys_round_trip_as_text(bytes: [u8; 32]) {
        prop_assert_eq!(NodeKey(bytes).to_string().parse(), Ok(NodeKey(bytes)));
        prop_assert_eq!(PublicKey(bytes).to_string().parse(), Ok(PublicKey(bytes)));
        prop_assert_eq!(KeyPin(bytes).to_string().parse(), Ok(KeyPin(bytes)));
        prop_assert_eq!(NodeKey::from_spki(&NodeKey(bytes).to_spki()), Some(NodeKey(bytes)));
    }

    #[test]
    fn tokens_round_trip_and_no_other_has_their_hash(id: [u8; 5], secret: [u8; 16], bit in 0_usize..168) {
        let token = JoinToken::from_random(id, secret);
        let again: JoinToken = token.reveal().parse().unwrap();
        prop_assert!(again.hash().matches(&token.hash()));
        let (mut id, mut secret) = (id, secret);
        let byte = if bit < 40 { &mut id[bit / 8] } else { &mut secret[bit / 8 - 5] };
        *byte ^= 1 << (bit % 8);
        prop_assert!(!JoinToken::from_random(id, secret).hash().matches(&token.hash()));
    }

    #[test]
    fn names_are_rfc_1123_labels(text in "[a-z0-9-]{0,65}|.{0,8}") {
        let label = (1..=63).contains(&text.len())
            && text.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'))
            && !text.starts_with('-')
            && !text.ends_with('-');
        prop_assert_eq!(text.parse::<NodeName>().is_ok(), label);
    }

    #[test]
    fn messages_come_out_of_a_stream_however_it_is_cut(
        ids in vec(any::<u64>(), 0..20),
        cuts in vec(1_usize..40, 1..40),
    ) {
        let stream: Vec<u8> =
            ids.iter().flat_map(|id| encode(&ClientMessage::Ping { id: *id }).unwrap()).collect();
        let (mut decoder, mut got) = (Decoder::default(), Vec::new());
        let (mut rest, mut cuts) = (&stream[..], cuts.into_iter().cycle());
        while !rest.is_empty() {
            let (part, behind) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            decoder.handle_bytes(part);
            rest = behind;
            while let Some(message) = decoder.poll_message().unwrap() {
                let ClientMessage::Ping { id } = message else { panic!("not a Ping") };
                got.push(id);
            }
        }
        prop_assert_eq!(got, ids);
    }

    #[test]
    fn candidates_round_trip_as_json(candidates in vec(any_candidate(), 0..MAX_CANDIDATES + 8)) {
        let expected = as_read(&candidates);
        let bytes = encode(&ClientMessage::CallMeMaybe { to: NodeId(1), candidates }).unwrap();
        let mut decoder = Decoder::default();
        decoder.handle_bytes(&bytes);
        let Some(ClientMessage::CallMeMaybe { candidates, .. }) = decoder.poll_message().unwrap() else {
            panic!("not a CallMeMaybe");
        };
        prop_assert_eq!(candidates, expected);
    }

    /// A map is what a plain map from id to key becomes when the same changes are made to it.
    #[test]
    fn deltas_do_what_they_say(
        deltas in vec((0_u64..3, -1_i64..3, vec((1_u32..6, any::<u8>()), 0..4), vec(1_u32..6, 0..3)), 0..12),
    ) {
        let mut map = NetworkMap {
            version: Version { epoch: 1, serial: 100 },
            mesh: Mesh {
                ipv4: "10.90.0.0/16".parse().unwrap(),
                ipv6: "fd00::/48".parse().unwrap(),
                coordinators: vec![],
            },
            this: node(1, 0),
            peers: vec![],
            relays: vec![],
        };
        let mut model: BTreeMap<u32, u8> = BTreeMap::new();
        for (gap, step, changed, removed) in deltas {
            let have = map.version;
            let from = Version { serial: have.serial - gap, ..have };
            let to = Version { serial: have.serial.saturating_add_signed(step), ..have };
            let delta = MapDelta {
                from,
                to,
                this: None,
                changed: changed.iter().map(|(id, key)| node(*id, *key)).collect(),
                removed: removed.iter().copied().map(NodeId).collect(),
                relays: None,
            };
            let before = map.clone();
            let result = map.apply(delta);
            if gap > 0 {
                prop_assert_eq!(result, Err(VersionError::Gap { have, from }));
                prop_assert_eq!(&map, &before);
            } else if step < 0 {
                prop_assert_eq!(result, Err(VersionError::Older { have, offered: to }));
                prop_assert_eq!(&map, &before);
            } else {
                prop_assert_eq!(result, Ok(()));
                model.extend(changed);
                model.retain(|id, _| *id != 1 && !removed.contains(id));
            }
            let peers: BTreeMap<_, _> = map.peers.iter().map(|peer| (peer.id.0, peer.node_key.0[0])).collect();
            prop_assert_eq!(&peers, &model);
            prop_assert!(map.peers.is_sorted_by_key(|peer| peer.id));
        }
    }
}

/// Checks a frame of fixed length: it round-trips, and nothing shorter is one.
fn check_frame(frame: &relay::Frame<'_>, len: usize) -> Result<(), TestCaseError> {
    let bytes = frame.encode();
    prop_assert_eq!(bytes.len(), len);
    prop_assert_eq!(classify(&bytes), DatagramKind::Relay);
    prop_assert_eq!(relay::Frame::decode(&bytes), Ok(*frame));
    for cut in 0..len {
        prop_assert_eq!(relay::Frame::decode(&bytes[..cut]), Err(relay::DecodeError::Truncated));
    }
    Ok(())
}

fn node(id: u32, key: u8) -> Node {
    Node {
        id: NodeId(id),
        name: format!("n{id}").parse().unwrap(),
        node_key: NodeKey([key; 32]),
        public_key: PublicKey([key; 32]),
        addresses: vec![IpAddr::from([10, 90, 0, 1])],
        allowed_ips: vec![],
        tags: vec![],
    }
}

#[test]
fn the_longest_message_passes_and_a_longer_one_does_not() {
    // Two of the bytes are the quotation marks of the JSON.
    let longest = "x".repeat(MAX_MESSAGE_LEN - 2);
    let mut decoder = Decoder::default();
    decoder.handle_bytes(&encode(&longest).unwrap());
    assert_eq!(decoder.poll_message::<String>().unwrap().unwrap(), longest);

    let longer = longest + "x";
    assert!(matches!(encode(&longer), Err(FrameError::TooLong(len)) if len == MAX_MESSAGE_LEN + 1));
    let mut decoder = Decoder::default();
    decoder.handle_bytes(&u32::try_from(MAX_MESSAGE_LEN + 1).unwrap().to_be_bytes());
    assert!(matches!(decoder.poll_message::<String>(), Err(FrameError::TooLong(_))));
}
