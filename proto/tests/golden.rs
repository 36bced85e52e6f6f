//! Freezes what goes over the wire, byte for byte, in `tests/golden/`.
//!
//! Binary messages are kept as rows of hex, JSON documents indented (the wire has them without white space). Each
//! file is compared with what the code writes now, and read back into the value that it was written from.
//! After a change that is meant, `UPDATE_GOLDEN=1 cargo test -p mesh-proto --test golden` writes the files anew:
//! read the diff as an agent of the last release would.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeSet, env, fmt::Write as _, fs, path::PathBuf};

use mesh_proto::{
    candidate::CandidateKind,
    control::{ClientMessage, RefusalCode, ServerMessage, frame},
    disco,
    key::{KeyPin, NodeKey, PublicKey},
    relay,
    status::{
        ConnectionState, ControlTransport, Mapping, PathKind, PathReason, PortMapping, RelayTransport, Status,
    },
    stream, stun,
    token::{JoinToken, TokenHash},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

mod samples;

/// One folder of golden files, and what was found wrong with it.
struct Golden {
    folder: PathBuf,
    update: bool,
    seen: BTreeSet<String>,
    failures: String,
}

impl Golden {
    fn open(folder: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
        let update = env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1");
        if update {
            fs::create_dir_all(&folder).unwrap();
        }
        Self { folder, update, seen: BTreeSet::new(), failures: String::new() }
    }

    /// Compares a file with what it should hold.
    fn check(&mut self, name: &str, expected: &str) {
        assert!(self.seen.insert(name.to_owned()), "two goldens are called {name}");
        let path = self.folder.join(name);
        if self.update {
            fs::write(&path, expected).unwrap();
        }
        let frozen = fs::read_to_string(&path).unwrap_or_default();
        if frozen != expected {
            let _ = write!(self.failures, "\n{}\n{}", path.display(), diff(&frozen, expected));
        }
    }

    /// Compares a file of hex.
    fn check_bytes(&mut self, name: &str, expected: &[u8]) {
        let rows: Vec<String> = expected
            .chunks(16)
            .map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
            .collect();
        self.check(&format!("{name}.hex"), &(rows.join("\n") + "\n"));
    }

    /// Compares a JSON document, and reads it back: it must come out the same again.
    fn check_json<T: Serialize + DeserializeOwned>(&mut self, name: &str, value: &T) {
        let text = serde_json::to_string_pretty(value).unwrap() + "\n";
        self.check(&format!("{name}.json"), &text);
        let again: T = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(serde_json::to_string_pretty(&again).unwrap() + "\n", text, "{name} reads back");
    }

    /// Fails if a file differed, or if the folder holds one that nothing writes any more.
    fn finish(mut self) {
        for entry in fs::read_dir(&self.folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() || self.seen.contains(&name) {
                continue;
            }
            if self.update {
                fs::remove_file(entry.path()).unwrap();
            } else {
                let _ = write!(self.failures, "\n{}: nothing writes this\n", entry.path().display());
            }
        }
        assert!(self.failures.is_empty(), "the wire changed (- frozen, + now):\n{}", self.failures);
    }
}

/// Lists the lines in which two texts differ, between their common beginning and end.
fn diff(frozen: &str, now: &str) -> String {
    let (frozen, now): (Vec<_>, Vec<_>) = (frozen.lines().collect(), now.lines().collect());
    let start = frozen.iter().zip(&now).take_while(|(a, b)| a == b).count();
    let (frozen_rest, now_rest) = (&frozen[start..], &now[start..]);
    let end = frozen_rest.iter().rev().zip(now_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let mut out = format!("  line {}:\n", start + 1);
    for (sign, lines, rest) in [('-', &frozen, frozen_rest), ('+', &now, now_rest)] {
        for line in &lines[start..start + rest.len() - end] {
            let _ = writeln!(out, "  {sign} {line}");
        }
    }
    out
}

#[test]
fn disco_messages() {
    let mut golden = Golden::open("disco");
    let (header, sealed) = samples::disco_header();
    let bytes = [&header.encode()[..], &sealed].concat();
    golden.check_bytes("header", &bytes);
    assert_eq!(disco::Header::decode(&bytes), Ok((header, &sealed[..])));
    for (name, message) in samples::disco_messages() {
        let bytes = message.encode();
        golden.check_bytes(name, &bytes);
        assert_eq!(disco::Message::decode(&bytes), Ok(message), "{name}");
    }
    golden.finish();
}

#[test]
fn relay_frames() {
    let mut golden = Golden::open("relay");
    for (name, frame) in samples::relay_frames() {
        let bytes = frame.encode();
        golden.check_bytes(name, &bytes);
        assert_eq!(relay::Frame::decode(&bytes), Ok(frame), "{name}");
    }
    golden.finish();
}

#[test]
fn stream_frames() {
    let mut golden = Golden::open("stream");
    let ping = frame::encode(&ClientMessage::Ping { id: 7 }).unwrap();
    let control = [&stream::control_header(ping.len())[..], &ping].concat();
    golden.check_bytes("control", &control);
    let read = stream::Frame::decode(&control);
    assert_eq!(read, Ok(Some((stream::Frame::Control(&ping), control.len()))));
    let frames: Vec<u8> =
        samples::relay_frames().iter().take(2).flat_map(|(_, frame)| frame.encode()).collect();
    let train = [&stream::relay_header(40, frames.len())[..], &frames].concat();
    golden.check_bytes("relay", &train);
    let read = stream::Frame::decode(&train);
    assert_eq!(read, Ok(Some((stream::Frame::Relay { stride: 40, frames: &frames }, train.len()))));
    golden.finish();
}

#[test]
fn stun_messages() {
    let mut golden = Golden::open("stun");
    for (name, message) in samples::stun_messages() {
        let bytes = message.encode();
        golden.check_bytes(name, &bytes);
        assert_eq!(stun::Message::decode(&bytes), Ok(message), "{name}");
    }
    golden.finish();
}

#[test]
fn client_messages() {
    let mut golden = Golden::open("client");
    for (name, message) in samples::client_messages() {
        golden.check_json(name, &message);
        check_framing(&message);
    }
    golden.finish();
}

#[test]
fn server_messages() {
    let mut golden = Golden::open("server");
    for (name, message) in samples::server_messages() {
        golden.check_json(name, &message);
        check_framing(&message);
    }
    golden.finish();
}

/// Checks that the wire has a message's length, and its JSON without white space.
fn check_framing<T: Serialize>(message: &T) {
    let json = serde_json::to_vec(message).unwrap();
    let length = u32::try_from(json.len()).unwrap().to_be_bytes();
    assert_eq!(frame::encode(message).unwrap(), [&length[..], &json].concat());
}

#[test]
fn framing() {
    let mut golden = Golden::open("frame");
    let bytes = frame::encode(&ClientMessage::Ping { id: 7 }).unwrap();
    golden.check_bytes("ping", &bytes);
    let mut decoder = frame::Decoder::default();
    decoder.handle_bytes(&bytes);
    assert!(matches!(decoder.poll_message(), Ok(Some(ClientMessage::Ping { id: 7 }))));
    golden.finish();
}

#[test]
fn status() {
    let mut golden = Golden::open("status");
    for (name, status) in samples::statuses() {
        golden.check_json(name, &status);
    }
    golden.finish();
}

#[test]
fn net_report() {
    let mut golden = Golden::open("netreport");
    golden.check_json("reference", &samples::net_report());
    golden.check_json("filterings", &samples::filterings());
    golden.finish();
}

/// The fields of the first version, as scripts know them. This text is never edited.
#[test]
fn status_keeps_the_fields_of_its_first_version() {
    let first = r#"
{"self":{"name":"pi","node_key":"0101010101010101010101010101010101010101010101010101010101010101",
  "public_key":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=","addresses":["10.90.0.1","fd5d:1:2::1"],
  "interface":"mesh0","mtu":1420,
  "candidates":[{"address":"203.0.113.1:51820","kind":"reflexive"}],
  "nat":{"mapping":"eim","port_mapping":"nat-pmp","udp_blocked":false},
  "coordinator":{"state":"connected","address":"203.0.113.1:7443","transport":"quic","rtt_ms":1.2},
  "relay":{"name":"pi","transport":"udp","rtt_ms":1.2},"routes":["10.244.1.0/24"]},
 "peers":[{"name":"country","node_key":"0303030303030303030303030303030303030303030303030303030303030303",
  "public_key":"BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ=","addresses":["10.90.0.2"],
  "allowed_ips":["10.90.0.2/32","10.244.2.0/24"],"online":true,
  "path":{"kind":"direct","address":"198.51.100.7:51820","relay":null,"rtt_ms":18.2,"mtu":1420,
    "since":"2026-01-02T03:04:05Z","reason":"direct path answered first"},
  "last_handshake":"2026-01-02T03:04:05Z","tx_bytes":0,"rx_bytes":0,"loss":0.0,"drops":{}}]}"#;
    let first: Value = serde_json::from_str(first).unwrap();
    let (_, status) = samples::statuses().swap_remove(0);
    let mut now = serde_json::to_value(&status).unwrap();
    let added = [
        ("/self", "ready"),
        ("/self", "advertised"),
        ("/self", "warnings"),
        ("/self", "drops"),
        ("/self/coordinator", "error"),
        ("/peers/0/path", "code"),
        ("/self/coordinator", "outer_certificate"),
        ("/self/nat", "mapped_address"),
        ("/self/nat", "ipv4"),
        ("/self/nat", "ipv6"),
        ("/self/nat", "nat64"),
        ("/self/nat", "lifetime"),
        ("/peers/0", "loss_measured"),
    ];
    for (place, added) in added {
        now.pointer_mut(place).unwrap().as_object_mut().unwrap().remove(added).unwrap();
    }
    assert_eq!(now, first);
    assert!(serde_json::from_value::<Status>(first).is_ok(), "fields that were added later are optional");
}

/// How the values of closed lists are spelled.
#[derive(Serialize, Deserialize)]
struct Spellings {
    candidate_kind: Vec<CandidateKind>,
    refusal_code: Vec<RefusalCode>,
    mapping: Vec<Mapping>,
    port_mapping: Vec<PortMapping>,
    connection_state: Vec<ConnectionState>,
    control_transport: Vec<ControlTransport>,
    relay_transport: Vec<RelayTransport>,
    path_kind: Vec<PathKind>,
    path_reason: Vec<PathReason>,
}

/// Keys, pins and tokens as people copy them, and what is computed from them and kept.
#[derive(Serialize, Deserialize)]
struct TextForms {
    node_key: NodeKey,
    #[serde(with = "hex::serde")]
    node_key_spki: Vec<u8>,
    pin_of_node_key: KeyPin,
    public_key: PublicKey,
    join_token: JoinToken,
    join_token_hash: TokenHash,
}

#[test]
fn text_forms() {
    let mut golden = Golden::open("text");
    golden.check_json(
        "spellings",
        &Spellings {
            candidate_kind: samples::candidate_kinds(),
            refusal_code: samples::refusal_codes(),
            mapping: vec![Mapping::Eim, Mapping::Adm, Mapping::Apdm, Mapping::None, Mapping::Unknown],
            port_mapping: vec![PortMapping::Pcp, PortMapping::NatPmp, PortMapping::Upnp, PortMapping::None],
            connection_state: vec![
                ConnectionState::Connected,
                ConnectionState::Connecting,
                ConnectionState::Offline,
            ],
            control_transport: vec![ControlTransport::Quic, ControlTransport::Websocket],
            relay_transport: vec![RelayTransport::Udp, RelayTransport::Websocket],
            path_kind: vec![PathKind::Direct, PathKind::Relay, PathKind::None],
            path_reason: samples::path_reasons(),
        },
    );
    let node_key = NodeKey([0x1f; 32]);
    let node_key_spki = node_key.to_spki();
    assert_eq!(NodeKey::from_spki(&node_key_spki), Some(node_key));
    let join_token = JoinToken::from_random([0x0a; 5], [0x0b; 16]);
    golden.check_json(
        "keys",
        &TextForms {
            node_key,
            pin_of_node_key: KeyPin::of_spki(&node_key_spki),
            node_key_spki,
            public_key: PublicKey([0x2f; 32]),
            join_token_hash: join_token.hash(),
            join_token,
        },
    );
    golden.finish();
}

/// A new variant does not compile here: it also needs a sample.
#[test]
fn every_variant_has_a_sample() {
    let client: BTreeSet<_> = samples::client_messages().iter().map(|(_, m)| client_variant(m)).collect();
    assert_eq!(client.len(), 14);
    let server: BTreeSet<_> = samples::server_messages().iter().map(|(_, m)| server_variant(m)).collect();
    assert_eq!(server.len(), 15);
    let kinds: BTreeSet<_> = samples::candidate_kinds().into_iter().map(kind_variant).collect();
    assert_eq!(kinds.len(), 5);
    let codes: BTreeSet<_> = samples::refusal_codes().into_iter().map(code_variant).collect();
    assert_eq!(codes.len(), 10);
}

fn client_variant(message: &ClientMessage) -> u8 {
    match message {
        ClientMessage::Hello(_) => 0,
        ClientMessage::Join { .. } => 1,
        ClientMessage::Connect { .. } => 2,
        ClientMessage::Resync => 3,
        ClientMessage::Candidates { .. } => 4,
        ClientMessage::CallMeMaybe { .. } => 5,
        ClientMessage::RelayOpen => 6,
        ClientMessage::Ping { .. } => 7,
        ClientMessage::Unknown => 8,
        ClientMessage::ServeRelay { .. } => 9,
        ClientMessage::Knock(_) => 10,
        ClientMessage::StillHere { .. } => 11,
        ClientMessage::Advertise { .. } => 12,
        ClientMessage::JoinServiceAccount { .. } => 13,
    }
}

fn server_variant(message: &ServerMessage) -> u8 {
    match message {
        ServerMessage::Welcome(_) => 0,
        ServerMessage::Joined { .. } => 1,
        ServerMessage::Map { .. } => 2,
        ServerMessage::Delta { .. } => 3,
        ServerMessage::PeerStates { .. } => 4,
        ServerMessage::CallMeMaybe { .. } => 5,
        ServerMessage::RelayOpened(_) => 6,
        ServerMessage::Pong { .. } => 7,
        ServerMessage::Refused(_) => 8,
        ServerMessage::Unknown => 9,
        ServerMessage::Knock(_) => 10,
        ServerMessage::Knocking(_) => 11,
        ServerMessage::AreYouThere { .. } => 12,
        ServerMessage::Copied => 13,
        ServerMessage::Routes { .. } => 14,
    }
}

fn kind_variant(kind: CandidateKind) -> u8 {
    match kind {
        CandidateKind::Host => 0,
        CandidateKind::PortMapped => 1,
        CandidateKind::Reflexive => 2,
        CandidateKind::Guess => 3,
        CandidateKind::Unknown => 4,
    }
}

fn code_variant(code: RefusalCode) -> u8 {
    match code {
        RefusalCode::Token => 0,
        RefusalCode::NameTaken => 1,
        RefusalCode::NotRegistered => 2,
        RefusalCode::Busy => 3,
        RefusalCode::Replaced => 4,
        RefusalCode::ShuttingDown => 5,
        RefusalCode::Protocol => 6,
        RefusalCode::Unknown => 7,
        RefusalCode::Duplicate => 8,
        RefusalCode::ServiceAccount => 9,
    }
}
