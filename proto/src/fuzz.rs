//! Entry points of the fuzz targets: one function for each parser that reads what others wrote.
//!
//! A target takes any bytes and must not panic: neither in the parser, nor in what it checks of a value that was
//! read. In general that is *written again, it reads as the same value*. None of them keeps state.
//!
//! The corpus lies in `proto/fuzz/corpus/<target>/`, small and committed. `cargo test -p mesh-proto` replays it,
//! and replays it mutated. To look for more, `proto/fuzz/` has a libFuzzer binary for each target, in a
//! workspace of its own, as it needs a nightly compiler:
//!
//! ```text
//! cd proto && mkdir -p /tmp/disco
//! cargo +nightly fuzz run --sanitizer none disco /tmp/disco fuzz/corpus/disco -- -max_len=1024 -max_total_time=60
//! cargo +nightly fuzz run --sanitizer none disco fuzz/artifacts/disco/crash-…     # one input that failed
//! ```
//!
//! New inputs go to the first folder; the few that are short and reach new code are worth a place in the corpus.
//! There is no unsafe code here for a sanitizer to watch.
//!
//! An input that failed goes into the corpus with its fix. A file has at most [`MAX_INPUT_LEN`] bytes.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    control::{ClientMessage, ServerMessage, frame},
    demux::{self, DatagramKind},
    disco,
    key::{KeyPin, NodeKey, PublicKey},
    name::NodeName,
    netmap::{MapDelta, NetworkMap},
    relay,
    status::Status,
    stream, stun,
    token::JoinToken,
};

/// Longest file of the corpus, in bytes: enough for a network map of a few nodes and its deltas.
pub const MAX_INPUT_LEN: usize = 1024;

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target, by the name of its binary and of its corpus.
pub const TARGETS: [(&str, Target); 12] = [
    ("control", control),
    ("demux", demux),
    ("disco", disco),
    ("frame", frame),
    ("key", key),
    ("name", name),
    ("netmap", netmap),
    ("relay", relay),
    ("status", status),
    ("stream", stream),
    ("stun", stun),
    ("token", token),
];

/// Reads the JSON of a control message, from either side.
pub fn control(data: &[u8]) {
    check_json::<ClientMessage>(data);
    check_json::<ServerMessage>(data);
}

/// Classifies a datagram, which must agree with what the parsers accept.
pub fn demux(data: &[u8]) {
    let kind = demux::classify(data);
    for (accepted, by) in [
        (stun::Message::decode(data).is_ok(), DatagramKind::Stun),
        (disco::Header::decode(data).is_ok(), DatagramKind::Disco),
        (relay::Frame::decode(data).is_ok(), DatagramKind::Relay),
    ] {
        assert!(!accepted || kind == by, "a {by:?} message is taken for {kind:?}");
    }
}

/// Reads a disco datagram, and a body as if it had been opened.
pub fn disco(data: &[u8]) {
    if let Ok((header, sealed)) = disco::Header::decode(data) {
        assert_eq!([&header.encode()[..], sealed].concat(), data);
    }
    if let Ok(message) = disco::Message::decode(data) {
        check_same(&disco::Message::decode(&message.encode()), &Ok(message));
    }
}

/// Cuts a byte stream into messages, the same ones however it arrives.
pub fn frame(data: &[u8]) {
    let whole = read_stream::<ServerMessage>([data]);
    let (first, rest) = data.split_at(data.len() / 2);
    check_same(&read_stream::<ServerMessage>([first, rest]), &whole);
    check_same(&read_stream::<ServerMessage>(data.chunks(1)), &whole);
}

/// Reads the text forms of keys and pins, and a DER SubjectPublicKeyInfo.
pub fn key(data: &[u8]) {
    if let Some(key) = NodeKey::from_spki(data) {
        assert_eq!(key.to_spki(), data);
    }
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(key) = text.parse::<NodeKey>() {
        assert_eq!(key.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(key) = text.parse::<PublicKey>() {
        assert_eq!(key.to_string(), text);
    }
    if let Ok(pin) = text.parse::<KeyPin>() {
        assert_eq!(pin.to_string(), text.to_ascii_lowercase());
    }
}

/// Reads a node name, which must be harmless in paths, host names and terminals.
pub fn name(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(name) = text.parse::<NodeName>() {
        assert_eq!(name.as_str(), text);
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
        assert!(!text.starts_with('-'), "a name is never taken for a flag");
    }
}

/// Reads a network map and deltas, `[map, delta, …]`, and applies them.
pub fn netmap(data: &[u8]) {
    check_json::<(NetworkMap, Vec<MapDelta>)>(data);
    let Ok((mut map, deltas)) = serde_json::from_slice::<(NetworkMap, Vec<MapDelta>)>(data) else { return };
    for delta in deltas {
        let (before, to) = (map.clone(), delta.to);
        match map.apply(delta) {
            Ok(()) => {
                assert!(map.version == to && to >= before.version);
                assert!(map.peers.is_sorted_by(|a, b| a.id < b.id), "peers are in order, each once");
                assert!(map.peers.iter().all(|peer| peer.id != map.this.id), "no node is its own peer");
            }
            Err(_) => check_same(&map, &before),
        }
    }
}

/// Reads a relay frame.
pub fn relay(data: &[u8]) {
    if let Ok(frame) = relay::Frame::decode(data) {
        let encoded = frame.encode();
        assert!(encoded.len() <= data.len());
        check_same(&relay::Frame::decode(&encoded), &Ok(frame));
    }
}

/// Reads the JSON of `meshctl status`.
pub fn status(data: &[u8]) {
    let Ok(status) = serde_json::from_slice::<Status>(data) else { return };
    // Not compared: reading a fraction may be off by its last bit.
    let _: Status = write_and_read(&status);
}

/// Reads the frames of a byte pipe, which take what they say they take and no more.
pub fn stream(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some((frame, len))) = stream::Frame::decode(rest) {
        let (taken, left) = rest.split_at(len);
        check_same(&stream::Frame::decode(taken), &Ok(Some((frame, len))));
        assert!(matches!(stream::Frame::decode(&taken[..len - 1]), Ok(None)), "a part of a frame is none");
        let again = match frame {
            stream::Frame::Control(piece) => [&stream::control_header(piece.len())[..], piece].concat(),
            stream::Frame::Relay { stride, frames } => {
                [&stream::relay_header(stride, frames.len())[..], frames].concat()
            }
            stream::Frame::Unknown(_) => taken.to_vec(),
        };
        check_same(&stream::Frame::decode(&again), &Ok(Some((frame, len))));
        rest = left;
    }
}

/// Reads a STUN message.
pub fn stun(data: &[u8]) {
    if let Ok(message) = stun::Message::decode(data) {
        let encoded = message.encode();
        assert_eq!(demux::classify(&encoded), DatagramKind::Stun);
        check_same(&stun::Message::decode(&encoded), &Ok(message));
    }
}

/// Reads a join token, whose secret must not show.
pub fn token(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(*token.reveal(), text);
        let secret = text.rsplit('.').next().unwrap_or_default();
        assert!(!format!("{token:?}").contains(secret));
    }
}

fn check_same<T: PartialEq + Debug>(again: &T, value: &T) {
    assert_eq!(again, value, "what was written reads as another value");
}

/// Reads a document and checks that what is written of it reads as the same.
fn check_json<T: Serialize + DeserializeOwned>(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(data) else { return };
    check_same(&write(&write_and_read(&value)), &write(&value));
}

fn write<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("what was read can be written")
}

fn write_and_read<T: Serialize + DeserializeOwned>(value: &T) -> T {
    serde_json::from_str(&write(value)).expect("what was written can be read")
}

/// Reads a stream that arrives in parts: its messages as JSON, and why it ended if it had to.
fn read_stream<'a, T: Serialize + DeserializeOwned>(
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<String>, Option<String>) {
    let mut decoder = frame::Decoder::default();
    let mut messages = Vec::new();
    for part in parts {
        decoder.handle_bytes(part);
        loop {
            match decoder.poll_message::<T>() {
                Ok(Some(message)) => messages.push(write(&message)),
                Ok(None) => break,
                Err(error) => return (messages, Some(error.to_string())),
            }
        }
    }
    (messages, None)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use proptest::{prelude::*, sample::Index};

    use super::*;

    fn fuzz_folder() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    /// Reads a target's corpus, in the order of its file names.
    fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let folder = fuzz_folder().join("corpus").join(target);
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "{} is empty", folder.display());
        paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    #[test]
    fn the_corpus_is_replayed() {
        for (name, target) in TARGETS {
            for (path, data) in corpus(name) {
                assert!(data.len() <= MAX_INPUT_LEN, "{} is too long", path.display());
                println!("{}", path.display());
                target(&data);
            }
        }
    }

    #[test]
    fn every_target_has_a_binary_and_every_corpus_a_target() {
        let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
        for (name, _) in TARGETS {
            assert!(manifest.contains(&format!("name = \"{name}\"\n")), "Cargo.toml does not name {name}");
            let source = fs::read_to_string(fuzz_folder().join(format!("fuzz_targets/{name}.rs"))).unwrap();
            assert!(source.contains(&format!("fuzz::{name}(data)")), "{name}.rs runs another target");
        }
        for entry in fs::read_dir(fuzz_folder().join("corpus")).unwrap() {
            let folder = entry.unwrap().file_name();
            assert!(TARGETS.iter().any(|(name, _)| folder == *name), "{} has no target", folder.display());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..MAX_INPUT_LEN)) {
            for (_, target) in TARGETS {
                target(&data);
            }
        }

        #[test]
        fn a_mutated_corpus_is_survived(
            target in prop::sample::select(&TARGETS[..]),
            file in any::<Index>(),
            bytes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
            cut in prop::option::of(any::<Index>()),
            tail in prop::collection::vec(any::<u8>(), 0..24),
        ) {
            let (name, target) = target;
            let (_, mut data) = file.get(&corpus(name)).clone();
            data.extend(tail);
            if let Some(cut) = cut {
                data.truncate(cut.index(data.len() + 1));
            }
            for (place, byte) in bytes {
                if !data.is_empty() {
                    let place = place.index(data.len());
                    data[place] = byte;
                }
            }
            target(&data);
        }
    }
}
