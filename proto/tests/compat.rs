//! An old reader reads what a newer writer says: unknown fields and unknown variants.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::SocketAddr;

use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    control::{
        ClientMessage, ServerMessage,
        frame::{Decoder, encode},
    },
    netmap::{NodeId, RelayId},
};
use serde::Serialize;

fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> T {
    let mut decoder = Decoder::default();
    decoder.handle_bytes(bytes);
    decoder.poll_message().unwrap().unwrap()
}

#[derive(Serialize)]
struct Envelope<B> {
    r#type: &'static str,
    #[serde(flatten)]
    body: B,
}

#[derive(Serialize)]
struct NewPing {
    id: u64,
    colour: &'static str,
}

#[derive(Serialize)]
struct NewCandidate {
    address: SocketAddr,
    kind: &'static str,
    weight: u8,
}

#[derive(Serialize)]
struct NewCallMeMaybe {
    from: u32,
    candidates: Vec<NewCandidate>,
    urgency: Option<u8>,
}

#[test]
fn unknown_fields_are_ignored() {
    let bytes = encode(&Envelope { r#type: "ping", body: NewPing { id: 3, colour: "red" } }).unwrap();
    assert!(matches!(read(&bytes), ClientMessage::Ping { id: 3 }));
}

#[test]
fn unknown_variants_become_unknown() {
    let bytes = encode(&Envelope { r#type: "teleport", body: NewPing { id: 3, colour: "red" } }).unwrap();
    assert!(matches!(read(&bytes), ClientMessage::Unknown));
    assert!(matches!(read(&bytes), ServerMessage::Unknown));
}

#[test]
fn unknown_candidate_kinds_are_kept_as_unknown() {
    let address = "192.0.2.1:5".parse().unwrap();
    let candidates = vec![NewCandidate { address, kind: "quantum", weight: 9 }];
    let body = NewCallMeMaybe { from: 4, candidates, urgency: Some(1) };
    let ServerMessage::CallMeMaybe { from, candidates } =
        read(&encode(&Envelope { r#type: "call_me_maybe", body }).unwrap())
    else {
        panic!("not a CallMeMaybe");
    };
    assert_eq!(from, NodeId(4));
    assert_eq!(candidates, [Candidate { address, kind: CandidateKind::Unknown }]);
}

#[test]
fn addresses_survive_the_envelope() {
    let candidates = vec![
        Candidate { address: "192.0.2.1:5".parse().unwrap(), kind: CandidateKind::Host },
        Candidate { address: "[2001:db8::1]:5".parse().unwrap(), kind: CandidateKind::PortMapped },
    ];
    let message = ClientMessage::Candidates { candidates: candidates.clone(), relays: vec![RelayId(0)] };
    let ClientMessage::Candidates { candidates: got, .. } = read(&encode(&message).unwrap()) else {
        panic!("not Candidates");
    };
    assert_eq!(got, candidates);
}
