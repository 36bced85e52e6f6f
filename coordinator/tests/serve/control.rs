//! The control protocol through real QUIC: joining, maps, presence, calls, and clients that misbehave.

use std::time::{Duration, Instant};

use mesh_proto::{
    candidate::{Candidate, CandidateKind, MAX_CANDIDATES},
    control::{ClientMessage, InstanceId, PeerState, RefusalCode, ServerMessage},
    key::KeyPin,
    netmap::{NodeId, RelayId, Version},
    route::{RouteAnswer, RouteKind, RouteOffer, RouteState},
    token::JoinToken,
};

use super::rig::{Agent, Client, Rig, client_config, dial, join_message, within};

fn candidate(port: u16) -> Candidate {
    Candidate { address: ([192, 0, 2, 1], port).into(), kind: CandidateKind::Host }
}

fn state_of(message: &ServerMessage, id: NodeId) -> Option<PeerState> {
    match message {
        ServerMessage::PeerStates { peers } => peers.iter().find(|peer| peer.id == id).cloned(),
        _ => None,
    }
}

#[tokio::test]
async fn a_second_join_is_a_delta_for_the_first_node() {
    let rig = Rig::start().await;
    let (first, second) = (Agent::new("home-a"), Agent::new("home-b"));
    let joined = rig.join(&first).await;
    let (mut client, mut map) = rig.connect(&first).await;
    assert_eq!(map.this, joined);
    assert!(map.peers.is_empty());
    assert_eq!(map.relays.iter().map(|relay| relay.id).collect::<Vec<_>>(), [RelayId(0)]);

    let other = rig.join(&second).await;
    let delta = client
        .hear_until(|message| match message {
            ServerMessage::Delta { delta } => Some(delta.clone()),
            _ => None,
        })
        .await;
    map.apply(delta).unwrap();
    assert_eq!(map.peers, [other]);
    rig.server.stop().await;
}

#[tokio::test]
async fn a_join_can_be_repeated_and_uses_up_nothing() {
    let rig = Rig::start().await;
    let agent = Agent::new("pi");
    let token = rig.token(1).await;
    let first = rig.hello(&agent).await.join(&agent, token.clone()).await;
    let again = rig.hello(&agent).await.join(&agent, token.clone()).await;
    assert_eq!(first, again);
    let other = Agent::new("other");
    let mut client = rig.hello(&other).await;
    client.say(&join_message(&other, token)).await;
    assert_eq!(client.hear_refusal().await, RefusalCode::Token);
    rig.server.stop().await;
}

#[tokio::test]
async fn a_client_that_has_the_latest_map_gets_only_what_it_missed() {
    let rig = Rig::start().await;
    let agent = Agent::new("pi");
    rig.join(&agent).await;
    let (client, map) = rig.connect(&agent).await;
    drop(client);
    let reconnect = async |map: Option<Version>| {
        let mut client = rig.hello(&agent).await;
        client.say(&ClientMessage::Connect { public_key: agent.public_key, map, instance: None }).await;
        client.say(&ClientMessage::Ping { id: 5 }).await;
        client
    };
    let mut client = reconnect(Some(map.version)).await;
    client
        .hear_until(|message| match message {
            ServerMessage::Map { .. } | ServerMessage::Delta { .. } => panic!("nothing was missed"),
            ServerMessage::Pong { id: 5, .. } => Some(()),
            _ => None,
        })
        .await;
    rig.join(&Agent::new("office")).await;
    let mut client = reconnect(Some(map.version)).await;
    match client.hear().await {
        ServerMessage::Delta { delta } => assert_eq!((delta.from, delta.changed.len()), (map.version, 1)),
        other => panic!("expected a delta, got {other:?}"),
    }
    let mut client = reconnect(Some(Version { epoch: 77, serial: 1 })).await;
    assert!(matches!(client.hear().await, ServerMessage::Map { .. }), "another epoch: the whole map");
    client.say(&ClientMessage::Resync).await;
    client.hear_until(|message| matches!(message, ServerMessage::Map { .. }).then_some(())).await;
    rig.server.stop().await;
}

#[tokio::test]
async fn removals_are_said_before_a_whole_map_that_lacks_the_nodes() {
    let rig = Rig::start().await;
    let (agent, lost) = (Agent::new("pi"), Agent::new("lost"));
    rig.join(&agent).await;
    let lost = rig.join(&lost).await;
    rig.server.registry().remove_node(&lost.name).await.unwrap();
    let now = rig.server.registry().version();
    // Of what was so long ago no changes are known.
    let first = Version { serial: 0, ..now };
    let mut client = rig.hello(&agent).await;
    let map = Some(first);
    client.say(&ClientMessage::Connect { public_key: agent.public_key, map, instance: None }).await;
    match client.hear().await {
        ServerMessage::Delta { delta } => {
            assert_eq!((delta.from, delta.to), (first, first));
            assert_eq!((delta.removed, delta.changed.len()), (vec![lost.id], 0));
        }
        other => panic!("expected the removal, got {other:?}"),
    }
    match client.hear().await {
        ServerMessage::Map { map } => assert_eq!(map.version, now),
        other => panic!("expected a map, got {other:?}"),
    }
    rig.server.stop().await;
}

#[tokio::test]
async fn peers_learn_of_each_other_and_of_an_end_and_addresses_are_remembered() {
    let rig = Rig::start().await;
    let (first, second) = (Agent::new("home-a"), Agent::new("home-b"));
    let (first_id, second_id) = (rig.join(&first).await.id, rig.join(&second).await.id);
    let (mut one, _) = rig.connect(&first).await;
    let offline = one.hear_until(|message| state_of(message, second_id)).await;
    assert!(!offline.online);

    let (mut two, _) = rig.connect(&second).await;
    assert!(two.hear_until(|message| state_of(message, first_id)).await.online);
    assert!(one.hear_until(|message| state_of(message, second_id)).await.online);

    let many: Vec<Candidate> = (1..=100).map(candidate).collect();
    two.say(&ClientMessage::Candidates { candidates: many.clone(), relays: vec![RelayId(0)], home: None })
        .await;
    let state = one.hear_until(|message| state_of(message, second_id)).await;
    assert_eq!(state.candidates, many[..MAX_CANDIDATES]);
    assert_eq!(state.relays, [RelayId(0)]);

    two.connection.close(0_u32.into(), b"");
    let state = one.hear_until(|message| state_of(message, second_id)).await;
    assert!(!state.online);
    assert_eq!(state.candidates.len(), MAX_CANDIDATES, "where it was last");
    rig.server.stop().await;
}

/// Opens the session of one run of an agent.
async fn connect_as(rig: &Rig, agent: &Agent, run: u8) -> Client {
    let mut client = rig.hello(agent).await;
    let instance = Some(InstanceId([run; 16]));
    client.say(&ClientMessage::Connect { public_key: agent.public_key, map: None, instance }).await;
    client
}

fn is_map(message: &ServerMessage) -> Option<()> {
    matches!(message, ServerMessage::Map { .. }).then_some(())
}

fn question(message: &ServerMessage) -> Option<u64> {
    match message {
        ServerMessage::AreYouThere { id } => Some(*id),
        _ => None,
    }
}

fn refusal(message: &ServerMessage) -> Option<RefusalCode> {
    match message {
        ServerMessage::Refused(refusal) => Some(refusal.code),
        _ => None,
    }
}

#[tokio::test]
async fn of_two_agents_with_the_same_keys_the_first_one_stays() {
    let rig = Rig::start().await;
    let agent = Agent::new("twin");
    rig.join(&agent).await;
    let mut first = connect_as(&rig, &agent, 1).await;
    first.hear_until(is_map).await;
    for _ in 0..3 {
        let mut second = connect_as(&rig, &agent, 2).await;
        let id = first.hear_until(question).await;
        first.say(&ClientMessage::StillHere { id }).await;
        assert_eq!(second.hear_until(refusal).await, RefusalCode::Duplicate);
        first.hear_until(|message| matches!(message, ServerMessage::Copied).then_some(())).await;
    }
    // A connection of its own replaces it at once, without a question.
    let mut roamed = connect_as(&rig, &agent, 1).await;
    roamed.hear_until(is_map).await;
    assert_eq!(first.hear_until(refusal).await, RefusalCode::Replaced);
    rig.server.stop().await;
}

#[tokio::test]
async fn a_copy_does_not_take_over_from_an_agent_that_is_silent_for_a_moment() {
    let rig = Rig::start().await;
    let agent = Agent::new("twin");
    rig.join(&agent).await;
    let mut first = connect_as(&rig, &agent, 1).await;
    first.hear_until(is_map).await;
    let mut copy = connect_as(&rig, &agent, 2).await;
    let id = first.hear_until(question).await;
    first.say(&ClientMessage::StillHere { id }).await;
    assert_eq!(copy.hear_until(refusal).await, RefusalCode::Duplicate);
    // It comes again while the first one is between two networks.
    let mut copy = connect_as(&rig, &agent, 2).await;
    let id = first.hear_until(question).await;
    let taken = tokio::time::timeout(Duration::from_secs(3), copy.hear_until(is_map)).await;
    assert!(taken.is_err(), "twice as long as a restarted agent waits");
    first.say(&ClientMessage::StillHere { id }).await;
    assert_eq!(copy.hear_until(refusal).await, RefusalCode::Duplicate);
    // Only once it is gone.
    let mut copy = connect_as(&rig, &agent, 2).await;
    first.hear_until(question).await;
    first.connection.close(0_u32.into(), b"");
    copy.hear_until(is_map).await;
    rig.server.stop().await;
}

#[tokio::test]
async fn a_restarted_agent_takes_over_from_one_that_is_silent_or_gone() {
    let rig = Rig::start().await;
    let agent = Agent::new("restarted");
    rig.join(&agent).await;
    let mut silent = connect_as(&rig, &agent, 1).await;
    silent.hear_until(is_map).await;
    let mut second = connect_as(&rig, &agent, 2).await;
    silent.hear_until(question).await;
    second.hear_until(is_map).await;
    assert_eq!(silent.hear_until(refusal).await, RefusalCode::Replaced);
    // The next one does not have to wait for an answer: the older connection ends.
    let mut third = connect_as(&rig, &agent, 3).await;
    second.hear_until(question).await;
    second.connection.close(0_u32.into(), b"");
    third.hear_until(is_map).await;
    rig.server.stop().await;
}

#[tokio::test]
async fn routes_that_are_offered_are_answered_once() {
    let rig = Rig::start().await;
    let agent = Agent::new("office");
    rig.join(&agent).await;
    let (mut client, _) = rig.connect(&agent).await;
    let offer = |prefix: &str| RouteOffer { prefix: prefix.parse().unwrap(), kind: RouteKind::Subnet };
    // New, the same again, and none.
    for routes in [vec![offer("192.168.7.0/24")], vec![offer("192.168.7.0/24")], vec![]] {
        let offered = routes.len();
        client.say(&ClientMessage::Advertise { routes }).await;
        client.say(&ClientMessage::Ping { id: 6 }).await;
        let mut answers = Vec::new();
        client
            .hear_until(|message| match message {
                ServerMessage::Routes { routes } => {
                    answers.push(routes.len());
                    None
                }
                ServerMessage::Pong { id: 6, .. } => Some(()),
                _ => None,
            })
            .await;
        assert_eq!(answers, [offered]);
    }
    // What the operator says of them is told without being asked for.
    client.say(&ClientMessage::Advertise { routes: vec![offer("192.168.7.0/24")] }).await;
    let approved = "192.168.7.0/24".parse().unwrap();
    client.hear_until(|message| matches!(message, ServerMessage::Routes { .. }).then_some(())).await;
    rig.server.registry().approve_route(&"office".parse().unwrap(), approved).await.unwrap();
    let is_approved = |routes: &[RouteAnswer]| routes[0].state == RouteState::Approved;
    client
        .hear_until(|message| match message {
            ServerMessage::Routes { routes } => is_approved(routes).then_some(()),
            _ => None,
        })
        .await;
    rig.server.stop().await;
}

#[tokio::test]
async fn a_client_that_is_killed_is_noticed() {
    let rig = Rig::start().await;
    let (victim, watcher) = (Agent::new("victim"), Agent::new("watcher"));
    let victim_id = rig.join(&victim).await.id;
    rig.join(&watcher).await;
    let (mut watch, _) = rig.connect(&watcher).await;
    // The victim lives in a runtime of its own, which is torn down without a word on the wire.
    let (address, pin) = (rig.address(), rig.server.pin());
    let (connected, is_connected) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.spawn(async move {
        let mut client = Client::dial(address, &victim, pin).await.unwrap();
        client.hello().await;
        client
            .say(&ClientMessage::Connect { public_key: victim.public_key, map: None, instance: None })
            .await;
        client.hear().await;
        connected.send(()).unwrap();
        std::mem::forget(client);
    });
    within(is_connected).await.unwrap();
    let online = |state: &PeerState| state.online;
    watch.hear_until(|message| state_of(message, victim_id).filter(online)).await;
    runtime.shutdown_background();
    let started = Instant::now();
    let gone = async {
        while let Some(message) = watch.try_hear_within(Duration::from_secs(25)).await {
            if state_of(&message, victim_id).is_some_and(|state| !state.online) {
                return true;
            }
        }
        false
    };
    assert!(gone.await, "noticed after {:?}", started.elapsed());
    rig.server.stop().await;
}

#[tokio::test]
async fn a_call_is_forwarded_with_its_sender_and_not_without_end() {
    let rig = Rig::start().await;
    let (first, second) = (Agent::new("home-a"), Agent::new("home-b"));
    let (first_id, second_id) = (rig.join(&first).await.id, rig.join(&second).await.id);
    let (mut one, _) = rig.connect(&first).await;
    let (mut two, _) = rig.connect(&second).await;
    for _ in 0..100 {
        one.say(&ClientMessage::CallMeMaybe { to: second_id, candidates: vec![candidate(9)] }).await;
    }
    one.say(&ClientMessage::CallMeMaybe { to: NodeId(99), candidates: vec![] }).await;
    one.say(&ClientMessage::CallMeMaybe { to: first_id, candidates: vec![] }).await;
    one.say(&ClientMessage::Ping { id: 1 }).await;
    one.hear_until(|message| matches!(message, ServerMessage::Pong { id: 1, .. }).then_some(())).await;
    two.say(&ClientMessage::Ping { id: 2 }).await;
    let mut calls = 0;
    two.hear_until(|message| match message {
        ServerMessage::CallMeMaybe { from, candidates } => {
            assert_eq!((*from, &candidates[..]), (first_id, &[candidate(9)][..]));
            calls += 1;
            None
        }
        ServerMessage::Pong { id: 2, .. } => Some(()),
        _ => None,
    })
    .await;
    assert!((1..=10).contains(&calls), "{calls} calls");
    rig.server.stop().await;
}

#[tokio::test]
async fn the_newest_connection_of_a_node_wins() {
    let rig = Rig::start().await;
    let (agent, watcher) = (Agent::new("twin"), Agent::new("watcher"));
    let twin_id = rig.join(&agent).await.id;
    rig.join(&watcher).await;
    let (mut watch, _) = rig.connect(&watcher).await;
    let (mut older, _) = rig.connect(&agent).await;
    assert!(watch.hear_until(|message| state_of(message, twin_id).filter(|state| state.online)).await.online);
    let (mut newer, _) = rig.connect(&agent).await;
    assert_eq!(older.hear_refusal().await, RefusalCode::Replaced);
    newer.say(&ClientMessage::Ping { id: 3 }).await;
    newer.hear_until(|message| matches!(message, ServerMessage::Pong { id: 3, .. }).then_some(())).await;
    watch.say(&ClientMessage::Ping { id: 4 }).await;
    watch
        .hear_until(|message| {
            assert!(state_of(message, twin_id).is_none_or(|state| state.online), "it was never offline");
            matches!(message, ServerMessage::Pong { id: 4, .. }).then_some(())
        })
        .await;
    rig.server.stop().await;
}

#[tokio::test]
async fn a_removed_node_is_cut_off_and_peers_are_told() {
    let rig = Rig::start().await;
    let (agent, watcher) = (Agent::new("lost"), Agent::new("watcher"));
    let lost = rig.join(&agent).await;
    rig.join(&watcher).await;
    let (mut watch, _) = rig.connect(&watcher).await;
    let (mut client, _) = rig.connect(&agent).await;
    rig.server.registry().remove_node(&lost.name).await.unwrap();
    assert_eq!(client.hear_refusal().await, RefusalCode::NotRegistered);
    let removed = watch
        .hear_until(|message| match message {
            ServerMessage::Delta { delta } => Some(delta.removed.clone()),
            _ => None,
        })
        .await;
    assert_eq!(removed, [lost.id]);
    let mut client = rig.hello(&agent).await;
    client.say(&ClientMessage::Connect { public_key: agent.public_key, map: None, instance: None }).await;
    assert_eq!(client.hear_refusal().await, RefusalCode::NotRegistered);
    rig.server.stop().await;
}

#[tokio::test]
async fn every_bad_token_gets_the_same_answer_and_guessing_is_slowed_down() {
    let rig = Rig::start().await;
    let agent = Agent::new("guesser");
    let good = rig.token(1).await;
    let mut wrong_secret = good.reveal().to_string();
    let last = if wrong_secret.pop() == Some('0') { '1' } else { '0' };
    wrong_secret.push(last);
    let unknown = JoinToken::from_random([7; 5], [7; 16]);
    let mut answers = Vec::new();
    for token in [wrong_secret.parse().unwrap(), unknown.clone()] {
        let mut client = rig.hello(&agent).await;
        client.say(&join_message(&agent, token)).await;
        answers.push(match client.hear().await {
            ServerMessage::Refused(refusal) => refusal,
            other => panic!("expected a refusal, got {other:?}"),
        });
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].code, RefusalCode::Token);
    let busy = async {
        loop {
            let mut client = rig.hello(&agent).await;
            client.say(&join_message(&agent, unknown.clone())).await;
            match client.hear().await {
                ServerMessage::Refused(refusal) if refusal.code == RefusalCode::Busy => return refusal,
                ServerMessage::Refused(refusal) => assert_eq!(refusal.code, RefusalCode::Token),
                other => panic!("expected a refusal, got {other:?}"),
            }
        }
    };
    assert!(within(busy).await.retry_after_ms.is_some_and(|wait| wait > 0));
    rig.server.stop().await;
}

#[tokio::test]
async fn a_one_use_token_that_two_use_at_once_admits_one() {
    let rig = Rig::start().await;
    for round in 0..20 {
        let agents = [Agent::new(&format!("a{round}")), Agent::new(&format!("b{round}"))];
        let token = rig.token(1).await;
        let (mut one, mut two) = (rig.hello(&agents[0]).await, rig.hello(&agents[1]).await);
        one.say(&join_message(&agents[0], token.clone())).await;
        two.say(&join_message(&agents[1], token)).await;
        let joined = [one.hear().await, two.hear().await]
            .into_iter()
            .filter(|message| matches!(message, ServerMessage::Joined { .. }))
            .count();
        assert_eq!(joined, 1, "round {round}");
    }
    rig.server.stop().await;
}

#[tokio::test]
async fn a_wrong_pin_or_alpn_never_gets_to_say_anything() {
    let rig = Rig::start().await;
    let agent = Agent::new("pi");
    let wrong = KeyPin([9; 32]);
    assert!(Client::dial(rig.address(), &agent, wrong).await.is_err());
    let config = client_config(&agent, rig.server.pin(), |tls| tls.alpn_protocols = vec![b"h3".to_vec()]);
    assert!(dial(rig.address(), config).await.is_err());
    rig.hello(&agent).await;
    rig.server.stop().await;
}

#[tokio::test]
async fn nonsense_is_refused_and_the_rest_is_served() {
    let rig = Rig::start().await;
    let agent = Agent::new("pi");
    rig.join(&agent).await;
    let oversized = u32::MAX.to_be_bytes().to_vec();
    let not_json = [&8_u32.to_be_bytes()[..], b"not json"].concat();
    let not_hello = mesh_proto::control::frame::encode(&ClientMessage::Resync).unwrap();
    for first in [&oversized, &not_json, &not_hello] {
        let mut client = Client::dial(rig.address(), &agent, rig.server.pin()).await.unwrap();
        client.send.write_all(first).await.unwrap();
        assert_eq!(client.hear_refusal().await, RefusalCode::Protocol);
    }
    let mut stranger = rig.hello(&agent).await;
    stranger.send.write_all(&(1_u32 << 20).to_be_bytes()).await.unwrap();
    let _ = stranger.send.write_all(&[b' '; 20_000]).await;
    assert_eq!(stranger.hear_refusal().await, RefusalCode::Protocol, "strangers may say little");

    let (mut client, _) = rig.connect(&agent).await;
    client.send.write_all(&oversized).await.unwrap();
    assert_eq!(client.hear_refusal().await, RefusalCode::Protocol);
    let counted = "mesh_refusals_total{code=\"protocol\"} 5\n";
    assert!(rig.metrics().await.contains(counted), "three first messages, a stranger's and a node's");

    let (mut client, _) = rig.connect(&agent).await;
    client.send.write_all(&[0, 0, 0, 16]).await.unwrap();
    client.send.write_all(br#"{"type":"newer"}"#).await.unwrap();
    client.say(&ClientMessage::Ping { id: 8 }).await;
    client.hear_until(|message| matches!(message, ServerMessage::Pong { id: 8, .. }).then_some(())).await;
    rig.server.stop().await;
}

#[tokio::test]
async fn a_client_that_says_nothing_is_closed_after_the_deadline() {
    let rig = Rig::start().await;
    let agent = Agent::new("silent");
    let started = Instant::now();
    let (_endpoint, silent) =
        dial(rig.address(), client_config(&agent, rig.server.pin(), |_| {})).await.unwrap();
    let mut trickling = Client::dial(rig.address(), &agent, rig.server.pin()).await.unwrap();
    trickling.send.write_all(&[0, 0]).await.unwrap();
    let limit = Duration::from_secs(14);
    tokio::time::timeout(limit, silent.closed()).await.expect("closed");
    tokio::time::timeout(limit, trickling.connection.closed()).await.expect("closed");
    assert!(started.elapsed() > Duration::from_secs(8), "not before its time");
    rig.server.stop().await;
}

#[tokio::test]
async fn a_stop_says_goodbye_and_a_restart_knows_its_nodes() {
    let rig = Rig::start().await;
    let agent = Agent::new("pi");
    let node = rig.join(&agent).await;
    let (mut client, map) = rig.connect(&agent).await;
    let (rig, retry_after) = tokio::join!(
        rig.restart(),
        client.hear_until(|message| match message {
            ServerMessage::Refused(refusal) if refusal.code == RefusalCode::ShuttingDown => {
                Some(refusal.retry_after_ms)
            }
            _ => None,
        })
    );
    assert!(retry_after.is_some());
    let (_client, again) = rig.connect(&agent).await;
    assert_eq!(again.this, node);
    assert!(again.version >= map.version);
    rig.server.stop().await;
}

#[tokio::test]
async fn the_metrics_count_and_name_nobody() {
    let rig = Rig::start().await;
    let agent = Agent::new("secret-name");
    rig.join(&agent).await;
    let (mut client, _) = rig.connect(&agent).await;
    client.say(&ClientMessage::Ping { id: 1 }).await;
    client.hear_until(|message| matches!(message, ServerMessage::Pong { .. }).then_some(())).await;
    let text = rig.metrics().await;
    for line in ["mesh_joins_total 1", "mesh_nodes_online 1", "mesh_refusals_total{code=\"token\"} 0"] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(!text.contains("secret-name"));
    assert!(!text.contains(&agent.identity.node_key.to_string()));
    rig.server.stop().await;
}
