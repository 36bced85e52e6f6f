//! An old reader reads what a newer writer says: unknown fields, unknown values, unknown messages, more bytes.
//!
//! What the newer writer says is made from the golden files, which stand for what this version says.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, path::PathBuf};

use mesh_proto::{
    candidate::CandidateKind,
    control::{
        ClientMessage, ServerMessage,
        frame::{Decoder, encode},
    },
    disco, relay,
    status::Status,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// A value that no version knows.
const NEWS: &str = "from_the_future";

/// Reads the golden documents of a folder, by name.
fn golden(folder: &str) -> Vec<(String, Value)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let mut documents = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        documents.push((name, serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()));
    }
    assert!(!documents.is_empty());
    documents
}

fn golden_document(folder: &str, name: &str) -> Value {
    let found = golden(folder).into_iter().find(|(found, _)| found == name);
    found.unwrap_or_else(|| panic!("no golden {folder}/{name}")).1
}

/// Sends a document as a frame and reads it as a `T`; returns what this version makes of it.
fn read<T: Serialize + DeserializeOwned>(document: &Value) -> Value {
    let mut decoder = Decoder::default();
    decoder.handle_bytes(&encode(document).unwrap());
    let message: T =
        decoder.poll_message().unwrap_or_else(|error| panic!("{error} in {document:#}")).unwrap();
    serde_json::to_value(message).unwrap()
}

/// Reads a document as what its folder holds.
fn read_as(folder: &str, document: &Value) -> Value {
    match folder {
        "client" => read::<ClientMessage>(document),
        "server" => read::<ServerMessage>(document),
        "status" => read::<Status>(document),
        _ => panic!("nothing reads {folder}"),
    }
}

/// Adds fields to an object and to every object in it, but for maps whose keys are data.
fn add_fields(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.iter_mut().filter(|(name, _)| *name != "drops").for_each(|(_, value)| add_fields(value));
            fields.insert(NEWS.to_owned(), json!({ "deep": [1, null, { "er": "x" }] }));
            fields.insert("0".to_owned(), json!(-1.5));
        }
        Value::Array(items) => items.iter_mut().for_each(add_fields),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn unknown_fields_are_ignored_at_every_level() {
    for folder in ["client", "server", "status"] {
        for (name, document) in golden(folder) {
            let mut newer = document.clone();
            add_fields(&mut newer);
            assert_ne!(newer, document);
            assert_eq!(read_as(folder, &newer), document, "{folder}/{name}");
        }
    }
}

#[test]
fn unknown_values_become_unknown_and_nothing_else_is_lost() {
    for (folder, name, place) in [
        ("client", "candidates", "/candidates/1/kind"),
        ("client", "call_me_maybe", "/candidates/0/kind"),
        ("server", "peer_states", "/peers/0/candidates/2/kind"),
        ("server", "call_me_maybe", "/candidates/0/kind"),
        ("server", "refused", "/code"),
        ("status", "reference", "/self/candidates/0/kind"),
        ("status", "reference", "/self/nat/mapping"),
        ("status", "reference", "/self/nat/port_mapping"),
        ("status", "reference", "/self/nat/ipv4"),
        ("status", "reference", "/self/coordinator/state"),
        ("status", "reference", "/self/coordinator/transport"),
        ("status", "reference", "/self/relay/transport"),
        ("status", "reference", "/peers/0/path/kind"),
        ("status", "reference", "/peers/0/path/code"),
    ] {
        let mut document = golden_document(folder, name);
        *document.pointer_mut(place).unwrap() = json!(NEWS);
        let got = read_as(folder, &document);
        *document.pointer_mut(place).unwrap() = json!("unknown");
        assert_eq!(got, document, "{place} of {folder}/{name}");
    }
}

#[test]
fn unknown_messages_are_unknown_whatever_they_carry() {
    for folder in ["client", "server"] {
        for (name, mut document) in golden(folder) {
            document["type"] = json!(NEWS);
            assert_eq!(read_as(folder, &document), json!({ "type": "unknown" }), "{folder}/{name}");
        }
    }
}

#[test]
fn a_stream_goes_on_behind_an_unknown_message() {
    let news = encode(&json!({ "type": NEWS, "id": "not a number" })).unwrap();
    let mut decoder = Decoder::default();
    decoder.handle_bytes(&[news, encode(&ClientMessage::Ping { id: 3 }).unwrap()].concat());
    assert!(matches!(decoder.poll_message(), Ok(Some(ClientMessage::Unknown))));
    assert!(matches!(decoder.poll_message(), Ok(Some(ClientMessage::Ping { id: 3 }))));
}

/// The other way round: a field that is optional may be missing, as from a writer that is older than it.
#[test]
fn optional_fields_may_be_missing() {
    for (folder, name, object, field, default) in [
        ("client", "hello", "", "features", json!([])),
        ("client", "connect", "", "map", json!(null)),
        ("server", "welcome", "", "features", json!([])),
        ("server", "joined", "/node", "tags", json!([])),
        ("server", "map", "/map/relays/1", "key", json!(null)),
        ("server", "delta", "/delta", "this", json!(null)),
        ("server", "delta", "/delta", "changed", json!([])),
        ("server", "delta", "/delta", "removed", json!([])),
        ("server", "delta", "/delta", "relays", json!(null)),
        ("server", "peer_states", "/peers/0", "candidates", json!([])),
        ("server", "peer_states", "/peers/0", "relays", json!([])),
        ("server", "peer_states", "/peers/0", "home", json!(null)),
        ("server", "peer_states", "/peers/0", "observed", json!(null)),
        ("client", "candidates", "", "home", json!(null)),
        ("server", "refused_busy", "", "retry_after_ms", json!(null)),
        ("status", "reference", "/self", "ready", json!(false)),
        ("status", "nothing_known", "/self", "drops", json!({})),
        ("status", "reference", "/self/nat", "ipv6", json!("unknown")),
        ("status", "reference", "/self/nat", "nat64", json!([])),
        ("status", "reference", "/peers/0/path", "code", json!("unknown")),
        ("status", "nothing_known", "/self", "warnings", json!([])),
        ("status", "nothing_known", "/self/coordinator", "error", json!(null)),
    ] {
        let mut document = golden_document(folder, name);
        let fields = document.pointer_mut(object).unwrap().as_object_mut().unwrap();
        assert_ne!(fields.remove(field).unwrap(), default, "{folder}/{name} shows nothing");
        let got = read_as(folder, &document);
        document.pointer_mut(object).unwrap()[field] = default;
        assert_eq!(got, document, "{folder}/{name} without {object}/{field}");
    }
}

#[test]
fn disco_bodies_of_a_newer_side_are_read_or_named() {
    use disco::{DecodeError, Message};
    assert_eq!(Message::decode(&[99, 0, 1, 2]), Err(DecodeError::UnknownType(99)));
    assert_eq!(Message::decode(&[1, 1, 0, 0]), Err(DecodeError::UnknownType(1)));

    let pong = Message::Pong { txid: [7; 12], observed: Some("192.0.2.1:5".parse().unwrap()) };
    assert_eq!(Message::decode(&[&pong.encode()[..], b"more"].concat()), Ok(pong));

    let candidate = [&[9][..], &[0; 10], &[0xff, 0xff, 192, 0, 2, 1, 0, 5]].concat();
    let body = [&[3, 0][..], &candidate, b"half a candidate"].concat();
    let Ok(Message::CallMeMaybe { candidates }) = Message::decode(&body) else {
        panic!("not a CallMeMaybe");
    };
    assert_eq!(candidates.len(), 1);
    assert_eq!(candidates[0].address, "192.0.2.1:5".parse().unwrap());
    assert_eq!(candidates[0].kind, CandidateKind::Unknown);
}

#[test]
fn relay_frames_of_a_newer_side_are_read_or_named() {
    use relay::{ChannelId, DecodeError, Frame};
    let channel = ChannelId(5);
    assert_eq!(Frame::decode(&[0x9f; relay::HEADER_LEN]), Err(DecodeError::UnknownType(0x9f)));
    for frame in [
        Frame::Bind { channel, counter: 1, mac: [2; relay::MAC_LEN] },
        Frame::Bound { channel, counter: 1, observed: "192.0.2.1:5".parse().unwrap() },
        Frame::UnknownChannel { channel },
    ] {
        let mut bytes = [&frame.encode()[..], b"more"].concat();
        bytes[1..4].fill(0xff);
        assert_eq!(Frame::decode(&bytes), Ok(frame));
    }
}
